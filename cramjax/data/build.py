"""Builds a prepared dataset in three stages: get the tokenizer, pack the documents, publish.

Everything happens in `<dataset>.partial`. Each stage goes on where an earlier process stopped: a
tokenizer in its place is finished, `spool.py` keeps the parts that are read, and `journal.py`
records the parts that are packed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cramjax.data import dedup, lost_text, pack, tokenizers
from cramjax.data.clean import CleanRules
from cramjax.data.encode import Encoder
from cramjax.data.journal import Journal
from cramjax.data.manifest import FORMAT
from cramjax.data.plan import PreparationPlan, sentence_order_length
from cramjax.data.progress import StageMeter
from cramjax.data.sealed import seal, unseal
from cramjax.data.selection import Selection, kept_batches, kept_texts
from cramjax.data.source import Part
from cramjax.data.spool import Job, Spool, SpooledPart
from cramjax.data.tally import Tally
from cramjax.errors import UserError

_LOG = logging.getLogger("cramjax")

# Batches whose encoding may be under way: one is in the tokenizer's threads while the ids of
# another become arrays.
_N_PENDING = 2
# Work that a power failure may cost: syncing after each of ten thousand small parts takes minutes.
_SYNC_S = 5.0
# A last document of the sample that goes over its end by more is cut there, in characters.
_SAMPLE_OVERSHOOT_CHARS = 1 << 20

# The keys of `data` that the manifest records as its filters.
_FILTERS = (
    "keep", "normalize", "min_chars", "max_chars", "compressibility", "dedup_exact", "dedup_near",
    "heldout_fraction", "max_mb",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTokenizer:
    """A finished tokenizer and the facts that packing needs.

    Attributes:
        tokenizer: The tokenizer.
        special_ids: Role → id of the special tokens.
        size: The highest id + 1.
        dtype: Type of the ids on disk, "uint16" or "uint32".
    """

    tokenizer: Tokenizer
    special_ids: dict[str, int]
    size: int
    dtype: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PreparedTokenizer:
        """Read the facts off a tokenizer."""
        size = max(tokenizer.get_vocab().values()) + 1
        dtype = "uint16" if size <= 1 << 16 else "uint32"
        special_ids = tokenizers.special_ids(tokenizer)
        return cls(tokenizer=tokenizer, special_ids=special_ids, size=size, dtype=dtype)


class Builder:
    """Carries out one plan in the directory `partial`."""

    def __init__(
        self, plan: PreparationPlan, partial: pathlib.Path, meter: StageMeter, n_workers: int | None
    ):
        """Read how far an earlier process came.

        Args:
            plan: What to prepare.
            partial: Directory of the unfinished dataset; it is created if it does not exist.
            meter: Shows the progress.
            n_workers: Processes that read and clean (None: one per core).

        Whatever is damaged there is made again, from the first step that is not whole.
        """
        (partial / "spool").mkdir(parents=True, exist_ok=True)
        _remove_unfinished(partial)
        self._plan = plan
        self._config = plan.config
        self._partial = partial
        self._meter = meter

        self._selection = Selection(
            plan.share_bytes, exact=plan.config.dedup_exact, near=plan.config.dedup_near
        )
        self._journal = Journal(partial / "journal.jsonl")
        if not _is_whole_tokenizer(partial):
            self._journal.clear()
        self._spool = Spool(_jobs(plan, partial / "spool"), n_workers, packed=self._journal.entries)
        # Parts that are packed and not in the journal yet: their lines, and their texts.
        self._pending: list[tuple[dict[str, Any], pathlib.Path]] = []
        self._synced_s = time.monotonic()
        self._written: dict[str, str] = {}
        self._dropped: collections.Counter[str] = collections.Counter()
        # The tally of each packed part, by the part's name.
        self._tallies: list[tuple[str, Tally]] = []

    def build(self, directory: pathlib.Path) -> None:
        """Do what is left to do, and publish the dataset as `directory`.

        Raises:
            UserError: if a source cannot be read, or no document is left.
            RunFailed: if a worker was killed.
            Damaged: if a file in `partial` is not what was written there.
        """
        with self._spool:
            prepared = PreparedTokenizer.of(self._get_tokenizer())
            with ThreadPoolExecutor(_N_PENDING) as threads:
                for source in range(len(self._plan.sources)):
                    self._pack_source(source, prepared, threads)
        self._publish(directory, prepared)

    # Stage 1: the tokenizer.

    def _get_tokenizer(self) -> Tokenizer:
        """Load or train the tokenizer, unless an earlier process has saved it."""
        folder = self._partial / "tokenizer"
        if not folder.exists():
            if self._config.tokenizer in tokenizers.KINDS:
                tokenizer, model = self._train_tokenizer()
            else:
                tokenizer, model = tokenizers.load(self._config.tokenizer, self._config.extra_ids)

            # Renamed when it is complete, so that a folder of this name is a whole tokenizer.
            temporary = self._partial / "tokenizer.tmp"
            tokenizers.save(tokenizer, temporary, model)
            for path in temporary.iterdir():
                pack.sync(path)
            _seal_of(self._partial).write_text(seal(_digests(temporary)))
            pack.sync(_seal_of(self._partial))
            temporary.rename(folder)

        # Always loaded, so that the ids do not depend on whether this process trained it.
        return tokenizers.load(folder / "tokenizer.json")[0]

    def _train_tokenizer(self) -> tuple[Tokenizer, bytes | None]:
        """Train on a sample; returns the tokenizer and its SentencePiece model, if it has one."""
        config = self._config
        texts = list(self._sample())
        if not texts:
            for source, parts in enumerate(self._plan.parts):
                for number in range(len(parts)):
                    part = self._spool.get((source, number))
                    self._dropped.update(part.summary["dropped"])
            raise self._nothing_left(
                "every document was dropped before a tokenizer could be trained"
            )

        n_million_chars = sum(map(len, texts)) / 1e6
        self._meter.announce(
            f"training a {config.tokenizer} tokenizer of {config.vocab_size:,} entries on "
            f"{n_million_chars:.1f} million characters"
        )
        tokenizer, model = tokenizers.train(
            config.tokenizer,
            texts,
            vocab_size=config.vocab_size,
            lowercase=config.lowercase,
            ascii_only=config.ascii_only,
            language=config.language,
            extra_ids=config.extra_ids,
        )
        # Said now, before hours of encoding.
        _, tally = Encoder(tokenizer).encode(texts)
        lost_text.judge(lost_text.of_characters([("the sample", tally)], config), config)

        n_entries = tokenizer.get_vocab_size()
        if n_entries < config.vocab_size:
            _LOG.warning(
                "data.vocab_size=%d: the corpus is small and gives %d entries only",
                config.vocab_size,
                n_entries,
            )
        return tokenizer, model

    def _sample(self) -> Iterator[str]:
        """Yield each source's first distinct documents, up to its share of the sample."""
        # Near duplicates do no harm to a tokenizer, and finding them is slow.
        selection = Selection(self._sample_shares(), exact=True, near=None)
        for source, parts in enumerate(self._plan.parts):
            for number in range(len(parts)):
                if selection.is_full(source):
                    break

                part = self._spool.get((source, number), self._show_reading)
                # The counts of the sample are thrown away: packing meets the same documents.
                left_bytes = (selection.share_bytes[source] or 0) - selection.taken_bytes[source]
                for row, text in kept_texts(part, selection, source, collections.Counter()):
                    # The last document goes over the share. Only a huge one matters.
                    yield text[: max(int(left_bytes), _SAMPLE_OVERSHOOT_CHARS)]
                    left_bytes -= int(row["n_bytes"])
                self._show(
                    "reading a sample",
                    source,
                    number + 1,
                    sum(selection.taken_bytes),
                    selection.share_bytes,
                )

    def _sample_shares(self) -> list[float | None]:
        """Bytes of each source in the sample: by weight, but no more than will be prepared."""
        sample_bytes = self._config.tokenizer_sample_mb * 1e6
        total_weight = sum(source.weight for source in self._plan.sources)

        shares: list[float | None] = []
        for source, limit in zip(self._plan.sources, self._plan.share_bytes, strict=True):
            share = sample_bytes * source.weight / total_weight
            shares.append(min(share, limit or share))
        return shares

    # Stage 2: packing.

    def _pack_source(self, source: int, prepared: PreparedTokenizer, threads: ThreadPoolExecutor):
        """Pack the parts of a source that the journal does not have, until its share is full."""
        writers = self._resume_writers(source, prepared)
        encoder = Encoder(prepared.tokenizer)
        for number in range(len(self._plan.parts[source])):
            if self._selection.is_full(source):
                break

            part = self._spool.get((source, number), self._show_reading)
            entry = self._journal.entries.get((source, number))
            if entry is None:
                entry = self._pack_part((source, number), part, writers, encoder, threads)
                self._pending.append((entry, part.path("text.zst")))
            else:
                # Selected again only to remember its documents; the entry has what was dropped.
                for rows, signatures in part.blocks(self._selection.needs_signatures):
                    self._selection.select(source, rows, signatures, collections.Counter())
                part.path("text.zst").unlink(missing_ok=True)

            self._dropped.update(entry["dropped"])
            name = self._plan.parts[source][number].name
            self._tallies.append((name, Tally.of_dict(entry["tally"])))
            if time.monotonic() - self._synced_s > _SYNC_S:
                self._sync(writers)

        self._spool.finish_source(source)
        self._sync(writers)
        for writer in writers.values():
            writer.close()
            self._written |= writer.digests()

    def _sync(self, writers: dict[str, pack.ShardWriter]) -> None:
        """Bring the packed parts to the disk: the shards, then the journal; then drop the texts.

        So after a power failure a part is in the journal and its shards, or it has its text.
        """
        for writer in writers.values():
            writer.sync()
        if self._pending:
            self._journal.append([entry for entry, _ in self._pending])
            pack.sync(self._partial)
        for _, text in self._pending:
            text.unlink(missing_ok=True)
        self._pending.clear()
        self._synced_s = time.monotonic()

    def _resume_writers(
        self, source: int, prepared: PreparedTokenizer
    ) -> dict[str, pack.ShardWriter]:
        """Open a writer for each split, and cut its files back to the last journal entry."""
        writers = {}
        for split in pack.SPLITS:
            writer = pack.ShardWriter(
                self._partial,
                split,
                source,
                dtype=prepared.dtype,
                sep=prepared.special_ids["sep"],
                max_tokens=self._config.max_shard_tokens,
            )
            writer.resume(self._journal.shard_states(source, split))
            writers[split] = writer
        return writers

    def _pack_part(
        self,
        key: tuple[int, int],
        part: SpooledPart,
        writers: dict[str, pack.ShardWriter],
        encoder: Encoder,
        threads: ThreadPoolExecutor,
    ) -> dict[str, Any]:
        """Select, encode and write the documents of one part; returns its journal entry."""
        source, number = key
        for example in part.summary["examples"]:
            _LOG.warning("skipped: %s", example)

        dropped = collections.Counter(part.summary["dropped"])
        tally = Tally(deleted_characters=part.summary["deleted"])
        pending: collections.deque[tuple[np.ndarray, Future]] = collections.deque()
        bytes_before = sum(self._selection.taken_bytes)
        n_bytes = 0
        for rows, texts in kept_batches(part, self._selection, source, dropped):
            n_bytes += int(rows["n_bytes"].sum())
            n_parts = number + n_bytes / part.summary["bytes"]
            taken_bytes = bytes_before + n_bytes
            self._show("encoding", source, n_parts, taken_bytes, self._plan.share_bytes)

            pending.append((rows, threads.submit(encoder.encode, texts)))
            if len(pending) > _N_PENDING:
                rows, encoding = pending.popleft()
                tally += self._write(rows, encoding.result(), writers, dropped)

        for rows, encoding in pending:
            tally += self._write(rows, encoding.result(), writers, dropped)
        return {
            "part": list(key),
            "writers": {split: writer.news() for split, writer in writers.items()},
            "dropped": dict(dropped),
            "tally": dataclasses.asdict(tally),
        }

    def _write(
        self,
        rows: np.ndarray,
        encoded: tuple[list[np.ndarray], Tally],
        writers: dict[str, pack.ShardWriter],
        dropped: collections.Counter[str],
    ) -> Tally:
        """Apply the filters that need tokens, and write what is left to its split.

        Args:
            rows: Records `spool.ROW` [n].
            encoded: Token ids of each of the n pieces, and their tally.
            writers: Split → writer.
            dropped: Reason → count; what is dropped here is added.
        """
        documents, tally = encoded
        n_tokens = np.array([len(tokens) for tokens in documents])
        keep = n_tokens > 0
        dropped["no_tokens"] += int((~keep).sum())

        if self._config.compressibility is not None:
            # Cramming, arXiv 2212.14034, section 4.4, with the tokenizer that the model gets.
            is_compressible = n_tokens < self._config.compressibility * rows["n_chars"]
            dropped["compressibility"] += int((keep & ~is_compressible).sum())
            keep &= is_compressible

        is_heldout = dedup.is_heldout(rows["split"], self._config.heldout_fraction)
        for split, chosen in (("train", keep & ~is_heldout), ("heldout", keep & is_heldout)):
            writers[split].add([documents[index] for index in np.flatnonzero(chosen)])
        return tally

    # Stage 3: publishing.

    def _publish(self, directory: pathlib.Path, prepared: PreparedTokenizer) -> None:
        """Finish the shards, write the manifest, and rename `partial` to `directory`."""
        shards = pack.finish(
            self._partial, dtype=prepared.dtype, vocab_size=prepared.size, written=self._written
        )
        n_train = _count_tokens(shards, "train")
        n_heldout = _count_tokens(shards, "heldout")
        if not n_train:
            raise self._nothing_left("no document is left to train on")
        self._judge(sum(entry["documents"] for entry in shards))
        if not n_heldout and self._config.heldout_fraction:
            _LOG.warning(
                "no document is held out; raise data.heldout_fraction (%g)",
                self._config.heldout_fraction,
            )

        if (length := sentence_order_length(self._config)) is not None:
            pack.write_sentence_order(
                self._partial,
                shards,
                dtype=prepared.dtype,
                seq_len=length,
                period=prepared.tokenizer.token_to_id("."),
            )

        counts = {
            "documents": sum(entry["documents"] for entry in shards),
            "tokens": n_train + n_heldout,
            "train_tokens": n_train,
            "heldout_tokens": n_heldout,
        }
        manifest = self._manifest(prepared, counts, shards)
        pack.publish(self._partial, directory, manifest)

    def _judge(self, n_kept: int) -> None:
        """Say what was lost; refuse the dataset if that is much and not meant."""
        losses = lost_text.of_documents(self._dropped, n_kept, self._config)
        lost_text.judge(losses + lost_text.of_characters(self._tallies, self._config), self._config)

    def _manifest(
        self, prepared: PreparedTokenizer, counts: dict[str, int], shards: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Gather what `dataset.py` and a reader of the dataset want to know."""
        tokenizer_file = self._partial / "tokenizer" / "tokenizer.json"
        sources = [
            {"spec": source.spec, "weight": source.weight, "revision": source.revision}
            for source in self._plan.sources
        ]
        dropped = {reason: count for reason, count in sorted(self._dropped.items()) if count}

        return {
            "format": FORMAT,
            "fingerprint": self._plan.fingerprint,
            "tokenizer_sha256": hashlib.sha256(tokenizer_file.read_bytes()).hexdigest(),
            "vocab_size": prepared.size,
            "dtype": prepared.dtype,
            "special_tokens": prepared.special_ids,
            "extra_ids": tokenizers.count_extra_ids(prepared.tokenizer),
            **counts,
            "source": " + ".join(source.spec for source in self._plan.sources),
            "sources": sources,
            "language": self._config.language,
            "filters": {key: getattr(self._config, key) for key in _FILTERS},
            "documents_read": self._selection.n_taken,
            "dropped": dropped,
            **sum((tally for _, tally in self._tallies), Tally()).shares(),
            "files": pack.digests_of(self._partial),
            "shards": shards,
        }

    def _nothing_left(self, problem: str) -> UserError:
        specs = ", ".join(source.spec for source in self._plan.sources)
        counts = ", ".join(f"{reason} {count}" for reason, count in self._dropped.items() if count)
        return UserError(
            f"data.source={specs}: {problem} (dropped: {counts or 'there was no text'}); "
            "check data.source and its filters"
        )

    # Progress.

    def _show(
        self,
        stage: str,
        source: int,
        n_parts: float,
        taken_bytes: int,
        share_bytes: Sequence[float | None],
    ) -> None:
        """Report how far a stage is.

        Args:
            stage: Its name.
            source: The source at which it is.
            n_parts: Parts of that source that are done; the last may be done in part.
            taken_bytes: Bytes of text that are done.
            share_bytes: Bytes that the stage takes from each source, or None for all of it.
        """
        limits = [share for share in share_bytes if share is not None]
        if len(limits) == len(share_bytes):
            fraction = min(taken_bytes / sum(limits), 1.0)
        else:
            fraction = self._fraction_done(source, n_parts)
        self._meter.show(stage, taken_bytes, fraction)

    def _fraction_done(self, source: int, n_parts: float) -> float | None:
        """Share of all parts' bytes up to part `n_parts` of `source`; None without known sizes."""
        parts = self._plan.parts
        n_whole = int(n_parts)
        done = sum(_size(earlier) for earlier in parts[:source]) + _size(parts[source][:n_whole])
        done += (n_parts - n_whole) * _size(parts[source][n_whole : n_whole + 1])

        total = sum(_size(source_parts) for source_parts in parts)
        return done / total if total else None

    def _show_reading(self, name: str, n_bytes: int) -> None:
        self._meter.show(f"reading {name} (compressed)", n_bytes, None)


def _remove_unfinished(partial: pathlib.Path) -> None:
    """Delete what a killed process had begun to write; the lock says that none is at work."""
    for path in partial.glob("spool/*.tmp"):
        path.unlink(missing_ok=True)
    shutil.rmtree(partial / "tokenizer.tmp", ignore_errors=True)


def _is_whole_tokenizer(partial: pathlib.Path) -> bool:
    """Returns whether an earlier process has saved the tokenizer; a damaged one is deleted."""
    folder = partial / "tokenizer"
    if not folder.exists():
        return False
    try:
        if unseal(_seal_of(partial).read_bytes()) == _digests(folder):
            return True
    except (OSError, ValueError):
        pass
    _LOG.warning("%s: damaged, or of another version; making the tokenizer again", folder)
    shutil.rmtree(folder)
    return False


def _seal_of(partial: pathlib.Path) -> pathlib.Path:
    return partial / "tokenizer.seal"


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns name → SHA-256 of the files in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def _jobs(plan: PreparationPlan, spool: pathlib.Path) -> dict[tuple[int, int], Job]:
    """Describe each part for the spool, in the order in which the builder asks for them."""
    config = plan.config
    rules = CleanRules(
        normalize=config.normalize, min_chars=config.min_chars, max_chars=config.max_chars
    )
    jobs = {}
    for source, parts in enumerate(plan.parts):
        for number, part in enumerate(parts):
            jobs[source, number] = Job(
                source=plan.sources[source],
                part=part,
                stem=spool / f"{source}-{number:06d}",
                rules=rules,
                with_signatures=config.dedup_near is not None,
                limit_bytes=plan.share_bytes[source],
                heldout=plan.heldout,
            )
    return jobs


def _count_tokens(shards: list[dict[str, Any]], split: str) -> int:
    return sum(entry["tokens"] for entry in shards if entry["split"] == split)


def _size(parts: Sequence[Part]) -> int:
    return sum(part.n_bytes or 0 for part in parts)
