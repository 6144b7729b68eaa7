"""Quantisation of our own definition (the paper behind it, arXiv 2002.11794, gives none): few bits, symmetric, zero is exact.

A number w becomes the whole number q nearest to w / s, from -(2^(bits-1) - 1) to 2^(bits-1) - 1: of 2 bits three values are used. The scale
s is shared by a matrix, a column of it (an output channel, a token of the vocabulary), or so many rows of a column; it is the
share of the largest |w| / (2^(bits-1) - 1), out of `SHARES`, with the least squared error. Everything is a pure function of the parameters.
"""

from __future__ import annotations

import dataclasses
import functools
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
"""Of the largest number, where the range may end: clipping a few large ones makes the steps finer for all others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantizer:
    """How parameters become whole numbers; `group_size` rows share a scale where `granularity` is "group".

    Raises:
        UserError: for bits, a granularity or a group size that there are not.
    """

    bits: int
    granularity: str = "channel"
    group_size: int = 64

    def __post_init__(self):
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
        """Rows that share a scale, 0: all."""
        return self.group_size if self.granularity == "group" else 0

    @property
    def largest(self) -> int:
        """The largest whole number."""
        return 2 ** (self.bits - 1) - 1

    def codes(self, folded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [batch, rows, columns] → whole numbers in float32 of the same shape, and scales as of `hub.packed`.

        A scale of float16 is the one numbers are divided by, so that what is stored is what was chosen.
        """
        batch, rows, columns = folded.shape
        group = self.group or rows
        n_groups = -(-rows // group)
        padded = jnp.pad(folded, ((0, 0), (0, n_groups * group - rows), (0, 0)))
        grouped = padded.reshape(batch, n_groups, group, columns)
        over = (1, 2, 3) if self.granularity == "tensor" else (2,)
        best = self._scale(grouped, over)
        codes = self._round(grouped, best).reshape(padded.shape)[:, :rows]
        scale = best[:, :, 0] if self.granularity != "tensor" else best.reshape(batch, 1, 1)
        return codes, scale

    def _scale(self, grouped, over):
        """The scale with the least squared error, of the candidates; 1 where all is zero."""
        largest = jnp.max(jnp.abs(grouped), axis=over, keepdims=True)
        dtype = jnp.float16 if self.granularity == "group" else jnp.float32

        def candidate(share):
            scale = (largest * (share / self.largest)).astype(dtype)
            return jnp.where(scale > 0, scale, jnp.ones((), dtype))

        def better(best, share):
            scale = candidate(share)
            wide = scale.astype(jnp.float32)
            error = jnp.sum(
                jnp.square(self._round(grouped, scale) * wide - grouped), axis=over, keepdims=True
            )
            is_better = error < best[0]
            return (
                jnp.where(is_better, error, best[0]),
                jnp.where(is_better, scale, best[1]),
            ), None

        start = (jnp.full(largest.shape, jnp.inf, jnp.float32), candidate(jnp.ones(())))
        return jax.lax.scan(better, start, jnp.asarray(SHARES, jnp.float32))[0][1]

    def _round(self, grouped, scale):
        return jnp.clip(jnp.round(grouped / scale.astype(jnp.float32)), -self.largest, self.largest)

    def simulate(self, leaf: jax.Array, matrix: Matrix) -> jax.Array:
        """`leaf` as it is after quantisation, with the gradient of `leaf` itself (straight-through, arXiv 1308.3432)."""
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
    """Parameters (flat, by path) as `hub.packed` stores them: those in `paths` quantised, the rest in float32; None: all of them."""
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
