"""Greedy and beam search over any step with a cache, for `jax.jit` as a whole.

A step is `step(cache, tokens, index) -> (logits, cache)`: tokens int32 [n], the last of each hypothesis, at position `index` (int32
scalar; 0 for the start token); logits float32 [n, vocab] of what follows. The cache is a tree of arrays with the hypothesis on axis 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Step = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]

# Finite, so that differences of impossible scores are numbers.
IMPOSSIBLE = -1e9


class Decoded(NamedTuple):
    """`tokens` int32 [batch, max_len]: up to and with the end of sequence, padding after it; `scores` float32 [batch]."""

    tokens: jax.Array
    scores: jax.Array


def greedy(
    step: Step,
    cache: Any,
    *,
    batch_size: int,
    max_len: int,
    start_id: int,
    eos_id: int,
    pad_id: int,
    vocab_size: int,
) -> Decoded:
    """The likeliest token at every position, until all sequences have ended.

    Args:
        step: see the head of this module. cache: what it starts from, `batch_size` hypotheses on axis 1.
        max_len: tokens generated at most, the end of sequence included.
        start_id: stands at position 0 and is not returned. eos_id: ends a sequence. pad_id: fills it up.
        vocab_size: entries from here on pad the embedding and are never chosen, though the softmax runs over them too.

    Returns:
        `Decoded`, whose scores are sums of log-probabilities up to and with the end of sequence.
    """

    def body(state):
        index, last, tokens, scores, ended, cache = state
        logits, cache = step(cache, last, index)
        log_probs = _log_probabilities(logits, vocab_size)
        chosen = jnp.where(ended, pad_id, jnp.argmax(log_probs, axis=-1).astype(jnp.int32))
        gained = jnp.take_along_axis(log_probs, chosen[:, None], axis=-1)[:, 0]
        scores = scores + jnp.where(ended, 0.0, gained)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, chosen[:, None], index, axis=1)
        return index + 1, chosen, tokens, scores, ended | (chosen == eos_id), cache

    state = (
        jnp.zeros((), jnp.int32),
        jnp.full((batch_size,), start_id, jnp.int32),
        jnp.full((batch_size, max_len), pad_id, jnp.int32),
        jnp.zeros((batch_size,), jnp.float32),
        jnp.zeros((batch_size,), bool),
        cache,
    )
    state = jax.lax.while_loop(lambda state: (state[0] < max_len) & ~jnp.all(state[4]), body, state)
    return Decoded(state[2], state[3])


def _log_probabilities(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Over all entries, as `transformers` computes them, with those that pad the embedding made impossible."""
    padding = jnp.arange(logits.shape[-1]) >= vocab_size
    return jnp.where(padding[None], IMPOSSIBLE, jax.nn.log_softmax(logits, axis=-1))


class _Beams(NamedTuple):
    """Hypotheses still growing (`tokens` [batch, beams, max_len], `sums` [batch, beams]) and those that ended, best first."""

    index: jax.Array
    tokens: jax.Array
    sums: jax.Array
    ended_tokens: jax.Array
    ended_scores: jax.Array
    cache: Any


def beam_search(
    step: Step,
    cache: Any,
    *,
    batch_size: int,
    n_beams: int,
    max_len: int,
    start_id: int,
    eos_id: int,
    pad_id: int,
    vocab_size: int,
    length_penalty: float = 1.0,
) -> Decoded:
    """The best of `n_beams` hypotheses kept for each sequence, by sum of log-probabilities / length^`length_penalty`.

    Length counts the generated tokens with the end of sequence, as in `transformers`; what has not ended by `max_len` counts as it is. A
    sequence goes on until nothing that grows can beat the worst it has kept (`early_stopping="never"` there).

    T5 takes 4 beams and a penalty of 0.6 for long outputs (arXiv 1910.10683), in the form ((5 + length) / 6)^penalty of
    arXiv 1609.08144; here the same number favours length more.

    Args:
        as for `greedy`, and the `cache` too has `batch_size` hypotheses: here each becomes `n_beams`, side by side.
        length_penalty: a Python number, not traced; 0 compares sums, more of it favours longer hypotheses.

    Returns:
        `Decoded`: the best hypothesis of each sequence and its score.
    """
    shape = (batch_size, n_beams)
    # All beams begin alike: but for the first they are impossible, or all would stay alike.
    sums = jnp.broadcast_to(jnp.where(jnp.arange(n_beams) == 0, 0.0, IMPOSSIBLE), shape).astype(
        jnp.float32
    )
    blank = jnp.full((*shape, max_len), pad_id, jnp.int32)
    impossible = jnp.full(shape, 10 * IMPOSSIBLE, jnp.float32)
    cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, n_beams, axis=1), cache)
    beams = _Beams(jnp.zeros((), jnp.int32), blank, sums, blank, impossible, cache)

    def body(beams):
        at = jnp.maximum(beams.index - 1, 0)
        last = jax.lax.dynamic_index_in_dim(beams.tokens, at, axis=2, keepdims=False)
        last = jnp.where(beams.index == 0, start_id, last).reshape(-1)
        logits, cache = step(beams.cache, last, beams.index)
        log_probs = _log_probabilities(logits, vocab_size).reshape(*shape, -1)
        candidates = (beams.sums[..., None] + log_probs).reshape(batch_size, -1)
        # Twice as many as beams: at most one of each beam's ends, so enough are left to go on.
        totals, flat = jax.lax.top_k(candidates, 2 * n_beams)
        parents, chosen = flat // logits.shape[-1], (flat % logits.shape[-1]).astype(jnp.int32)
        tokens = jnp.take_along_axis(beams.tokens, parents[..., None], axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, chosen[..., None], beams.index, axis=2)
        length = (beams.index + 1).astype(jnp.float32)
        ends = (chosen == eos_id) | (beams.index + 1 == max_len)
        # Of the candidates that end, transformers takes those among the best n_beams.
        ends_here = ends & (jnp.arange(2 * n_beams) < n_beams)[None]
        ended = jnp.where(ends_here, totals / length**length_penalty, 10 * IMPOSSIBLE)
        ended_scores, kept = jax.lax.top_k(
            jnp.concatenate([beams.ended_scores, ended], axis=1), n_beams
        )
        ended_tokens = jnp.take_along_axis(
            jnp.concatenate([beams.ended_tokens, tokens], axis=1), kept[..., None], axis=1
        )
        sums, going = jax.lax.top_k(jnp.where(ends, 10 * IMPOSSIBLE, totals), n_beams)
        tokens = jnp.take_along_axis(tokens, going[..., None], axis=1)
        parents = jnp.take_along_axis(parents, going, axis=1)
        rows = (parents + jnp.arange(batch_size, dtype=parents.dtype)[:, None] * n_beams).reshape(
            -1
        )
        cache = jax.tree.map(lambda leaf: leaf[:, rows], cache)
        return _Beams(beams.index + 1, tokens, sums, ended_tokens, ended_scores, cache)

    def goes_on(beams):
        # Sums are negative: divided by the longest length they are the best that can still come (for a positive penalty).
        longest = float(max_len) if length_penalty > 0 else (beams.index + 1).astype(jnp.float32)
        attainable = beams.sums[:, 0] / longest**length_penalty
        return (beams.index < max_len) & jnp.any(attainable > beams.ended_scores[:, -1])

    beams = jax.lax.while_loop(goes_on, body, beams)
    return Decoded(beams.ended_tokens[:, 0], beams.ended_scores[:, 0])
