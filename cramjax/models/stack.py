"""Runs the blocks of a stack one after the other: scan, how far it is unrolled, and what the backward pass recomputes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

# Unrolled, a stack runs up to a third faster on CPU; beyond this depth compile time is worth more.
MAX_UNROLLED_LAYERS = 16

Block = Callable[[jax.Array, Any, Any], jax.Array]


def run(
    block: Block, x: jax.Array, params: Any, keys: Any, *, n_layers: int, unroll: str | int | bool
) -> jax.Array:
    """`x` after `block(x, params of a layer, key of a layer)` for each layer.

    Args:
        params: a tree whose leaves have a leading `layer` axis. keys: one key a layer, or None.
        n_layers: layers of the stack.
        unroll: "auto" (all up to 16 layers, else none), a bool, or a number of blocks.
    """
    x, _ = jax.lax.scan(
        lambda x, layer: (block(x, *layer), None),
        x,
        (params, keys),
        length=n_layers,
        unroll=n_unrolled(n_layers, unroll),
    )
    return x


def n_unrolled(n_layers: int, unroll: str | int | bool) -> int:
    """Blocks in the body of the loop over `n_layers`, for a setting of `unroll` as in `run`; all of them: there is no loop."""
    if unroll == "auto":
        unroll = n_layers <= MAX_UNROLLED_LAYERS
    return min(int(unroll), n_layers) if type(unroll) is int else (n_layers if unroll else 1)


def rematerialize(policy: str) -> Callable[[Block], Block]:
    """What the backward pass recomputes of a block: nothing ("none"), all but the products with weights ("dots"), or "full"."""
    if policy == "none":
        return lambda block: block
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return functools.partial(jax.checkpoint, policy=saved)
