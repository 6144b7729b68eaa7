"""Self-attention of short sequences on a GPU, in one kernel a pass.

General kernels stream the keys past the queries, and pay for it with partial sums and passes over
what they saved. Up to `LONGEST` positions all keys of a head lie in one block. The forward pass
reads the fused projection and writes the mixture; the backward pass reads the projection and a
gradient, computes the probabilities again, and writes the projection's gradient whole. A program
does this for some heads of a sequence, one after the other, and the next heads are read while one
is computed: the kernel is bound by memory. Rotary positions are turned on the way. Dropout is a
function of a seed and a place, so that a resumed or recomputed step draws the same; cuDNN's is not:
its state lies in the process and moves with each call.

Written in Pallas for Triton, which compiles it for cards of compute capability 8.0 and above. JAX
0.11 calls that backend deprecated; where it is gone, `possible_tiles` has none, and another kernel
is taken.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

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
# Programs that keep the processors of every card busy; an H100 has 132 of them.
_ENOUGH_PROGRAMS = 256
_QUERY, _KEY, _VALUE = 0, 1, 2

Rotary = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Tile:
    """The shape of the work.

    Attributes:
        n_queries: queries of a block of scores.
        n_warps: warps that share it.
        n_stages: heads in flight: all but one are being read into shared memory.
    """

    n_queries: int
    n_warps: int
    n_stages: int


TILES = {
    f"short{tile.n_queries}x{tile.n_warps}x{tile.n_stages}": tile
    for tile in (Tile(128, 8, 3), Tile(128, 8, 2), Tile(64, 8, 2))
}
"""The variants by name. Which one is fastest depends on the card."""

# Shared memory of a program, by compute capability; all other cards are consumers'.
_SHARED_BYTES = {(8, 0): 166_912, (9, 0): 232_448, (10, 0): 232_448}
_CONSUMERS_SHARED_BYTES = 101_376


def possible_tiles(
    length: int, head_dim: int, has_mask: bool, capability: tuple[int, int]
) -> list[str]:
    """Returns the names of the tiles that can run on a card, the likely fastest one first.

    The sizes must be powers of two, and this JAX must have a Triton.

    Args:
        length: positions of a sequence.
        head_dim: dimensions of a head.
        has_mask: whether there is an arbitrary mask.
        capability: compute capability of the card.
    """
    if triton is None or length not in (64, LONGEST) or head_dim not in (32, 64, 128):
        return []
    limit = _SHARED_BYTES.get(capability, _CONSUMERS_SHARED_BYTES)
    return [
        name
        for name, tile in TILES.items()
        if _shared_bytes(tile, length, head_dim, has_mask, capability) <= limit
    ]


def _shared_bytes(
    tile: Tile, length: int, head_dim: int, has_mask: bool, capability: tuple[int, int]
) -> int:
    """Returns the shared memory that a backward pass needs, as the compilers of three cards say."""
    n_ahead = tile.n_stages - 1
    # Products of a warp group are asynchronous, and hold the operands of one more head.
    n_heads = n_ahead + 1 if capability[0] in (9, 10) else n_ahead
    # Queries, keys, values and the cotangent, 2 bytes each.
    operands = n_heads * 4 * length * head_dim * 2
    masks = n_ahead * length**2 if has_mask else 0
    probabilities = min(tile.n_queries, length) * length * 2
    return operands + masks + probabilities


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
            `possible_tiles`.
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
    assert triton is not None  # see `possible_tiles`
    n_rows, _, _, n_heads, _ = fused.shape
    n_together = _heads_together(n_rows, n_heads)
    of_heads = functools.partial(_of_heads, n_together=n_together)
    seeds_of_heads = functools.partial(_seeds_of_heads, n_together=n_together)

    cosines, sines = (None, None) if rotary is None else rotary
    arrays = {
        "fused": (fused, of_heads),
        "cotangent": (cotangent, of_heads),
        "cosines": (cosines, _of_a_row),
        "sines": (sines, _of_a_row),
        "mask": (mask, _of_a_row),
        "seeds": (seeds, seeds_of_heads),
    }
    arrays = {name: entry for name, entry in arrays.items() if entry[0] is not None}

    def run(*refs):
        kernel(dict(zip([*arrays, "result"], refs, strict=True)), n_together)

    return pl.pallas_call(
        run,
        # Programs of one sequence run at the same time: its heads lie side by side in memory.
        grid=(n_heads // n_together, n_rows),
        in_specs=[spec(array) for array, spec in arrays.values()],
        out_specs=of_heads(result),
        out_shape=result,
        compiler_params=triton.CompilerParams(num_warps=tile.n_warps, num_stages=tile.n_stages),
        interpret=interpret,
        name=NAME,
    )(*[array for array, _ in arrays.values()])


def _heads_together(n_rows: int, n_heads: int) -> int:
    """Returns the heads of a program: as many as leave enough programs for a card."""
    divisors = [n for n in range(1, n_heads + 1) if n_heads % n == 0]
    return max(n for n in divisors if n == 1 or n_rows * n_heads // n >= _ENOUGH_PROGRAMS)


def _of_heads(array, n_together: int) -> pl.BlockSpec:
    """[batch, length, (3,) heads, head_dim] → [length, (3,) heads of a program, head_dim]."""
    _, length, *middle, _, head_dim = array.shape
    shape = (None, length, *middle, n_together, head_dim)
    return pl.BlockSpec(shape, lambda heads, row: (row, 0, *(0 for _ in middle), heads, 0))


def _of_a_row(array) -> pl.BlockSpec:
    """[1 or batch, (1,) length, width] → [length, width]."""
    is_shared, middle = array.shape[0] == 1, (None,) * (len(array.shape) - 3)

    def index(heads, row):
        return (0 if is_shared else row, *(0 for _ in array.shape[1:]))

    return pl.BlockSpec((None, *middle, *array.shape[-2:]), index)


def _seeds_of_heads(array, n_together: int) -> pl.BlockSpec:
    """[batch, heads] → [heads of a program]."""
    return pl.BlockSpec((None, n_together), lambda heads, row: (row, heads))


@dataclasses.dataclass(frozen=True)
class _Block:
    """Positions of a sequence.

    Attributes:
        first: number of the first one.
        rows: their slice.
        angles: cosines and sines float32 [positions, head_dim / 2]; None without rotary positions.
    """

    first: int
    rows: Any
    angles: Rotary | None


def _block(refs, first: int, size: int) -> _Block:
    rows = pl.ds(first, size)
    angles = None
    if "cosines" in refs:
        angles = refs["cosines"][rows, :], refs["sines"][rows, :]
    return _Block(first, rows, angles)


@dataclasses.dataclass(frozen=True)
class _Work:
    """The work of both passes for some heads of one sequence.

    `refs` are references by name, as `_call` passes them. Queries and keys are lists of parts along
    the head's dimensions: one, or with rotary positions its two halves, which turn into each other.
    """

    scale: float
    dropout_rate: float
    tile: Tile

    def forward(self, refs, n_heads: int) -> None:
        whole, blocks = self._positions(refs)

        def mix(head, _):
            keys = _turned(refs, _KEY, head, whole)
            value = refs["fused"][:, _VALUE, head, :]
            for block in blocks:
                queries = _turned(refs, _QUERY, head, block)
                weights, inverse_sums = self._weights(refs, queries, keys, block)
                used = _times(weights, self._factors(refs, head, block, weights.shape))
                # Divided at last: the mixture has fewer numbers than the weights.
                mixed = _dot(used.astype(value.dtype), value) * inverse_sums
                refs["result"][block.rows, head, :] = mixed.astype(value.dtype)

        jax.lax.fori_loop(0, n_heads, mix, None)

    def backward(self, refs, n_heads: int) -> None:
        whole, blocks = self._positions(refs)

        def differentiate(head, _):
            keys = _turned(refs, _KEY, head, whole)
            value = refs["fused"][:, _VALUE, head, :]
            key_gradients = [jnp.zeros(part.shape, jnp.float32) for part in keys]
            value_gradient = jnp.zeros(value.shape, jnp.float32)

            for block in blocks:
                queries = _turned(refs, _QUERY, head, block)
                cotangent = refs["cotangent"][block.rows, head, :]
                weights, inverse_sums = self._weights(refs, queries, keys, block)
                probabilities = weights * inverse_sums
                factors = self._factors(refs, head, block, weights.shape)

                used = _times(probabilities, factors).astype(value.dtype)
                value_gradient += _dot_of_transpose(used, cotangent)
                gradient = _times(_dot(cotangent, value, transposed=True), factors)

                row_sums = jnp.sum(probabilities * gradient, axis=1, keepdims=True)
                gradient = probabilities * (gradient - row_sums) * self.scale
                gradient = gradient.astype(value.dtype)
                query_gradients = [_dot(gradient, part) for part in keys]
                _write_turned_back(refs, _QUERY, head, block, query_gradients)
                key_gradients = [
                    total + _dot_of_transpose(gradient, part)
                    for total, part in zip(key_gradients, queries, strict=True)
                ]

            _write_turned_back(refs, _KEY, head, whole, key_gradients)
            refs["result"][:, _VALUE, head, :] = value_gradient.astype(value.dtype)

        jax.lax.fori_loop(0, n_heads, differentiate, None)

    def _positions(self, refs) -> tuple[_Block, list[_Block]]:
        """Returns all positions as one block, and as blocks of queries.

        Their angles are read before the loop over heads, which would read them ahead for each head,
        and run out of shared memory.
        """
        length = refs["fused"].shape[0]
        whole = _block(refs, 0, length)
        size = self.tile.n_queries
        if size >= length:
            return whole, [whole]
        return whole, [_block(refs, first, size) for first in range(0, length, size)]

    def _weights(self, refs, queries, keys, block: _Block) -> tuple[jax.Array, jax.Array]:
        """Returns exponentials of scores, and the inverse of their sums.

        They are float32 [queries, length] and [queries, 1].
        """
        scores = (
            sum(_dot(query, key, transposed=True) for query, key in zip(queries, keys, strict=True))
            * self.scale
        )
        if "mask" in refs:
            scores = jnp.where(refs["mask"][block.rows, :] != 0, scores, _MASKED)
        weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
        return weights, 1.0 / jnp.sum(weights, axis=1, keepdims=True)

    def _factors(self, refs, head, block: _Block, shape: tuple[int, ...]) -> jax.Array | None:
        """Returns float32 `shape`: 0 where dropout hits, else above 1; None without dropout."""
        if "seeds" not in refs:
            return None
        rows = jnp.uint32(block.first) + jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
        numbers = rows * jnp.uint32(shape[1]) + jax.lax.broadcasted_iota(jnp.uint32, shape, 1)
        return kept(numbers, refs["seeds"][head], self.dropout_rate)


def _turned(refs, which: int, head, block: _Block) -> list[jax.Array]:
    """Returns queries or keys of a head, turned by their angles, in parts."""
    fused = refs["fused"]
    if block.angles is None:
        return [fused[block.rows, which, head, :]]
    cosines, sines = block.angles
    first, second = (
        fused[block.rows, which, head, half].astype(jnp.float32) for half in _halves(fused)
    )
    turned = first * cosines - second * sines, second * cosines + first * sines
    return [part.astype(fused.dtype) for part in turned]


def _write_turned_back(refs, which: int, head, block: _Block, gradients: list[jax.Array]) -> None:
    """Writes the gradient of queries or keys, from those of the turned parts, float32."""
    result = refs["result"]
    if block.angles is None:
        result[block.rows, which, head, :] = gradients[0].astype(result.dtype)
        return
    cosines, sines = block.angles
    first, second = gradients
    back = first * cosines + second * sines, second * cosines - first * sines
    for half, part in zip(_halves(result), back, strict=True):
        result[block.rows, which, head, half] = part.astype(result.dtype)


def _halves(ref):
    """Returns the slices of both halves of a head's dimensions."""
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
