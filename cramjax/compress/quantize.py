"""Quantisation to few bits: symmetric, and zero is exact.

The definition is ours; that of the paper behind it (arXiv 2002.11794) is not in the sources at
hand. A number w becomes the
integer q nearest to w / s, from -(2^(bits-1) - 1) to 2^(bits-1) - 1, so 2 bits use three values.
The scale s is shared by a matrix, by a column of it (an output channel, a token of the
vocabulary), or by some rows of a column. It is a share of the largest |w| / (2^(bits-1) - 1): the
one of `SHARES` with the least squared error. Everything is a pure function of the parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.checkpoints.packed import BITS, Quantized, fold, spread, unfold
from cramjax.compress.matrices import Matrix
from cramjax.errors import UserError

GRANULARITIES = ("tensor", "channel", "group")
SHARES = tuple(np.linspace(1.0, 0.3, 15).round(3).tolist())
"""Shares of the largest number at which the range may end. Clipping a few large numbers makes the
steps finer for all others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Turns parameters into integers.

    Attributes:
        granularity: a scale for each "tensor", "channel" or "group".
        group_size: rows that share a scale in a group.

    Raises:
        UserError: for unknown bits, an unknown granularity, or too small a group.
    """

    bits: int
    granularity: str = "channel"
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UserError(
                f"--bits {self.bits}: must be 32, or one of {', '.join(map(str, BITS))}"
            )
        if self.granularity not in GRANULARITIES:
            raise UserError(
                f"--granularity {self.granularity}: must be one of {', '.join(GRANULARITIES)}"
            )
        if self.group_size < 8:
            raise UserError(f"--group_size {self.group_size}: must be at least 8")

    @property
    def group(self) -> int:
        """Rows that share a scale; 0 means all."""
        return self.group_size if self.granularity == "group" else 0

    @property
    def largest(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1

    def codes(self, folded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Quantises float32 [batch, rows, columns].

        Numbers are divided by the scale as it is stored, in float16 for groups, so that reading
        gives what was chosen.

        Returns:
            Integers in float32 of the same shape, and scales as `checkpoints.packed` stores them.
        """
        batch, rows, columns = folded.shape
        group = self.group or rows
        n_groups = math.ceil(rows / group)
        # The last group is filled up with zeros, which change neither its scale nor its error.
        padded = jnp.pad(folded, ((0, 0), (0, n_groups * group - rows), (0, 0)))
        grouped = padded.reshape(batch, n_groups, group, columns)

        scale = self._scale(grouped)
        codes = self._round(grouped, scale).reshape(padded.shape)[:, :rows]
        if self.granularity == "tensor":
            return codes, scale.reshape(batch, 1, 1)
        return codes, scale[:, :, 0]

    def _scale(self, grouped: jax.Array) -> jax.Array:
        """Returns the candidate scale with the least squared error; 1 where all numbers are zero.

        The numbers are [batch, groups, rows of a group, columns].
        """
        axes = (1, 2, 3) if self.granularity == "tensor" else (2,)
        largest = jnp.max(jnp.abs(grouped), axis=axes, keepdims=True)
        dtype = jnp.float16 if self.granularity == "group" else jnp.float32

        def candidate(share: jax.Array) -> jax.Array:
            scale = (largest * (share / self.largest)).astype(dtype)
            # A scale of zero, or one that float16 rounds to zero, would divide by zero.
            return jnp.where(scale > 0, scale, jnp.ones((), dtype))

        def better(
            best: tuple[jax.Array, jax.Array], share: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            least_error, best_scale = best
            scale = candidate(share)
            values = self._round(grouped, scale) * scale.astype(jnp.float32)
            error = jnp.sum(jnp.square(values - grouped), axis=axes, keepdims=True)

            is_better = error < least_error
            best_scale = jnp.where(is_better, scale, best_scale)
            return (jnp.where(is_better, error, least_error), best_scale), None

        # A loop keeps one candidate in memory at a time.
        first = candidate(jnp.ones(()))
        start = (jnp.full(largest.shape, jnp.inf, jnp.float32), first)
        (_, scale), _ = jax.lax.scan(better, start, jnp.asarray(SHARES, jnp.float32))
        return scale

    def _round(self, grouped: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round(grouped / scale.astype(jnp.float32)), -self.largest, self.largest)

    def simulate(self, leaf: jax.Array, matrix: Matrix) -> jax.Array:
        """Returns `leaf` as it is after quantisation, with the gradient of `leaf` itself.

        This is the straight-through estimator (arXiv 1308.3432).
        """
        folded = fold(leaf, matrix)
        codes, scale = self.codes(jax.lax.stop_gradient(folded))
        values = unfold(codes * spread(scale, folded.shape[1], self.group), matrix, leaf.shape)
        return leaf + jax.lax.stop_gradient(values - leaf)


@functools.partial(jax.jit, static_argnums=0)
def _codes(quantizer: Quantizer, folded: jax.Array) -> tuple[jax.Array, jax.Array]:
    return quantizer.codes(folded)


def quantize(
    params: Mapping[str, Any], paths: Mapping[str, Matrix], quantizer: Quantizer | None
) -> dict[str, np.ndarray | Quantized]:
    """Returns parameters (flat, by path) as `checkpoints.packed` stores them.

    Those in `paths` are quantised, the rest is float32. Without a quantizer all are float32.
    """
    stored: dict[str, np.ndarray | Quantized] = {}
    for path, leaf in params.items():
        if quantizer is None or path not in paths:
            stored[path] = np.asarray(leaf, np.float32)
            continue
        codes, scale = _codes(quantizer, fold(jnp.asarray(leaf, jnp.float32), paths[path]))
        stored[path] = Quantized(
            codes=np.asarray(codes).astype(np.int8),
            scale=np.asarray(scale),
            bits=quantizer.bits,
            group=quantizer.group,
            matrix=paths[path],
            shape=tuple(leaf.shape),
        )
    return stored
