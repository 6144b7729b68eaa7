"""Bytes of a train step on one device, by formula: where the search for a microbatch starts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from cramjax.budget import estimate
from cramjax.config.replaced_tokens import OBJECTIVE, generator_sizes
from cramjax.config.resolve import changed
from cramjax.config.views import Config


def state_bytes(params: Any, state: Any) -> dict[str, int]:
    """Returns the bytes of "parameters" and "optimizer" (the rest of the state) on one device.

    Args:
        params: tree of abstract arrays with shardings; a part of `state`, the tree of all arrays.
    """
    held = _bytes_of(params)
    return {"parameters": held, "optimizer": _bytes_of(state) - held}


def step_bytes(
    config: Config,
    state: dict[str, int],
    n_sequences: int,
    *,
    n_targets: int,
    vocab_size: int,
    itemsize: int,
    fused: bool,
) -> int:
    """Returns the bytes of a step with `n_sequences` a pass on each device.

    The estimate is linear in `n_sequences`, and 0 sequences give its fixed part.

    Args:
        state: as from `state_bytes`.
        n_targets: positions of a sequence that reach the loss.
        vocab_size: rows of the network's embedding. A tokenizer from outside may have more entries
            than `data.vocab_size` says.
        itemsize: bytes of a number in the step's precision.
        fused: the attention kernel keeps no matrix of positions by positions.
    """
    per_sequence = estimate.activation_bytes(
        config.model,
        n_tokens=config.data.seq_len,
        n_targets=n_targets,
        vocab_size=vocab_size,
        itemsize=itemsize,
        fused=fused,
    )

    if config.objective.name == OBJECTIVE:
        # The targets are the generator's, which those above are counted for.
        sizes = dataclasses.asdict(generator_sizes(config))
        small = changed(config, {f"model.{key}": size for key, size in sizes.items()})
        per_sequence += estimate.activation_bytes(
            small.model,
            n_tokens=config.data.seq_len,
            n_targets=0,
            vocab_size=vocab_size,
            itemsize=itemsize,
            fused=fused,
        )

    # Gradients lie like their parameters, which are float32.
    working = estimate.working_bytes(state["parameters"] // 4, itemsize)
    return sum(state.values()) + working + n_sequences * per_sequence


def _bytes_of(tree: Any) -> int:
    """Returns the bytes of `tree` on one of the devices that share it."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        local_shape = leaf.sharding.shard_shape(leaf.shape)
        total += math.prod(local_shape) * leaf.dtype.itemsize
    return total
