"""T5's relative positions: buckets of distances, and a learned bias on the scores for each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models.attention import MASKED_SCORE
from cramjax.models.module import param


class RelativeBias(nnx.Module):
    """A number for each head and bucket of distances, added to the scores.

    See arXiv 1910.10683, section 2.1.
    """

    def __init__(self, cfg, rngs: nnx.Rngs, *, bidirectional: bool):
        self.cfg, self.bidirectional = cfg, bidirectional
        init = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        self.table = param(init, rngs, (cfg.relative_buckets, cfg.n_heads), (ax.BUCKET, ax.HEADS))

    def __call__(self, length: int, kv_length: int) -> jax.Array:
        """Returns float32 [1, heads, length, kv_length]; a decoder's is for causal attention."""
        by_distance = self._by_distance(length, kv_length)  # [heads, distances]

        # Entry [i, j] is by_distance[j - i + length - 1]: in `length` copies one after the other,
        # each next row starts one earlier. These are reshapes alone, since the gradient of a gather
        # would be a scatter.
        n_distances = length + kv_length - 1
        copies = jnp.broadcast_to(by_distance[:, None], (by_distance.shape[0], length, n_distances))
        flat = copies.reshape((-1, length * n_distances))[:, length - 1 : -1]
        if length > 1:
            shifted = flat.reshape((-1, length, n_distances - 1))
        else:
            shifted = by_distance[:, None]  # one row: nothing to shift
        return shifted[None, :, :, :kv_length]

    def row(self, index: jax.Array, kv_length: int) -> jax.Array:
        """Returns row `index` (int32 scalar) of the square bias: float32 [1, heads, 1, kv_length].

        In a decoder, keys after `index` get a score so low that no probability is left.
        """
        by_distance = self._by_distance(kv_length, kv_length)
        row = jax.lax.dynamic_slice_in_dim(by_distance, kv_length - 1 - index, kv_length, axis=1)
        if not self.bidirectional:
            row = jnp.where(jnp.arange(kv_length)[None] <= index, row, MASKED_SCORE)
        return row[None, :, None]

    def _by_distance(self, length: int, kv_length: int) -> jax.Array:
        """Returns [heads, length + kv_length - 1], the bias by distance.

        The key is 1 - length, …, kv_length - 1 positions after the query.
        """
        distances = np.arange(1 - length, kv_length)
        buckets = relative_buckets(
            distances,
            bidirectional=self.bidirectional,
            n_buckets=self.cfg.relative_buckets,
            max_distance=self.cfg.relative_max_distance,
        )
        return self.table[...][buckets].T


def relative_buckets(
    distances: np.ndarray, *, bidirectional: bool, n_buckets: int, max_distance: int
) -> np.ndarray:
    """Returns the bucket int32 of each of `distances` (key position - query position).

    Half of a direction's buckets are for single distances, half grow logarithmically up to
    `max_distance`. If `bidirectional`, keys after the query have buckets of their own; else they
    share bucket 0, because nothing looks there.
    """
    offset = np.zeros(distances.shape, np.int32)
    if bidirectional:
        n_buckets //= 2
        offset = np.where(distances > 0, n_buckets, 0).astype(np.int32)
        distance = np.abs(distances)
    else:
        distance = np.maximum(-distances, 0)

    n_exact = n_buckets // 2
    # float32 with an epsilon, as in T5X: exact powers must not fall into the bucket below.
    ratio = np.maximum(distance, n_exact).astype(np.float32) / n_exact + np.finfo(np.float32).eps
    steps = np.log(ratio) / np.log(max_distance / n_exact) * (n_buckets - n_exact)
    far = np.minimum(n_exact + steps.astype(np.int32), n_buckets - 1)
    return offset + np.where(distance < n_exact, distance, far).astype(np.int32)
