"""The stages of one preparation in order, with the journal by which an interrupted one goes on.

Everything happens in `<dataset>.partial`. A line of `journal.jsonl` says that a part is packed, how long each shard is then,
and what was dropped: going on means to cut the shards back to the last line and to look at the parts after it.
"""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from cramjax.data import dedup, encode, pack, tokenizers
from cramjax.data.dataset import FORMAT
from cramjax.data.progress import Meter
from cramjax.data.selection import Selection
from cramjax.data.spool import Damaged, Spool, SpooledPart, read_text
from cramjax.errors import UserError

if TYPE_CHECKING:
    from cramjax.data.prepare import Plan

_LOG = logging.getLogger("cramjax")
_BATCH_CHARS = 1 << 21
_FILTERS = (
    "normalize", "min_chars", "max_chars", "compressibility", "dedup_exact", "dedup_near", "heldout_fraction", "max_mb",
)  # fmt: skip


class Builder:
    """One preparation of `plan` in the directory `partial`; `build` brings it to its end."""

    def __init__(self, plan: Plan, partial: pathlib.Path, meter: Meter, n_workers: int | None):
        (partial / "spool").mkdir(parents=True, exist_ok=True)
        self.plan, self.data, self.partial, self.meter = plan, plan.data, partial, meter
        self.spool = Spool(plan.jobs(partial), n_workers)
        self.selection = Selection(
            plan.share_bytes, exact=self.data.dedup_exact, near=self.data.dedup_near
        )
        self.journal = Journal(partial / "journal.jsonl")
        self.dropped: collections.Counter[str] = collections.Counter()

    def build(self, directory: pathlib.Path) -> None:
        """Go on from wherever the preparation stands, and publish it as `directory`."""
        with self.spool:
            self.tokenizer = self._get_tokenizer()
            self.special = tokenizers.special_ids(self.tokenizer)
            self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
            self.dtype = "uint16" if self.vocab_size <= 1 << 16 else "uint32"
            with ThreadPoolExecutor(2) as threads:
                for source in range(len(self.plan.sources)):
                    self._pack_source(source, threads)
        self._publish(directory)

    def _get_tokenizer(self) -> Any:
        folder, temporary = self.partial / "tokenizer", self.partial / "tokenizer.tmp"
        if not folder.exists():
            if self.data.tokenizer in tokenizers.KINDS:
                tokenizer, model = self._train_tokenizer()
            else:
                tokenizer, model = tokenizers.load(self.data.tokenizer, self.data.extra_ids)
            tokenizers.save(tokenizer, temporary, model)
            temporary.rename(folder)
        return tokenizers.load(folder / "tokenizer.json")[0]

    def _train_tokenizer(self) -> tuple[Any, bytes | None]:
        data, texts = self.data, list(self._sample())
        if not texts:
            for key in self.plan.jobs(self.partial):
                self.dropped.update(self.spool.get(key).summary["dropped"])
            raise self._nothing_left(
                "every document was dropped before a tokenizer could be trained"
            )
        n_chars = sum(map(len, texts))
        self.meter.announce(
            f"training a {data.tokenizer} tokenizer of {data.vocab_size:,} entries on {n_chars / 1e6:.1f} million characters"
        )
        tokenizer, model = tokenizers.train(
            data.tokenizer,
            texts,
            vocab_size=data.vocab_size,
            lowercase=data.lowercase,
            ascii_only=data.ascii_only,
            extra_ids=data.extra_ids,
        )
        if (n_found := tokenizer.get_vocab_size()) < data.vocab_size:
            _LOG.warning(
                "data.vocab_size=%d: the corpus is small and gives %d entries only",
                data.vocab_size,
                n_found,
            )
        return tokenizer, model

    def _sample(self) -> Iterator[str]:
        """The first distinct documents of each source, up to its share of data.tokenizer_sample_mb."""
        selection = Selection(self._sample_shares(), exact=True, near=None)
        for source, parts in enumerate(self.plan.parts):
            for number in range(len(parts)):
                if selection.is_full(source):
                    break
                part = self.spool.get((source, number), self._show_reading)
                for _, text in _kept_texts(
                    part, _selector(selection, source, collections.Counter())
                ):
                    yield text
                self._show(
                    "reading a sample",
                    source,
                    number + 1,
                    sum(selection.taken_bytes),
                    selection.share_bytes,
                )

    def _sample_shares(self) -> list[float]:
        total = sum(source.weight for source in self.plan.sources)
        shares = [
            self.data.tokenizer_sample_mb * 1e6 * source.weight / total
            for source in self.plan.sources
        ]
        return [
            min(share, limit or share)
            for share, limit in zip(shares, self.plan.share_bytes, strict=True)
        ]

    def _pack_source(self, source: int, threads: ThreadPoolExecutor) -> None:
        writers = self._writers(source)
        for number in range(len(self.plan.parts[source])):
            if self.selection.is_full(source):
                break
            part = self.spool.get((source, number), self._show_reading)
            entry = self.journal.entries.get((source, number))
            if entry is None:
                entry = self._pack_part((source, number), part, writers, threads)
                self.journal.append(entry)
            else:  # for what it remembers; what it drops is in the entry
                select = _selector(self.selection, source, collections.Counter())
                for rows, signatures in part.blocks(self.selection.needs_signatures):
                    select(rows, signatures)
            part.path("text.zst").unlink(missing_ok=True)
            self.dropped.update(entry["dropped"])
        self.spool.finish_source(source)
        for writer in writers.values():
            writer.close()

    def _writers(self, source: int) -> dict[str, pack.ShardWriter]:
        state = self.journal.last_state(source)
        writers = {}
        for split in pack.SPLITS:
            writers[split] = pack.ShardWriter(
                self.partial,
                split,
                source,
                dtype=self.dtype,
                sep=self.special["sep"],
                max_tokens=self.data.max_shard_tokens,
            )
            writers[split].resume(state.get(split, [0, 0, 0]))
        return writers

    def _pack_part(
        self,
        key: tuple[int, int],
        part: SpooledPart,
        writers: dict[str, pack.ShardWriter],
        threads: ThreadPoolExecutor,
    ) -> dict[str, Any]:
        """Select, encode and write the documents of one part; returns its journal entry."""
        for example in part.summary["examples"]:
            _LOG.warning("skipped: %s", example)
        dropped = collections.Counter(part.summary["dropped"])
        pending = collections.deque()
        select = _selector(self.selection, key[0], dropped)
        # Two batches at a time: one is in the tokenizer's threads while the other one's ids become arrays.
        n_bytes, before = 0, sum(self.selection.taken_bytes)
        for rows, texts in _batches(part, select, self.selection.needs_signatures):
            n_bytes += int(rows["n_bytes"].sum())
            n_parts = key[1] + n_bytes / part.summary["bytes"]
            self._show("encoding", key[0], n_parts, before + n_bytes, self.plan.share_bytes)
            pending.append((rows, threads.submit(encode.encode_documents, self.tokenizer, texts)))
            if len(pending) > 2:
                self._write(*pending.popleft(), writers, dropped)
        while pending:
            self._write(*pending.popleft(), writers, dropped)
        for writer in writers.values():
            writer.flush()
        return {
            "part": list(key),
            "writers": {split: writer.state() for split, writer in writers.items()},
            "dropped": dict(dropped),
        }

    def _write(
        self,
        rows: np.ndarray,
        encoded: Any,
        writers: dict[str, pack.ShardWriter],
        dropped: collections.Counter,
    ):
        documents = encoded.result()
        n_tokens = np.array([len(tokens) for tokens in documents])
        keep = n_tokens > 0
        dropped["no_tokens"] += int((~keep).sum())
        if self.data.compressibility is not None:
            # Cramming, arXiv 2212.14034, section 4.4, with the tokenizer that the model gets.
            compressible = n_tokens < self.data.compressibility * rows["n_chars"]
            dropped["compressibility"] += int((keep & ~compressible).sum())
            keep &= compressible
        heldout = dedup.is_heldout(rows["split"], self.data.heldout_fraction)
        for split, chosen in (("train", keep & ~heldout), ("heldout", keep & heldout)):
            writers[split].add([documents[index] for index in np.flatnonzero(chosen)])

    def _publish(self, directory: pathlib.Path) -> None:
        shards = pack.finish(self.partial, dtype=self.dtype, vocab_size=self.vocab_size)
        n_tokens = {
            split: sum(e["tokens"] for e in shards if e["split"] == split) for split in pack.SPLITS
        }
        dropped = {reason: count for reason, count in sorted(self.dropped.items()) if count}
        if not n_tokens["train"]:
            raise self._nothing_left("no document is left to train on")
        if not n_tokens["heldout"] and self.data.heldout_fraction:
            _LOG.warning(
                "no document is held out; raise data.heldout_fraction (%g)",
                self.data.heldout_fraction,
            )
        if (length := self.plan.order_length()) is not None:
            pack.write_sentence_order(
                self.partial,
                shards,
                dtype=self.dtype,
                seq_len=length,
                period=self.tokenizer.token_to_id("."),
            )
        specs = [
            {"spec": source.spec, "weight": source.weight, "revision": source.revision}
            for source in self.plan.sources
        ]
        manifest = {
            "format": FORMAT,
            "fingerprint": self.plan.fingerprint,
            "tokenizer_sha256": hashlib.sha256(
                (self.partial / "tokenizer" / "tokenizer.json").read_bytes()
            ).hexdigest(),
            "vocab_size": self.vocab_size,
            "dtype": self.dtype,
            "special_tokens": self.special,
            "extra_ids": tokenizers.count_extra_ids(self.tokenizer),
            "documents": sum(entry["documents"] for entry in shards),
            "tokens": sum(n_tokens.values()),
            "train_tokens": n_tokens["train"],
            "heldout_tokens": n_tokens["heldout"],
            "source": " + ".join(source.spec for source in self.plan.sources),
            "sources": specs,
            "filters": {key: self.data[key] for key in _FILTERS},
            "documents_read": self.selection.n_taken,
            "dropped": dropped,
            "shards": shards,
        }
        pack.publish(self.partial, directory, manifest)

    def _nothing_left(self, what: str) -> UserError:
        specs = ", ".join(source.spec for source in self.plan.sources)
        counts = ", ".join(f"{reason} {count}" for reason, count in self.dropped.items() if count)
        return UserError(
            f"data.source={specs}: {what} (dropped: {counts or 'there was no text'}); check data.source and its filters"
        )

    def _show(
        self, stage: str, source: int, n_parts: float, taken: int, shares: list[float | None]
    ) -> None:
        """Report that `taken` bytes, or the first `n_parts` parts of `source` (the last partly), are through `stage`."""
        if None not in shares:
            fraction = min(taken / sum(shares), 1.0)
        else:
            sizes = [[part.n_bytes or 0 for part in parts] for parts in self.plan.parts]
            here, begun = sizes[source], int(n_parts)
            done = (
                sum(map(sum, sizes[:source]))
                + sum(here[:begun])
                + (n_parts - begun) * sum(here[begun : begun + 1])
            )
            whole = sum(map(sum, sizes))
            fraction = done / whole if whole else None
        self.meter.show(stage, taken, fraction)

    def _show_reading(self, name: str, n_bytes: int) -> None:
        self.meter.show(f"reading {name} (compressed)", n_bytes, None)


class Journal:
    """The parts that are packed, in a file of JSON lines."""

    def __init__(self, path: pathlib.Path):
        """Reads what an earlier process wrote; a line that a kill cut short is cut off."""
        self._path = path
        self.entries: dict[tuple[int, int], dict[str, Any]] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            path.write_bytes(whole)
        try:
            for line in whole.splitlines():
                entry = json.loads(line)
                self.entries[tuple(entry["part"])] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(str(path)) from error

    def append(self, entry: dict[str, Any]) -> None:
        """Add the entry of one more part."""
        with self._path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def last_state(self, source: int) -> dict[str, list[int]]:
        """Split → state of its writer after the last part of `source`; empty before the first."""
        numbers = [number for owner, number in self.entries if owner == source]
        return self.entries[source, max(numbers)]["writers"] if numbers else {}


Select = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def _selector(selection: Selection, source: int, dropped: collections.Counter) -> Select:
    return lambda rows, signatures: selection.select(source, rows, signatures, dropped)


def _kept_texts(
    part: SpooledPart, select: Select, with_signatures: bool = False
) -> Iterator[tuple[np.void, str]]:
    """The record and the text of every piece that `select` keeps."""
    with part.open_text() as file:
        for rows, signatures in part.blocks(with_signatures):
            keep = select(rows, signatures)
            for row, size, kept in zip(rows, rows["n_bytes"].tolist(), keep.tolist(), strict=False):
                text = read_text(file, size)
                if kept:
                    yield row, text
            if len(keep) < len(rows):
                return


def _batches(
    part: SpooledPart, select: Select, with_signatures: bool
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Records and texts of the kept pieces in batches of some 2 million characters."""
    rows, texts, n_chars = [], [], 0
    for row, text in _kept_texts(part, select, with_signatures):
        rows.append(row)
        texts.append(text)
        n_chars += len(text)
        if n_chars >= _BATCH_CHARS:
            yield np.array(rows), texts
            rows, texts, n_chars = [], [], 0
    if texts:
        yield np.array(rows), texts
