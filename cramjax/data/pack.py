"""Writes token shards and publishes a dataset: docs/internals/dataset_format.md.

`plan_shards` cuts the documents of all groups of parts into shards, and `ShardJob` writes one of
them. `selection.py` and `token_files.py` decide which documents there are; `dataset.py` reads the
result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cramjax.data.jobs import CheckedFile, Files
from cramjax.data.manifest import SPLITS
from cramjax.data.sealed import Damaged

# Tokens read at a time, so that memory is bounded.
_CHUNK_TOKENS = 1 << 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive documents of a group: `lengths[first : last]`, `tokens[start : end]`.

    Attributes:
        stem: Stem of the group's `EncodeJob`.
        first: Number of the first document.
        last: Number of the last one + 1.
        start: Place of the first token.
        end: Place of the last one + 1.
    """

    stem: pathlib.Path
    first: int
    last: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Writes one shard, as the format says: `bin`, and `docs.npy`.

    The file `counts` has how often each id stands there (int64 [vocab_size]). The record has
    tokens, documents and the SHA-256 of both files of the shard.

    Attributes:
        split: "train" or "heldout".
        source: Index of the source.
        number: Counts the shards of that source and split.
        stem: See `Job`.
        spans: What is in it.
        dtype: Type of the tokens, "uint16" or "uint32".
        vocab_size: Ids are below it.
    """

    split: str
    source: int
    number: int
    stem: pathlib.Path
    spans: tuple[Span, ...]
    dtype: str
    vocab_size: int

    @property
    def name(self) -> str:
        """See `Job`."""
        return f"{self.stem.name}.bin"

    def facts(self) -> list[Any]:
        """See `Job`."""
        return [[span.stem.name, span.first, span.last] for span in self.spans]

    def make(self, files: Files) -> dict[str, Any]:
        """See `Job`."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        tokens_file = files.open("bin").with_sha256()
        offsets = [np.zeros(1, np.int64)]
        for span in self.spans:
            _copy(span, self.split, dtype.itemsize, tokens_file)
            path = _path(span.stem, f"{self.split}.lengths")
            n_documents = span.last - span.first
            lengths = np.fromfile(path, "<u4", n_documents, offset=4 * span.first)
            offsets.append(offsets[-1][-1] + np.cumsum(lengths, dtype=np.int64))

        # The last one is the end of the shard.
        starts = np.concatenate(offsets)[:-1].astype("<u8")
        offsets_file = files.open("docs.npy").with_sha256()
        np.save(offsets_file, starts)  # pyright: ignore[reportArgumentType]

        tokens_file.flush()
        counts = count_ids(tokens_file.path, dtype, self.vocab_size)
        files.open("counts").write(counts.astype("<i8").tobytes())
        return {
            "tokens": tokens_file.n_bytes // dtype.itemsize,
            "documents": len(starts),
            "sha256": {"bin": tokens_file.sha256, "docs.npy": offsets_file.sha256},
        }


def plan_shards(
    split: str, stems: Iterable[pathlib.Path], max_tokens: int
) -> Iterator[tuple[Span, ...]]:
    """Cut the documents of a source and split into shards.

    A document that does not fit begins the next shard.

    Args:
        split: "train" or "heldout".
        stems: Those of the finished `EncodeJob`s of the source, in reading order.
        max_tokens: The most tokens in a shard.

    Yields:
        The spans of each shard.
    """
    spans: list[Span] = []
    n_tokens = 0
    for stem in stems:
        lengths = np.fromfile(_path(stem, f"{split}.lengths"), "<u4")
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        first = 0

        while first < len(lengths):
            room = max_tokens - n_tokens
            last = int(np.searchsorted(ends, ends[first] + room, "right")) - 1
            start = int(ends[first])
            end = int(ends[last])
            if last > first:
                spans.append(Span(stem=stem, first=first, last=last, start=start, end=end))
                n_tokens += end - start
                first = last
            if first < len(lengths):
                yield tuple(spans)
                spans = []
                n_tokens = 0
    if spans:
        yield tuple(spans)


def _copy(span: Span, split: str, n_bytes: int, target: CheckedFile) -> None:
    """Append the tokens of a span, of `n_bytes` each, to a file."""
    path = _path(span.stem, f"{split}.bin")
    left_bytes = (span.end - span.start) * n_bytes
    with path.open("rb") as file:
        file.seek(span.start * n_bytes)
        while left_bytes:
            block = file.read(min(left_bytes, _CHUNK_TOKENS))
            if not block:
                raise Damaged(f"{path} is cut short", _path(span.stem, "json"))
            target.write(block)
            left_bytes -= len(block)


def count_ids(path: pathlib.Path, dtype: np.dtype, vocab_size: int) -> np.ndarray:
    """Count how often each id stands in a file of tokens, int64 [vocab_size]."""
    counts = np.zeros(vocab_size, np.int64)
    with path.open("rb") as file:
        while len(tokens := np.fromfile(file, dtype, _CHUNK_TOKENS)):
            found = np.bincount(tokens, minlength=vocab_size)
            if len(found) > vocab_size:
                raise Damaged(f"{path} holds an id over the vocabulary")
            counts += found
    return counts


def finish(
    directory: pathlib.Path, jobs: Sequence[ShardJob], records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write what is said of all finished shards together: the counts of ids.

    Args:
        directory: Where the shards are.
        jobs: Those of the shards, in any order.
        records: Their records.

    Returns:
        The shards' entries in the manifest.
    """
    ordered = sorted(zip(jobs, records, strict=True), key=lambda pair: _order(pair[0]))
    entries = []
    for job, record in ordered:
        entry = {
            "file": job.name,
            "split": job.split,
            "source": job.source,
            "tokens": record["tokens"],
            "documents": record["documents"],
            "sha256": record["sha256"]["bin"],
            "boundaries": f"{job.stem.name}.docs.npy",
        }
        entries.append(entry)

    # An earlier version may have left other shards there.
    files = {entry["file"] for entry in entries} | {entry["boundaries"] for entry in entries}
    for path in (*directory.glob("*.bin"), *directory.glob("*.npy")):
        if path.name not in files:
            path.unlink()

    train_jobs = [job for job, _ in ordered if job.split == "train"]
    if train_jobs:
        counts = sum(np.fromfile(_path(job.stem, "counts"), "<i8") for job in train_jobs)
        np.save(directory / "unigram.npy", counts)
    return entries


def _order(job: ShardJob) -> tuple[int, int, int]:
    return SPLITS.index(job.split), job.source, job.number


def _path(stem: pathlib.Path, ending: str) -> pathlib.Path:
    return stem.with_name(f"{stem.name}.{ending}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """A finished file.

    Attributes:
        path: Where it is.
        sha256: SHA-256 of what was written to it.
    """

    path: pathlib.Path
    sha256: str

    @property
    def name(self) -> str:
        """A name for people."""
        return self.path.name


def written_sha256(file: Written) -> str:
    """Return the SHA-256 of what is in a finished file now."""
    return file_sha256(file.path)


def file_sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(directory: pathlib.Path) -> dict[str, str]:
    """Return name → SHA-256 of every finished file but the shards, whose entries have theirs."""
    digests = {}
    for pattern in ("*.npy", "tokenizer/*"):
        for path in sorted(directory.glob(pattern)):
            name = path.relative_to(directory).as_posix()
            digests[name] = file_sha256(path)
    return digests


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
    manifest = json.loads((partial / "manifest.json").read_bytes())
    finished = {"manifest.json", "tokenizer", *manifest["files"]}
    finished |= {entry["file"] for entry in manifest["shards"]}
    for path in partial.iterdir():
        if path.name in finished:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
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
