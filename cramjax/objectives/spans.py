"""Span corruption on the device: exact counts, static shapes, a pure function of (key, row).

T5's objective (arXiv 1910.10683, section 3.1.4): sentinels replace spans of a text, and the targets
are the spans, each after its sentinel. The text is as long as fills the inputs exactly
(`config/span_lengths.py`), so nothing is padding.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cramjax.config.span_lengths import SpanLengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption(SpanLengths):
    """The corruption of a text.

    Attributes:
        n_raw: tokens of the text.
        n_noise: how many of them are hidden.
        n_spans: spans that they form.
        eos_id: the token that ends inputs and targets.
        first_sentinel_id: sentinels count down from it.
    """

    eos_id: int
    first_sentinel_id: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanBatch:
    """A corrupted batch: `inputs` int32 [batch, n_inputs], `targets` int32 [batch, n_targets]."""

    inputs: jax.Array
    targets: jax.Array


def corrupt_spans(
    corruption: Corruption, key: jax.Array, tokens: jax.Array, rows: jax.Array
) -> SpanBatch:
    """Corrupts `tokens` int32 [batch, n_raw]; row i depends on (key, rows[i], tokens[i]) alone.

    The noise and the other tokens are each cut into `n_spans` pieces of at least one token, and all
    ways to cut are equally likely. The pieces alternate, beginning with other tokens and ending
    with noise: as in T5, the first token is never noise and the last always.
    """
    inputs, targets = jax.vmap(
        lambda text, row: _corrupt(corruption, jax.random.fold_in(key, row), text)
    )(tokens, rows)
    return SpanBatch(inputs=inputs, targets=targets)


def _corrupt(
    corruption: Corruption, key: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns inputs int32 [n_inputs] and targets int32 [n_targets] of one text [n_raw]."""
    n_noise, n_spans = corruption.n_noise, corruption.n_spans
    n_kept = corruption.n_raw - n_noise
    # One draw for both cuts: a gap between neighbouring tokens has one word.
    bits = jax.random.bits(key, (n_noise + n_kept - 2,), jnp.uint32)
    noise_ends = _piece_ends(bits[: n_noise - 1], n_spans)  # [spans]
    kept_ends = _piece_ends(bits[n_noise - 1 :], n_spans)  # [spans]
    noise_starts = jnp.pad(noise_ends[:-1], (1, 0))
    spans = jnp.arange(n_spans, dtype=jnp.int32)
    sentinels = corruption.first_sentinel_id - spans  # [spans]

    # Inputs: piece, sentinel, piece, sentinel, …
    places = kept_ends + spans  # of the sentinels, [spans]
    index = jnp.arange(n_kept + n_spans, dtype=jnp.int32)
    number = jnp.sum(places[None] < index[:, None], axis=1, dtype=jnp.int32)  # sentinels before
    source = index - number + noise_starts[number]  # the token's place in the text
    inputs = jnp.where(
        index == places[number],
        sentinels[number],
        tokens[jnp.minimum(source, corruption.n_raw - 1)],
    )

    # Targets: sentinel, span, sentinel, span, …
    places = noise_starts + spans
    index = jnp.arange(n_noise + n_spans, dtype=jnp.int32)
    number = jnp.sum(places[None] <= index[:, None], axis=1, dtype=jnp.int32) - 1
    source = index - number - 1 + kept_ends[number]
    targets = jnp.where(index == places[number], sentinels[number], tokens[jnp.maximum(source, 0)])

    eos = jnp.full((1,), corruption.eos_id, jnp.int32)
    return jnp.concatenate([inputs, eos]), jnp.concatenate([targets, eos])


def _piece_ends(bits: jax.Array, n_pieces: int) -> jax.Array:
    """Returns the ends int32 [n_pieces] of pieces of n tokens.

    They are cut at the gaps with the highest bits. `bits` uint32 [n - 1] has a word for each gap.
    """
    n = bits.shape[0] + 1
    if n_pieces == 1:
        return jnp.full((1,), n, jnp.int32)
    # Ties go to the lower gap, which one in 2^31 draws notices.
    _, cuts = jax.lax.top_k((bits >> 1).astype(jnp.int32), n_pieces - 1)
    return jnp.concatenate([jnp.sort(cuts.astype(jnp.int32)) + 1, jnp.full((1,), n, jnp.int32)])
