"""Devices to compile for that are not here: JAX's compile-only clients, by XLA's description of a GPU or libtpu's of a TPU slice."""

from __future__ import annotations

import importlib.util

import jax
from jax.experimental import topologies

from cramjax.errors import UserError
from cramjax.planning import cards
from cramjax.planning.cards import Card


def missing(card: Card) -> str | None:
    """The pip line that installs the compiler for `card`; None where it is there."""
    if card.topology:
        return (
            None
            if importlib.util.find_spec("libtpu")
            else f'pip install "jax[tpu]=={jax.__version__}"'
        )
    plugins = importlib.util.find_spec("jax_plugins")
    found = plugins and any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13))
    return None if found else f'pip install "jax[cuda12]=={jax.__version__}"'


def devices(card: Card) -> list[jax.Device]:
    """The devices of `card`, to compile for.

    Raises:
        UserError: where the installed compiler does not know them.
    """
    try:
        if card.topology:
            topology = topologies.get_topology_desc(platform="tpu", topology_name=card.topology)
        else:
            config = cards.target_config(card)
            topology = topologies.get_topology_desc(
                card.name, "cuda", target_config=config, topology="1x1x1"
            )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise UserError(
            f"--device {card.name}: the installed compiler does not know it ({error})"
        ) from error
    return list(topology.devices)
