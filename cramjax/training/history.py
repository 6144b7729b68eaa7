"""The history of a run: what its checkpoint was made with, and what has changed since.

A run keeps the configuration and the dataset of its checkpoint beside the arrays, so that a later
start can compare. Nothing here needs the dataset, a device or another process.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from cramjax.budget.clock import Clock
from cramjax.checkpoints import sealing
from cramjax.config import stored
from cramjax.config.views import Config
from cramjax.console import Announce
from cramjax.data.dataset import TokenDataset
from cramjax.errors import UserError
from cramjax.files import check_types, read_json
from cramjax.models.network import FREE_FIELDS
from cramjax.training.sidecar import check

Changes = dict[str, tuple[Any, Any]]
"""Key of the configuration → (value at the checkpoint, value now)."""

_LOSS = (int, float, type(None))
# Of summary.json, what is read of a finished run.
_SUMMARY = {"steps": (int,), "stop_reason": (str,), "eval_loss": _LOSS, "train_loss": _LOSS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """The newest checkpoint of a run, without its arrays.

    Attributes:
        step: its step.
        sidecar: the JSON beside its arrays.
        config: the configuration that it was made with.
        dataset: the folder of the dataset that it was made with; None if nothing says.
        fingerprint: that dataset's; None if nothing says.
        summary: content of summary.json if it describes this step, else None.
    """

    step: int
    sidecar: Mapping[str, Any]
    config: Config
    dataset: pathlib.Path | None
    fingerprint: str | None
    summary: dict[str, Any] | None


def read(workdir: pathlib.Path) -> Earlier | None:
    """Returns what a workdir says of the run's newest checkpoint, or None without one.

    Raises:
        UserError: if config.json is needed and cannot be read.
    """
    newest = sealing.newest_sidecar(workdir / "checkpoints", check)
    if newest is None:
        return None

    step, sidecar = newest
    path = workdir / "config.json"
    cure = "give another --workdir, or start over in an empty one"
    # Checkpoints that 0.2.0 and older wrote say neither configuration nor dataset.
    content = sidecar.get("config") or read_json(path, cure)
    note = sidecar.get("dataset") or _noted_in_environment(workdir)
    dataset = None
    if note.get("directory"):
        dataset = pathlib.Path(note["directory"])

    return Earlier(
        step=step,
        sidecar=sidecar,
        config=stored.read(content, str(path), cure),
        dataset=dataset,
        fingerprint=note.get("fingerprint"),
        summary=_summary_of(workdir, step),
    )


def dataset_of(workdir: pathlib.Path) -> tuple[Config, TokenDataset]:
    """Returns the configuration and the dataset that a run's newest checkpoint was made with.

    Raises:
        UserError: if there is no checkpoint, or its dataset is not known, gone or damaged.
    """
    earlier = read(workdir)
    if earlier is None or earlier.dataset is None:
        raise UserError(f"{workdir}: no checkpoint there says with which dataset it was made")
    return earlier.config, TokenDataset.open(earlier.dataset).mixed(earlier.config.data)


def _noted_in_environment(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / "environment.json"
    if not path.exists():
        return {}
    cure = "delete it; the run then takes the dataset of its configuration"
    noted = read_json(path, cure)
    check_types(noted, {"dataset": (str, type(None))}, path, cure)
    return {"directory": noted.get("dataset")}


def _summary_of(workdir: pathlib.Path, step: int) -> dict[str, Any] | None:
    path = workdir / "summary.json"
    if not path.exists():
        return None
    try:
        summary = read_json(path, "")
        check_types(summary, _SUMMARY, path, "")
    except UserError:
        return None  # written again after an evaluation
    # The summary may be that of a shorter budget.
    return summary if summary.get("steps") == step else None


def changes(before: Config, now: Config) -> Changes:
    """Returns the keys whose values differ, in alphabetical order.

    A key that a later version had belongs to no part of this one, and counts as the same.
    """
    old, new = _flat(before), _flat(now)
    both = sorted(old.keys() & new.keys() - {"data.allow_change"})
    return {key: (old[key], new[key]) for key in both if old[key] != new[key]}


def _flat(config: Config) -> dict[str, Any]:
    """Returns dotted key → value as JSON has it."""
    nested = json.loads(json.dumps(config.to_dict()))
    flat: dict[str, Any] = {}
    for section, entries in nested.items():
        # A list of sources or stages is one value.
        if isinstance(entries, dict):
            flat |= {f"{section}.{key}": value for key, value in entries.items()}
        else:
            flat[section] = entries
    return flat


def describe(changed: Changes) -> list[str]:
    """Returns a line for each change, as "optimizer.lr: 0.001 → 0.0005"."""
    return [f"  {key}: {before} → {now}" for key, (before, now) in changed.items()]


def ended_by(earlier: Earlier, config: Config) -> str | None:
    """Returns why the run has come to its end under the budget and schedule of `config`, if it has.

    A larger budget goes on, and so does a changed `schedule.stop_loss` that has ended the run.
    """
    # Checkpoints that 0.2.0 and older wrote do not say it; the summary does.
    reason = earlier.sidecar.get("stop_reason") or (earlier.summary or {}).get("stop_reason")
    is_same_limit = config.schedule.stop_loss == earlier.config.schedule.stop_loss
    if reason == "early_termination" and is_same_limit:
        return reason
    clock = Clock(**config.budget.to_dict())
    clock.load_state_dict(earlier.sidecar["clock"])
    return clock.which()


def finished(
    earlier: Earlier, config: Config, workdir: pathlib.Path, announce: Announce
) -> dict[str, Any] | None:
    """Returns the summary of a run that has come to its end, or None if there is anything to do.

    Says that the run is finished, how to go on, and which changes are therefore not used.

    Raises:
        UserError: if the configuration is another model's, so that --workdir is likely a mistake.
    """
    reason = ended_by(earlier, config)
    if reason is None or earlier.summary is None:
        return None

    changed = changes(earlier.config, config)
    free = {f"model.{name}" for name in FREE_FIELDS}
    for key in sorted(changed.keys() - free):
        if key.startswith("model.") or key == "optimizer.name":
            before, now = changed[key]
            raise UserError(
                f"{workdir}: the run there belongs to another configuration: {key} is {before} in "
                f"the checkpoint, {now} now; use the configuration it was made with, or another "
                "--workdir"
            )

    announce(f"{workdir} is finished: {earlier.summary['stop_reason']} after {earlier.step} steps")
    if reason == "early_termination":
        announce(
            f"  its loss was above schedule.stop_loss={config.schedule.stop_loss}; to go on all the"
            " same: --config.schedule.stop_loss=None"
        )
    if changed:
        announce("the configuration has changed, but nothing is left to train with it:")
        for line in describe(changed):
            announce(line)
    return earlier.summary


def append(workdir: pathlib.Path, step: int, changed: Changes, dataset: Mapping[str, Any]) -> None:
    """Add the line of one start to history.jsonl.

    Args:
        workdir: the folder of the run.
        step: the step that the start goes on from.
        changed: what differs from the configuration of that step's checkpoint.
        dataset: `Run.dataset_note`.

    Raises:
        UserError: if the file cannot be written.
    """
    line = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join(sys.orig_argv),
        "changes": {key: list(values) for key, values in changed.items()},
        "dataset": dict(dataset),
    }

    path = workdir / "history.jsonl"
    try:
        with path.open("a+b") as file:
            # A crash may have cut the last line short.
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); move it away") from error
