"""A prepared dataset on disk, format 1 of ARCHITECTURE.md: checked when opened, then read by sequence number.

NumPy only. Which sequence comes when is `index.py`'s business, batches are `loader.py`'s, and nothing here
writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import numbers
from pathlib import Path
from typing import Any

import numpy as np

from cramjax.errors import UserError

FORMAT = 1
SPLITS = ("train", "heldout")
SPECIAL_TOKENS = ("pad", "unk", "cls", "sep", "mask")
T5_SPECIAL_TOKENS = ("pad", "unk", "sep")  # where there are sentinels

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
    """Memory-mapped token shards and what their manifest says; safe to read from several threads.

    `extra_ids`: sentinels at the top of the vocabulary, the first one last. `unigram_counts`: int64 [vocab_size], how
    often each id stands in the training split. `dtype`: that of the tokens. `weights`: one for each source, as in the
    manifest. `shards`: (split, source) → the tokens of each shard, in order.
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
        """Map the dataset in `directory`; UserError names the file that is absent, cut or of another format.

        Reads the manifest and the files' headers and sizes, not their content: see `verify` for that.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory / "manifest.json")
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        unigram = _load_array(directory / "unigram.npy")
        if unigram.dtype != np.int64 or unigram.shape != (manifest["vocab_size"],):
            raise UserError(
                f"{directory / 'unigram.npy'} holds {unigram.dtype} {list(unigram.shape)} instead of int64 "
                f"[{manifest['vocab_size']}]: {_REPAIR}."
            )
        shards: dict[tuple[str, int], list[np.ndarray]] = {}
        for entry in manifest["shards"]:
            shards.setdefault((entry["split"], entry["source"]), []).append(
                _map_shard(directory, entry, dtype)
            )
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
        """Whole sequences of `seq_len` tokens in `split` ("train" or "heldout"), a number for each source."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is none of {SPLITS}")
        return [
            sum(len(tokens) // seq_len for tokens in self.shards.get((split, source), ()))
            for source in range(len(self.weights))
        ]

    def read(self, split: str, source: int, sequences: np.ndarray, seq_len: int) -> np.ndarray:
        """Tokens [n, seq_len] of the sequences numbered in `sequences` int64 [n], in any order, repeats too.

        A sequence never straddles two shards. Raises IndexError for a number outside [0, n_sequences).
        """
        shards = self.shards.get((split, source), ())
        counts = np.array([len(tokens) // seq_len for tokens in shards], np.int64)
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
            part = order[edges[shard] : edges[shard + 1]]
            table = shards[shard][: counts[shard] * seq_len].reshape(-1, seq_len)
            tokens[part] = table[sequences[part] - starts[shard]]
        return tokens

    def sentence_order(self, source: int, seq_len: int) -> np.ndarray:
        """Training sequences of `source` at `seq_len` tokens, short sentences first: unsigned [n_sequences].

        UserError where the dataset was prepared without it.
        """
        path = self.directory / f"sentence_order-{seq_len}-{source}.npy"
        if not path.exists():
            raise UserError(
                f"{path} is absent, so data.order='sentence_length' cannot be served: prepare the dataset "
                f"with data.order='sentence_length' for sequences of {seq_len} tokens, or set "
                "data.order='shuffled'."
            )
        order = _load_array(path)
        expected = self.n_sequences("train", seq_len)[source]
        if order.dtype.kind != "u" or order.shape != (expected,):
            raise UserError(
                f"{path} holds {order.dtype} {list(order.shape)} instead of unsigned [{expected}]: {_REPAIR}."
            )
        return order

    def verify(self) -> None:
        """Compare every shard with its SHA-256 in the manifest; UserError names the first that differs."""
        for entry in self.manifest["shards"]:
            path = self.directory / entry["file"]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry["sha256"]:
                raise UserError(
                    f"{path} is damaged (its SHA-256 is not the manifest's): {_REPAIR}."
                )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path.parent} is not a prepared dataset (it has no manifest.json): name another directory, or {_REPAIR}."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): {_REPAIR}.") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} is of format {found!r}, this version reads format {FORMAT}: {_REPAIR}."
        )
    _check_kinds(path, "", manifest, _KEYS)
    for number, entry in enumerate(manifest["shards"]):
        _check_kinds(path, f"shards[{number}].", entry, _SHARD_KEYS)
    for problem in _contradictions(manifest):
        raise UserError(f"{path}: {problem}; {_REPAIR}.")
    return manifest


def _check_kinds(path: Path, prefix: str, entries: Any, kinds: dict[str, type]) -> None:
    """UserError unless `entries` is an object that has every key of `kinds` with a value of its type."""
    entries = entries if isinstance(entries, dict) else {}
    wrong = [prefix + key for key, kind in kinds.items() if not isinstance(entries.get(key), kind)]
    if wrong:
        raise UserError(f"{path} lacks a valid {', '.join(wrong)}: {_REPAIR}.")


def _contradictions(manifest: dict[str, Any]):
    """Yield what cannot be true of a manifest that has all its keys."""
    vocab_size, n_sources = manifest["vocab_size"], len(manifest["sources"])
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
        if not isinstance(weight, numbers.Real) or not 0 <= weight < math.inf:
            yield f"sources[{number}].weight is {weight!r}, not a number of at least 0"
    for number, entry in enumerate(manifest["shards"]):
        if entry["split"] not in SPLITS or not 0 <= entry["source"] < n_sources:
            yield f"shards[{number}] has split {entry['split']!r} and source {entry['source']} of {n_sources}"


def _map_shard(directory: Path, entry: dict[str, Any], dtype: np.dtype) -> np.ndarray:
    """The tokens of a shard, mapped read-only, after its two files were found to be of the right size."""
    path, expected = directory / entry["file"], entry["tokens"] * dtype.itemsize
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path} is missing (the manifest lists it): {_REPAIR}.") from None
    if found != expected:
        raise UserError(f"{path} has {found} bytes instead of {expected}: {_REPAIR}.")
    boundaries = _load_array(directory / entry["boundaries"])
    if boundaries.shape != (entry["documents"],):
        raise UserError(
            f"{directory / entry['boundaries']} holds {list(boundaries.shape)} offsets instead of "
            f"[{entry['documents']}]: {_REPAIR}."
        )
    if not entry["tokens"]:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    # A plain array over the map: every slice of np.memmap itself costs microseconds of bookkeeping.
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {_REPAIR}.") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable .npy file ({error}): {_REPAIR}.") from None
