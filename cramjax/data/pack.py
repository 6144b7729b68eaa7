"""Writes token shards so that a killed writer can go on: docs/internals/dataset_format.md.

Documents come in as token ids. They get their [SEP] and their shard here, and at the end the
manifest. `selection.py` and `build.py` decide which documents are kept; `dataset.py` reads the
result.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from cramjax.data.manifest import SPLITS
from cramjax.data.sealed import Damaged

# Tokens read at a time, so that memory is bounded.
_CHUNK_TOKENS = 1 << 22


class ShardWriter:
    """Appends documents to the shards of one source and split.

    A shard is a file of tokens, `.bin`, and one of its documents' offsets, `.docs`, uint64 each.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        split: str,
        source: int,
        *,
        dtype: str,
        sep: int,
        max_tokens: int,
    ):
        """Start at the first shard; `resume` goes elsewhere.

        Args:
            directory: Where the shards are.
            split: "train" or "heldout".
            source: Index of the source.
            dtype: Type of the tokens, "uint16" or "uint32".
            sep: Id of [SEP].
            max_tokens: The most tokens in a shard.
        """
        self._directory = directory
        self._stem = f"{split}-{source}"
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._sep = sep
        self._max_tokens = max_tokens

        self._number = 0
        self._n_tokens = 0
        self._n_documents = 0
        # Digests of what was written to the two files of the shard, and the shards before it.
        self._digests = (hashlib.sha256(), hashlib.sha256())
        self._closed: list[list[Any]] = []
        self._n_told = 0
        self._files: tuple[BinaryIO, BinaryIO] | None = None

    def add(self, documents: list[np.ndarray]) -> None:
        """Write each document (token ids [n]), followed by [SEP].

        A document that does not fit begins the next shard; one longer than a shard is cut into
        several.
        """
        room = self._max_tokens - 1
        for tokens in documents:
            for start in range(0, len(tokens), room):
                self._add_one(tokens[start : start + room])

    def _add_one(self, tokens: np.ndarray) -> None:
        if self._n_tokens and self._n_tokens + len(tokens) + 1 > self._max_tokens:
            self.close()
            self._closed.append(self._state())
            self._number += 1
            self._n_tokens = 0
            self._n_documents = 0
            self._digests = (hashlib.sha256(), hashlib.sha256())

        contents = (
            np.append(tokens, np.uint32(self._sep)).astype(self._dtype).tobytes(),
            np.uint64(self._n_tokens).astype("<u8").tobytes(),
        )
        for file, digest, content in zip(self._open(), self._digests, contents, strict=True):
            file.write(content)
            digest.update(content)
        self._n_tokens += len(tokens) + 1
        self._n_documents += 1

    def _open(self) -> tuple[BinaryIO, BinaryIO]:
        if self._files is None:
            tokens_path, offsets_path = self._paths(self._number)
            tokens_file = tokens_path.open("ab", buffering=1 << 20)
            offsets_file = offsets_path.open("ab", buffering=1 << 20)
            self._files = (tokens_file, offsets_file)
        return self._files

    def sync(self) -> None:
        """Bring everything to the disk, so that it outlives a power failure."""
        for file in self._files or ():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Sync and close the files; a second call does nothing."""
        self.sync()
        for file in self._files or ():
            file.close()
        self._files = None

    def news(self) -> list[list[Any]]:
        """Return the states of the shards written to since the last call, for `resume`.

        A state is [shard number, tokens in it, documents in it, SHA-256 of both files].
        """
        states = [*self._closed[self._n_told :], self._state()]
        self._n_told = len(self._closed)
        return states

    def _state(self) -> list[Any]:
        digests = [digest.hexdigest() for digest in self._digests]
        return [self._number, self._n_tokens, self._n_documents, *digests]

    def digests(self) -> dict[str, str]:
        """Return name → SHA-256 of what was written to each file."""
        digests = {}
        for number, n_tokens, _, *both in (*self._closed, self._state()):
            if n_tokens:
                paths = self._paths(number)
                digests |= {path.name: digest for path, digest in zip(paths, both, strict=True)}
        return digests

    def resume(self, states: list[list[Any]]) -> None:
        """Take the files back to the last state of each shard, in their order.

        Raises:
            Damaged: if a file does not hold what was written to it.
        """
        if states:
            *self._closed, last = states
            self._number, self._n_tokens, self._n_documents, *_ = last
        self._n_told = len(self._closed)
        for path in self._directory.glob(f"{self._stem}-*"):
            number = int(path.name.removeprefix(f"{self._stem}-").split(".")[0])
            if number > self._number:
                path.unlink()

        for number, n_tokens, n_documents, *expected in states:
            tokens_path, offsets_path = self._paths(number)
            self._digests = (
                _cut_back(tokens_path, n_tokens * self._dtype.itemsize),
                _cut_back(offsets_path, n_documents * 8),
            )
            if [digest.hexdigest() for digest in self._digests] != expected:
                raise Damaged(f"{tokens_path} is not what was written")
        if not states:
            for path in self._paths(0):
                path.unlink(missing_ok=True)

    def _paths(self, number: int) -> tuple[pathlib.Path, pathlib.Path]:
        name = f"{self._stem}-{number:05d}"
        return self._directory / f"{name}.bin", self._directory / f"{name}.docs"


def _cut_back(path: pathlib.Path, size: int) -> hashlib._Hash:
    """Cut a file to `size` bytes; returns the SHA-256 of what is left, which can go on."""
    n_bytes = path.stat().st_size if path.exists() else 0
    if n_bytes < size:
        raise Damaged(f"{path} has {n_bytes} bytes instead of {size}")
    if n_bytes > size:
        os.truncate(path, size)
    digest = hashlib.sha256()
    if size:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    return digest


def finish(
    directory: pathlib.Path,
    *,
    dtype: str,
    vocab_size: int,
    written: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Turn the offsets into .npy files, and count the training split into unigram.npy.

    Args:
        directory: Where the shards are.
        dtype: Type of the tokens.
        vocab_size: Ids are below it.
        written: Name → SHA-256 of what was written to each file; None compares nothing.

    Returns:
        The shards' entries in the manifest.

    Raises:
        Damaged: if a file does not hold what was written to it.
    """
    little_endian = np.dtype(dtype).newbyteorder("<")
    counts = np.zeros(vocab_size, np.int64)
    entries = []
    digests = {}
    for path in sorted(directory.glob("*.bin"), key=_shard_order):
        split, source, _ = path.stem.split("-")
        raw_offsets = path.with_suffix(".docs")
        offsets = np.fromfile(raw_offsets, "<u8")
        digests[raw_offsets.name] = hashlib.sha256(offsets.tobytes()).hexdigest()
        boundaries = path.with_suffix(".docs.npy")
        np.save(boundaries, offsets)

        counted = counts if split == "train" else None
        n_tokens, digests[path.name] = _read_shard(path, little_endian, counted)
        entry = {
            "file": path.name,
            "split": split,
            "source": int(source),
            "tokens": n_tokens,
            "documents": len(offsets),
            "sha256": digests[path.name],
            "boundaries": boundaries.name,
        }
        entries.append(entry)

    if written is not None and digests != written:
        changed = [
            name for name in {**digests, **written} if digests.get(name) != written.get(name)
        ]
        raise Damaged(f"{directory / min(changed)} is not what was written")
    np.save(directory / "unigram.npy", counts)
    return entries


def _read_shard(path: pathlib.Path, dtype: np.dtype, counts: np.ndarray | None) -> tuple[int, str]:
    """Returns the number of tokens of a shard and its SHA-256, by one pass over it.

    Its tokens are added to `counts`, int64 [vocab_size], unless that is None.
    """
    digest = hashlib.sha256()
    n_tokens = 0
    with path.open("rb") as file:
        while len(tokens := np.fromfile(file, dtype, _CHUNK_TOKENS)):
            digest.update(tokens.tobytes())
            n_tokens += len(tokens)

            if counts is not None:
                found = np.bincount(tokens, minlength=len(counts))
                if len(found) > len(counts):
                    raise Damaged(f"{path} holds an id over the vocabulary")
                counts += found
    return n_tokens, digest.hexdigest()


def digests_of(directory: pathlib.Path) -> dict[str, str]:
    """Return name → SHA-256 of every finished file but the shards, whose entries have theirs."""
    digests = {}
    for pattern in ("*.npy", "tokenizer/*"):
        for path in sorted(directory.glob(pattern)):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(directory).as_posix()] = digest
    return digests


def _shard_order(path: pathlib.Path) -> tuple[int, int, int]:
    split, source, number = path.stem.split("-")
    return SPLITS.index(split), int(source), int(number)


def write_sentence_order(
    directory: pathlib.Path,
    entries: list[dict[str, Any]],
    *,
    dtype: str,
    seq_len: int,
    period: int | None,
) -> None:
    """Write Cramming's order of the training sequences of each source: most full stops first.

    So short sentences come early (arXiv 2212.14034, section 4.4).

    Args:
        directory: Where the shards are.
        entries: The shards' entries in the manifest.
        dtype: Type of the tokens.
        seq_len: Tokens in a sequence.
        period: Id of "."; None if the vocabulary has none, then the order is as read.
    """
    little_endian = np.dtype(dtype).newbyteorder("<")
    for source in sorted({entry["source"] for entry in entries}):
        counts = [np.empty(0, np.int32)]
        for entry in entries:
            if entry["source"] == source and entry["split"] == "train":
                path = directory / entry["file"]
                counts.append(_count_in_sequences(path, little_endian, seq_len, period))

        n_periods = np.concatenate(counts)
        order = np.argsort(-n_periods, kind="stable")
        order_dtype = np.uint32 if len(order) < 2**32 else np.uint64
        np.save(directory / f"sentence_order-{seq_len}-{source}.npy", order.astype(order_dtype))


def _count_in_sequences(
    path: pathlib.Path, dtype: np.dtype, seq_len: int, token: int | None
) -> np.ndarray:
    """Count `token` in each whole sequence of a shard, int32 [n_sequences]."""
    wanted = -1 if token is None else token  # no token is -1
    chunk_tokens = max(1, _CHUNK_TOKENS // seq_len) * seq_len
    counts = [np.empty(0, np.int32)]
    with path.open("rb") as file:
        while len(tokens := np.fromfile(file, dtype, chunk_tokens)):
            n_sequences = len(tokens) // seq_len
            sequences = tokens[: n_sequences * seq_len].reshape(-1, seq_len)
            counts.append((sequences == wanted).sum(axis=1, dtype=np.int32))
    return np.concatenate(counts)


def publish(partial: pathlib.Path, directory: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, and rename `partial` to `directory`: it becomes a dataset in one step."""
    # On the disk before the manifest says so, so that a power failure leaves no broken dataset.
    for path in (*partial.glob("*.*"), *partial.glob("tokenizer/*")):
        sync(path)
    content = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    temporary = partial / "manifest.json.tmp"
    # A name of a source that is not UTF-8 becomes an escape of JSON.
    temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
    sync(temporary)
    temporary.rename(partial / "manifest.json")
    sync(partial)
    publish_finished(partial, directory)


def publish_finished(partial: pathlib.Path, directory: pathlib.Path) -> None:
    """Delete what only the preparation needed, and rename `partial`, which has a manifest.

    A process that was killed within `publish` does only this when it starts again.
    """
    shutil.rmtree(partial / "spool", ignore_errors=True)
    for pattern in ("*.docs", "journal.jsonl", "tokenizer.seal"):
        for path in partial.glob(pattern):
            path.unlink()
    partial.rename(directory)
    sync(directory.parent)


def sync(path: pathlib.Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
