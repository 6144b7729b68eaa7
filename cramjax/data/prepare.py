"""Text to a prepared dataset: read, clean, train the tokenizer, drop, encode, pack, publish; restartable at every moment.

The stages are elsewhere (`sources`, `spool`, `clean`, `dedup`, `tokenizers`, `pack`); here is their order, and the
journal by which an interrupted preparation goes on. The result is a function of the configuration and the corpus: not
of the number of workers, of interruptions, or of the seed, so runs with different seeds share held-out text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import pathlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

from cramjax.console import Announce
from cramjax.data import pack
from cramjax.data.build import Builder
from cramjax.data.clean import CleanRules
from cramjax.data.dataset import FORMAT, TokenDataset
from cramjax.data.progress import Meter
from cramjax.data.spool import Damaged, Job
from cramjax.errors import RunFailed, UserError
from cramjax.files import FileLock

_LOG = logging.getLogger("cramjax")
_BATCH_CHARS = 1 << 21
_FINGERPRINTED = (
    "vocab_size", "tokenizer", "tokenizer_sample_mb", "lowercase", "ascii_only", "text_field", "max_mb", "normalize",
    "min_chars", "max_chars", "compressibility", "dedup_exact", "dedup_near", "heldout_fraction", "max_shard_tokens",
)  # fmt: skip


def prepare(
    data: Any, *, announce: Announce | None = None, n_workers: int | None = None
) -> pathlib.Path:
    """The directory of the dataset that `data` (config.data) describes, prepared first if it is not there.

    Prepared data are the same for every seed. `announce` prints how far it is (None: silent).
    `n_workers`: processes that read (None: one a core).

    Raises:
        UserError: a source cannot be read, or nothing is left of it.
        RunFailed: the disk is full, or a worker was killed; what was finished is kept.
    """
    if isinstance(data.source, str) and data.source.startswith("prepared:"):
        directory = pathlib.Path(data.source.removeprefix("prepared:"))
        TokenDataset.open(directory)
        return directory
    from cramjax.data.sources import open_sources

    return prepare_sources(data, open_sources(data), announce=announce, n_workers=n_workers)


def open_data(data: Any, announce: Announce) -> TokenDataset:
    """Returns the dataset that `data` (config.data) describes, prepared first if it is missing.

    `announce` prints the progress and, at the end, the size and place of the dataset.
    """
    directory = prepare(data, announce=announce)
    dataset = TokenDataset.open(directory)

    n_tokens = dataset.manifest["train_tokens"]
    source = dataset.manifest["source"]
    announce(f"data: {n_tokens:,} training tokens of {source} in {directory}")
    return dataset


def prepare_sources(
    data: Any,
    sources: list[Any],
    *,
    announce: Announce | None = None,
    n_workers: int | None = None,
) -> pathlib.Path:
    """`prepare` with the sources given instead of `data.source`."""
    if data.max_mb == "budget":
        raise UserError(
            "data.max_mb='budget': resolve the configuration with its budget first, or give a number of MB"
        )
    plan = make_plan(data, sources)
    cache = pathlib.Path(data.cache_dir)
    directory = cache / plan.name
    if (directory / "manifest.json").exists():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    meter = Meter(announce)
    try:
        with _locked(cache / f".{plan.name}.lock", meter):
            if not (directory / "manifest.json").exists():
                _build_or_rebuild(plan, directory, meter, n_workers)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(
                f"the disk of {cache} is full; free some space, or move data.cache_dir, and run the command again: it "
                "goes on where it stopped"
            ) from error
        raise
    finally:
        meter.close()
    return directory


def read_manifest(directory: str | pathlib.Path) -> dict[str, Any]:
    """The manifest of a prepared dataset; UserError where it is none."""
    return TokenDataset.open(directory).manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is prepared: the parts of each source in the order in which they are taken, and the bytes of its share."""

    data: Any
    sources: list[Any]
    parts: list[list[Any]]
    share_bytes: list[float | None]
    fingerprint: str
    name: str

    def jobs(self, partial: pathlib.Path) -> dict[tuple[int, int], Job]:
        """The jobs of the spool, in the order in which `_build` asks for them."""
        data = self.data
        rules = CleanRules(
            normalize=data.normalize, min_chars=data.min_chars, max_chars=data.max_chars
        )
        return {
            (source, number): Job(
                source=self.sources[source],
                part=part,
                stem=partial / "spool" / f"{source}-{number:06d}",
                rules=rules,
                with_signatures=data.dedup_near is not None,
                limit_bytes=self.share_bytes[source],
            )
            for source, parts in enumerate(self.parts)
            for number, part in enumerate(parts)
        }

    def order_length(self) -> int | None:
        """Tokens of text in a training sequence, where their order by sentence length is asked for."""
        return (
            self.data.seq_len - int(self.data.cls_token)
            if self.data.order == "sentence_length"
            else None
        )


def make_plan(data: Any, sources: list[Any]) -> Plan:
    """Order the parts by a hash of their names, so that `max_mb` takes a fair sample, and fingerprint it all."""
    from cramjax.data import tokenizers

    def position(part):
        return hashlib.blake2b(part.name.encode("utf-8", "surrogateescape")).digest(), part.name

    parts = [sorted(source.parts(), key=position) for source in sources]
    for source, found in zip(sources, parts, strict=True):
        if not found:
            raise UserError(f"data.source={source.spec}: nothing to read there")
    total = sum(source.weight for source in sources)
    shares = [data.max_mb and data.max_mb * 1e6 * source.weight / total for source in sources]
    settings = {key: data[key] for key in _FINGERPRINTED}
    if data.extra_ids:  # without them, what was prepared before there were any is still found
        settings["extra_ids"] = data.extra_ids
    if data.tokenizer not in tokenizers.KINDS:
        tokenizers.load(
            data.tokenizer, data.extra_ids
        )  # a mistake is reported before hours of reading
        settings["tokenizer"] = hashlib.sha256(
            pathlib.Path(data.tokenizer).read_bytes()
        ).hexdigest()
    if data.order == "sentence_length":
        settings["order"] = [data.order, data.seq_len - int(data.cls_token)]
    content = {
        "format": FORMAT,
        "libraries": tokenizers.library_versions(data.tokenizer),
        "data": settings,
        "sources": [[source.spec, source.weight, source.revision] for source in sources],
        "parts": [[part.key for part in found] for found in parts],
    }
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    readable = "+".join(
        re.sub(r"[^A-Za-z0-9]+", "_", source.spec).strip("_")[-40:] for source in sources
    )[:60]
    tokenizer = pathlib.Path(data.tokenizer).stem
    name = f"{readable}-{tokenizer}{data.vocab_size}-{fingerprint[:12]}"
    return Plan(
        data=data,
        sources=sources,
        parts=parts,
        share_bytes=shares,
        fingerprint=fingerprint,
        name=name,
    )


@contextlib.contextmanager
def _locked(path: pathlib.Path, meter: Meter) -> Iterator[None]:
    """Hold the lock file at `path`; wait while another process holds it."""
    with FileLock(path) as lock:
        if not lock.acquire():
            meter.announce(f"another process prepares this dataset ({path}); waiting for it")
            while not lock.acquire():
                time.sleep(0.5)
        yield


def _build_or_rebuild(
    plan: Plan, directory: pathlib.Path, meter: Meter, n_workers: int | None
) -> None:
    partial = directory.with_name(directory.name + ".partial")
    if (partial / "manifest.json").exists():
        pack.publish_finished(partial, directory)
        return
    try:
        Builder(plan, partial, meter, n_workers).build(directory)
    except Damaged as error:
        _LOG.warning(
            "%s: an earlier, unfinished preparation is damaged (%s); starting again", partial, error
        )
        shutil.rmtree(partial)
        Builder(plan, partial, meter, n_workers).build(directory)
