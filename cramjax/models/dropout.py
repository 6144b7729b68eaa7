"""Dropout by a hash of a seed and a place: the same in both passes and in every kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

_GOLDEN = 0x9E3779B1  # 2^32 over the golden ratio, odd: spreads neighbouring places apart


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Returns `x` with a share `rate` of its elements zeroed and the others scaled up.

    Without a key it returns `x`. Each row along the last axis draws a seed, and each element hashes
    the seed with its place. The backward pass does so again: neither random words nor a mask pass
    through memory. A draw of the same length by JAX's generator, two elements a word, takes twice
    as long on a CPU.
    """
    if key is None or _threshold(rate) == 0:
        return x
    return _drop(x, jax.random.bits(key, x.shape[:-1], jnp.uint32), rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: jax.Array, seeds: jax.Array, rate: float) -> jax.Array:
    numbers = jax.lax.broadcasted_iota(jnp.uint32, x.shape, x.ndim - 1)
    factors = kept(numbers, seeds[..., None], rate)
    # Left to itself, XLA lays the words out with the last axis first, and transposes activations to
    # suit.
    factors = with_layout_constraint(factors, Layout(tuple(range(x.ndim))))
    return x * factors.astype(x.dtype)


def _drop_forward(x, seeds, rate):
    return _drop(x, seeds, rate), seeds


def _drop_backward(rate, seeds, cotangent):
    return _drop(cotangent, seeds, rate), None


_drop.defvjp(_drop_forward, _drop_backward)


def kept(numbers: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
    """Returns the factors of a dropout, float32: 0 for a share `rate` of `numbers`, else above 1.

    Args:
        numbers: uint32, places under one seed.
        seed: uint32, of a shape that broadcasts.
        rate: the share, rounded to 65,536ths.
    """
    words = _scrambled(numbers * jnp.uint32(_GOLDEN) + seed)
    factor = jnp.float32(65536 / (65536 - _threshold(rate)))
    return jnp.where((words >> 16) >= jnp.uint32(_threshold(rate)), factor, jnp.float32(0.0))


def _threshold(rate: float) -> int:
    return round(rate * 65536)


def _scrambled(words: jax.Array) -> jax.Array:
    """Returns `words` mixed so that each bit depends on all ("lowbias32" of hash-prospector)."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x7FEB352D)
    words = (words ^ (words >> 15)) * jnp.uint32(0x846CA68B)
    return words ^ (words >> 16)
