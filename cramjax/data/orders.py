"""Orders of the training sequences, computed once when a dataset is prepared.

They are the curricula of Cramming's code (cramming/data/curriculum_sorting.py), beside the one that
its final recipe uses. Each order sorts a source's sequences by a sum over their tokens, the lowest
first; equal sums keep the order of the dataset. The sums are whole numbers, so every machine and
every executor writes the same bytes.

- sentence_length: most full stops first, so short sentences come early
- fragment: most [SEP] first, so sequences of many short documents come early
- word_length: fewest characters of decoded text first, so short words come early
- unigram: lowest mean log-probability of the tokens first, so rare words come early
- reverse_unigram: the other way round; it reads the files of unigram from their end
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax.config.views import DataConfig
from cramjax.data import tokenizers

_REVERSED = {"reverse_unigram": "unigram"}
# The name that the one order of earlier versions has on the disk.
_FILES = {"sentence_length": "sentence"}
# Log-probabilities in units of this: coarse enough to be the same whatever the machine's log2.
_LOG2_UNIT = 2.0**-20
# Tokens read at a time, so that memory is bounded.
_CHUNK_TOKENS = 1 << 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedOrder:
    """An order that a preparation writes, for sequences of one length.

    Attributes:
        name: A value of `data.order` that has files of its own.
        seq_len: Tokens of text in a sequence.
    """

    name: str
    seq_len: int


def wanted(config: DataConfig) -> PreparedOrder | None:
    """Returns the order that `config` needs prepared, or None for shuffled sequences.

    Only an order needs the length when data are prepared; the [CLS] token is not text.
    """
    if config.order == "shuffled":
        return None
    name = _REVERSED.get(config.order, config.order)
    return PreparedOrder(name=name, seq_len=config.seq_len - int(config.cls_token))


def file_name(name: str, seq_len: int, source: int) -> str:
    """Returns the name of the file that serves the order `name` of a source at a length."""
    name = _REVERSED.get(name, name)
    return f"{_FILES.get(name, name)}_order-{seq_len}-{source}.npy"


def is_reversed(name: str) -> bool:
    """Returns whether the order `name` reads its file from the end."""
    return name in _REVERSED


def token_values(name: str, tokenizer: Tokenizer, counts: np.ndarray, sep: int) -> np.ndarray:
    """Returns what each token adds to the sum that a prepared order sorts by, int64 [vocab_size].

    Args:
        name: A `PreparedOrder.name`.
        tokenizer: Of the dataset.
        counts: How often each id stands in the training split, int64 [vocab_size].
        sep: Id of [SEP].
    """
    size = len(counts)
    if name == "word_length":
        return _added_characters(tokenizer, size)
    if name == "unigram":
        # Every id counts once more, as in Cramming's code.
        shares = (counts + 1.0) / (counts.sum() + size)
        return np.rint(np.log2(shares) / _LOG2_UNIT).astype(np.int64)

    values = np.zeros(size, np.int64)
    token = sep if name == "fragment" else tokenizer.token_to_id(".")
    # A vocabulary without a full stop leaves the sequences in their order.
    if token is not None:
        values[token] = -1
    return values


def _added_characters(tokenizer: Tokenizer, size: int) -> np.ndarray:
    """Returns the characters that each id adds to decoded text, int64 [size]."""
    special = tokenizer.get_added_tokens_decoder().keys()
    anchor = next((number for number in range(size) if number not in special), 0)
    # Behind another token, because the first one of a text has no space before it.
    pairs = [[anchor, number] for number in range(size)]
    alone = len(tokenizer.decode([anchor], skip_special_tokens=False))
    texts = tokenizer.decode_batch(pairs, skip_special_tokens=False)
    return np.array([len(text) - alone for text in texts], np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """A finished training shard whose sequences are to be scored.

    Attributes:
        path: The file of tokens.
        source: Index of its source.
        dtype: Type of the tokens.
        seq_len: Tokens in a sequence.
        values: As `token_values` returns them.
    """

    path: pathlib.Path
    source: int
    dtype: np.dtype
    seq_len: int
    values: np.ndarray

    @property
    def name(self) -> str:
        """A name for people."""
        return self.path.name


def _training_shards(
    directory: pathlib.Path,
    entries: Sequence[dict[str, Any]],
    dtype: str,
    order: PreparedOrder,
    values: np.ndarray,
) -> list[Shard]:
    """Returns the training shards in order."""
    shards = []
    training = [entry for entry in entries if entry["split"] == "train"]

    for entry in training:
        shard = Shard(
            path=directory / entry["file"],
            source=entry["source"],
            dtype=np.dtype(dtype).newbyteorder("<"),
            seq_len=order.seq_len,
            values=values,
        )
        shards.append(shard)
    return shards


def scores(shard: Shard) -> np.ndarray:
    """Returns the sum of each whole sequence of a shard, int64 [n_sequences]."""
    seq_len = shard.seq_len
    chunk_tokens = max(1, _CHUNK_TOKENS // seq_len) * seq_len
    sums = [np.empty(0, np.int64)]
    with shard.path.open("rb") as file:
        while len(tokens := np.fromfile(file, shard.dtype, chunk_tokens)):
            n_sequences = len(tokens) // seq_len
            sequences = tokens[: n_sequences * seq_len].reshape(-1, seq_len)
            sums.append(shard.values[sequences].sum(axis=1))
    return np.concatenate(sums)


def score_here(shards: Iterable[Shard]) -> Iterator[tuple[Shard, np.ndarray]]:
    """Yields each shard and its `scores`, in this process."""
    for shard in shards:
        yield shard, scores(shard)


def write(
    directory: pathlib.Path,
    order: PreparedOrder,
    entries: Sequence[dict[str, Any]],
    dtype: str,
    tokenizer: Tokenizer,
    score_all: Callable[[list[Shard]], Iterable[tuple[Shard, np.ndarray]]],
) -> None:
    """Write the order of the training sequences of each source.

    Args:
        directory: Where the shards and their unigram.npy are.
        order: The order.
        entries: The shards' entries in the manifest, in order.
        dtype: Type of the tokens.
        tokenizer: Of the dataset.
        score_all: Returns each shard and its `scores`, in order.
    """
    counts = np.load(directory / "unigram.npy")
    sep = tokenizers.special_ids(tokenizer)["sep"]
    values = token_values(order.name, tokenizer, counts, sep)

    by_source: dict[int, list[np.ndarray]] = collections.defaultdict(list)
    for shard, sums in score_all(_training_shards(directory, entries, dtype, order, values)):
        by_source[shard.source].append(sums)

    for source, of_source in by_source.items():
        ranked = np.argsort(np.concatenate(of_source), kind="stable")
        number_type = np.uint32 if len(ranked) < 2**32 else np.uint64
        name = file_name(order.name, order.seq_len, source)
        np.save(directory / name, ranked.astype(number_type))
