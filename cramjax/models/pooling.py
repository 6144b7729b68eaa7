"""Shorter sequences: means of neighbouring embeddings in place of tokens that stay visible.

This is the pooling operator of CompoundGrow (arXiv 2010.12562).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def n_pooled(length: int, n_targets: int, size: int) -> int:
    """Returns the number of positions of a sequence after `pool`."""
    return 1 + -(-(length - n_targets - 1) // size) + n_targets


def pool(x: jax.Array, targets: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns the first embedding ([CLS], if a row has one), means of the others, and the targets.

    Args:
        x: [batch, length, embed].
        targets: int [batch, predicted], positions that are in no mean.
        size: embeddings of a mean; the last may have fewer.

    Returns:
        [batch, n_pooled, embed] in the dtype of `x`, and the places in the sequence, or means of
        them: float32 [batch, n_pooled].
    """
    length, n_targets = x.shape[1], targets.shape[1]
    is_target = jax.vmap(lambda at: jnp.zeros((length,), bool).at[at].set(True))(targets)
    # A stable sort puts the others first, in their order: int [batch, length - predicted].
    others = jnp.argsort(is_target, axis=1, stable=True)[:, : length - n_targets]

    def chosen(values: jax.Array, at: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, at.reshape(at.shape + (1,) * (values.ndim - 2)), axis=1)

    def pooled(values: jax.Array) -> jax.Array:
        context = chosen(values, others)
        means = _means(context[:, 1:], size).astype(values.dtype)
        return jnp.concatenate([context[:, :1], means, chosen(values, targets)], axis=1)

    places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.float32)[None], x.shape[:2])
    return pooled(x), pooled(places)


def _means(x: jax.Array, size: int) -> jax.Array:
    """Returns means of every `size` positions: [batch, length, …] → float32 [batch, groups, …]."""
    n_groups = -(-x.shape[1] // size)
    missing = n_groups * size - x.shape[1]
    x32 = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)))
    counts = np.full(n_groups, size, np.float32)
    counts[-1:] -= missing
    sums = x32.reshape((x.shape[0], n_groups, size, *x.shape[2:])).sum(axis=2)
    return sums / counts.reshape((1, n_groups) + (1,) * (x.ndim - 2))
