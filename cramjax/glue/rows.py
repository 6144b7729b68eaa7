"""Reads the splits of a task from files or from TensorFlow Datasets, and checks their sizes."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from cramjax.errors import UserError
from cramjax.glue import local_files
from cramjax.glue.tasks import Row, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskData:
    """Rows of a task by split.

    Attributes:
        splits: "train" (not for a diagnostic), the evaluation splits of the task, and test splits
            if they are present.
        differences: sentences about what differs from the published data.
    """

    task: Task
    splits: dict[str, list[Row]]
    differences: tuple[str, ...]


def open_task(
    task: Task, data_dir: str, warn: Callable[[str], None], *, test: bool = False
) -> TaskData:
    """Read a task.

    A second evaluation split (MNLI mismatched) may be missing; any other missing split is an error.

    Args:
        data_dir: a folder, or "tfds".
        warn: receives a message about a missing split, or a number of rows that is not the
            published one.
        test: reads the test splits as well, if they are present.

    Raises:
        UserError: as `local_files.read` and `tfds_rows.read` do, and for a split without rows or
            labels.
    """
    splits: dict[str, list[Row]] = {}
    differences: list[str] = []
    names = list(task.splits) if task.first else ["train", *task.splits]
    for split in names:
        try:
            rows = _read(task, data_dir, split, warn)
        except UserError as error:
            if split not in task.splits[1:]:
                raise
            warn(f"{error}; going on without")
            differences.append(f"{split} is missing")
            continue

        _check_rows(task, data_dir, split, rows)
        if len(rows) != task.sizes[split]:
            published = f"{task.sizes[split]:,} were published"
            differences.append(f"{split} has {len(rows):,} rows where {published}")
            warn(
                f"{task.folder}: {differences[-1]}; scores compare only with runs on the same files"
            )
        splits[split] = rows

    if test and not task.first:
        splits |= _test_splits(task, data_dir, warn)
    return TaskData(task=task, splits=splits, differences=tuple(differences))


def _check_rows(task: Task, data_dir: str, split: str, rows: list[Row]) -> None:
    """Raises UserError for a split without rows, or with rows without labels."""
    where = f"{task.folder}: the split {split} in {data_dir}"
    if not rows:
        raise UserError(f"{where} has no rows")
    if any("label" not in row for row in rows):
        raise UserError(f"{where} has rows without a label")


def has_data(task: Task, data_dir: str) -> bool:
    """Returns whether the evaluation rows of `task` are present."""
    if data_dir != "tfds":
        return local_files.file_of(task, pathlib.Path(data_dir), task.splits[0]).is_file()
    try:
        return bool(_read(task, data_dir, task.splits[0], lambda _: None))
    except UserError:
        return False


def _test_splits(task: Task, data_dir: str, warn: Callable[[str], None]) -> dict[str, list[Row]]:
    """Returns all test splits, or none of them if one is missing."""
    names = [split.replace("validation", "test") for split in task.splits]
    try:
        return {name: _read(task, data_dir, name, warn) for name in names}
    except UserError as error:
        warn(f"{task.folder}: no test set, so no submission for it ({error})")
        return {}


def _read(task: Task, data_dir: str, split: str, warn: Callable[[str], None]) -> list[Row]:
    if data_dir == "tfds":
        from cramjax.glue import tfds_rows

        return tfds_rows.read(task, split)
    folder = pathlib.Path(data_dir)
    if not folder.is_dir():
        raise UserError(
            f"--data_dir {data_dir}: no such folder; name the one that holds CoLA/, RTE/, …, or "
            "tfds"
        )
    return local_files.read(task, folder, split, warn)
