"""Reads a prepared dataset by sequence number, and checks it when it is opened.

The format is that of docs/internals/dataset_format.md.

NumPy only, and nothing here writes. `index.py` says which sequence comes when, and `loader.py`
makes batches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cramjax.errors import UserError

FORMAT = 1
SPLITS = ("train", "heldout")
SPECIAL_TOKENS = ("pad", "unk", "cls", "sep", "mask")
# The special tokens of a vocabulary with sentinels.
T5_SPECIAL_TOKENS = ("pad", "unk", "sep")

_REPAIR = "prepare the dataset again with python -m tools.prepare_data"
_KEYS = {
    "vocab_size": int,
    "dtype": str,
    "special_tokens": dict,
    "sources": list,
    "shards": list,
}
_SHARD_KEYS = {
    "file": str,
    "split": str,
    "source": int,
    "tokens": int,
    "documents": int,
    "sha256": str,
    "boundaries": str,
}


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

    @classmethod
    def open(cls, directory: str | Path) -> TokenDataset:
        """Map the dataset in `directory`.

        Reads the manifest and the files' headers and sizes, not their content: see `verify`.

        Raises:
            UserError: if a file is missing, cut short or of another format; names the file.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory / "manifest.json")
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")

        shards: dict[tuple[str, int], list[np.ndarray]] = {}
        unigram = _load_unigram(directory / "unigram.npy", manifest["vocab_size"])
        for entry in manifest["shards"]:
            tokens = _map_shard(directory, entry, dtype)
            shards.setdefault((entry["split"], entry["source"]), []).append(tokens)

        return cls(
            directory=directory,
            manifest=manifest,
            special_tokens=dict(manifest["special_tokens"]),
            extra_ids=manifest.get("extra_ids", 0),
            vocab_size=manifest["vocab_size"],
            unigram_counts=np.array(unigram),
            dtype=dtype,
            weights=tuple(float(source["weight"]) for source in manifest["sources"]),
            shards={key: tuple(tokens) for key, tokens in shards.items()},
        )

    def n_sequences(self, split: str, seq_len: int) -> list[int]:
        """Count the whole sequences of `seq_len` tokens in each source of a split.

        Raises:
            ValueError: if `split` is not "train" or "heldout".
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        counts = []
        for source in range(len(self.weights)):
            shards = self.shards.get((split, source), ())
            counts.append(sum(len(tokens) // seq_len for tokens in shards))
        return counts

    def read(self, split: str, source: int, sequences: np.ndarray, seq_len: int) -> np.ndarray:
        """Read sequences by number, in any order; a number may come twice.

        A sequence never straddles two shards.

        Args:
            split: "train" or "heldout".
            source: Index of the source.
            sequences: Sequence numbers, int64 [n].
            seq_len: Tokens in a sequence.

        Returns:
            Tokens [n, seq_len].

        Raises:
            IndexError: for a number outside [0, n_sequences).
        """
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

    def sentence_order(self, source: int, seq_len: int) -> np.ndarray:
        """Return the training sequences of `source` with short sentences first.

        Args:
            source: Index of the source.
            seq_len: Tokens in a sequence.

        Returns:
            Sequence numbers, unsigned [n_sequences].

        Raises:
            UserError: if the dataset was prepared without this order.
        """
        path = self.directory / f"sentence_order-{seq_len}-{source}.npy"
        if not path.exists():
            raise UserError(
                f"{path} is absent, so data.order='sentence_length' cannot be served: prepare the "
                f"dataset with data.order='sentence_length' for sequences of {seq_len} tokens, or "
                "set data.order='shuffled'."
            )

        order = _load_array(path)
        expected = self.n_sequences("train", seq_len)[source]
        if order.dtype.kind != "u" or order.shape != (expected,):
            raise UserError(
                f"{path} holds {order.dtype} {list(order.shape)} instead of unsigned "
                f"[{expected}]: {_REPAIR}."
            )
        return order

    def verify(self) -> None:
        """Compare every shard with its SHA-256 in the manifest.

        Raises:
            UserError: names the first shard that differs.
        """
        for entry in self.manifest["shards"]:
            path = self.directory / entry["file"]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry["sha256"]:
                raise UserError(
                    f"{path} is damaged (its SHA-256 is not the manifest's): {_REPAIR}."
                )


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read and check manifest.json; UserError says what is wrong."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path.parent} is not a prepared dataset (it has no manifest.json): name another "
            f"directory, or {_REPAIR}."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): {_REPAIR}.") from None

    format_number = manifest.get("format") if isinstance(manifest, dict) else None
    if format_number != FORMAT:
        raise UserError(
            f"{path} is of format {format_number!r}, this version reads format {FORMAT}: {_REPAIR}."
        )
    _check_kinds(path, "", manifest, _KEYS)
    for number, entry in enumerate(manifest["shards"]):
        _check_kinds(path, f"shards[{number}].", entry, _SHARD_KEYS)
    for problem in _contradictions(manifest):
        raise UserError(f"{path}: {problem}; {_REPAIR}.")
    return manifest


def _check_kinds(path: Path, prefix: str, entries: Any, kinds: dict[str, type]) -> None:
    """Check that `entries` is an object with a value of the right type for every key of `kinds`."""
    if not isinstance(entries, dict):
        entries = {}
    wrong = [prefix + key for key, kind in kinds.items() if not isinstance(entries.get(key), kind)]
    if wrong:
        raise UserError(f"{path} lacks a valid {', '.join(wrong)}: {_REPAIR}.")


def _contradictions(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what cannot be true in a manifest that has all its keys."""
    vocab_size = manifest["vocab_size"]
    if manifest["dtype"] not in ("uint16", "uint32"):
        yield f"dtype is {manifest['dtype']!r} instead of 'uint16' or 'uint32'"

    extra_ids = manifest.get("extra_ids", 0)
    if not isinstance(extra_ids, int) or not 0 <= extra_ids < vocab_size:
        yield f"extra_ids is {extra_ids!r}, not a number below {vocab_size}"
    for name in T5_SPECIAL_TOKENS if extra_ids else SPECIAL_TOKENS:
        token = manifest["special_tokens"].get(name)
        if not isinstance(token, int) or not 0 <= token < vocab_size:
            yield f"special_tokens.{name} is {token!r}, not an id below {vocab_size}"

    for number, source in enumerate(manifest["sources"]):
        weight = source.get("weight") if isinstance(source, dict) else None
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            yield f"sources[{number}].weight is {weight!r}, not a number of at least 0"

    n_sources = len(manifest["sources"])
    for number, entry in enumerate(manifest["shards"]):
        split, source = entry["split"], entry["source"]
        if split not in SPLITS or not 0 <= source < n_sources:
            yield f"shards[{number}] has split {split!r} and source {source} of {n_sources}"


def _load_unigram(path: Path, vocab_size: int) -> np.ndarray:
    """Map the unigram counts, int64 [vocab_size]."""
    counts = _load_array(path)
    if counts.dtype != np.int64 or counts.shape != (vocab_size,):
        raise UserError(
            f"{path} holds {counts.dtype} {list(counts.shape)} instead of int64 "
            f"[{vocab_size}]: {_REPAIR}."
        )
    return counts


def _map_shard(directory: Path, entry: dict[str, Any], dtype: np.dtype) -> np.ndarray:
    """Check the sizes of a shard's two files, and map its tokens read-only."""
    path = directory / entry["file"]
    expected_bytes = entry["tokens"] * dtype.itemsize
    try:
        n_bytes = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path} is missing (the manifest lists it): {_REPAIR}.") from None
    if n_bytes != expected_bytes:
        raise UserError(f"{path} has {n_bytes} bytes instead of {expected_bytes}: {_REPAIR}.")

    boundaries_path = directory / entry["boundaries"]
    boundaries = _load_array(boundaries_path)
    if boundaries.shape != (entry["documents"],):
        raise UserError(
            f"{boundaries_path} holds {list(boundaries.shape)} offsets instead of "
            f"[{entry['documents']}]: {_REPAIR}."
        )

    if not entry["tokens"]:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    # A plain array over the map: every slice of np.memmap itself costs microseconds.
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _load_array(path: Path) -> np.ndarray:
    """Map a .npy file; UserError names it if it is missing or damaged."""
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {_REPAIR}.") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy file ({error}): {_REPAIR}.") from None
