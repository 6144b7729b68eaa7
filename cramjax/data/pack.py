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
from typing import Any, BinaryIO

import numpy as np

from cramjax.data.spool import Damaged

SPLITS = ("train", "heldout")
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
            self._number += 1
            self._n_tokens = 0
            self._n_documents = 0

        tokens_file, offsets_file = self._open()
        offsets_file.write(np.uint64(self._n_tokens).astype("<u8").tobytes())
        tokens_file.write(np.append(tokens, np.uint32(self._sep)).astype(self._dtype).tobytes())
        self._n_tokens += len(tokens) + 1
        self._n_documents += 1

    def _open(self) -> tuple[BinaryIO, BinaryIO]:
        if self._files is None:
            tokens_path, offsets_path = self._paths()
            tokens_file = tokens_path.open("ab", buffering=1 << 20)
            offsets_file = offsets_path.open("ab", buffering=1 << 20)
            self._files = (tokens_file, offsets_file)
        return self._files

    def flush(self) -> None:
        """Hand everything to the operating system, so that it outlives this process."""
        for file in self._files or ():
            file.flush()

    def close(self) -> None:
        """Flush and close the files; a second call does nothing."""
        for file in self._files or ():
            file.close()
        self._files = None

    def state(self) -> list[int]:
        """Return [shard number, tokens in it, documents in it] for `resume`; call `flush` first."""
        return [self._number, self._n_tokens, self._n_documents]

    def resume(self, state: list[int]) -> None:
        """Take the files back to `state`.

        Raises:
            Damaged: if they are shorter than that.
        """
        self._number, self._n_tokens, self._n_documents = state
        for path in self._directory.glob(f"{self._stem}-*"):
            number = int(path.name.removeprefix(f"{self._stem}-").split(".")[0])
            if number > self._number:
                path.unlink()

        tokens_path, offsets_path = self._paths()
        _truncate(tokens_path, self._n_tokens * self._dtype.itemsize)
        _truncate(offsets_path, self._n_documents * 8)

    def _paths(self) -> tuple[pathlib.Path, pathlib.Path]:
        name = f"{self._stem}-{self._number:05d}"
        return self._directory / f"{name}.bin", self._directory / f"{name}.docs"


def _truncate(path: pathlib.Path, size: int) -> None:
    n_bytes = path.stat().st_size if path.exists() else 0
    if n_bytes < size:
        raise Damaged(f"{path} has {n_bytes} bytes instead of {size}")
    if n_bytes > size:
        os.truncate(path, size)


def finish(directory: pathlib.Path, *, dtype: str, vocab_size: int) -> list[dict[str, Any]]:
    """Turn the offsets into .npy files, and count the training split into unigram.npy.

    Args:
        directory: Where the shards are.
        dtype: Type of the tokens.
        vocab_size: Ids are below it.

    Returns:
        The shards' entries in the manifest.
    """
    little_endian = np.dtype(dtype).newbyteorder("<")
    counts = np.zeros(vocab_size, np.int64)
    entries = []
    for path in sorted(directory.glob("*.bin"), key=_shard_order):
        split, source, _ = path.stem.split("-")
        boundaries = _finish_offsets(path)
        n_documents = len(np.load(boundaries, mmap_mode="r"))

        # One pass over the tokens for the digest and the counts.
        digest = hashlib.sha256()
        n_tokens = 0
        with path.open("rb") as file:
            while len(tokens := np.fromfile(file, little_endian, _CHUNK_TOKENS)):
                digest.update(tokens.tobytes())
                n_tokens += len(tokens)
                if split == "train":
                    counts += np.bincount(tokens, minlength=vocab_size)

        entry = {
            "file": path.name,
            "split": split,
            "source": int(source),
            "tokens": n_tokens,
            "documents": n_documents,
            "sha256": digest.hexdigest(),
            "boundaries": boundaries.name,
        }
        entries.append(entry)

    np.save(directory / "unigram.npy", counts)
    return entries


def _finish_offsets(tokens_path: pathlib.Path) -> pathlib.Path:
    """Convert a shard's offsets to .npy, unless a killed `finish` has; returns the file's path."""
    converted = tokens_path.with_suffix(".docs.npy")
    raw = tokens_path.with_suffix(".docs")
    # `publish_finished` deletes the raw file.
    if raw.exists():
        np.save(converted, np.fromfile(raw, "<u8"))
    return converted


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
    content = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    temporary = partial / "manifest.json.tmp"
    # A name that is no UTF-8 has lone surrogates. Their codes are JSON's own escapes.
    temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
    temporary.rename(partial / "manifest.json")
    publish_finished(partial, directory)


def publish_finished(partial: pathlib.Path, directory: pathlib.Path) -> None:
    """Delete what only the preparation needed, and rename `partial`, which has a manifest.

    A process that was killed within `publish` does only this when it starts again.
    """
    shutil.rmtree(partial / "spool", ignore_errors=True)
    for pattern in ("*.docs", "journal.jsonl"):
        for path in partial.glob(pattern):
            path.unlink()

    # On the disk before it has its name, so that a power failure leaves no broken dataset.
    for path in partial.rglob("*"):
        if path.is_file():
            _sync(path)
    partial.rename(directory)
    _sync(directory.parent)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
