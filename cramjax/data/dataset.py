"""Reads a prepared dataset by sequence number, and checks it when it is opened.

The format is that of docs/internals/dataset_format.md.

`manifest.py` checks what the manifest says, and `verification.py` the content of the shards.
`index.py` says which sequence comes when, and `loader.py` makes batches.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from cramjax.config.mixing import Mixing, mixing_of, needing_sizes
from cramjax.config.pairs import PairShape, RowShape
from cramjax.config.views import DataConfig
from cramjax.data import orders, tokenizers
from cramjax.data.manifest import REPAIR, SPLITS, read_manifest, read_tokenizer
from cramjax.data.pair_rows import DamagedPairs, PairRows, Pairs
from cramjax.data.verification import Verification
from cramjax.errors import RunFailed, UserError
from cramjax.files import member


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TokenDataset:
    """Memory-mapped token shards and their manifest; several threads may read it at once.

    Attributes:
        directory: Where it is.
        manifest: Content of manifest.json.
        special_tokens: Role → id.
        extra_ids: Sentinels at the top of the vocabulary, the first one last.
        vocab_size: Ids are below it.
        unigram_counts: Count of each id in the training split, int64 [vocab_size].
        dtype: Type of the tokens.
        weights: Weight of each source, as in the manifest.
        shards: (split, source) → the tokens of each shard, in order.
        verification: Compares the shards with their SHA-256, when it is told to.
        mixing: The shares of sources that are mixed by size.
        _found: (split, source) → its pairs, once somebody has asked.
        _rows: (split, source, form) → its rows.
    """

    directory: Path
    manifest: dict[str, Any]
    special_tokens: dict[str, int]
    extra_ids: int
    vocab_size: int
    unigram_counts: np.ndarray
    dtype: np.dtype
    weights: tuple[float, ...]
    shards: dict[tuple[str, int], tuple[np.ndarray, ...]]
    verification: Verification
    mixing: Mixing = Mixing()
    _found: dict[tuple[str, int], Pairs] = dataclasses.field(default_factory=dict)
    _rows: dict[tuple[str, int, PairShape], PairRows] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(cls, directory: str | Path) -> TokenDataset:
        """Map the dataset in `directory`.

        Checks everything but the content of the shards, which `verification` does.

        Raises:
            UserError: if a file is missing, damaged, of another format, or a link out of the
                folder; names the file.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        _check_tokenizer(directory, manifest)
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")

        shards: dict[tuple[str, int], list[np.ndarray]] = {}
        unigram = _load_unigram(directory, manifest)
        for entry in manifest["shards"]:
            tokens = _map_shard(directory, entry, dtype)
            shards.setdefault((entry["split"], entry["source"]), []).append(tokens)

        return cls(
            directory=directory,
            manifest=manifest,
            special_tokens=dict(manifest["special_tokens"]),
            extra_ids=manifest.get("extra_ids", 0),
            vocab_size=manifest["vocab_size"],
            unigram_counts=unigram,
            dtype=dtype,
            weights=tuple(float(source["weight"]) for source in manifest["sources"]),
            shards={key: tuple(tokens) for key, tokens in shards.items()},
            verification=Verification(directory, manifest),
        )

    @property
    def is_of_pairs(self) -> bool:
        """True if the documents are pairs of texts."""
        return bool(self.manifest.get("pairs"))

    @property
    def document_end(self) -> bool:
        """True if [SEP] follows every document."""
        return bool(self.manifest.get("document_end", True))

    def mixed(self, data: DataConfig) -> TokenDataset:
        """Return the dataset with the shares by size that the section `data` asks for.

        Raises:
            UserError: if it asks for some, and the dataset was prepared with other weights.
        """
        settings = needing_sizes(data)
        if settings and not any(source.get("by_size") for source in self.manifest["sources"]):
            raise UserError(
                f"{settings[0]}: {self.directory} is no mixture by size; prepare one with "
                "data.source=[[source, 'auto'], …], or leave the key out"
            )
        return dataclasses.replace(self, mixing=mixing_of(data))

    def row_weights(self, seq_len: RowShape) -> tuple[float, ...]:
        """Return the share of each source in the training rows, up to a factor.

        Sources that are mixed by size have the share that brings their examples, pairs or
        sequences, in the rates of `mixing`: a row of one may hold more pairs than a row of another.
        """
        by_size = [bool(source.get("by_size")) for source in self.manifest["sources"]]
        if not any(by_size):
            return self.weights
        n_rows = self.n_sequences("train", seq_len)
        n_examples = list(n_rows)
        if isinstance(seq_len, PairShape):
            for source in range(len(n_rows)):
                n_examples[source] = len(self.pair_rows("train", source, seq_len).order)

        counted = [n if own else 0 for n, own in zip(n_examples, by_size, strict=True)]
        rates = self.mixing.rates(counted)
        rows_an_example = np.asarray(n_rows) / np.maximum(1, n_examples)
        return tuple((rows_an_example * rates).tolist())

    def heldout_weights(self, seq_len: RowShape) -> tuple[float, ...]:
        """Weight of each source in evaluation: as in training, or 1 for those that are held out."""
        sources = self.manifest["sources"]
        is_heldout = tuple(float(source.get("split") == "heldout") for source in sources)
        return is_heldout if any(is_heldout) else self.row_weights(seq_len)

    @functools.cached_property
    def label_counts(self) -> np.ndarray:
        """Count of each id among what is to be predicted in training, int64 [vocab_size].

        Of pairs that is the targets alone.
        """
        if not self.is_of_pairs:
            return self.unigram_counts
        counts = np.zeros(self.vocab_size, np.int64)
        for source, weight in enumerate(self.weights):
            if weight:
                counts += self.pairs("train", source).target_counts(self.vocab_size)
        return counts

    def n_sequences(self, split: str, seq_len: RowShape) -> list[int]:
        """Count the whole sequences of `seq_len` tokens, or the rows, in each source of a split.

        Raises:
            ValueError: if `split` is not "train" or "heldout".
            RunFailed: if a shard is damaged.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        counts = []
        for source in range(len(self.weights)):
            if isinstance(seq_len, PairShape):
                counts.append(self.pair_rows(split, source, seq_len).n_rows)
                continue
            shards = self.shards.get((split, source), ())
            counts.append(sum(len(tokens) // seq_len for tokens in shards))
        return counts

    def pair_rows(self, split: str, source: int, shape: PairShape) -> PairRows:
        """Return the rows of pairs of a source.

        Raises:
            RunFailed: if a shard is damaged.
        """
        key = (split, source, shape)
        # Two threads may both make them, and make the same.
        if key not in self._rows:
            self._rows[key] = PairRows.of(self.pairs(split, source), shape)
        return self._rows[key]

    def pairs(self, split: str, source: int) -> Pairs:
        """Return the pairs of a source.

        Raises:
            RunFailed: if a shard is damaged.
        """
        if (split, source) not in self._found:
            self._found[split, source] = self._find_pairs(split, source)
        return self._found[split, source]

    def _find_pairs(self, split: str, source: int) -> Pairs:
        is_own = {"split": split, "source": source}.items()
        entries = [entry for entry in self.manifest["shards"] if is_own <= entry.items()]
        shards = self.shards.get((split, source), ())
        n_documents = [entry["documents"] for entry in entries]
        try:
            return Pairs.find(shards, n_documents, self.special_tokens["sep"])
        except DamagedPairs as error:
            path = self.directory / entries[error.args[0]]["file"]
            raise RunFailed(f"{path} is damaged (it does not hold pairs): {REPAIR}.") from None

    def read(self, split: str, source: int, sequences: np.ndarray, seq_len: RowShape) -> np.ndarray:
        """Read sequences by number, in any order; a number may come twice.

        A sequence never straddles two shards.

        Args:
            split: "train" or "heldout".
            source: Index of the source.
            sequences: Sequence numbers, int64 [n].
            seq_len: Tokens in a sequence, or the form of a row of pairs.

        Returns:
            Tokens [n, seq_len].

        Raises:
            IndexError: for a number outside [0, n_sequences).
        """
        if isinstance(seq_len, PairShape):
            special = self.special_tokens
            rows = self.pair_rows(split, source, seq_len)
            return rows.read(
                sequences, sep_id=special["sep"], pad_id=special["pad"], dtype=self.dtype
            )
        shards = self.shards.get((split, source), ())
        counts = np.array([len(tokens) // seq_len for tokens in shards], np.int64)
        # Number of the first sequence of each shard, and of the first one beyond them.
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        sequences = np.asarray(sequences, np.int64)
        if sequences.size and (sequences.min() < 0 or sequences.max() >= starts[-1]):
            raise IndexError(
                f"sequence number outside [0, {starts[-1]}) of {split} source {source} at {seq_len}"
            )

        tokens = np.empty((len(sequences), seq_len), self.dtype)
        # In file order, so that a disk sees ascending offsets and each shard is visited once.
        order = np.argsort(sequences)
        edges = np.searchsorted(sequences[order], starts)
        for shard in np.flatnonzero(np.diff(edges)):
            in_shard = order[edges[shard] : edges[shard + 1]]
            table = shards[shard][: counts[shard] * seq_len].reshape(-1, seq_len)
            tokens[in_shard] = table[sequences[in_shard] - starts[shard]]
        return tokens

    def spread(self, n_tokens: int, seq_len: RowShape) -> np.ndarray:
        """Read about so many training tokens, evenly spread and in the shares of training.

        Args:
            n_tokens: Tokens to read; fewer where a source has fewer.
            seq_len: As for `read`.

        Returns:
            Tokens [n, seq_len].
        """
        weights = np.asarray(self.row_weights(seq_len))
        length = seq_len if isinstance(seq_len, int) else seq_len.row_tokens
        parts = []
        for source, n_rows in enumerate(self.n_sequences("train", seq_len)):
            n_wanted = math.ceil(float(n_tokens / length * weights[source] / weights.sum()))
            rows = np.linspace(0, n_rows - 1, min(n_wanted, n_rows)).astype(np.int64)
            parts.append(self.read("train", source, rows, seq_len))
        return np.concatenate(parts)

    def order(self, name: str, source: int, seq_len: int) -> np.ndarray:
        """Return the training sequences of `source` in a prepared order.

        Args:
            name: A value of `data.order`; see `orders`.
            source: Index of the source.
            seq_len: Tokens in a sequence.

        Returns:
            Sequence numbers, unsigned [n_sequences].

        Raises:
            UserError: if the dataset was prepared without this order.
        """
        file = orders.file_name(name, seq_len, source)
        path = self.directory / file
        if not path.exists():
            raise UserError(
                f"{path} is absent, so data.order={name!r} cannot be served: prepare the "
                f"dataset with data.order={name!r} for sequences of {seq_len} tokens, or "
                "set data.order='shuffled'."
            )

        order = _load_array(self.directory, file)
        expected = self.n_sequences("train", seq_len)[source]
        if order.dtype.kind != "u" or order.shape != (expected,):
            raise UserError(
                f"{path} holds {order.dtype} {list(order.shape)} instead of unsigned "
                f"[{expected}]: {REPAIR}."
            )
        is_there = np.zeros(expected, bool)
        is_there[order[order < expected]] = True
        if not is_there.all():
            raise UserError(
                f"{path} is damaged (it does not hold each number below {expected} once): {REPAIR}."
            )
        return order[::-1] if orders.is_reversed(name) else order

    def refuse_foreign(self, tokens: np.ndarray, split: str) -> None:
        """Check that ids that were read are entries of the vocabulary.

        Args:
            tokens: Ids that were read from the split, of any shape.
            split: "train" or "heldout".

        Raises:
            RunFailed: names the first shard that holds another id.
        """
        if not tokens.size or tokens.max() < self.vocab_size:
            return
        for entry in self.manifest["shards"]:
            path = self.directory / entry["file"]
            shard = np.memmap(path, self.dtype, mode="r") if entry["tokens"] else np.empty(0)
            if entry["split"] == split and shard.size and shard.max() >= self.vocab_size:
                raise RunFailed(
                    f"{path} is damaged (it holds the id {shard.max()} of {self.vocab_size}): "
                    f"{REPAIR}."
                )
        raise RunFailed(f"{self.directory}: ids changed while they were read: {REPAIR}.")


def _check_tokenizer(directory: Path, manifest: dict[str, Any]) -> None:
    """Check that the tokenizer is the manifest's and has the ids that it says."""
    path = read_tokenizer(directory, manifest)
    try:
        tokenizer = tokenizers.load(path)[0]
    except UserError as error:
        raise UserError(f"{path} is no tokenizer ({error}): {REPAIR}.") from None

    ids = tokenizers.special_ids(tokenizer)
    facts = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "extra_ids": tokenizers.count_extra_ids(tokenizer),
        "special_tokens": {role: ids.get(role) for role in manifest["special_tokens"]},
    }
    for key, value in facts.items():
        if manifest.get(key, 0) != value:
            raise UserError(
                f"{directory / 'manifest.json'}: {key} is {manifest.get(key, 0)}, but the "
                f"tokenizer beside it has {value}: {REPAIR}."
            )


def _load_unigram(directory: Path, manifest: dict[str, Any]) -> np.ndarray:
    """Read the unigram counts, int64 [vocab_size]: those of the training tokens."""
    path = directory / "unigram.npy"
    counts = _load_array(directory, "unigram.npy")
    vocab_size = manifest["vocab_size"]
    if counts.dtype != np.int64 or counts.shape != (vocab_size,):
        raise UserError(
            f"{path} holds {counts.dtype} {list(counts.shape)} instead of int64 "
            f"[{vocab_size}]: {REPAIR}."
        )

    counts = np.array(counts)
    expected = manifest.get("files", {}).get("unigram.npy")
    is_other = expected and hashlib.sha256(path.read_bytes()).hexdigest() != expected
    # The sum by halves: damaged counts may overflow.
    n_counted = (int((counts >> 32).sum()) << 32) + int((counts & 0xFFFFFFFF).sum())
    if is_other or counts.min() < 0 or n_counted != manifest["train_tokens"]:
        raise UserError(
            f"{path} is damaged (it does not count the {manifest['train_tokens']} training "
            f"tokens): {REPAIR}."
        )
    return counts


def _map_shard(directory: Path, entry: dict[str, Any], dtype: np.dtype) -> np.ndarray:
    """Check the sizes of a shard's two files, and map its tokens read-only."""
    path = member(directory, entry["file"], REPAIR)
    expected_bytes = entry["tokens"] * dtype.itemsize
    n_bytes = path.stat().st_size
    if n_bytes != expected_bytes:
        raise UserError(f"{path} has {n_bytes} bytes instead of {expected_bytes}: {REPAIR}.")

    boundaries = _load_array(directory, entry["boundaries"])
    if boundaries.dtype != np.uint64 or boundaries.shape != (entry["documents"],):
        raise UserError(
            f"{directory / entry['boundaries']} holds {boundaries.dtype} {list(boundaries.shape)} "
            f"instead of uint64 [{entry['documents']}]: {REPAIR}."
        )

    if not entry["tokens"]:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    try:
        # A plain array over the map: every slice of np.memmap itself costs microseconds.
        return np.asarray(np.memmap(path, dtype, mode="r"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _load_array(directory: Path, name: str) -> np.ndarray:
    """Map a .npy file; UserError names it if it is missing or damaged."""
    path = member(directory, name, REPAIR)
    try:
        # Only this format: `np.load` would open archives and pickles as well.
        array = np.lib.format.open_memmap(path, mode="r")
        expected_bytes = array.offset + array.nbytes
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    except Exception as error:  # the header is a Python literal, which fails in many ways
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a readable .npy file ({reason}): {REPAIR}.") from None

    n_bytes = path.stat().st_size
    if n_bytes != expected_bytes:
        raise UserError(f"{path} has {n_bytes} bytes instead of {expected_bytes}: {REPAIR}.")
    return array
