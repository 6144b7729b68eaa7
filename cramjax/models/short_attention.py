"""Self-attention of short sequences on a GPU, in one kernel a pass.

General kernels stream the keys past the queries, and pay for it with partial sums and passes over
what they saved. Up to `LONGEST` positions all keys of a head lie in one block. The forward pass
reads the fused projection and writes the mixture; the backward pass reads the projection and a
gradient, computes the probabilities again, and writes the projection's gradient whole. Rotary
positions are turned on the way. Dropout is a function of a seed and a place, so that a resumed or
recomputed step draws the same; cuDNN's is not: its state lies in the process and moves with each
call.

Written in Pallas for Triton, which compiles it for cards of compute capability 8.0 and above. JAX
0.11 calls that backend deprecated; where it is gone, `is_possible` says no, and another kernel is
taken.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from cramjax.models.dropout import kept

try:
    from jax.experimental.pallas import triton
except ImportError:
    triton = None

NAME = "short_attention"
"""The kernel's name in compiled programs."""

LONGEST = 128
"""Positions of a sequence; beyond it a block of scores does not fit a processor's registers."""

_MASKED = -1e30
_QUERY, _KEY, _VALUE = 0, 1, 2

Rotary = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Tile:
    """The shape of the work: queries of a block of scores, and warps that share it."""

    n_queries: int
    n_warps: int


TILES = {
    f"short{tile.n_queries}x{tile.n_warps}": tile
    for tile in (Tile(64, 8), Tile(64, 4), Tile(128, 8))
}
"""The variants by name. Which one is fastest depends on the card."""


def is_possible(length: int, head_dim: int) -> bool:
    """Returns whether the sizes are powers of two that fit, and this JAX has a Triton."""
    return triton is not None and length in (64, LONGEST) and head_dim in (32, 64, 128)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def attention(
    fused: jax.Array,
    rotary: Rotary | None,
    mask: jax.Array | None,
    seeds: jax.Array | None,
    scale: float,
    dropout_rate: float,
    tile: Tile,
    interpret: bool = False,
) -> jax.Array:
    """softmax(scale * query key^T) value: [batch, length, heads, head_dim] in the input's dtype.

    The softmax is in float32.

    Args:
        fused: [batch, length, 3, heads, head_dim], queries, keys and values; sizes as of
            `is_possible`.
        rotary: cosines and sines float32 [1 or batch, length, head_dim / 2] that turn queries and
            keys (`layers.rotary_tables`).
        mask: int8 [1 or batch, 1, length, length]; 0 hides a key from a query.
        seeds: uint32 [batch, heads], of the dropout on the probabilities.
        dropout_rate: share of probabilities that become 0; the others grow.
        interpret: run it as ordinary operations, on any device.
    """
    return _forward(fused, rotary, mask, seeds, scale, dropout_rate, tile, interpret)[0]


def _forward(fused, rotary, mask, seeds, scale, dropout_rate, tile, interpret):
    work = _Work(scale=scale, dropout_rate=dropout_rate, tile=tile)
    n_rows, length, _, n_heads, head_dim = fused.shape
    mixed = jax.ShapeDtypeStruct((n_rows, length, n_heads, head_dim), fused.dtype)
    result = _call(work.forward, fused, rotary, mask, seeds, None, mixed, tile, interpret)
    return result, (fused, rotary, mask, seeds)


def _backward(scale, dropout_rate, tile, interpret, saved, cotangent):
    fused, rotary, mask, seeds = saved
    work = _Work(scale=scale, dropout_rate=dropout_rate, tile=tile)
    cotangent = cotangent.astype(fused.dtype)
    shape = jax.ShapeDtypeStruct(fused.shape, fused.dtype)
    gradient = _call(work.backward, fused, rotary, mask, seeds, cotangent, shape, tile, interpret)
    return gradient, None, None, None


attention.defvjp(_forward, _backward)


def _call(
    kernel, fused, rotary, mask, seeds, cotangent, result, tile: Tile, interpret: bool
) -> jax.Array:
    """Runs `kernel` for each sequence and head, with references to the given arrays by name."""
    assert triton is not None  # see `is_possible`
    n_rows, length, _, n_heads, _ = fused.shape
    cosines, sines = (None, None) if rotary is None else rotary
    arrays = {
        "fused": (fused, _of_a_head),
        "cotangent": (cotangent, _of_a_head),
        "cosines": (cosines, _of_a_row),
        "sines": (sines, _of_a_row),
        "mask": (mask, _of_a_row),
        "seed": (seeds, lambda array: pl.BlockSpec((None, None), lambda row, head: (row, head))),
    }
    arrays = {name: entry for name, entry in arrays.items() if entry[0] is not None}

    def run(*refs):
        kernel(dict(zip([*arrays, "result"], refs, strict=True)))

    return pl.pallas_call(
        run,
        grid=(n_rows, n_heads),
        in_specs=[spec(array) for array, spec in arrays.values()],
        out_specs=_of_a_head(result),
        out_shape=result,
        compiler_params=triton.CompilerParams(num_warps=tile.n_warps, num_stages=1),
        interpret=interpret,
        name=NAME,
    )(*[array for array, _ in arrays.values()])


def _of_a_head(array) -> pl.BlockSpec:
    """[batch, length, (3,) heads, head_dim] → [length, (3,) head_dim]."""
    length, head_dim = array.shape[1], array.shape[-1]
    if len(array.shape) == 4:
        return pl.BlockSpec((None, length, None, head_dim), lambda row, head: (row, 0, head, 0))
    return pl.BlockSpec((None, length, 3, None, head_dim), lambda row, head: (row, 0, 0, head, 0))


def _of_a_row(array) -> pl.BlockSpec:
    """[1 or batch, (1,) length, width] → [length, width]."""
    is_shared, middle = array.shape[0] == 1, (None,) * (len(array.shape) - 3)

    def index(row, head):
        return (0 if is_shared else row, *(0 for _ in array.shape[1:]))

    return pl.BlockSpec((None, *middle, *array.shape[-2:]), index)


@dataclasses.dataclass(frozen=True)
class _Work:
    """The work of both passes for one sequence and head.

    `refs` are references by name, as `_call` passes them. Queries and keys are lists of parts along
    the head's dimensions: one, or with rotary positions its two halves, which turn into each other.
    """

    scale: float
    dropout_rate: float
    tile: Tile

    def forward(self, refs):
        keys, value = self._turned(refs, _KEY, slice(None)), refs["fused"][:, _VALUE, :]

        for first, rows in self._blocks(value.shape[0]):
            queries = self._turned(refs, _QUERY, rows)
            probabilities = self._probabilities(refs, queries, keys, rows)
            used = _times(probabilities, self._factors(refs, first, probabilities.shape))
            refs["result"][rows, :] = _dot(used.astype(value.dtype), value).astype(value.dtype)

    def backward(self, refs):
        keys, value = self._turned(refs, _KEY, slice(None)), refs["fused"][:, _VALUE, :]
        dtype = value.dtype
        key_gradients = [jnp.zeros(part.shape, jnp.float32) for part in keys]
        value_gradient = jnp.zeros(value.shape, jnp.float32)

        for first, rows in self._blocks(value.shape[0]):
            queries, cotangent = self._turned(refs, _QUERY, rows), refs["cotangent"][rows, :]
            probabilities = self._probabilities(refs, queries, keys, rows)
            factors = self._factors(refs, first, probabilities.shape)

            used = _times(probabilities, factors).astype(dtype)
            value_gradient += _dot_of_transpose(used, cotangent)
            gradient = _times(_dot(cotangent, value, transposed=True), factors)

            row_sums = jnp.sum(probabilities * gradient, axis=1, keepdims=True)
            gradient = (probabilities * (gradient - row_sums) * self.scale).astype(dtype)
            self._write_turned_back(refs, _QUERY, rows, [_dot(gradient, part) for part in keys])
            key_gradients = [
                total + _dot_of_transpose(gradient, part)
                for total, part in zip(key_gradients, queries, strict=True)
            ]

        self._write_turned_back(refs, _KEY, slice(None), key_gradients)
        refs["result"][:, _VALUE, :] = value_gradient.astype(dtype)

    def _blocks(self, length: int):
        """The first query of each block, and the slice of its queries."""
        n_queries = min(self.tile.n_queries, length)
        return [(first, pl.ds(first, n_queries)) for first in range(0, length, n_queries)]

    def _turned(self, refs, which: int, rows) -> list[jax.Array]:
        """Queries or keys of `rows`, turned by their angles, in parts."""
        fused = refs["fused"]
        if "cosines" not in refs:
            return [fused[rows, which, :]]
        first, second = (fused[rows, which, half].astype(jnp.float32) for half in _halves(fused))
        cosines, sines = refs["cosines"][rows, :], refs["sines"][rows, :]
        turned = first * cosines - second * sines, second * cosines + first * sines
        return [part.astype(fused.dtype) for part in turned]

    def _write_turned_back(self, refs, which: int, rows, gradients: list[jax.Array]) -> None:
        """Writes the gradient of queries or keys, from those of the turned parts, float32."""
        result = refs["result"]
        if "cosines" not in refs:
            result[rows, which, :] = gradients[0].astype(result.dtype)
            return
        cosines, sines = refs["cosines"][rows, :], refs["sines"][rows, :]
        first, second = gradients
        back = first * cosines + second * sines, second * cosines - first * sines
        for half, part in zip(_halves(result), back, strict=True):
            result[rows, which, half] = part.astype(result.dtype)

    def _probabilities(self, refs, queries, keys, rows) -> jax.Array:
        """float32 [queries, length]."""
        scores = (
            sum(_dot(query, key, transposed=True) for query, key in zip(queries, keys, strict=True))
            * self.scale
        )
        if "mask" in refs:
            scores = jnp.where(refs["mask"][rows, :] != 0, scores, _MASKED)
        weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
        return weights / jnp.sum(weights, axis=1, keepdims=True)

    def _factors(self, refs, first: int, shape: tuple[int, ...]) -> jax.Array | None:
        """float32 `shape`: 0 where dropout hits, else above 1; None without dropout."""
        if "seed" not in refs:
            return None
        rows = jnp.uint32(first) + jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
        numbers = rows * jnp.uint32(shape[1]) + jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
        return kept(numbers, refs["seed"][...], self.dropout_rate)


def _halves(ref):
    """Both halves of a head's dimensions."""
    half = ref.shape[-1] // 2
    return pl.ds(0, half), pl.ds(half, half)


def _times(x: jax.Array, factors: jax.Array | None) -> jax.Array:
    return x if factors is None else x * factors


def _dot(lhs: jax.Array, rhs: jax.Array, transposed: bool = False) -> jax.Array:
    """lhs @ rhs, or lhs @ rhs^T, summed in float32."""
    summed = ((1,), (1 if transposed else 0,))
    return jax.lax.dot_general(lhs, rhs, (summed, ((), ())), preferred_element_type=jnp.float32)


def _dot_of_transpose(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """lhs^T @ rhs, summed in float32."""
    return jax.lax.dot_general(
        lhs, rhs, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
    )
