"""Greedy and beam search over any step with a cache, inside of `jax.jit` as a whole.

A step is `step(cache, tokens, index) -> (logits, cache)`. `tokens` int32 [n] are the last ones of
each hypothesis, at position `index` (int32 scalar; 0 for the start token). `logits` float32 [n,
vocab] are those of the next position. The cache is a tree of arrays with the hypothesis on axis 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Step = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]

# Finite, so that differences of impossible scores are numbers.
IMPOSSIBLE = -1e9


class Decoded(NamedTuple):
    """The result of a search.

    Attributes:
        tokens: int32 [batch, max_len], the end of sequence included, padding after it.
        scores: float32 [batch].
    """

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
    """Takes the likeliest token at every position, until all sequences have ended.

    Args:
        step: see the head of this module.
        cache: the first cache, with `batch_size` hypotheses on axis 1.
        batch_size: sequences.
        max_len: the largest number of generated tokens, the end of sequence included.
        start_id: the token at position 0, which is not returned.
        eos_id: the token that ends a sequence.
        pad_id: the token that fills a sequence up.
        vocab_size: entries from this one on pad the embedding. They are never chosen, though the
            softmax runs over them too.

    Returns:
        Tokens, and sums of log-probabilities including that of the end of sequence.
    """

    def body(state):
        index, last, tokens, scores, ended, cache = state
        logits, cache = step(cache, last, index)
        log_probs = _log_probabilities(logits, vocab_size)
        chosen = jnp.where(ended, pad_id, jnp.argmax(log_probs, axis=-1).astype(jnp.int32))
        gained = jnp.take_along_axis(log_probs, chosen[:, None], axis=-1)[:, 0]
        scores = scores + jnp.where(ended, 0.0, gained)  # [batch]
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

    def goes_on(state):
        index, _, _, _, ended, _ = state
        return (index < max_len) & ~jnp.all(ended)

    state = jax.lax.while_loop(goes_on, body, state)
    return Decoded(state[2], state[3])


def _log_probabilities(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Returns log-probabilities over all entries, as `transformers` computes them: [n, vocab].

    Those that pad the embedding become impossible.
    """
    padding = jnp.arange(logits.shape[-1]) >= vocab_size
    return jnp.where(padding[None], IMPOSSIBLE, jax.nn.log_softmax(logits, axis=-1))


class _Beams(NamedTuple):
    """The state of a beam search.

    Attributes:
        n_tokens: int32 scalar, tokens that each growing hypothesis has.
        tokens: int32 [batch, beams, max_len], hypotheses that still grow, best first.
        sums: float32 [batch, beams], their sums of log-probabilities.
        ended_tokens: int32 [batch, beams, max_len], hypotheses that have ended, best first.
        ended_scores: float32 [batch, beams].
        cache: of the growing hypotheses.
    """

    n_tokens: jax.Array
    tokens: jax.Array
    sums: jax.Array
    ended_tokens: jax.Array
    ended_scores: jax.Array
    cache: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BeamSearch:
    """One round of a beam search; the fields are the arguments of `beam_search`."""

    step: Step
    batch_size: int
    n_beams: int
    max_len: int
    start_id: int
    eos_id: int
    pad_id: int
    vocab_size: int
    length_penalty: float

    def first(self, cache: Any) -> _Beams:
        """Returns the state before the first round."""
        shape = (self.batch_size, self.n_beams)
        # All beams begin alike: all but the first are impossible, or they would stay alike.
        sums = jnp.where(jnp.arange(self.n_beams) == 0, 0.0, IMPOSSIBLE)
        blank = jnp.full((*shape, self.max_len), self.pad_id, jnp.int32)
        return _Beams(
            n_tokens=jnp.zeros((), jnp.int32),
            tokens=blank,
            sums=jnp.broadcast_to(sums, shape).astype(jnp.float32),
            ended_tokens=blank,
            ended_scores=jnp.full(shape, 10 * IMPOSSIBLE, jnp.float32),
            cache=jax.tree.map(lambda leaf: jnp.repeat(leaf, self.n_beams, axis=1), cache),
        )

    def next(self, beams: _Beams) -> _Beams:
        """Returns the state with one more token in each growing hypothesis."""
        n_beams = self.n_beams
        logits, cache = self.step(beams.cache, self._last_tokens(beams), beams.n_tokens)
        vocab = logits.shape[-1]
        log_probs = _log_probabilities(logits, self.vocab_size)
        log_probs = log_probs.reshape(self.batch_size, n_beams, -1)  # [batch, beams, vocab]

        # Twice as many candidates as beams: at most one of each beam's ends, so enough go on.
        sums = (beams.sums[..., None] + log_probs).reshape(self.batch_size, -1)
        totals, flat = jax.lax.top_k(sums, 2 * n_beams)  # [batch, 2 * beams]
        parents, chosen = flat // vocab, (flat % vocab).astype(jnp.int32)
        tokens = jnp.take_along_axis(beams.tokens, parents[..., None], axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(
            tokens, chosen[..., None], beams.n_tokens, axis=2
        )
        ends = (chosen == self.eos_id) | (beams.n_tokens + 1 == self.max_len)
        ended_tokens, ended_scores = self._ended(beams, tokens, totals, ends)

        # Of the others, the best go on, each with the cache of its parent.
        sums, going = jax.lax.top_k(jnp.where(ends, 10 * IMPOSSIBLE, totals), n_beams)
        tokens = jnp.take_along_axis(tokens, going[..., None], axis=1)  # [batch, beams, max_len]
        parents = jnp.take_along_axis(parents, going, axis=1)
        offsets = jnp.arange(self.batch_size, dtype=parents.dtype)[:, None] * n_beams
        rows = (parents + offsets).reshape(-1)
        cache = jax.tree.map(lambda leaf: leaf[:, rows], cache)
        return _Beams(beams.n_tokens + 1, tokens, sums, ended_tokens, ended_scores, cache)

    def _last_tokens(self, beams: _Beams) -> jax.Array:
        """Returns the last token of each growing hypothesis: int32 [batch * beams]."""
        at = jnp.maximum(beams.n_tokens - 1, 0)
        last = jax.lax.dynamic_index_in_dim(beams.tokens, at, axis=2, keepdims=False)
        return jnp.where(beams.n_tokens == 0, self.start_id, last).reshape(-1)

    def _ended(
        self, beams: _Beams, tokens: jax.Array, totals: jax.Array, ends: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns tokens and scores of the best hypotheses that have ended, now or before.

        Args:
            beams: the state before this round.
            tokens: int32 [batch, candidates, max_len], best first.
            totals: float32 [batch, candidates], their sums of log-probabilities.
            ends: bool [batch, candidates].
        """
        n_beams = self.n_beams
        length = (beams.n_tokens + 1).astype(jnp.float32)
        # Of the candidates that end, transformers takes those among the best n_beams.
        is_among_best = (jnp.arange(2 * n_beams) < n_beams)[None]
        scores = totals / length**self.length_penalty
        scores = jnp.where(ends & is_among_best, scores, 10 * IMPOSSIBLE)

        all_scores = jnp.concatenate([beams.ended_scores, scores], axis=1)
        all_tokens = jnp.concatenate([beams.ended_tokens, tokens], axis=1)
        best_scores, best = jax.lax.top_k(all_scores, n_beams)
        return jnp.take_along_axis(all_tokens, best[..., None], axis=1), best_scores

    def goes_on(self, beams: _Beams) -> jax.Array:
        """Returns whether a growing hypothesis can still become one of the best."""
        # Sums are negative: divided by the longest length they are the best that can still come
        # (for a positive penalty).
        longest = float(self.max_len)
        if self.length_penalty <= 0:
            longest = (beams.n_tokens + 1).astype(jnp.float32)
        attainable = beams.sums[:, 0] / longest**self.length_penalty
        return (beams.n_tokens < self.max_len) & jnp.any(attainable > beams.ended_scores[:, -1])


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
    """Finds the best of `n_beams` hypotheses that are kept for each sequence.

    Its score is the sum of log-probabilities / length^`length_penalty`. The length counts the
    generated tokens with the end of sequence, as in `transformers`. A hypothesis that has not ended
    by `max_len` counts as it is. A sequence goes on until nothing that grows can beat the worst it
    has kept (`early_stopping="never"` there).

    T5 takes 4 beams and a penalty of 0.6 for long outputs (arXiv 1910.10683), in the form
    ((5 + length) / 6)^penalty of arXiv 1609.08144; here the same number favours length more.

    Args:
        step: as for `greedy`.
        cache: as for `greedy`; each of its hypotheses becomes `n_beams`, side by side.
        batch_size: sequences.
        n_beams: hypotheses of a sequence.
        max_len: as for `greedy`.
        start_id: as for `greedy`.
        eos_id: as for `greedy`.
        pad_id: as for `greedy`.
        vocab_size: as for `greedy`.
        length_penalty: a Python number, not traced; 0 compares sums, larger ones favour longer
            hypotheses.

    Returns:
        The best hypothesis of each sequence and its score.
    """
    search = _BeamSearch(
        step=step,
        batch_size=batch_size,
        n_beams=n_beams,
        max_len=max_len,
        start_id=start_id,
        eos_id=eos_id,
        pad_id=pad_id,
        vocab_size=vocab_size,
        length_penalty=length_penalty,
    )

    beams = jax.lax.while_loop(search.goes_on, search.next, search.first(cache))
    return Decoded(beams.ended_tokens[:, 0], beams.ended_scores[:, 0])
