"""Likelihoods of sentences: the pseudo-log-likelihood of a masked language model, and a T5's.

A T5 scores by spans.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.errors import UserError
from cramjax.inference import LoadedModel, check_head
from cramjax.models.layers import FLOAT32
from cramjax.models.network import Network

T = TypeVar("T")

BATCH_TOKENS = 4096
"""Tokens in a batch of masked copies."""

LENGTHS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
"""Lengths that are compiled; longer ones are multiples of the last."""

N_IN_FLIGHT = 32
"""Batches that are dispatched before the first of them is read."""


def sentence_scores(
    model: LoadedModel,
    sentences: Sequence[str],
    *,
    where: Sequence[str] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[float], None] = lambda fraction: None,
) -> np.ndarray:
    """Returns the sum of log p(token | the others) over each sentence's tokens, in nats.

    An encoder sees each token in turn replaced by the mask token (arXiv 1910.14659, section 2.1). A
    T5 sees <extra_id_0> there, and the score is that of the token after it in the output. Tokens of
    the tokenizer's template are not scored, and padding of the vocabulary has no probability.

    Equal sentences are scored once. The computation is in float32 whatever the model's own
    precision: pairs differ by tenths of a nat, and so do scores in bfloat16 from one batch size to
    another.

    Args:
        where: file and line of each sentence, for error messages.
        batch_tokens: tokens in a batch of masked copies; the scores do not depend on it.
        progress: receives the fraction done.

    Returns:
        float64 [sentences].

    Raises:
        UserError: for a model without a mask token or a trained head, weights that are no numbers,
            or a sentence longer than the model's positions.
    """
    hidden_id = _hidden_id(model)
    scorer = _scorer(model.config, hidden_id, model.special["pad"])
    score = functools.partial(scorer, model.params, model.has_token)
    unique = list(dict.fromkeys(sentences))
    encodings = model.tokenizer.encode_batch(unique)
    tokens = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
    # Places of the tokens that are scored.
    scored = [np.flatnonzero(np.asarray(e.special_tokens_mask) == 0) for e in encodings]

    places: dict[str, str] = {}
    if where:
        for sentence, place in zip(sentences, where, strict=True):
            places.setdefault(sentence, place)
    _check_lengths(model, unique, tokens, places)

    total = np.zeros(len(unique))
    n_copies = sum(map(len, scored))
    n_done = 0
    batches = _batches(model, tokens, scored, batch_tokens)
    dispatched = ((owners, score(**batch)) for owners, batch in batches)
    for owners, values in _read_behind(dispatched):
        # The end of a batch may be filled up with copies that nobody owns.
        np.add.at(total, owners, np.asarray(values, np.float64)[: len(owners)])
        n_done += len(owners)
        progress(n_done / n_copies)

    if np.isnan(total).any():
        raise UserError("the weights of this model are no numbers (NaN); give another model")
    scores = dict(zip(unique, total.tolist(), strict=True))
    return np.asarray([scores[sentence] for sentence in sentences])


def _read_behind(dispatched: Iterable[T]) -> Iterator[T]:
    """Yields the items `N_IN_FLIGHT` later, so that the device does not wait for a read."""
    waiting: collections.deque[T] = collections.deque()
    for item in dispatched:
        waiting.append(item)
        if len(waiting) > N_IN_FLIGHT:
            yield waiting.popleft()
    yield from waiting


def _hidden_id(model: LoadedModel) -> int:
    """Returns the id of the token that hides a word, of a model that can predict it."""
    check_head(model)
    if model.is_t5:
        name = "<extra_id_0>"
        token_id = model.tokenizer.token_to_id(name)
    else:
        name = "mask token"
        token_id = model.special.get("mask")
    if token_id is None:
        raise UserError(f"the tokenizer has no {name} to hide a word with")
    return token_id


def _check_lengths(
    model: LoadedModel,
    sentences: Sequence[str],
    tokens: Sequence[np.ndarray],
    places: Mapping[str, str],
) -> None:
    """Raises UserError for a sentence with more tokens than the model has positions."""
    limit = model.config.max_length
    if limit is None:
        return
    for sentence, ids in zip(sentences, tokens, strict=True):
        if len(ids) > limit:
            place = f"{places[sentence]}: " if sentence in places else ""
            raise UserError(
                f"{place}{sentence[:60]!r}…: {len(ids)} tokens, and the model has {limit} positions"
            )


def _batches(
    model: LoadedModel,
    tokens: Sequence[np.ndarray],
    scored: Sequence[np.ndarray],
    batch_tokens: int,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields batches of masked copies of sentences of similar length.

    Args:
        tokens: token ids of each sentence.
        scored: places of its tokens that are scored.

    Yields:
        The sentence that each copy belongs to, and the arrays of the batch: tokens [n, length],
        and sizes and places of the hidden token [n].
    """
    pad_id, longest = model.special["pad"], model.config.max_length
    buckets: dict[int, list[int]] = {}
    for number, ids in enumerate(tokens):
        buckets.setdefault(padded_length(len(ids), longest), []).append(number)

    for length, numbers in sorted(buckets.items()):
        padded = np.full((len(numbers), length), pad_id, np.int32)
        for row, number in enumerate(numbers):
            padded[row, : len(tokens[number])] = tokens[number]
        sizes = np.asarray([len(tokens[number]) for number in numbers], np.int32)
        # A copy of a row for each of its scored tokens.
        rows = np.repeat(np.arange(len(numbers)), [len(scored[number]) for number in numbers])
        places = np.concatenate([scored[number] for number in numbers]).astype(np.int32)

        batch_size = max(1, batch_tokens // length)
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            # The last batch of a length is filled up with copies of row 0, which nobody reads.
            fill = (0, batch_size - len(chosen))
            copied = np.pad(chosen, fill)
            batch = {
                "tokens": padded[copied],
                "sizes": sizes[copied],
                "places": np.pad(places[start : start + batch_size], fill),
            }
            yield np.asarray(numbers)[chosen], batch


def padded_length(n: int, longest: int | None) -> int:
    """Returns the length that `n` tokens are padded to.

    It stays within the model's positions, because padding takes a position too.
    """
    multiple = math.ceil(n / LENGTHS[-1]) * LENGTHS[-1]
    length = next((length for length in LENGTHS if length >= n), multiple)
    return length if longest is None else min(length, longest)


@functools.lru_cache(maxsize=8)
def _scorer(cfg: Network, hidden_id: int, pad_id: int) -> Callable[..., jax.Array]:
    """Returns a jitted function that scores hidden tokens.

    It takes (params, has_token bool [vocab], tokens [n, length], sizes [n], places [n]) and returns
    log p, float32 [n].
    """

    @jax.jit
    @jax.default_matmul_precision("float32")  # a GPU would round the operands to TF32
    def score(
        params: Any,
        has_token: jax.Array,
        tokens: jax.Array,
        sizes: jax.Array,
        places: jax.Array,
    ) -> jax.Array:
        index = places[:, None]
        targets = jnp.take_along_axis(tokens, index, axis=1)[:, 0]
        everywhere = jnp.arange(tokens.shape[1])[None]
        mask = everywhere < sizes[:, None]
        hidden_tokens = jnp.where(everywhere == index, jnp.int32(hidden_id), tokens)
        ids = {"gap_id": hidden_id, "pad_id": pad_id}
        logits = cfg.gap_logits(FLOAT32, params, hidden_tokens, places, padding_mask=mask, **ids)
        # Padding of the vocabulary has no probability.
        real = jnp.where(has_token[None], logits, -jnp.inf)
        picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return picked - jax.nn.logsumexp(real, axis=1)

    return score
