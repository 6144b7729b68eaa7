"""Prepares a dataset of ready-made token ids: rows of a parquet column, kept as they are.

Cramming's Pile (arXiv 2212.14034; `pile-readymade` in its code) is such a dataset: rows of 128 ids
in which documents follow each other with a separator between, and a tokenizer.json beside them.
Nothing is cleaned, tokenized or separated again. A file of the source is a part: its shards are
written from the beginning, or are there already.

Rows are held out in blocks of neighbours, by the hash of the block, so that pieces of one document
rarely stand on both sides.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from cramjax.config import pairs
from cramjax.data import dedup, id_rows, orders, pack, tokenizers
from cramjax.data.first_bytes import file_format
from cramjax.data.hub_source import HubFiles, patiently
from cramjax.data.manifest import FORMAT, SPLITS
from cramjax.data.plan import PreparationPlan
from cramjax.data.progress import StageMeter
from cramjax.data.sealed import Damaged, seal, unseal
from cramjax.data.source import Part, TextSource
from cramjax.errors import UserError

_LOG = logging.getLogger("cramjax")

BYTES_PER_ID = 4.5
"""Bytes of text that an id stands for where `data.max_mb` limits the amount: there is no text."""
# Neighbours that are held out together. Rows of 128 ids make 8,192 tokens, several documents.
_BLOCK_ROWS = 64
# More than this share of rows of other lengths means that they are documents, not packed rows.
_MOST_OTHERS = 0.1

# What is done to text, and the values that do nothing.
_AS_THEY_ARE: dict[str, Any] = {
    "min_chars": 0,
    "max_chars": None,
    "compressibility": None,
    "dedup_near": None,
    "keep": None,
    "document_end": True,
    "heldout": None,
}


def holds_ids(plan: PreparationPlan) -> bool:
    """Return True if the first file of the first source has lists of ids in `data.text_field`.

    It is downloaded for that if it lies on the Hub. Text whose tokenizer is trained here, under the
    usual name of its field, is not looked into.
    """
    config = plan.config
    if pairs.are_prepared(config):
        return False
    if config.tokenizer in tokenizers.KINDS and config.text_field == "text":
        return False
    part = plan.parts[0][0]
    if file_format(_file_of(part)) != ".parquet":
        return False
    return id_rows.is_list_of_ids(_local(plan.sources[0], part), config.text_field)


def _file_of(part: Any) -> str:
    """Return the name of the file that a part is read from; "" for other sources."""
    return getattr(part, "path", None) or getattr(part, "file", "")


def _local(source: TextSource, part: Any) -> str:
    """Return the path of a part's file on this machine, downloaded if need be."""
    if not isinstance(source, HubFiles):
        return _file_of(part)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    return patiently(
        lambda: hf_hub_download(
            source.repo, part.file, repo_type="dataset", revision=source.revision
        ),
        part.name,
    )


class ReadyMade:
    """Carries out one plan whose sources hold ids, in the directory `partial`."""

    def __init__(self, plan: PreparationPlan, partial: pathlib.Path, meter: StageMeter):
        """Check that the configuration fits ids.

        Args:
            plan: What to prepare; `holds_ids` is true of it.
            partial: Directory of the unfinished dataset; it is created if it does not exist.
            meter: Shows the progress.

        Raises:
            UserError: names the filter of text that is set, or the tokenizer that is missing.
        """
        self._plan = plan
        self._config = plan.config
        self._partial = partial
        self._meter = meter
        _refuse_text_settings(plan)

        self._tokenizer, self._model = tokenizers.load(
            plan.config.tokenizer, plan.config.extra_ids, of_t5=False
        )
        self._size = max(self._tokenizer.get_vocab().values()) + 1
        self._dtype = "uint16" if self._size <= 1 << 16 else "uint32"
        self._special_ids = tokenizers.special_ids(self._tokenizer)
        self._row_tokens = 0
        self._n_unknown = 0
        self._dropped: collections.Counter[str] = collections.Counter()
        self._n_examples = 0
        # The facts of each part that is done go where `pack.publish_finished` deletes them.
        self._notes = partial / "spool"

    def build(self, directory: pathlib.Path) -> None:
        """Do what is left to do, and publish the dataset as `directory`.

        Raises:
            UserError: if a file cannot be read, holds an id that the tokenizer does not have, or
                rows of many lengths; or if no row is left.
            Damaged: if a file in `partial` is not what was written there.
        """
        self._notes.mkdir(parents=True, exist_ok=True)
        tokenizers.save(self._tokenizer, self._partial / "tokenizer", self._model)
        first = _local(self._plan.sources[0], self._plan.parts[0][0])
        self._row_tokens = id_rows.usual_length(first, self._config.text_field)
        self._warn_of_length()

        written: dict[str, str] = {}
        n_rows = 0
        for source in range(len(self._plan.sources)):
            for note in self._source(source):
                written |= note["files"]
                self._dropped.update(note["dropped"])
                n_rows += note["rows"]
                self._refuse_documents(n_rows)
        try:
            self._publish(directory, written)
        except Damaged as error:
            # Without their notes all parts are copied again.
            raise Damaged(str(error), *self._notes.glob("ids-*.json")) from error

    def _warn_of_length(self) -> None:
        length = self._config.seq_len - int(self._config.cls_token)
        if self._row_tokens % length:
            _LOG.warning(
                "data.seq_len=%d: the rows there have %d ids, and a sequence joins the end of one "
                "with the beginning of another, without a separator",
                self._config.seq_len,
                self._row_tokens,
            )

    def _source(self, source: int) -> Iterator[dict[str, Any]]:
        """Yield the notes of the parts of a source, until its share is full."""
        parts = self._plan.parts[source]
        opened = self._plan.sources[source]
        share = self._plan.share_bytes[source]
        limit = None
        if share is not None:
            limit = max(1, int(share / BYTES_PER_ID / self._row_tokens))
        n_rows = 0

        with ThreadPoolExecutor(1) as threads:
            following: Future[str] | None = None
            for number, part in enumerate(parts):
                left = None if limit is None else limit - n_rows
                if left is not None and left <= 0:
                    return

                note = self._note_of(source, number)
                if note is None:
                    path = (following or threads.submit(_local, opened, part)).result()
                    # The next file is downloaded while this one is read, if that does not suffice.
                    following = None
                    is_enough = left is not None and id_rows.count(path) >= left
                    if number + 1 < len(parts) and not is_enough:
                        following = threads.submit(_local, opened, parts[number + 1])
                    note = self._copy(source, number, part, path, left)
                yield note
                n_rows += note["rows"]
                self._show((number + 1) / len(parts), n_rows, limit)

    def _show(self, done: float, n_rows: int, limit: int | None) -> None:
        if limit is not None:
            done = max(done, n_rows / limit)
        n_bytes = n_rows * self._row_tokens * np.dtype(self._dtype).itemsize
        self._meter.show("copying ids", n_bytes, min(done, 1.0))

    def _note_of(self, source: int, number: int) -> dict[str, Any] | None:
        """Return what an earlier process noted of a part, if its files have their sizes still."""
        try:
            note = unseal((self._notes / f"ids-{source}-{number}.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        for name, n_bytes in note["sizes"].items():
            path = self._partial / name
            if not path.exists() or path.stat().st_size != n_bytes:
                return None
        return note

    def _copy(
        self, source: int, number: int, part: Part, path: str, left: int | None
    ) -> dict[str, Any]:
        """Write the rows of a part, at most `left` of them, to its own shards; returns its note."""
        dropped: collections.Counter[str] = collections.Counter()

        def drop(reason: str, where: str) -> None:
            dropped[reason] += 1
            if self._n_examples < 3:
                self._n_examples += 1
                _LOG.warning("skipped: %s (%s)", where, reason)

        shards = {}
        for split in SPLITS:
            stem = f"{split}-{source}-{number:05d}"
            shards[split] = _Shards(self._partial, stem, self._dtype, self._config.max_shard_tokens)
        n_rows = 0
        rows = id_rows.read_rows(path, self._config.text_field, self._row_tokens, left, drop)
        for block in id_rows.blocks(rows, _BLOCK_ROWS):
            self._refuse_foreign(block, part)
            content = block.astype(np.dtype(self._dtype).newbyteorder("<"))
            shards[self._split_of(content)].add(content)
            n_rows += len(block)

        files: dict[str, str] = {}
        for written in shards.values():
            files |= written.close()
        sizes = {name: (self._partial / name).stat().st_size for name in files}
        note = {"rows": n_rows, "files": files, "sizes": sizes, "dropped": dict(dropped)}
        # On the disk after its shards, so that a part is noted only if it is whole.
        name = self._notes / f"ids-{source}-{number}.json"
        name.write_text(seal(note))
        pack.sync(name)
        return note

    def _split_of(self, block: np.ndarray) -> str:
        """Decide from its content alone if a block of rows is held out."""
        digest = hashlib.blake2b(block.tobytes(), digest_size=8).digest()
        hashes = np.frombuffer(digest, "<u8")
        is_heldout = dedup.is_heldout(hashes, self._config.heldout_fraction)[0]
        return "heldout" if is_heldout else "train"

    def _refuse_foreign(self, rows: np.ndarray, part: Part) -> None:
        if rows.size and (rows.min() < 0 or rows.max() >= self._size):
            foreign = rows[(rows < 0) | (rows >= self._size)][0]
            raise UserError(
                f"{part.name}: holds the id {foreign}, and data.tokenizer="
                f"{self._config.tokenizer} has ids from 0 to {self._size - 1}; name the tokenizer "
                "that made these ids"
            )

    def _refuse_documents(self, n_rows: int) -> None:
        """Raise a UserError if rows of other lengths are not a few at the ends of files."""
        n_others = self._dropped["row_of_another_length"]
        if n_others > max(_BLOCK_ROWS, _MOST_OTHERS * (n_rows + n_others)):
            specs = ", ".join(source.spec for source in self._plan.sources)
            raise UserError(
                f"data.source={specs}: {n_others:,} rows have other lengths than the {n_rows:,} of "
                f"{self._row_tokens} ids; only packed sequences of one length can be read: take "
                "the text instead"
            )

    def _publish(self, directory: pathlib.Path, written: dict[str, str]) -> None:
        """Finish the shards, write the manifest, and rename `partial` to `directory`."""
        self._remove_others(written)
        entries = self._finish(written)
        totals: dict[str, int] = dict.fromkeys(SPLITS, 0)
        for entry in entries:
            totals[entry["split"]] += entry["tokens"]
        if not totals["train"]:
            specs = ", ".join(source.spec for source in self._plan.sources)
            raise UserError(
                f"data.source={specs}: no row is left to train on (dropped: "
                f"{dict(self._dropped) or 'there was none'}); raise data.max_mb, or lower "
                "data.heldout_fraction"
            )
        if not totals["heldout"] and self._config.heldout_fraction:
            _LOG.warning(
                "no row is held out; raise data.heldout_fraction (%g)",
                self._config.heldout_fraction,
            )

        if (order := orders.wanted(self._config)) is not None:
            orders.write(
                self._partial, order, entries, self._dtype, self._tokenizer, orders.score_here
            )
        pack.publish(self._partial, directory, self._manifest(entries, totals))

    def _finish(self, written: dict[str, str]) -> list[dict[str, Any]]:
        """Turn the offsets into .npy files, and count the training split into unigram.npy.

        Args:
            written: Name → SHA-256 of what was written to each file.

        Returns:
            The shards' entries in the manifest.
        """
        for name, sha256 in written.items():
            path = self._partial / name
            if not path.exists() or pack.file_sha256(path) != sha256:
                raise Damaged(f"{path} is not what was written")

        dtype = np.dtype(self._dtype).newbyteorder("<")
        counts = np.zeros(self._size, np.int64)
        entries = []
        for path in sorted(self._partial.glob("*.bin"), key=_shard_order):
            offsets = np.fromfile(path.with_suffix(".docs"), "<u8")
            np.save(path.with_suffix(".docs.npy"), offsets)

            split, source, _ = path.stem.split("-")
            of_shard = pack.count_ids(path, dtype, self._size)
            self._n_unknown += int(of_shard[self._special_ids["unk"]])
            if split == "train":
                counts += of_shard
            entry = {
                "file": path.name,
                "split": split,
                "source": int(source),
                "tokens": path.stat().st_size // dtype.itemsize,
                "documents": len(offsets),
                "sha256": written[path.name],
                "boundaries": f"{path.stem}.docs.npy",
            }
            entries.append(entry)
        np.save(self._partial / "unigram.npy", counts)
        return entries

    def _remove_others(self, written: dict[str, str]) -> None:
        """Delete shards that no note names: a process that was killed left them."""
        for pattern in ("*.bin", "*.docs"):
            for path in self._partial.glob(pattern):
                if path.name not in written:
                    path.unlink()

    def _manifest(self, entries: list[dict[str, Any]], totals: dict[str, int]) -> dict[str, Any]:
        tokenizer_file = self._partial / "tokenizer" / "tokenizer.json"
        sources = [
            {"spec": source.spec, "weight": source.weight, "revision": source.revision}
            for source in self._plan.sources
        ]
        n_rows = sum(entry["documents"] for entry in entries)

        return {
            "format": FORMAT,
            "fingerprint": self._plan.fingerprint,
            "tokenizer_sha256": hashlib.sha256(tokenizer_file.read_bytes()).hexdigest(),
            "vocab_size": self._size,
            "dtype": self._dtype,
            "special_tokens": self._special_ids,
            "extra_ids": tokenizers.count_extra_ids(self._tokenizer),
            "documents": n_rows,
            "tokens": sum(totals.values()),
            "train_tokens": totals["train"],
            "heldout_tokens": totals["heldout"],
            "source": " + ".join(source.spec for source in self._plan.sources),
            "sources": sources,
            # Of ready-made ids: nothing else was done to them, and their rows have this length.
            "row_tokens": self._row_tokens,
            "filters": {
                name: getattr(self._config, name) for name in ("heldout_fraction", "max_mb")
            },
            "documents_read": n_rows,
            # The characters behind the ids are not there to be counted.
            "unknown_token_share": self._n_unknown / sum(totals.values()),
            "dropped": {reason: count for reason, count in sorted(self._dropped.items()) if count},
            "files": pack.digests_of(self._partial),
            "shards": entries,
        }


def _shard_order(path: pathlib.Path) -> tuple[int, int, int]:
    split, source, number = path.stem.split("-")
    return SPLITS.index(split), int(source), int(number)


class _Shards:
    """Writes the rows of one part and split: tokens to .bin, where rows begin to .docs.

    No file is made without rows.
    """

    def __init__(self, directory: pathlib.Path, stem: str, dtype: str, max_tokens: int):
        self._directory = directory
        self._stem = stem
        self._itemsize = np.dtype(dtype).itemsize
        self._max_tokens = max_tokens
        self._number = 0
        self._n_tokens = 0
        self._files: list[tuple[pathlib.Path, BinaryIO, hashlib._Hash]] = []
        self._digests: dict[str, str] = {}

    def add(self, rows: np.ndarray) -> None:
        """Write rows [n, row_tokens] of the shard's type."""
        if not len(rows):
            return
        if self._files and self._n_tokens + rows.size > self._max_tokens:
            self._end_shard()
        if not self._files:
            self._open()
        starts = self._n_tokens + rows.shape[1] * np.arange(len(rows), dtype="<u8")
        for (_, file, digest), content in zip(
            self._files, (rows.tobytes(), starts.astype("<u8").tobytes()), strict=True
        ):
            file.write(content)
            digest.update(content)
        self._n_tokens += rows.size

    def _open(self) -> None:
        # Shards of a part follow each other by number, and parts have room for a thousand.
        stem = f"{self._stem}{self._number:03d}"
        for ending in ("bin", "docs"):
            path = self._directory / f"{stem}.{ending}"
            self._files.append((path, path.open("wb", buffering=1 << 20), hashlib.sha256()))

    def _end_shard(self) -> None:
        for path, file, digest in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            self._digests[path.name] = digest.hexdigest()
        self._files = []
        self._number += 1
        self._n_tokens = 0

    def close(self) -> dict[str, str]:
        """Bring everything to the disk; returns name → SHA-256 of each file."""
        self._end_shard()
        return self._digests


def _refuse_text_settings(plan: PreparationPlan) -> None:
    """Raise a UserError if a setting or another source of the mixture is for text."""
    config = plan.config
    for source, parts in zip(plan.sources, plan.parts, strict=True):
        if file_format(_file_of(parts[0])) != ".parquet":
            raise UserError(
                f"data.source: {plan.sources[0].spec} holds token ids and {source.spec} none; a "
                "mixture is of ids alone or of text alone"
            )
    specs = ", ".join(source.spec for source in plan.sources)
    for name, off in _AS_THEY_ARE.items():
        value = config[name]
        if value != off:
            raise UserError(
                f"data.{name}={json.dumps(value)}: is for text, and {specs} holds token "
                f"ids in its field {config.text_field!r}; set it to {off}"
            )
    if config.tokenizer in tokenizers.KINDS:
        raise UserError(
            f"data.text_field={config.text_field}: holds token ids in {specs}; name the tokenizer "
            "that made them with --config.data.tokenizer=FILE, or "
            "hf:OWNER/NAME:tokenizer/tokenizer.json"
        )
