"""How likely a model finds sentences: the pseudo-log-likelihood of a masked language model, and the same by spans of a T5."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.errors import UserError
from cramjax.inference import LoadedModel
from cramjax.models.layers import FLOAT32
from cramjax.models.network import Network

# Tokens of a batch of masked copies.
BATCH_TOKENS = 4096
# Lengths that are compiled; longer ones are multiples of the last.
LENGTHS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
# Batches under way before the first of them is read.
UNDER_WAY = 32


def sentence_scores(
    model: LoadedModel,
    sentences: Sequence[str],
    *,
    where: Sequence[str] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[float], None] = lambda fraction: None,
) -> np.ndarray:
    """The sum of log p(token | the others) over the tokens of each sentence, in nats: float64 [sentences].

    An encoder sees each token replaced by the mask token (arXiv 1910.14659, section 2.1); a T5 by <extra_id_0>, and the token is what it
    says after it. Tokens of the tokenizer's template are not scored; padding of the vocabulary has no probability. Equal sentences are
    scored once. Computed in float32 whatever the model's own precision is: pairs differ by tenths of a nat, and so do scores in bfloat16
    from one size of batch to another.

    Args:
        where: file and line of each sentence, for the message of an error.
        batch_tokens: tokens of a batch of masked copies; the scores do not depend on it.
        progress: called with the fraction done.

    Raises:
        UserError: for a model that has no token to mask with, and a sentence longer than its positions.
    """
    hidden_id = _hidden_id(model)
    unique = list(dict.fromkeys(sentences))
    encodings = model.tokenizer.encode_batch(unique)
    tokens = [np.asarray(found.ids, np.int32) for found in encodings]
    scored = [np.flatnonzero(np.asarray(found.special_tokens_mask) == 0) for found in encodings]
    places = (
        dict(zip(reversed(sentences), reversed(where), strict=True)) if where else {}
    )  # the first of equal ones
    _check_lengths(model, unique, tokens, places)
    total = np.zeros(len(unique))
    n_copies, n_done = sum(map(len, scored)), 0
    score = _scorer(model.config, hidden_id, model.tokenizer.get_vocab_size(), model.special["pad"])
    waiting: list[tuple[np.ndarray, Any]] = []

    def read(limit):
        nonlocal n_done
        while len(waiting) > limit:
            owners, values = waiting.pop(0)
            np.add.at(total, owners, np.asarray(values, np.float64)[: len(owners)])
            n_done += len(owners)
            progress(n_done / n_copies)

    longest = model.config.max_length
    for owners, batch in _batches(tokens, scored, model.special["pad"], batch_tokens, longest):
        waiting.append((owners, score(model.params, **batch)))
        read(UNDER_WAY)
    read(0)
    scores = dict(zip(unique, total.tolist(), strict=True))
    return np.asarray([scores[sentence] for sentence in sentences])


def _hidden_id(model: LoadedModel) -> int:
    found = (
        model.tokenizer.token_to_id("<extra_id_0>") if model.is_t5 else model.special.get("mask")
    )
    if found is None:
        raise UserError(
            f"the tokenizer has no {'<extra_id_0>' if model.is_t5 else 'mask token'} to hide a word with"
        )
    return found


def _check_lengths(
    model: LoadedModel,
    sentences: Sequence[str],
    tokens: Sequence[np.ndarray],
    places: dict[str, str],
) -> None:
    limit = model.config.max_length
    for sentence, ids in zip(sentences, tokens, strict=True):
        if limit is not None and len(ids) > limit:
            name = f"{places[sentence]}: " if sentence in places else ""
            raise UserError(
                f"{name}{sentence[:60]!r}…: {len(ids)} tokens, and the model has {limit} positions"
            )


def _batches(
    tokens: Sequence[np.ndarray],
    scored: Sequence[np.ndarray],
    pad_id: int,
    batch_tokens: int,
    longest: int | None,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(whose copies, arrays of a batch): copies of sentences of like length, each with the place of its hidden token."""
    buckets: dict[int, list[int]] = {}
    for number, ids in enumerate(tokens):
        buckets.setdefault(_bucket(len(ids), longest), []).append(number)
    for length, numbers in sorted(buckets.items()):
        padded = np.full((len(numbers), length), pad_id, np.int32)
        for row, number in enumerate(numbers):
            padded[row, : len(tokens[number])] = tokens[number]
        sizes = np.asarray([len(tokens[number]) for number in numbers], np.int32)
        owners = np.repeat(np.arange(len(numbers)), [len(scored[number]) for number in numbers])
        places = np.concatenate([scored[number] for number in numbers]).astype(np.int32)
        rows = max(1, batch_tokens // length)
        for start in range(0, len(owners), rows):
            chosen = owners[start : start + rows]
            # The last batch of a length is filled up with copies of row 0, which nobody reads.
            fill = (0, rows - len(chosen))
            at = np.pad(chosen, fill)
            yield (
                np.asarray(numbers)[chosen],
                {
                    "tokens": padded[at],
                    "sizes": sizes[at],
                    "places": np.pad(places[start : start + rows], fill),
                },
            )


def _bucket(n: int, longest: int | None) -> int:
    """The length that `n` tokens are padded to: never beyond the model's positions, which padding has none of either."""
    length = next((length for length in LENGTHS if length >= n), -(-n // LENGTHS[-1]) * LENGTHS[-1])
    return length if longest is None else min(length, longest)


@functools.lru_cache(maxsize=8)
def _scorer(cfg: Network, hidden_id: int, vocab_size: int, pad_id: int) -> Callable[..., jax.Array]:
    """The jitted (params, tokens [n, length], sizes [n], places [n]) → log p of the hidden tokens, float32 [n]."""

    @jax.jit
    @jax.default_matmul_precision("float32")  # a GPU would round the operands to TF32
    def score(params, tokens, sizes, places):
        index = places[:, None]
        targets = jnp.take_along_axis(tokens, index, axis=1)[:, 0]
        everywhere = jnp.arange(tokens.shape[1])[None]
        mask = everywhere < sizes[:, None]
        hidden_tokens = jnp.where(everywhere == index, jnp.int32(hidden_id), tokens)
        ids = {"gap_id": hidden_id, "pad_id": pad_id}
        logits = cfg.gap_logits(FLOAT32, params, hidden_tokens, places, padding_mask=mask, **ids)
        real = jnp.where(jnp.arange(logits.shape[1])[None] < vocab_size, logits, -jnp.inf)
        picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return picked - jax.nn.logsumexp(real, axis=1)

    return score
