"""Runs the blocks of a stack one after the other.

It decides how far the loop is unrolled, and what the backward pass recomputes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

# Unrolled, a stack runs up to a third faster on CPU; beyond this depth compile time is worth more.
MAX_UNROLLED_LAYERS = 16

Block = Callable[..., jax.Array]


def run(
    block: Block, x: jax.Array, params: Any, rest: Any, *, n_layers: int, unroll: str | int | bool
) -> jax.Array:
    """Returns `x` after `block(x, layer_params, layer_rest)` for each layer.

    Args:
        block: returns an array of the shape and dtype of `x`.
        x: the input of the first layer.
        params: a tree of arrays with a leading `layer` axis.
        rest: such a tree of whatever else a block reads, for example its dropout key; None in the
            place of an array stays None.
        n_layers: layers of the stack.
        unroll: as for `n_unrolled`.
    """
    x, _ = jax.lax.scan(
        lambda x, layer: (block(x, *layer), None),
        x,
        (params, rest),
        length=n_layers,
        unroll=n_unrolled(n_layers, unroll),
    )
    return x


def n_unrolled(n_layers: int, unroll: str | int | bool) -> int:
    """Returns the number of blocks in the body of the loop; with all of them there is no loop.

    `unroll` is "auto" (all up to 16 layers, else one), a bool (all or one), or a number of blocks.
    """
    if type(unroll) is int:
        return min(unroll, n_layers)
    if unroll == "auto":
        unroll = n_layers <= MAX_UNROLLED_LAYERS
    return n_layers if unroll else 1


def rematerialize(policy: str) -> Callable[[Block], Block]:
    """Returns a decorator that says what the backward pass recomputes of a block.

    `policy` is "none" (nothing), "dots" (all but the products with weights), or "full".
    """
    if policy == "none":
        return lambda block: block
    saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return functools.partial(jax.checkpoint, policy=saved)
