"""Builds a prepared dataset, stage by stage, until it is published.

Everything happens in `<dataset>.partial`. A stage is a set of jobs (`jobs.py`), each a pure
function of a part's files, and an executor does them: on this machine or on a cluster. A job that
is whole on the disk is not done again. One whose files are needed and are damaged or deleted is
done again, and so are those that it needs.

1. `spool.ReadJob` reads and cleans a part, until each source's share is full.
2. `duplicates.IndexJob`, `duplicates.CompareJob` and `selection.SelectJob` decide what is kept.
3. `sample.SampleJob` finds the tokenizer's sample; this process trains the tokenizer.
4. `token_files.EncodeJob` encodes.
5. `pack.ShardJob` writes the shards.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import logging
import math
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from tokenizers import Tokenizer

from cramjax.config import mixing, pairs
from cramjax.data import duplicates, jobs, lost_text, orders, pack, pair_text, sample, tokenizers
from cramjax.data.clean import CleanRules
from cramjax.data.duplicates import CompareJob, Index, IndexJob
from cramjax.data.encode import Encoder
from cramjax.data.executors import Executor
from cramjax.data.jobs import Job
from cramjax.data.manifest import FORMAT, SPLITS
from cramjax.data.pack import ShardJob
from cramjax.data.plan import PreparationPlan
from cramjax.data.progress import StageMeter
from cramjax.data.sample import SampleJob
from cramjax.data.sealed import Damaged, seal, unseal
from cramjax.data.selection import SelectJob
from cramjax.data.source import Part
from cramjax.data.spool import Group, ReadJob
from cramjax.data.tally import Tally
from cramjax.data.token_files import EncodeJob
from cramjax.errors import UserError

_LOG = logging.getLogger("cramjax")

# Parts that are smaller together go through the stages as one: jobs have a price.
_GROUP_BYTES = 16e6
# Counted up when the same text gives another tokenizer.
_TOKENIZER_VERSION = 1

# The keys of `data` that the manifest records as its filters.
_FILTERS = (
    "keep", "normalize", "min_chars", "max_chars", "compressibility", "dedup_exact", "dedup_near",
    "heldout_fraction", "max_mb",
)  # fmt: skip

_Key = tuple[int, int]
"""A part: index of its source, and its number in reading order."""

AnyJob = TypeVar("AnyJob", bound=Job)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTokenizer:
    """A finished tokenizer and the facts that packing needs.

    Attributes:
        tokenizer: The tokenizer.
        special_ids: Role → id of the special tokens.
        size: The highest id + 1.
        dtype: Type of the ids on disk, "uint16" or "uint32".
        path: Its tokenizer.json.
        sha256: SHA-256 of that file.
    """

    tokenizer: Tokenizer
    special_ids: dict[str, int]
    size: int
    dtype: str
    path: pathlib.Path
    sha256: str

    @classmethod
    def load(cls, path: pathlib.Path) -> PreparedTokenizer:
        """Load a tokenizer.json and read the facts off it."""
        tokenizer = tokenizers.load(path)[0]
        size = max(tokenizer.get_vocab().values()) + 1
        dtype = "uint16" if size <= 1 << 16 else "uint32"
        return cls(
            tokenizer=tokenizer,
            special_ids=tokenizers.special_ids(tokenizer),
            size=size,
            dtype=dtype,
            path=path,
            sha256=pack.file_sha256(path),
        )


class Builder:
    """Carries out one plan in the directory `partial`."""

    def __init__(
        self, plan: PreparationPlan, partial: pathlib.Path, meter: StageMeter, executor: Executor
    ):
        """Prepare to go on where an earlier process stopped.

        Args:
            plan: What to prepare.
            partial: Directory of the unfinished dataset, absolute; it is created if it does not
                exist.
            meter: Shows the progress.
            executor: Does the jobs.
        """
        partial.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(partial)
        self._plan = plan
        self._config = plan.config
        self._are_pairs = pairs.are_prepared(plan.config)
        self._partial = partial
        self._meter = meter
        self._executor = executor

        self._ledger = jobs.Ledger()
        self._read_jobs = _read_jobs(plan, partial / "spool")
        # In reading order, once the parts are read.
        self._groups: list[Group] = []
        # Reason → count of stages 1, 2 and 4, as far as they are.
        self._dropped: collections.Counter[str] = collections.Counter()
        # Characters that cleaning has deleted in each part.
        self._n_deleted: dict[_Key, int] = {}
        # The tally of each group, by its name.
        self._tallies: list[tuple[str, Tally]] = []
        # Kinds of losses that were said.
        self._said: set[str] = set()

    def build(self, directory: pathlib.Path) -> None:
        """Do what is left to do, and publish the dataset as `directory`.

        Raises:
            UserError: if a source cannot be read, or no document is left.
            RunFailed: if a worker was killed.
            Damaged: if a file in `partial` is not what was written there.
        """
        with self._executor:
            self._groups = self._read()
            selections = self._select()
            prepared = self._get_tokenizer(selections)
            encode_jobs = self._encode(prepared, selections)
            shard_jobs = self._plan_shards(prepared, encode_jobs)
            self._write_shards(shard_jobs, encode_jobs)
            self._check_shards(shard_jobs)
        self._publish(directory, prepared, selections, shard_jobs)

    def _do(self, stage: str, todo: Sequence[AnyJob]) -> Iterator[tuple[AnyJob, dict[str, Any]]]:
        """Do jobs of one stage, and show the progress; yields each with its record, in order."""
        n_bytes = sum(group.limit_bytes for group in self._groups)
        for n_done, (job, record) in enumerate(self._executor.map(jobs.do, todo), start=1):
            self._ledger.add(job, record)
            fraction = n_done / len(todo)
            self._meter.show(stage, fraction * n_bytes, fraction)
            yield job, record

    def _finish(self, stage: str, todo: Sequence[AnyJob]) -> None:
        """Do jobs of one stage to the last."""
        for _ in self._do(stage, todo):
            pass

    def _missing(self, all_jobs: Sequence[AnyJob], *endings: str) -> list[AnyJob]:
        """Return the jobs that have to be done so that their files with `endings` are there."""
        return [job for job in all_jobs if self._ledger.record(job, *endings) is None]

    def _records(self, done: Sequence[Job]) -> list[dict[str, Any]]:
        """Return the records of jobs that are done."""
        records = []
        for job in done:
            record = self._ledger.record(job)
            if record is None:
                raise Damaged(f"{job.stem}.json is gone")
            records.append(record)
        return records

    # Stage 1: reading.

    def _read(self) -> list[Group]:
        """Read the parts that the shares need; returns them in groups."""
        shares = self._plan.share_bytes
        taken_bytes = [0] * len(shares)

        def is_wanted(job: ReadJob) -> bool:
            share = shares[job.key[0]]
            return share is None or taken_bytes[job.key[0]] < share

        started = set()

        def todo() -> Iterator[ReadJob]:
            for job in self._read_jobs:
                if is_wanted(job) and self._ledger.record(job) is None:
                    started.add(job.key)
                    yield job

        done: list[tuple[ReadJob, int]] = []
        results = self._executor.map(
            jobs.do, todo(), is_wanted=is_wanted, on_wait=self._show_reading
        )
        for job in self._read_jobs:
            if not is_wanted(job):
                continue
            record = self._ledger.record(job) if job.key not in started else None
            if record is None:
                job, record = next(results)
                self._ledger.add(job, record)
                for example in record["examples"]:
                    _LOG.warning("skipped: %s", example)
            done.append((job, record["bytes"]))
            taken_bytes[job.key[0]] += record["bytes"]
            self._dropped.update(record["dropped"])
            self._n_deleted[job.key] = record["deleted"]
            self._show_read(job.key, sum(taken_bytes))
        results.close()
        return _groups(done, shares)

    def _need_parts(self, groups: Sequence[Group], *endings: str) -> None:
        """Read parts again whose files are needed and not there."""
        parts = [job for group in groups for job in group.jobs]
        self._finish("reading again", self._missing(parts, *endings))

    # Stage 2: selection.

    def _select(self) -> list[SelectJob]:
        """Decide which documents are kept; returns the finished jobs, one for each group."""
        all_jobs = []
        for group in self._groups:
            stem = self._stem("selection", group.number)
            all_jobs.append(SelectJob(group=group, stem=stem, comparisons=()))
        todo = self._missing(all_jobs, "keep")
        if todo:
            comparisons = self._compare()
            self._need_parts([job.group for job in todo], "rows")
            todo = [dataclasses.replace(job, comparisons=comparisons) for job in todo]
            self._finish("selecting documents", todo)

        for job in self._index_jobs():
            jobs.delete(job, "index", "signatures")
        n_kept = 0
        for record in self._records(all_jobs):
            self._dropped.update(record["dropped"])
            n_kept += record["documents"] - sum(record["dropped"].values())
        # Refused now, before hours of encoding.
        losses = lost_text.of_documents(self._dropped, n_kept, self._config)
        lost_text.judge(losses, self._config, self._said)
        return all_jobs

    def _compare(self) -> tuple[pathlib.Path, ...]:
        """Compare all documents; returns the stems of the comparisons."""
        config = self._config
        if not config.dedup_exact and config.dedup_near is None:
            return ()
        index_jobs = self._index_jobs()
        self._index(index_jobs)
        indexes = []
        for job, record in zip(index_jobs, self._records(index_jobs), strict=True):
            index = Index(number=job.group.number, stem=job.stem, runs=tuple(record["runs"]))
            indexes.append(index)

        n_ranges = duplicates.n_ranges(sum(sum(index.runs) for index in indexes))
        all_jobs = []
        for number in range(n_ranges):
            job = CompareJob(
                number=number,
                n_ranges=n_ranges,
                indexes=tuple(indexes),
                stem=self._stem("comparison", number),
                exact=config.dedup_exact,
                near=config.dedup_near,
            )
            all_jobs.append(job)
        todo = self._missing(all_jobs, "exact", "near")
        if todo:
            self._index(index_jobs, "index", "signatures")
        self._finish("comparing documents", todo)
        return tuple(job.stem for job in all_jobs)

    def _index_jobs(self) -> list[IndexJob]:
        exact = self._config.dedup_exact
        near = self._config.dedup_near
        return [
            IndexJob(group=group, stem=self._stem("index", group.number), exact=exact, near=near)
            for group in self._groups
        ]

    def _index(self, index_jobs: Sequence[IndexJob], *endings: str) -> None:
        """Do the jobs whose record, or one of the files, is missing."""
        todo = self._missing(index_jobs, *endings)
        needed = ("rows",) if self._config.dedup_near is None else ("rows", "signatures")
        self._need_parts([job.group for job in todo], *needed)
        self._finish("indexing documents", todo)
        for job in index_jobs:
            for read_job in job.group.jobs:
                jobs.delete(read_job, "signatures")

    # Stage 3: the tokenizer.

    def _get_tokenizer(self, selections: Sequence[SelectJob]) -> PreparedTokenizer:
        """Load or train the tokenizer, unless an earlier process has saved it."""
        folder = self._partial / "tokenizer"
        if not _is_whole_tokenizer(self._partial):
            # The parts of a pair are apart for a tokenizer, as paragraphs are.
            texts = [text.replace(pair_text.SIGN, "\n") for text in self._sample(selections)]
            if self._config.tokenizer in tokenizers.KINDS:
                tokenizer, model = self._train_tokenizer(texts)
            else:
                tokenizer, model = tokenizers.load(
                    self._config.tokenizer, self._config.extra_ids, self._are_pairs
                )
            # Refused now, before hours of encoding.
            _, tally = Encoder(tokenizer).encode(texts)
            losses = lost_text.of_characters([("the sample", tally)], self._config)
            lost_text.judge(losses, self._config, self._said)

            # Renamed when it is complete, so that a folder of this name is a whole tokenizer.
            temporary = self._partial / "tokenizer.tmp"
            tokenizers.save(tokenizer, temporary, model)
            for path in temporary.iterdir():
                pack.sync(path)
            _seal_of(self._partial).write_text(seal(_digests(temporary)), encoding="utf-8")
            pack.sync(_seal_of(self._partial))
            temporary.rename(folder)

        shutil.rmtree(self._partial / "sample", ignore_errors=True)
        # Always loaded, so that the ids do not depend on whether this process trained it.
        return PreparedTokenizer.load(folder / "tokenizer.json")

    def _train_tokenizer(self, texts: list[str]) -> tuple[Tokenizer, bytes | None]:
        """Train on a sample; returns the tokenizer and its SentencePiece model, if it has one."""
        config = self._config
        if not texts:
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
            of_t5=self._are_pairs,
        )
        n_entries = tokenizer.get_vocab_size()
        if n_entries < config.vocab_size:
            _LOG.warning(
                "data.vocab_size=%d: the corpus is small and gives %d entries only",
                config.vocab_size,
                n_entries,
            )
        return tokenizer, model

    def _sample(self, selections: Sequence[SelectJob]) -> Iterator[str]:
        """Yield the sample: of each source its share, from all of its parts."""
        records = self._records(selections)
        kept_bytes = [0] * len(self._plan.sources)
        for job, record in zip(selections, records, strict=True):
            kept_bytes[job.group.source] += record["kept_bytes"]

        targets = self._sample_shares()
        all_jobs = []
        for job in selections:
            source = job.group.source
            sample_job = SampleJob(
                group=job.group,
                stem=self._stem("sample", job.group.number),
                selection=job.stem,
                share=sample.candidate_share(targets[source], kept_bytes[source]),
            )
            all_jobs.append(sample_job)
        todo = self._missing(all_jobs, "units", "text.zst")
        self._need_parts([job.group for job in todo], "rows", "text.zst")
        self._finish("sampling", todo)

        for source, target in enumerate(targets):
            stems = [job.stem for job in all_jobs if job.group.source == source]
            yield from sample.choose(stems, target)

    def _sample_shares(self) -> list[float]:
        """Bytes of each source in the sample: by weight, but no more than will be prepared."""
        sample_bytes = self._config.tokenizer_sample_mb * 1e6
        total_weight = sum(source.weight for source in self._plan.sources)

        shares: list[float] = []
        for source, limit in zip(self._plan.sources, self._plan.share_bytes, strict=True):
            share = sample_bytes * source.weight / total_weight
            shares.append(min(share, limit or share))
        return shares

    # Stage 4: encoding.

    def _encode(
        self, prepared: PreparedTokenizer, selections: Sequence[SelectJob]
    ) -> list[EncodeJob]:
        """Encode all groups; returns the finished jobs."""
        sep = prepared.special_ids["sep"] if self._config.document_end else None
        all_jobs = []
        for selection in selections:
            job = EncodeJob(
                group=selection.group,
                stem=self._stem("encoded", selection.group.number),
                selection=selection.stem,
                tokenizer=prepared.path,
                tokenizer_sha256=prepared.sha256,
                dtype=prepared.dtype,
                sep=sep,
                max_tokens=self._config.max_shard_tokens,
                compressibility=self._config.compressibility,
                heldout_fraction=self._heldout_fraction(selection.group.source),
                are_pairs=self._are_pairs,
                n_threads=1,
            )
            all_jobs.append(job)

        self._need_encoded(all_jobs, *(f"{split}.lengths" for split in SPLITS))
        for job, record in zip(all_jobs, self._records(all_jobs), strict=True):
            self._dropped.update(record["dropped"])
            n_deleted = sum(self._n_deleted[part.key] for part in job.group.jobs)
            tally = Tally(deleted_characters=n_deleted) + Tally.of_dict(record["tally"])
            self._tallies.append((job.name, tally))
        return all_jobs

    def _heldout_fraction(self, source: int) -> float:
        """Share of a source's documents that are held out."""
        if self._config.heldout is None:
            return self._config.heldout_fraction
        return 0.0 if self._plan.sources[source].weight else 1.0

    def _need_encoded(self, encode_jobs: Sequence[EncodeJob], *endings: str) -> None:
        """Encode the groups whose files with `endings` are missing, and delete their text."""
        todo = self._missing(encode_jobs, *endings)
        if todo:
            self._need_parts([job.group for job in todo], "rows", "text.zst")
            n_at_once = min(self._executor.n_workers, len(todo))
            n_threads = max(1, self._executor.n_threads // n_at_once)
            todo = [dataclasses.replace(job, n_threads=n_threads) for job in todo]
        for job, _ in self._do("encoding", todo):
            _delete_text(job)
        # A process may have been killed before it deleted them.
        for job in encode_jobs:
            _delete_text(job)

    # Stage 5: shards.

    def _plan_shards(
        self, prepared: PreparedTokenizer, encode_jobs: Sequence[EncodeJob]
    ) -> list[ShardJob]:
        """Cut the documents of each split and source into shards."""
        shard_jobs = []
        for split, source in itertools.product(SPLITS, range(len(self._plan.sources))):
            stems = [job.stem for job in encode_jobs if job.group.source == source]
            shards = pack.plan_shards(split, stems, self._config.max_shard_tokens)
            for number, spans in enumerate(shards):
                job = ShardJob(
                    split=split,
                    source=source,
                    number=number,
                    stem=self._partial / f"{split}-{source}-{number:05d}",
                    spans=spans,
                    dtype=prepared.dtype,
                    vocab_size=prepared.size,
                )
                shard_jobs.append(job)
        return shard_jobs

    def _write_shards(
        self, shard_jobs: Sequence[ShardJob], encode_jobs: Sequence[EncodeJob]
    ) -> None:
        """Write the shards that are not there; tokens are deleted once their shards are."""
        todo = self._missing(shard_jobs, "bin", "docs.npy", "counts")

        # Shards that need the tokens of a group.
        n_needed: collections.Counter[tuple[str, pathlib.Path]] = collections.Counter()
        for job in todo:
            n_needed.update((job.split, span.stem) for span in job.spans)
        for split in SPLITS:
            users = [job for job in encode_jobs if n_needed[split, job.stem]]
            self._need_encoded(users, f"{split}.bin")

        by_stem = {job.stem: job for job in encode_jobs}
        for job, _ in self._do("writing shards", todo):
            for span in job.spans:
                n_needed[job.split, span.stem] -= 1
                if not n_needed[job.split, span.stem]:
                    jobs.delete(by_stem[span.stem], f"{job.split}.bin")

    def _check_shards(self, shard_jobs: Sequence[ShardJob]) -> None:
        """Compare the shards with what was written.

        Raises:
            Damaged: if one is another.
        """
        files = []
        for job, record in zip(shard_jobs, self._records(shard_jobs), strict=True):
            for ending, sha256 in record["sha256"].items():
                path = job.stem.with_name(f"{job.stem.name}.{ending}")
                files.append(pack.Written(path=path, sha256=sha256))
        for file, sha256 in self._executor.map(pack.written_sha256, files):
            if sha256 != file.sha256:
                stem = file.path.name.partition(".")[0]
                record = self._partial / f"{stem}.json"
                raise Damaged(f"{file.path} is not what was written", record)

    # Publishing.

    def _publish(
        self,
        directory: pathlib.Path,
        prepared: PreparedTokenizer,
        selections: Sequence[SelectJob],
        shard_jobs: Sequence[ShardJob],
    ) -> None:
        """Write the manifest and what it tells of all shards; rename `partial` to `directory`."""
        records = self._records(shard_jobs)
        shards = pack.finish(self._partial, shard_jobs, records)
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
        if (order := orders.wanted(self._config)) is not None:
            score_all = functools.partial(self._executor.map, orders.scores)
            orders.write(
                self._partial, order, shards, prepared.dtype, prepared.tokenizer, score_all
            )

        counts = {
            "documents": sum(entry["documents"] for entry in shards),
            "tokens": n_train + n_heldout,
            "train_tokens": n_train,
            "heldout_tokens": n_heldout,
        }
        n_read = sum(record["documents"] for record in self._records(selections))
        manifest = self._manifest(prepared, counts, shards, n_read)
        pack.publish(self._partial, directory, manifest)

    def _judge(self, n_kept: int) -> None:
        """Say what was lost; refuse the dataset if that is much and not meant."""
        losses = lost_text.of_documents(self._dropped, n_kept, self._config)
        losses += lost_text.of_characters(self._tallies, self._config)
        lost_text.judge(losses, self._config, self._said)

    def _manifest(
        self,
        prepared: PreparedTokenizer,
        counts: dict[str, int],
        shards: list[dict[str, Any]],
        n_read: int,
    ) -> dict[str, Any]:
        """Gather what `dataset.py` and a reader of the dataset want to know."""
        sources = []
        for source in self._plan.sources:
            entry: dict[str, Any] = {"spec": source.spec, "weight": source.weight}
            entry |= {"revision": source.revision}
            if self._config.heldout is not None and not source.weight:
                entry["split"] = "heldout"
            elif mixing.is_by_size(self._config.source):
                entry["by_size"] = True
            sources.append(entry)
        kind = {"pairs": True} if self._are_pairs else {}
        dropped = {reason: count for reason, count in sorted(self._dropped.items()) if count}

        return {
            "format": FORMAT,
            "fingerprint": self._plan.fingerprint,
            "tokenizer_sha256": prepared.sha256,
            "vocab_size": prepared.size,
            "dtype": prepared.dtype,
            "special_tokens": prepared.special_ids,
            "extra_ids": tokenizers.count_extra_ids(prepared.tokenizer),
            **kind,
            **counts,
            "source": " + ".join(source.spec for source in self._plan.sources),
            "sources": sources,
            "language": self._config.language,
            "filters": {key: getattr(self._config, key) for key in _FILTERS},
            "document_end": self._config.document_end,
            "documents_read": n_read,
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

    def _show_read(self, key: _Key, taken_bytes: int) -> None:
        """Report that a part is read, after which there are `taken_bytes` of cleaned text."""
        limits = [share for share in self._plan.share_bytes if share is not None]
        if limits:
            fraction = min(taken_bytes / sum(limits), 1.0)
        else:
            fraction = self._fraction_read(*key)
        self._meter.show("reading", taken_bytes, fraction)

    def _fraction_read(self, source: int, number: int) -> float | None:
        """Share of all parts' bytes up to a part; None without known sizes."""
        parts = self._plan.parts
        done = sum(map(_size, parts[:source])) + _size(parts[source][: number + 1])
        total = sum(map(_size, parts))
        return done / total if total else None

    def _show_reading(self, job: ReadJob) -> None:
        n_bytes = jobs.unfinished_bytes(job, "text.zst")
        self._meter.show(f"reading {job.name} (compressed)", n_bytes, None)

    def _stem(self, stage: str, number: int) -> pathlib.Path:
        return self._partial / stage / f"{number:06d}"


def _remove_unfinished(partial: pathlib.Path) -> None:
    """Delete what a killed process had begun to write; the lock says that none is at work."""
    for path in (*partial.glob("*.tmp"), *partial.glob("*/*.tmp")):
        if path.is_file():
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


def _digests(folder: pathlib.Path) -> dict[str, Any]:
    """Returns name → SHA-256 of the files in a folder, and the version."""
    digests = {path.name: pack.file_sha256(path) for path in sorted(folder.iterdir())}
    return {"version": _TOKENIZER_VERSION, "files": digests}


def _read_jobs(plan: PreparationPlan, folder: pathlib.Path) -> list[ReadJob]:
    """Describe the reading of each part, in reading order."""
    config = plan.config
    rules = CleanRules(
        normalize=config.normalize,
        min_chars=config.min_chars,
        max_chars=config.max_chars,
        are_pairs=pairs.are_prepared(config),
    )
    read_jobs = []
    for source, parts in enumerate(plan.parts):
        for number, part in enumerate(parts):
            job = ReadJob(
                source=plan.sources[source],
                part=part,
                key=(source, number),
                stem=folder / f"{source}-{number:06d}",
                rules=rules,
                with_signatures=config.dedup_near is not None,
                limit_bytes=plan.share_bytes[source],
                heldout=plan.heldout,
            )
            read_jobs.append(job)
    return read_jobs


def _groups(
    done: Sequence[tuple[ReadJob, int]], share_bytes: Sequence[float | None]
) -> list[Group]:
    """Put consecutive parts of a source together.

    Args:
        done: The parts that are read, in reading order, and the bytes of their text.
        share_bytes: Bytes to take from each source, or None for all of it.
    """
    groups: list[Group] = []
    for source, share in enumerate(share_bytes):
        left_bytes = math.inf if share is None else share
        parts = [(job, n_bytes) for job, n_bytes in done if job.key[0] == source]
        waiting: list[ReadJob] = []
        n_waiting = 0

        for number, (job, n_bytes) in enumerate(parts, start=1):
            waiting.append(job)
            n_waiting += n_bytes
            if n_waiting >= _GROUP_BYTES or number == len(parts):
                limit_bytes = min(left_bytes, n_waiting)
                group = Group(
                    number=len(groups), source=source, jobs=tuple(waiting), limit_bytes=limit_bytes
                )
                groups.append(group)
                left_bytes -= n_waiting
                waiting = []
                n_waiting = 0
    return groups


def _delete_text(job: EncodeJob) -> None:
    for read_job in job.group.jobs:
        jobs.delete(read_job, "text.zst")


def _count_tokens(shards: list[dict[str, Any]], split: str) -> int:
    return sum(entry["tokens"] for entry in shards if entry["split"] == split)


def _size(parts: Sequence[Part]) -> int:
    return sum(part.n_bytes or 0 for part in parts)
