"""Checkpoints of a run: Orbax, asynchronous, complete or absent; what may be restored into what.

A checkpoint is `<directory>/<step>/`: item `state` (the arrays), item `sidecar` (JSON: clock, tokenizer hash,
model, configuration) and, from shortly after it is complete, `checksums.json`. When to save is the loop's
business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import shutil
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from cramjax.errors import RunFailed, UserError
from cramjax.files import write_json
from cramjax.parallel import processes

MAX_FAILURES = 3
"""Saves that may fail in a row before the run ends."""

MAX_LISTED = 10
"""Differing entries named when a checkpoint does not fit."""

_CHECKSUMS = "checksums.json"
_DELETED = ".deleted"
_log = logging.getLogger("cramjax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A checkpoint read back: its step, the arrays on their devices, and the JSON saved beside them."""

    step: int
    state: Any
    sidecar: dict[str, Any]


class Checkpoints:
    """The checkpoints of one workdir. Call `close()` at the end: it waits for the save in progress.

    A failed save (disk full, …) is a warning and is made up for by the next `save`; after `MAX_FAILURES` in a
    row `save` and `wait` raise RunFailed. One thread uses an instance.
    """

    def __init__(self, directory: str | pathlib.Path, *, keep: int = 2, read_only: bool = False):
        """`keep`: newest checkpoints kept; `read_only`: change nothing, the run may be going on."""
        self._directory = pathlib.Path(directory).resolve()
        self._keep = keep
        self._read_only = read_only
        self._saving: threading.Thread | None = None
        self._saving_step: int | None = None
        self._error: Exception | None = None
        self._n_failures = 0
        _quieten_orbax()
        self._manager = self._open()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None without one. Does not block."""
        complete = set(self._manager.all_steps())
        if self._saving is not None and (self._saving.is_alive() or self.save_failed):
            complete.discard(self._saving_step)
        return max(complete, default=None)

    @property
    def save_failed(self) -> bool:
        """Whether the latest save is known to have failed, so that another is due. Does not block."""
        return self._error is not None

    def save(
        self, step: int, state: Any, sidecar: Mapping[str, Any], *, block: bool = False
    ) -> None:
        """Write `state` (a pytree of arrays, which may be donated afterwards) and `sidecar` (JSON) as `step`.

        Returns once the arrays are safe from changes and writes in the background; `block=True` returns when
        the checkpoint is complete, trying again where it fails. A saved `step` is left alone.

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
        """Block until no save is in progress. Warns where it failed; raises RunFailed as `save` does."""
        if self._saving is None:
            return
        self._saving.join()
        self._saving = None
        if self._error is None:
            self._n_failures = 0
            return
        self._n_failures += 1
        # A manager whose save failed refuses every later call; opening another also clears what it left.
        with contextlib.suppress(Exception):  # it raises the same error once more
            self._manager.close()
        self._manager = self._open()
        reason = _reason(self._error)
        if self._n_failures >= MAX_FAILURES:
            raise RunFailed(
                f"{self._directory}: {self._n_failures} checkpoints in a row could not be saved ({reason}); "
                f"the newest complete one is step {self.latest()}"
            ) from self._error
        _log.warning(
            "%s: a checkpoint could not be saved, trying again (%s)", self._directory, reason
        )

    def restore(
        self, abstract_state: Any, must_match: Mapping[str, Any] | None = None
    ) -> Restored | None:
        """The newest readable checkpoint, None where there is none.

        `abstract_state` is a pytree of `jax.ShapeDtypeStruct` with shardings, of whatever devices this
        process has, or a function from the checkpoint's sidecar to it and `must_match`. Damaged checkpoints
        newer than the one returned are warned of and moved to `damaged-<step>`.

        Raises:
            UserError: entries of `must_match`, or names, shapes or dtypes of arrays, are not as saved.
            RunFailed: checkpoints exist and none can be read.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore_step(step, abstract_state, must_match or {})
            except UserError:
                raise
            except (
                Exception
            ) as error:  # Orbax, TensorStore and JSON raise what they like on damaged files
                damaged[step] = _reason(error)
                continue
            self._set_aside(damaged, restored.step)
            return restored
        if damaged:
            listed = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise RunFailed(
                f"{self._directory}: no checkpoint can be read, move the folder away to start over ({listed})"
            )
        return None

    def restore_params(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters (arrays on the first device) and sidecar of the newest checkpoint or of `step`; the rest of the state is not read.

        Raises:
            UserError: there is no such checkpoint. RunFailed: its files changed since they were written.
        """
        saved = sorted(self._manager.all_steps())
        if not saved:
            raise UserError(
                f"{self._directory}: no complete checkpoint there; train until one is saved"
            )
        if step is not None and step not in saved:
            raise UserError(
                f"{self._directory}: no checkpoint of step {step}; there are {', '.join(map(str, saved))}"
            )
        step = self.latest() if step is None else step
        try:
            _verify(self._directory / str(step))
        except ValueError as error:
            raise RunFailed(f"{self._directory / str(step)}: damaged ({error})") from error
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        saved = self._manager.item_metadata(step)["state"].tree["params"]
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved
        )
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        only_params = ocp.args.PyTreeRestore(
            {"params": wanted}, restore_args={"params": arguments}, partial_restore=True
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            params = reader.restore(self._directory / str(step) / "state", args=only_params)[
                "params"
            ]
        sidecar = self._manager.restore(
            step, args=ocp.args.Composite(sidecar=ocp.args.JsonRestore())
        )["sidecar"]
        return params, sidecar

    def close(self) -> None:
        """Wait for the save in progress and release threads. Raises RunFailed as `wait` does."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "sidecar": ocp.JsonCheckpointHandler(),
        }
        if self._read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
            return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(self._keep),
            # Old checkpoints are renamed first and deleted here: a kill in between leaves no half of one.
            todelete_subdir=_DELETED,
        )
        try:
            manager = ocp.CheckpointManager(
                self._directory, options=options, item_handlers=handlers
            )
        except OSError as error:
            raise UserError(
                f"{self._directory}: checkpoints cannot be written there ({error.strerror})"
            ) from error
        self._remove_leftovers()
        return manager

    def _start(self, step: int, state: Any, sidecar: Mapping[str, Any]) -> None:
        """Begin a save and a thread that waits for its end; errors of either go to `_error`."""
        self._error = None
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            sidecar=ocp.args.JsonSave(_as_read_back(sidecar)),
        )
        self._saving_step = step
        try:
            # The loop forbids transfers; this one, device to host, is meant.
            with jax.transfer_guard("allow"):
                self._manager.save(step, args=items, force=True)
        except OSError as error:
            self._error = error
        self._saving = threading.Thread(
            target=self._finish, args=(step,), name="cramjax-checkpoint"
        )
        self._saving.start()

    def _finish(self, step: int) -> None:
        """In the background: wait for the files, seal them, delete what the keep policy dropped."""
        try:
            if self._error is None:
                self._manager.wait_until_finished()
                if processes.is_first():
                    _seal(self._directory / str(step))
                self._remove_leftovers()
        except Exception as error:  # the thread's only way to tell
            self._error = error

    def _remove_leftovers(self) -> None:
        """Delete what the keep policy dropped and what a failed or killed save left. Not during a save."""
        if processes.is_first():
            for path in (
                self._directory / _DELETED,
                *self._directory.glob("*.orbax-checkpoint-tmp*"),
            ):
                shutil.rmtree(path, ignore_errors=True)

    def _restore_step(
        self, step: int, abstract_state: Any, must_match: Mapping[str, Any]
    ) -> Restored:
        folder = self._directory / str(step)
        _verify(folder)
        sidecar = self._manager.restore(
            step, args=ocp.args.Composite(sidecar=ocp.args.JsonRestore())
        )["sidecar"]
        if callable(abstract_state):
            abstract_state, must_match = abstract_state(sidecar)
        saved = self._manager.item_metadata(step)["state"].tree
        must_match = _as_read_back(must_match)
        differences = list(
            _differences(must_match, {key: sidecar[key] for key in must_match if key in sidecar})
        )
        differences += _array_differences(abstract_state, saved)
        if differences:
            more = (
                f"; and {len(differences) - MAX_LISTED} more"
                if len(differences) > MAX_LISTED
                else ""
            )
            raise UserError(
                f"{folder}: this checkpoint belongs to another configuration or tokenizer: "
                f"{'; '.join(differences[:MAX_LISTED])}{more}; "
                "use the configuration it was made with, or another --workdir"
            )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        return Restored(
            step=step, state=self._manager.restore(step, args=items)["state"], sidecar=sidecar
        )

    def _set_aside(self, damaged: Mapping[int, str], used: int) -> None:
        for step, reason in damaged.items():
            folder = self._directory / str(step)
            _log.warning("%s: damaged (%s); going on from step %d instead", folder, reason, used)
            if not self._read_only and processes.is_first():
                aside = folder.with_name(f"damaged-{step}")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        if damaged and not self._read_only:
            self._manager.reload()


def _seal(folder: pathlib.Path) -> None:
    """Note size and CRC-32 of every file: TensorStore reads array data with a flipped bit without a word."""
    write_json(folder / _CHECKSUMS, dict(_checksums(folder)))


def _verify(folder: pathlib.Path) -> None:
    """Raise ValueError where a file is not as `_seal` found it; a run killed before sealing is let pass."""
    if not (folder / _CHECKSUMS).exists():
        return
    noted = json.loads((folder / _CHECKSUMS).read_text())
    found = dict(_checksums(folder))
    wrong = sorted(name for name, checksum in noted.items() if found.get(name) != checksum)
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(noted)} files changed since they were written, first {wrong[0]}"
        )


def _checksums(folder: pathlib.Path) -> Iterator[tuple[str, list[int]]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _CHECKSUMS:
            crc = 0
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    crc = zlib.crc32(block, crc)
            yield path.relative_to(folder).as_posix(), [path.stat().st_size, crc]


def _array_differences(now: Any, saved: Any) -> list[str]:
    """Names, shapes and dtypes that differ between an abstract state and the metadata of a saved one."""

    def described(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
        return {name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    return list(_differences(described(now), described(saved)))


def _differences(
    now: Mapping[str, Any], saved: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """One phrase for each entry that differs between two nested mappings."""
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
    """One line of an error; Orbax's run over pages."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _as_read_back(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as JSON returns it (tuples become lists, keys strings); a copy later changes do not reach."""
    return json.loads(json.dumps(dict(value)))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


def _quieten_orbax() -> None:
    """Drop what Orbax logs through absl: errors reach the user through the exceptions above."""
    logger = logging.getLogger("absl")
    if not any(isinstance(known, _NotFromOrbax) for known in logger.filters):
        logger.addFilter(_NotFromOrbax())


class _NotFromOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname
