"""Prepares a dataset from text: read, clean, drop, train the tokenizer, encode, pack, publish.

A preparation can be stopped at any moment and goes on when it is started again. This file finds
the dataset or starts its preparation, under a lock; `plan.py` says what is read, and `build.py`
holds the stages in order.

The result depends on the configuration and the corpus alone: not on the number of workers or their
machines, on interruptions, or on the seed. So runs with different seeds share their held-out text.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from cramjax.config import languages
from cramjax.config.views import DataConfig
from cramjax.console import Announce
from cramjax.data import lost_text, pack, ready_made
from cramjax.data.build import Builder
from cramjax.data.dataset import TokenDataset
from cramjax.data.executors import Executor, LocalExecutor
from cramjax.data.hub_tokenizer import with_local_tokenizer
from cramjax.data.plan import FINGERPRINT_CHARS, PreparationPlan, plan_preparation
from cramjax.data.progress import StageMeter
from cramjax.data.sealed import Damaged
from cramjax.data.source import TextSource
from cramjax.data.sources import open_sources
from cramjax.errors import RunFailed, UserError
from cramjax.files import FileLock

_LOG = logging.getLogger("cramjax")
_LOCK_POLL_S = 0.5
_ATTEMPTS = 3
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


def prepare(
    config: DataConfig,
    sources: Sequence[TextSource] | None = None,
    *,
    announce: Announce | None = None,
    n_workers: int | None = None,
    executor: Executor | None = None,
) -> pathlib.Path:
    """Return the directory of the dataset that `config` describes; prepare it if it is missing.

    Args:
        config: The `data` part of the configuration.
        sources: The sources to read (None: those that `config.source` names).
        announce: Prints how far the preparation is (None: silent).
        n_workers: Processes of this machine (None: one per core, at most 8).
        executor: Does the work elsewhere (None: those processes do it).

    Raises:
        UserError: if a source cannot be read, or nothing is left of it.
        RunFailed: if the disk is full or fails, or a worker was killed; finished work is kept.
    """
    cache = pathlib.Path(config.cache_dir)
    with _explained(cache):
        if sources is None:
            if isinstance(config.source, str) and config.source.startswith("prepared:"):
                # Whoever opens it checks it.
                return pathlib.Path(config.source.removeprefix("prepared:"))
            sources = open_sources(config)
        config = with_local_tokenizer(config)

        if config.max_mb == "budget":
            raise UserError(
                "data.max_mb='budget': depends on the devices of the run; give a number of MB, or "
                "prepare with python -m tools.prepare_data"
            )
        plan = plan_preparation(config, sources)
        directory = _directory_of(plan, cache)
        if not _is_published(directory):
            cache.mkdir(parents=True, exist_ok=True)
            meter = StageMeter(announce)
            meter.announce(languages.describe(config))
            _prepare_once(plan, directory, meter, executor or LocalExecutor(n_workers))
        return directory


def open_data(config: DataConfig, announce: Announce) -> TokenDataset:
    """Return the dataset that `config` describes; prepare it if it is missing.

    Args:
        config: The `data` part of the configuration.
        announce: Prints the progress and, at the end, the size and place of the dataset.

    Raises:
        UserError, RunFailed: see `prepare`.
    """
    dataset = TokenDataset.open(prepare(config, announce=announce)).mixed(config)
    announce(describe(dataset))
    return dataset


def describe(dataset: TokenDataset) -> str:
    """Return a line with the size, the source and the place of a dataset, and what was lost."""
    manifest = dataset.manifest
    line = (
        f"data: {manifest['train_tokens']:,} training tokens of {manifest['source']} in "
        f"{dataset.directory}"
    )
    lost = ", ".join(f"{name} {share}" for name, share in lost_text.rows(manifest))
    return f"{line} ({lost})"


def planned_fingerprint(config: DataConfig) -> str:
    """Return the fingerprint of the dataset that `prepare` would make of a corpus.

    Raises:
        UserError: as `prepare` does, for what it finds before it reads any text.
    """
    return plan_preparation(with_local_tokenizer(config), open_sources(config)).fingerprint


def read_manifest(directory: str | pathlib.Path) -> dict[str, Any]:
    """Return the manifest of a prepared dataset.

    Raises:
        UserError: if the directory holds no valid dataset.
    """
    return TokenDataset.open(directory).manifest


def _directory_of(plan: PreparationPlan, cache: pathlib.Path) -> pathlib.Path:
    """Return where the dataset is, is being made, or will be made.

    The same files under another path give the same fingerprint and another readable name.
    """
    for ending in ("", ".partial"):
        for path in sorted(cache.glob(f"*-{plan.fingerprint[:FINGERPRINT_CHARS]}{ending}")):
            directory = path.with_name(path.name.removesuffix(".partial"))
            if ending or _is_published(directory):
                return directory
    return cache / plan.name


def _is_published(directory: pathlib.Path) -> bool:
    return (directory / "manifest.json").exists()


def _prepare_once(
    plan: PreparationPlan, directory: pathlib.Path, meter: StageMeter, executor: Executor
) -> None:
    """Prepare the dataset, or wait for the process that does."""
    lock = directory.with_name(f".{plan.fingerprint[:FINGERPRINT_CHARS]}.lock")
    try:
        with _locked(lock, meter):
            if not _is_published(directory):
                _build(plan, directory, meter, executor)
            # Whoever waits for it, or makes it again, finds the dataset.
            lock.unlink(missing_ok=True)
    finally:
        meter.close()


@contextlib.contextmanager
def _explained(cache: pathlib.Path) -> Iterator[None]:
    """Inside, what the operating system refuses becomes one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(
                f"the disk of {cache} is full; free some space, or move data.cache_dir, and run "
                "the command again: it goes on where it stopped"
            ) from error

        where = str(error.filename or cache)
        if not where.startswith((str(cache), str(cache.absolute()))):
            raise UserError(f"{where}: cannot be read ({error.strerror})") from error
        if error.errno in _REFUSED:
            raise UserError(
                f"data.cache_dir={cache}: cannot be written ({error.strerror}: {where}); name a "
                "folder of your own"
            ) from error
        raise RunFailed(
            f"{where}: {error.strerror or error}; what is finished is kept: check the disk and run "
            "the command again"
        ) from error


def _build(
    plan: PreparationPlan, directory: pathlib.Path, meter: StageMeter, executor: Executor
) -> None:
    """Go on with an earlier preparation; what is damaged of it is made again."""
    # Workers may stand in another folder.
    partial = directory.absolute().with_name(directory.name + ".partial")
    if (partial / "manifest.json").exists():
        # Killed after the last stage: only the renaming is left to do.
        try:
            TokenDataset.open(partial).verification.at_once()
        except (UserError, RunFailed) as error:
            _warn(partial, error)
            (partial / "manifest.json").unlink()
        else:
            pack.publish_finished(partial, directory)
            return

    for _ in range(_ATTEMPTS):
        try:
            if ready_made.holds_ids(plan):
                ready_made.ReadyMade(plan, partial, meter).build(directory)
            else:
                Builder(plan, partial, meter, executor).build(directory)
            return
        except Damaged as error:
            _warn(partial, error)
            for path in error.paths:
                path.unlink(missing_ok=True)
    raise RunFailed(
        f"{partial}: files there are not what was written a moment ago; check the disk, or move "
        "data.cache_dir"
    )


def _warn(partial: pathlib.Path, error: Exception) -> None:
    _LOG.warning("%s: damaged (%s); making again what is not whole", partial, error)


@contextlib.contextmanager
def _locked(path: pathlib.Path, meter: StageMeter) -> Iterator[None]:
    """Hold the lock file at `path`; wait while another process holds it.

    The lock ends with its process, however that ends.
    """
    with FileLock(path) as lock:
        if not lock.acquire():
            meter.announce(f"another process prepares this dataset ({path}); waiting for it")
            while not lock.acquire():
                time.sleep(_LOCK_POLL_S)
        yield
