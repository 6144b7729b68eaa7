"""Token shards on disk, written so that a killed writer goes on: format 1 of ARCHITECTURE.md, which `dataset.py` reads.

Documents come in as token ids; here they get their [SEP], their shard, and at the end the manifest. Which documents
are kept is `prepare.py`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from cramjax.data.spool import Damaged

SPLITS = ("train", "heldout")
_CHUNK_TOKENS = 1 << 22


class ShardWriter:
    """Appends documents to the shards of one source and split.

    `state` after `flush` is a number triple with which `resume` takes the files back to that moment.
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
        self._directory, self._stem = directory, f"{split}-{source}"
        self._dtype, self._sep, self._max_tokens = (
            np.dtype(dtype).newbyteorder("<"),
            sep,
            max_tokens,
        )
        self._number = self._n_tokens = self._n_documents = 0
        self._files: tuple[Any, Any] | None = None

    def add(self, documents: list[np.ndarray]) -> None:
        """Write each document (token ids [n]) and a [SEP] after it.

        A document that does not fit begins the next shard; one longer than a shard is cut into several.
        """
        room = self._max_tokens - 1
        for whole in documents:
            for start in range(0, len(whole), room):
                self._add_one(whole[start : start + room])

    def _add_one(self, tokens: np.ndarray) -> None:
        if self._n_tokens and self._n_tokens + len(tokens) + 1 > self._max_tokens:
            self.close()
            self._number += 1
            self._n_tokens = self._n_documents = 0
        tokens_file, offsets_file = self._open()
        offsets_file.write(np.uint64(self._n_tokens).astype("<u8").tobytes())
        tokens_file.write(np.append(tokens, np.uint32(self._sep)).astype(self._dtype).tobytes())
        self._n_tokens += len(tokens) + 1
        self._n_documents += 1

    def _open(self) -> tuple[Any, Any]:
        if self._files is None:
            name = f"{self._stem}-{self._number:05d}"
            paths = (self._directory / f"{name}.bin", self._directory / f"{name}.docs")
            self._files = tuple(path.open("ab", buffering=1 << 20) for path in paths)
        return self._files

    def flush(self) -> None:
        """Hand everything to the operating system, so that it outlives this process."""
        for file in self._files or ():
            file.flush()

    def close(self) -> None:
        """Flush and close the files; harmless to call twice."""
        for file in self._files or ():
            file.close()
        self._files = None

    def state(self) -> list[int]:
        """[shard number, tokens in it, documents in it]."""
        return [self._number, self._n_tokens, self._n_documents]

    def resume(self, state: list[int]) -> None:
        """Take the files back to `state`; Damaged where they are shorter than that."""
        self._number, self._n_tokens, self._n_documents = state
        for path in self._directory.glob(f"{self._stem}-*"):
            number = int(path.name.removeprefix(f"{self._stem}-").split(".")[0])
            if number > self._number:
                path.unlink()
        name = f"{self._stem}-{self._number:05d}"
        for end, size in (
            ("bin", self._n_tokens * self._dtype.itemsize),
            ("docs", self._n_documents * 8),
        ):
            _truncate(self._directory / f"{name}.{end}", size)


def _truncate(path: pathlib.Path, size: int) -> None:
    found = path.stat().st_size if path.exists() else 0
    if found < size:
        raise Damaged(f"{path} has {found} bytes instead of {size}")
    if found > size:
        os.truncate(path, size)


def finish(directory: pathlib.Path, *, dtype: str, vocab_size: int) -> list[dict[str, Any]]:
    """Turn offsets into .npy, count the training split into unigram.npy; returns the shard entries of the manifest."""
    dtype = np.dtype(dtype).newbyteorder("<")
    counts = np.zeros(vocab_size, np.int64)
    entries = []
    for path in sorted(directory.glob("*.bin"), key=_shard_order):
        split, source, _ = path.stem.split("-")
        boundaries = path.with_suffix(".docs.npy")
        # From a killed `finish` the converted file may be there while the raw one is still to be deleted.
        raw = path.with_suffix(".docs")
        if raw.exists():
            np.save(boundaries, np.fromfile(raw, "<u8"))
        n_documents = len(np.load(boundaries, mmap_mode="r"))
        digest = hashlib.sha256()
        n_tokens = 0
        with path.open("rb") as file:
            while len(tokens := np.fromfile(file, dtype, _CHUNK_TOKENS)):
                digest.update(tokens.tobytes())
                n_tokens += len(tokens)
                if split == "train":
                    counts += np.bincount(tokens, minlength=vocab_size)
        entries.append(
            {
                "file": path.name,
                "split": split,
                "source": int(source),
                "tokens": n_tokens,
                "documents": n_documents,
                "sha256": digest.hexdigest(),
                "boundaries": boundaries.name,
            }
        )
    np.save(directory / "unigram.npy", counts)
    return entries


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
    """Write Cramming's order of the training sequences of each source: those with most full stops first.

    Short sentences come early (arXiv 2212.14034, section 4.4). `period`: the id of "." (None: there is none, and the
    order is as read).
    """
    dtype = np.dtype(dtype).newbyteorder("<")
    for source in sorted({entry["source"] for entry in entries}):
        counts = [
            _count_in_sequences(directory / entry["file"], dtype, seq_len, period)
            for entry in entries
            if entry["source"] == source and entry["split"] == "train"
        ]
        n_periods = np.concatenate(counts) if counts else np.empty(0, np.int32)
        order = np.argsort(-n_periods, kind="stable")
        kind = np.uint32 if len(order) < 2**32 else np.uint64
        np.save(directory / f"sentence_order-{seq_len}-{source}.npy", order.astype(kind))


def _count_in_sequences(
    path: pathlib.Path, dtype: np.dtype, seq_len: int, token: int | None
) -> np.ndarray:
    """How often `token` stands in each whole sequence of a shard, int32 [n_sequences]."""
    counts = []
    chunk = max(1, _CHUNK_TOKENS // seq_len) * seq_len
    with path.open("rb") as file:
        while len(tokens := np.fromfile(file, dtype, chunk)):
            whole = len(tokens) // seq_len * seq_len
            matches = tokens[:whole].reshape(-1, seq_len) == (-1 if token is None else token)
            counts.append(matches.sum(axis=1, dtype=np.int32))
    return np.concatenate(counts) if counts else np.empty(0, np.int32)


def publish(partial: pathlib.Path, directory: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and rename `partial` to `directory`, which thereby becomes a dataset in one step."""
    content = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    temporary = partial / "manifest.json.tmp"
    temporary.write_text(content, encoding="utf-8")
    temporary.rename(partial / "manifest.json")
    publish_finished(partial, directory)


def publish_finished(partial: pathlib.Path, directory: pathlib.Path) -> None:
    """The rest of `publish`, also for a process that finds a manifest in `partial`: delete what served the making."""
    shutil.rmtree(partial / "spool", ignore_errors=True)
    for pattern in ("*.docs", "journal.jsonl"):
        for path in partial.glob(pattern):
            path.unlink()
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
