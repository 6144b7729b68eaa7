"""Compile-only JAX devices of cards that are not here.

GPUs come from XLA's description of a card, TPU slices from libtpu.
"""

from __future__ import annotations

import importlib.util
import os

import jax
from jax.experimental import topologies

from cramjax.errors import UserError
from cramjax.models.kernels import Device
from cramjax.planning import cards
from cramjax.planning.cards import Card

_CUDA_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")


def missing(card: Card) -> str | None:
    """Returns the pip line that installs the compiler for `card`, or None if it is installed."""
    if card.topology:
        extra = "tpu"
        is_installed = importlib.util.find_spec("libtpu") is not None
    else:
        extra = "cuda12"
        # Without the parent package, a look for a plugin raises.
        is_installed = importlib.util.find_spec("jax_plugins") is not None and any(
            map(importlib.util.find_spec, _CUDA_PLUGINS)
        )
    return None if is_installed else f'pip install "jax[{extra}]=={jax.__version__}"'


def devices(card: Card) -> list[Device]:
    """Returns the devices of `card`, to compile for.

    Raises:
        UserError: if the installed compiler does not know them.
    """
    try:
        if card.topology:
            # Any process with JAX holds libtpu's lock, also one that trains on a CPU. Compiling
            # for devices that are not here touches none.
            os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
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
