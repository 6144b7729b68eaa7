"""Checkpoints of a run: written by Orbax in the background, complete or absent.

A checkpoint is the folder `<directory>/<step>/`. It holds the item `state` (the arrays), the item
`sidecar` (JSON: clock, tokenizer hash, model, configuration) and, shortly after it is complete,
`checksums.json`. The loop decides when to save.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp

from cramjax.checkpoints import sealing
from cramjax.errors import RunFailed, UserError
from cramjax.files import read_json
from cramjax.parallel import processes

MAX_FAILURES = 3
"""The number of failed saves in a row that ends the run."""

MAX_LISTED = 10
"""The most differing entries that the error for a checkpoint that does not fit names."""

MAX_INFLATION = 1000
"""The most bytes of arrays for a byte on disk; trained numbers hardly compress."""

# TensorStore's form of an error of the operating system.
_OF_THE_SYSTEM = re.compile(r"os_error_code='(\d+)'")
_REASON_CHARS = 200
_METADATA = "_CHECKPOINT_METADATA"
_DELETED = ".deleted"
_log = logging.getLogger("cramjax")


Expect = Callable[[dict[str, Any]], tuple[Any, Mapping[str, Any]]]
"""A function from a checkpoint's sidecar to (abstract state, entries that must match)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A checkpoint read back: its step, the arrays on their devices, and the JSON beside them."""

    step: int
    state: Any
    sidecar: dict[str, Any]


class Checkpoints:
    """The checkpoints of one workdir. Call `close()` at the end: it waits for the save in progress.

    A failed save (disk full, …) is a warning, and the next `save` makes up for it. After
    `MAX_FAILURES` failures in a row `save` and `wait` raise RunFailed. Only one thread may use an
    instance.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 2, read_only: bool = False):
        """Open the checkpoints in `directory`.

        Args:
            directory: the folder, made if it is missing.
            keep: how many of the newest checkpoints to keep, beside those whose sidecar has
                "kept_for_hours".
            read_only: whether to change nothing, because the run may be going on.
        """
        self._directory = pathlib.Path(directory).resolve()
        self._keep = keep
        self._read_only = read_only
        self._saving: threading.Thread | None = None
        self._saving_step: int | None = None
        self._error: Exception | None = None
        self._n_failures = 0
        # The open directory, if its name is not UTF-8.
        self._handle: int | None = None
        # Steps that are kept for good.
        self._marked: set[int] = set()
        _quieten_orbax()
        self._manager = self._open()

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None. Does not block."""
        complete = set(self._manager.all_steps())
        if self._saving is not None and (self._saving.is_alive() or self.save_failed):
            complete.discard(self._saving_step)
        return max(complete, default=None)

    @property
    def save_failed(self) -> bool:
        """True if the latest save has failed, as far as is known without waiting."""
        return self._error is not None

    def save(
        self, step: int, state: Any, sidecar: Mapping[str, Any], *, block: bool = False
    ) -> None:
        """Save a checkpoint in the background; do nothing if `step` is saved.

        The method returns as soon as the arrays may change.

        Args:
            step: the number of the step.
            state: a pytree of arrays; they may be donated afterwards.
            sidecar: values of JSON.
            block: whether to return only when the checkpoint is complete, after new attempts if
                the first one fails.

        Raises:
            RunFailed: after `MAX_FAILURES` failed saves in a row.
        """
        self.wait()
        if step in self._manager.all_steps():
            return

        self._start(step, state, sidecar)
        while block:
            self.wait()
            if not self.save_failed:
                return
            self._start(step, state, sidecar)

    def wait(self) -> None:
        """Wait for the save in progress; warns if it failed, raises RunFailed as `save` does."""
        if self._saving is None:
            return
        self._saving.join()
        self._saving = None
        if self._error is None:
            self._n_failures = 0
            return

        self._n_failures += 1
        # A manager whose save failed refuses every later call. A new one also clears the leftovers.
        # Closing the old one raises the same error once more.
        with contextlib.suppress(Exception):
            self._manager.close()
        self._manager = self._open()

        reason = _reason(self._error)
        if self._n_failures >= MAX_FAILURES:
            newest = self.latest()
            kept = "none is complete"
            if newest is not None:
                kept = f"the newest complete one is step {newest}"
            raise RunFailed(
                f"{self._directory}: {self._n_failures} checkpoints in a row could not be saved "
                f"({reason}); {kept}"
            ) from self._error
        _log.warning(
            "%s: a checkpoint could not be saved, trying again (%s)", self._directory, reason
        )

    def reload(self) -> None:
        """Look again which checkpoints there are, after somebody has deleted the folder."""
        self.wait()
        self._manager.close()
        self._manager = self._open()

    def restore(
        self,
        abstract_state: Any,
        must_match: Mapping[str, Any] | None = None,
        *,
        verified: int | None = None,
    ) -> Restored | None:
        """Returns the newest readable checkpoint, or None without checkpoints.

        A damaged checkpoint that is newer is warned of and moved to `damaged-<step>`.

        Args:
            abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings on the devices of this
                process; or an `Expect`, which gives it and `must_match`.
            must_match: the entries of the sidecar that must be as given here.
            verified: the step whose files `sealing.newest_sidecar` has just compared, if any; they
                are not read twice.

        Raises:
            UserError: if entries of `must_match`, or names, shapes or dtypes of arrays, differ.
            RunFailed: if there are checkpoints and none can be read.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                if step != verified:
                    sealing.verify(self._directory / str(step))
                restored = self._restore_step(step, abstract_state, must_match or {})
            except UserError:
                raise
            # Orbax, TensorStore and JSON raise any kind of error for damaged files.
            except Exception as error:
                damaged[step] = _reason(error)
                continue
            self._set_aside(damaged, restored.step)
            return restored

        if damaged:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise RunFailed(
                f"{self._directory}: no checkpoint can be read, "
                f"move the folder away to start over ({reasons})"
            )
        return None

    def restore_params(self, step: int | None = None) -> Restored:
        """Read the parameters of a checkpoint, without the rest of its state.

        The run may be going on: if it deletes the checkpoint meanwhile, the newest one is read
        that is there then.

        Args:
            step: the step of the checkpoint; the newest one if None.

        Returns:
            The parameters, as arrays on the first device, with their step and the sidecar.

        Raises:
            UserError: if there is no such checkpoint.
            RunFailed: if its files are damaged.
        """
        while True:
            chosen = self._existing(step)
            folder = self._directory / str(chosen)
            try:
                return self._read_params(chosen)

            # Orbax, TensorStore and JSON raise any kind of error for damaged files.
            except Exception as error:
                if folder.is_dir():
                    others = [str(other) for other in self._steps() if other != chosen]
                    cure = f"load step {' or '.join(others)}" if others else "train again"
                    raise RunFailed(f"{folder}: damaged ({_reason(error)}); {cure}") from error
                self._manager.reload()

    def _read_params(self, step: int) -> Restored:
        folder = self._directory / str(step)
        sealing.verify(folder)
        sidecar = sealing.read_sidecar(folder)

        # The saved shapes, on one device, whatever devices the run had.
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        saved = _scored_params(self._manager.item_metadata(step)["state"].tree)
        _check_size(folder, saved)
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved
        )
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        only_params = ocp.args.PyTreeRestore(
            wanted, restore_args=restore_args, partial_restore=True
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            saved_at = self._in_utf_8() / str(step) / "state"
            restored = reader.restore(saved_at, args=only_params)
        # One branch is restored, whichever it is.
        params = restored["params"] if "params" in restored else restored["opt_state"]["average"]
        return Restored(step=step, state=params, sidecar=sidecar)

    def marked_hours(self, last_step: int) -> set[float]:
        """Returns the hours that checkpoints up to a step are kept for (`checkpoint.at_hours`)."""
        kept: set[float] = set()
        for step, hours in sealing.marked(self._directory).items():
            if step <= last_step:
                kept.update(hours)
        return kept

    def _steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def _existing(self, step: int | None) -> int:
        """Returns `step`, or the newest for None; raises UserError if that is not there."""
        newest = self.latest()
        if newest is None:
            raise UserError(
                f"{self._directory}: no complete checkpoint there; train until one is saved"
            )
        if step is None:
            return newest

        saved = self._steps()
        if step not in saved:
            steps = ", ".join(map(str, saved))
            raise UserError(f"{self._directory}: no checkpoint of step {step}; there are {steps}")
        return step

    def close(self) -> None:
        """Wait for the save in progress and release threads. Raises RunFailed as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None

    def _open(self) -> ocp.CheckpointManager:
        self._check_metadata()
        if not self._read_only and self._directory.exists() and not _takes_files(self._directory):
            # Otherwise it would come out at the first save.
            raise UserError(f"{self._directory}: is no folder that can be written; move it away")
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "sidecar": ocp.JsonCheckpointHandler(),
        }
        if self._read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
            return ocp.CheckpointManager(self._in_utf_8(), options=options, item_handlers=handlers)

        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(
                [ocp.checkpoint_managers.LatestN(self._keep), _Marked(self._marked)]
            ),
            # Old checkpoints are renamed first and deleted there: a kill in between leaves no half.
            todelete_subdir=_DELETED,
        )
        try:
            manager = ocp.CheckpointManager(
                self._in_utf_8(), options=options, item_handlers=handlers
            )
        except OSError as error:
            raise UserError(
                f"{self._directory}: checkpoints cannot be written there ({error.strerror})"
            ) from error
        self._remove_leftovers()
        self._marked.update(sealing.marked(self._directory))
        return manager

    def _check_metadata(self) -> None:
        """Let no damaged file of Orbax's own keep all checkpoints from being opened.

        A run that goes on does without it: the checkpoint it belongs to is then a damaged one.

        Raises:
            RunFailed: if nothing may be changed.
        """
        for path in sorted(self._directory.glob(f"[0-9]*/{_METADATA}")):
            try:
                read_json(path, "move its folder away")
            except UserError as error:
                if self._read_only:
                    raise RunFailed(str(error)) from error
                if processes.is_first():
                    _remove(path)

    def _in_utf_8(self) -> pathlib.Path:
        """Returns the directory under a name that TensorStore takes: it knows UTF-8 alone."""
        try:
            os.fspath(self._directory).encode("utf-8")
        except UnicodeEncodeError:
            self._directory.mkdir(parents=True, exist_ok=True)
            if self._handle is not None:
                os.close(self._handle)
            self._handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            # Linux's other name for an open directory.
            return pathlib.Path(f"/proc/self/fd/{self._handle}")
        return self._directory

    def _start(self, step: int, state: Any, sidecar: Mapping[str, Any]) -> None:
        """Begin a save, and a thread that waits for its end; errors of both go to `_error`."""
        self._error = None
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            sidecar=ocp.args.JsonSave(_as_read_back(sidecar)),
        )
        self._saving_step = step
        if sidecar.get("kept_for_hours"):
            self._marked.add(step)
        try:
            # The loop forbids transfers. This one, device to host, is intended.
            with jax.transfer_guard("allow"):
                self._manager.save(step, args=items, force=True)
        except OSError as error:
            self._error = error

        self._saving = threading.Thread(
            target=self._finish, args=(step,), name="cramjax-checkpoint"
        )
        self._saving.start()

    def _finish(self, step: int) -> None:
        """In the background, wait for the files, seal them and delete old checkpoints."""
        try:
            if self._error is None:
                self._manager.wait_until_finished()
                if processes.is_first():
                    sealing.seal(self._directory / str(step))
                self._remove_leftovers()
        except Exception as error:
            # The main thread reads it: a thread cannot raise there.
            self._error = error

    def _remove_leftovers(self) -> None:
        """Delete old checkpoints and the files of failed or killed saves. Not during a save."""
        if not processes.is_first():
            return
        unfinished = self._directory.glob("*.orbax-checkpoint-tmp*")
        for path in (self._directory / _DELETED, *unfinished):
            shutil.rmtree(path, ignore_errors=True)

    def _restore_step(
        self, step: int, abstract_state: Any, must_match: Mapping[str, Any]
    ) -> Restored:
        folder = self._directory / str(step)
        sidecar = sealing.read_sidecar(folder)
        if callable(abstract_state):
            expect = cast(Expect, abstract_state)
            abstract_state, must_match = expect(sidecar)

        # An entry that an old checkpoint does not have is not compared.
        expected = _as_read_back(must_match)
        noted = {key: sidecar[key] for key in expected if key in sidecar}
        saved = self._manager.item_metadata(step)["state"].tree
        differences = list(_differences(expected, noted))
        differences += _array_differences(abstract_state, saved)
        if differences:
            n_more = len(differences) - MAX_LISTED
            more = f"; and {n_more} more" if n_more > 0 else ""
            raise UserError(
                f"{folder}: this checkpoint belongs to another configuration or tokenizer: "
                f"{'; '.join(differences[:MAX_LISTED])}{more}; "
                "use the configuration it was made with, or another --workdir"
            )

        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        state = self._manager.restore(step, args=args)["state"]
        return Restored(step=step, state=state, sidecar=sidecar)

    def _set_aside(self, damaged: Mapping[int, str], used: int) -> None:
        """Warn of damaged checkpoints and move them away; `used` is the step restored instead."""
        for step, reason in damaged.items():
            folder = self._directory / str(step)
            _log.warning("%s: damaged (%s); going on from step %d instead", folder, reason, used)
            if not self._read_only and processes.is_first():
                aside = folder.with_name(f"damaged-{step}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        if damaged and not self._read_only:
            self._manager.reload()


def _scored_params(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a saved state with the parameters that its evaluations scored.

    They are the trailing mean (`optim/average`) of a run that keeps one.
    """
    opt_state = saved.get("opt_state")
    if isinstance(opt_state, Mapping) and "average" in opt_state:
        return {"opt_state": {"average": opt_state["average"]}}
    return {"params": saved["params"]}


class _Marked(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoints of `steps`, which may grow."""

    def __init__(self, steps: set[int]):
        self._steps = steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """See Orbax's `PreservationPolicy`."""
        return [checkpoint.step in self._steps for checkpoint in checkpoints]


def _takes_files(path: pathlib.Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def _remove(path: pathlib.Path) -> None:
    """Delete a file, a link, or a folder that is in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _check_size(folder: pathlib.Path, saved: Any) -> None:
    """Raise ValueError if the arrays in saved metadata cannot be what the files hold.

    Otherwise a few bytes could ask for any amount of memory: parts that are missing are zeros.
    """
    claimed = sum(
        math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(saved)
    )
    present = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if claimed > MAX_INFLATION * present:
        raise ValueError(f"its arrays claim {claimed:,} bytes, its files have {present:,}")


def _array_differences(now: Any, saved: Any) -> list[str]:
    """Returns the names, shapes and dtypes that differ between a state and saved metadata."""

    def described(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
        return {name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    return list(_differences(described(now), described(saved)))


def _differences(
    now: Mapping[str, Any], saved: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Yields one phrase for each entry that differs between two nested mappings."""
    for key in sorted(now.keys() | saved.keys()):
        if key not in saved:
            yield f"{prefix}{key} is not in the checkpoint"
        elif key not in now:
            yield f"{prefix}{key} is only in the checkpoint"
        elif isinstance(now[key], Mapping) and isinstance(saved[key], Mapping):
            yield from _differences(now[key], saved[key], f"{prefix}{key}.")
        elif now[key] != saved[key]:
            yield f"{prefix}{key} is {_short(saved[key])} in the checkpoint, {_short(now[key])} now"


def _reason(error: Exception) -> str:
    """Returns one line for an error; Orbax's own messages fill pages.

    What the operating system said is in the middle of such a page, and is all that a user needs.
    """
    text = " ".join(str(error).split())
    said = _OF_THE_SYSTEM.search(text)
    if said:
        return os.strerror(int(said.group(1)))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UserError | RunFailed):
        return text
    return f"{type(error).__name__}: {text[:_REASON_CHARS]}"


def _as_read_back(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of `value` as JSON reads it back: tuples become lists, keys strings."""
    return json.loads(json.dumps(dict(value)))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


def _quieten_orbax() -> None:
    """Drop what Orbax prints: errors reach the user through the exceptions above.

    These are its log lines; and tracebacks of TensorStore, which goes on writing after the event
    loop of a failed save is closed.
    """
    if any(isinstance(known, _NotFromOrbax) for known in logging.getLogger("absl").filters):
        return
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_NotFromOrbax())

    previous = sys.unraisablehook

    def report(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous(unraisable)

    sys.unraisablehook = report


class _NotFromOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and ".orbax-checkpoint" not in record.getMessage()
