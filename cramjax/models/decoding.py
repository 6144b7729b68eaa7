"""Greedy and beam search over any step with a cache, inside of `jax.jit` as a whole.

A step is `step(cache, tokens, index, lineage) -> (logits, cache)`. `tokens` int32 [batch, beams]
are the last ones of each hypothesis, at position `index` (int32 scalar; 0 for the start token).
`logits` float32 [batch, beams, vocab] are those of the next position.

Hypotheses change places, and the cache does not follow: moving it would copy all of it for each
token. `lineage` int32 [batch, beams, max_len] says in which place a hypothesis stood when each of
its positions was read; at `index` that is its own place. Entries after `index` mean nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Step = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

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
    is_blank: jax.Array | None = None,
) -> Decoded:
    """Takes the likeliest token at every position, until all sequences have ended.

    Args:
        step: see the head of this module; it gets one hypothesis of each sequence.
        cache: the first cache.
        batch_size: sequences.
        max_len: the largest number of generated tokens, the end of sequence included.
        start_id: the token at position 0, which is not returned.
        eos_id: the token that ends a sequence.
        pad_id: the token that fills a sequence up.
        vocab_size: entries from this one on pad the embedding. They are never chosen, though the
            softmax runs over them too.
        is_blank: bool [batch], True for rows that only fill up the batch; nobody waits for them.

    Returns:
        Tokens, and sums of log-probabilities including that of the end of sequence.
    """
    lineage = jnp.zeros((batch_size, 1, max_len), jnp.int32)

    def body(state):
        index, last, tokens, scores, ended, cache = state
        logits, cache = step(cache, last[:, None], index, lineage)
        known, total = _split_off_padding(logits[:, 0], vocab_size)
        best = jnp.argmax(known, axis=-1).astype(jnp.int32)
        gained = jnp.max(known, axis=-1) - total  # [batch]
        scores = scores + jnp.where(ended, 0.0, gained)
        chosen = jnp.where(ended, pad_id, best)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, chosen[:, None], index, axis=1)
        return index + 1, chosen, tokens, scores, ended | (chosen == eos_id), cache

    state = (
        jnp.zeros((), jnp.int32),
        jnp.full((batch_size,), start_id, jnp.int32),
        jnp.full((batch_size, max_len), pad_id, jnp.int32),
        jnp.zeros((batch_size,), jnp.float32),
        jnp.zeros((batch_size,), bool) if is_blank is None else is_blank,
        cache,
    )

    def goes_on(state):
        index, _, _, _, ended, _ = state
        return (index < max_len) & ~jnp.all(ended)

    state = jax.lax.while_loop(goes_on, body, state)
    return Decoded(state[2], state[3])


def _split_off_padding(logits: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """Returns logits [..., vocab] whose padding is impossible, and the logarithm of all of them.

    The second, [...], is that of the sum of the exponentials, which a log-probability subtracts. It
    counts the entries that pad the embedding, as `transformers` does.
    """
    padding = jnp.arange(logits.shape[-1]) >= vocab_size
    padding = padding.reshape((1,) * (logits.ndim - 1) + padding.shape)
    known = jnp.where(padding, IMPOSSIBLE, logits)
    return known, jax.scipy.special.logsumexp(logits, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring:
    """The comparison of hypotheses of different lengths, and the end of a search.

    A score is the sum of log-probabilities / ((offset + length) / (offset + 1))^penalty. The length
    counts the generated tokens with the end of sequence. An offset of 0 gives the score of
    `transformers`, one of 5 that of Google's translation (arXiv 1609.08144, equation 14). T5 takes
    4 beams and a penalty of 0.6 with the latter (arXiv 1910.10683, section 3.1.3).

    Attributes:
        penalty: 0 compares sums, larger ones favour longer hypotheses.
        offset: the larger, the less the first tokens count.
        is_exact: go on as long as a growing hypothesis could win by not a nat more at the longest
            length (`early_stopping="never"` of `transformers`). False: as long as it would win as
            it is, at its own length (its default). With a positive penalty that ends many steps
            earlier, and rarely with another answer.
    """

    penalty: float = 1.0
    offset: float = 0.0
    is_exact: bool = True

    def divisor(self, length: jax.Array) -> jax.Array:
        """Returns what the sum of a hypothesis of `length` tokens is divided by."""
        return ((self.offset + length) / (self.offset + 1)) ** self.penalty


class _Beams(NamedTuple):
    """The state of a beam search.

    Attributes:
        n_tokens: int32 scalar, tokens that each growing hypothesis has.
        tokens: int32 [batch, beams, max_len], hypotheses that still grow, best first.
        lineage: int32 [batch, beams, max_len], see the head of this module.
        sums: float32 [batch, beams], their sums of log-probabilities.
        ended_tokens: int32 [batch, beams, max_len], hypotheses that have ended, best first.
        ended_scores: float32 [batch, beams].
        is_open: bool [batch], False for sequences whose search is over.
        cache: of the growing hypotheses.
    """

    n_tokens: jax.Array
    tokens: jax.Array
    lineage: jax.Array
    sums: jax.Array
    ended_tokens: jax.Array
    ended_scores: jax.Array
    is_open: jax.Array
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
    scoring: Scoring
    is_blank: jax.Array | None

    def first(self, cache: Any) -> _Beams:
        """Returns the state before the first round."""
        shape = (self.batch_size, self.n_beams)
        # All beams begin alike: all but the first are impossible, or they would stay alike.
        sums = jnp.where(jnp.arange(self.n_beams) == 0, 0.0, IMPOSSIBLE)
        blank = jnp.full((*shape, self.max_len), self.pad_id, jnp.int32)
        ended_scores = jnp.full(shape, 10 * IMPOSSIBLE, jnp.float32)
        is_open = jnp.ones((self.batch_size,), bool)
        if self.is_blank is not None:
            ended_scores = jnp.where(self.is_blank[:, None], 0.0, ended_scores)
            is_open = ~self.is_blank
        return _Beams(
            n_tokens=jnp.zeros((), jnp.int32),
            tokens=blank,
            lineage=jnp.zeros((*shape, self.max_len), jnp.int32),
            sums=jnp.broadcast_to(sums, shape).astype(jnp.float32),
            ended_tokens=blank,
            ended_scores=ended_scores,
            is_open=is_open,
            cache=cache,
        )

    def next(self, beams: _Beams) -> _Beams:
        """Returns the state with one more token in each growing hypothesis."""
        n_beams = self.n_beams
        places = jnp.arange(n_beams, dtype=jnp.int32)[None, :, None]
        lineage = jax.lax.dynamic_update_slice_in_dim(
            beams.lineage,
            jnp.broadcast_to(places, (self.batch_size, n_beams, 1)),
            beams.n_tokens,
            axis=2,
        )
        logits, cache = self.step(beams.cache, self._last_tokens(beams), beams.n_tokens, lineage)
        totals, parents, chosen = self._candidates(beams.sums, logits)
        tokens = jnp.take_along_axis(beams.tokens, parents[..., None], axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(
            tokens, chosen[..., None], beams.n_tokens, axis=2
        )
        ends = (chosen == self.eos_id) | (beams.n_tokens + 1 == self.max_len)
        ended_tokens, ended_scores = self._ended(beams, tokens, totals, ends)

        # Of the others, the best go on, each with the lineage of its parent.
        sums, going = jax.lax.top_k(jnp.where(ends, 10 * IMPOSSIBLE, totals), n_beams)
        tokens = jnp.take_along_axis(tokens, going[..., None], axis=1)  # [batch, beams, max_len]
        parents = jnp.take_along_axis(parents, going, axis=1)
        lineage = jnp.take_along_axis(lineage, parents[..., None], axis=1)

        n_tokens = beams.n_tokens + 1
        attainable = sums[:, 0] / self.scoring.divisor(self._longest(n_tokens))
        is_open = beams.is_open & (attainable > ended_scores[:, -1])
        return _Beams(n_tokens, tokens, lineage, sums, ended_tokens, ended_scores, is_open, cache)

    def _candidates(
        self, sums: jax.Array, logits: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the best continuations of all beams, best first: each [batch, 2 * beams].

        They are twice as many as beams: at most one of each beam's ends, so enough go on.

        Args:
            sums: float32 [batch, beams].
            logits: float32 [batch, beams, vocab].

        Returns:
            Sums of log-probabilities, the beam of each, and its token.
        """
        known, total = _split_off_padding(logits, self.vocab_size)
        # First in each beam, where the logits lie together: a fraction of the work of sorting the
        # log-probabilities of all beams.
        n_best = min(2 * self.n_beams, logits.shape[-1])
        values, tokens = jax.lax.top_k(known, n_best)  # [batch, beams, best]
        values = (sums - total)[..., None] + values

        totals, flat = jax.lax.top_k(values.reshape(self.batch_size, -1), 2 * self.n_beams)
        tokens = tokens.reshape(self.batch_size, -1).astype(jnp.int32)
        return totals, flat // n_best, jnp.take_along_axis(tokens, flat, axis=1)

    def _last_tokens(self, beams: _Beams) -> jax.Array:
        """Returns the last token of each growing hypothesis: int32 [batch, beams]."""
        at = jnp.maximum(beams.n_tokens - 1, 0)
        last = jax.lax.dynamic_index_in_dim(beams.tokens, at, axis=2, keepdims=False)
        return jnp.where(beams.n_tokens == 0, self.start_id, last)

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
        scores = totals / self.scoring.divisor(length)
        counts = ends & is_among_best & beams.is_open[:, None]
        scores = jnp.where(counts, scores, 10 * IMPOSSIBLE)

        all_scores = jnp.concatenate([beams.ended_scores, scores], axis=1)
        all_tokens = jnp.concatenate([beams.ended_tokens, tokens], axis=1)
        best_scores, best = jax.lax.top_k(all_scores, n_beams)
        return jnp.take_along_axis(all_tokens, best[..., None], axis=1), best_scores

    def goes_on(self, beams: _Beams) -> jax.Array:
        """Returns whether a growing hypothesis can still become one of the best."""
        return (beams.n_tokens < self.max_len) & jnp.any(beams.is_open)

    def _longest(self, n_tokens: jax.Array) -> jax.Array:
        """Returns the length that judges what hypotheses of `n_tokens` can still become."""
        # Sums are negative: divided by the longest length they are the best that can still come
        # (for a positive penalty).
        if self.scoring.is_exact and self.scoring.penalty > 0:
            return jnp.float32(self.max_len)
        return (n_tokens + int(self.scoring.is_exact)).astype(jnp.float32)


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
    scoring: Scoring,
    is_blank: jax.Array | None = None,
) -> Decoded:
    """Finds the best of `n_beams` hypotheses that are kept for each sequence.

    A hypothesis that has not ended by `max_len` counts as it is. A sequence goes on until nothing
    that grows can beat the worst it has kept.

    Args:
        step: see the head of this module.
        cache: the first cache, with room for `n_beams` hypotheses of each sequence.
        batch_size: sequences.
        n_beams: hypotheses of a sequence.
        max_len: as for `greedy`.
        start_id: as for `greedy`.
        eos_id: as for `greedy`.
        pad_id: as for `greedy`.
        vocab_size: as for `greedy`.
        scoring: how hypotheses are compared.
        is_blank: as for `greedy`.

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
        scoring=scoring,
        is_blank=is_blank,
    )
    beams = jax.lax.while_loop(search.goes_on, search.next, search.first(cache))

    # Among logits that are no numbers nothing ends that is possible: the score says so.
    scores = beams.ended_scores[:, 0]
    is_possible = scores > IMPOSSIBLE
    return Decoded(beams.ended_tokens[:, 0], jnp.where(is_possible, scores, jnp.float32(jnp.nan)))
