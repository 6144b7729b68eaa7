"""A finetuning as the command line asks for it, and the tasks it names."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

from cramjax.errors import UserError
from cramjax.finetuning.protocols import Protocol
from cramjax.glue import local_files, rows
from cramjax.glue.tasks import SUITES, Task
from cramjax.tasks import catalogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """A finetuning to carry out; the help of `tools/finetune.py` explains each field.

    Fields have the names of the command line's arguments (`dest`).
    """

    checkpoint: str
    tasks: Sequence[str]
    data_dir: str | None
    out: pathlib.Path
    protocol: Protocol
    n_seeds: int
    hours: float | None = None
    together: int | None = None
    untrained: bool = False
    save: bool = False
    submit: bool = False
    compare: bool = False


def default_out(checkpoint: str, protocol: Protocol, untrained: bool) -> pathlib.Path:
    """Returns the folder of the results if none is given: runs/finetune/CHECKPOINT-PROTOCOL."""
    name = pathlib.Path(checkpoint).resolve().name
    if untrained:
        name += "-untrained"
    return pathlib.Path("runs/finetune") / f"{name}-{protocol.name}"


def choose_tasks(names: Sequence[str], data_dir: str | None) -> tuple[Task, ...]:
    """Returns the tasks behind `names`, see `catalogue.find`.

    A whole suite includes a diagnostic (AX-b, AX-g) only if its data are present.

    Raises:
        UserError: for an unknown task, or a diagnostic without the task whose model answers it.
    """
    suite = None
    if data_dir and data_dir != "tfds":
        suite = local_files.suite_of("RTE", pathlib.Path(data_dir))
    chosen_tasks = catalogue.find(names, suite)
    if data_dir is None:
        catalogue.check_needs_no_folder(chosen_tasks)
    names_suite = any(name.lower() in SUITES for name in names)

    chosen = []
    for task in chosen_tasks:
        is_optional = task.first is not None and names_suite
        if not is_optional or not data_dir or rows.has_data(task, data_dir):
            chosen.append(task)

    chosen_names = {task.name for task in chosen}
    for task in chosen:
        if task.first and task.first not in chosen_names:
            raise UserError(
                f"--task {task.name}: is answered by the model of {task.first}; add {task.first}"
            )
    return tuple(chosen)


def check_starts(tasks: Sequence[Task], protocol: Protocol, is_t5: bool) -> None:
    """Check that the models which tasks start from (`start_from`) are part of the finetuning.

    Raises:
        UserError: if a task starts from itself, an unknown task or a task that is not among
            `tasks`, or if the model is a T5.
    """
    known = {task.name for task in itertools.chain(tasks, *SUITES.values())}
    chosen = {task.name for task in tasks}

    for task in tasks:
        for point in protocol.points(task.name):
            start = protocol.settings_at(point).start_from
            if start is None:
                continue
            setting = f"finetuning setting start_from={start}"
            if start == task.name or start not in known:
                raise UserError(f"{setting}: must be another task")
            if start not in chosen:
                raise UserError(
                    f"--protocol {protocol.name}: {task.name} starts from the model of {start}; "
                    f"add {start} to --task, or --set start_from=None"
                )
            if is_t5:
                raise UserError(f"{setting}: is for encoders; give --set start_from=None")
