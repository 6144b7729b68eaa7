"""Shorter sequences by means of neighbouring embeddings, with the tokens to be predicted left alone (CompoundGrow, arXiv 2010.12562)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def n_pooled(length: int, n_targets: int, size: int) -> int:
    """Positions that are left of a sequence after `pool`."""
    return 1 + -(-(length - n_targets - 1) // size) + n_targets


def pool(x: jax.Array, targets: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The first token as it is ([CLS], where there is one), then the mean of every `size` that follow, then the targets as they are.

    Args:
        x: [batch, length, embed]. targets: int [batch, predicted], positions that are in no mean. size: tokens a mean; the last may have
            fewer.

    Returns:
        [batch, n_pooled, embed] of the dtype of `x`, and the places in the sequence, or means of them: float32 [batch, n_pooled].
    """
    length, n_targets = x.shape[1], targets.shape[1]
    is_target = jax.vmap(lambda at: jnp.zeros((length,), bool).at[at].set(True))(targets)
    others = jnp.argsort(is_target, axis=1, stable=True)[:, : length - n_targets]  # in order

    def chosen(values, at):
        return jnp.take_along_axis(values, at.reshape(at.shape + (1,) * (values.ndim - 2)), axis=1)

    def pooled(values):
        context = chosen(values, others)
        means = _means(context[:, 1:], size).astype(values.dtype)
        return jnp.concatenate([context[:, :1], means, chosen(values, targets)], axis=1)

    places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.float32)[None], x.shape[:2])
    return pooled(x), pooled(places)


def _means(x: jax.Array, size: int) -> jax.Array:
    """[batch, length, ...] → float32 means of every `size` positions."""
    n_groups = -(-x.shape[1] // size)
    missing = n_groups * size - x.shape[1]
    wide = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)))
    counts = np.full(n_groups, size, np.float32)
    counts[-1:] -= missing
    sums = wide.reshape((x.shape[0], n_groups, size, *x.shape[2:])).sum(axis=2)
    return sums / counts.reshape((1, n_groups) + (1,) * (x.ndim - 2))
