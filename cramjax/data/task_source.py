"""The tasks of GLUE and SuperGLUE as pairs of texts, in T5's form.

A row of a task is one pair, or one for each right answer (arXiv 1910.10683, section 2.4 and
appendix D; `glue/inputs.py`). The name of the task stands at the beginning of each source.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Iterator

from cramjax.config.mixing import TASK_SCHEMES
from cramjax.data.contents import digests
from cramjax.data.pair_text import PairForm
from cramjax.data.source import Drop, Part
from cramjax.errors import UserError
from cramjax.glue import inputs, local_files
from cramjax.glue.tasks import SUITES, Task

_LOG = logging.getLogger("cramjax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskPart(Part):
    """The rows of a split of a task."""

    task: Task
    split: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRows:
    """Rows of tasks whose files lie in a folder, as they are distributed.

    Attributes:
        spec: See `TextSource`.
        weight: See `TextSource`.
        index: Index of this source in the mixture.
        form: What comes before each source.
        data_dir: The folder with a folder for each task.
        tasks: (task, split) of the rows.
        cache_dir: Folder in which digests of files are remembered.
        revision: None: the parts' keys hold digests of the files.
    """

    spec: str
    weight: float
    index: int
    form: PairForm
    data_dir: str
    tasks: tuple[tuple[Task, str], ...]
    cache_dir: str
    revision: str | None = None

    def parts(self) -> list[TaskPart]:
        """Make each split of a task a part."""
        folder = pathlib.Path(self.data_dir)
        paths = [local_files.file_of(task, folder, split) for task, split in self.tasks]
        keys = digests(paths, self.spec, self.cache_dir, lambda path: None)
        parts = []
        for (task, split), path, key in zip(self.tasks, paths, keys, strict=True):
            name = f"{task.folder}/{path.name}"
            part = TaskPart(
                source=self.index,
                name=name,
                key=f"{name}:{key}",
                n_bytes=path.stat().st_size,
                task=task,
                split=split,
            )
            parts.append(part)
        return parts

    def read(self, part: TaskPart, drop: Drop) -> Iterator[str]:
        """Yield a document for each answer of each row.

        Raises:
            UserError: if the file is not as it is distributed, or has rows without labels.
        """
        folder = pathlib.Path(self.data_dir)
        path = local_files.file_of(part.task, folder, part.split)
        rows = local_files.read(part.task, folder, part.split, _LOG.warning)
        for number, row in enumerate(rows):
            where = f"{path}: row {number}"
            if "label" not in row:
                raise UserError(f"{where}: has no label; give the file as it is distributed")
            source = inputs.source_text(part.task, row)
            for target in inputs.target_texts(part.task, row):
                document = self.form.joined(source, target, where, drop)
                if document is not None:
                    yield document


def singles(spec: str) -> list[str]:
    """Return the sources that a source of `data.source` stands for: itself, or one for each task.

    Raises:
        UserError: if the folder of a suite holds no task.
    """
    scheme, _, address = spec.partition(":")
    if scheme not in TASK_SCHEMES or _task_of(scheme, address) is not None:
        return [spec]

    folder = pathlib.Path(address).expanduser()
    found = []
    missing = []
    for task in SUITES[scheme]:
        if task.first is not None:
            continue  # a diagnostic has nothing to train on
        has_rows = local_files.file_of(task, folder, "train").is_file()
        (found if has_rows else missing).append(task.folder)

    if not found:
        raise UserError(
            f"data.source={spec}: holds no {missing[0]}/ or another task with its training file; "
            "name the folder with a folder for each task"
        )
    if missing:
        _LOG.warning("data.source=%s: has no %s; going on without", spec, ", ".join(missing))
    return [f"{scheme}:{pathlib.PurePath(address) / name}" for name in found]


def open_tasks(*, spec: str, weight: float, index: int, form: PairForm, cache_dir: str) -> TaskRows:
    """Open the training rows of a task or, with a weight of 0, the held-out ones of all tasks.

    Args:
        spec: "glue:DIR/TASK" or "superglue:DIR/TASK"; for held-out rows "glue:DIR" as well.
        weight: Share of the mixture.
        index: Index of this source in the mixture.
        form: What comes before each source.
        cache_dir: Folder in which digests of files are remembered.

    Raises:
        UserError: if a file is missing.
    """
    chosen: list[tuple[Task, str]] = []
    folder = pathlib.Path()
    for single in singles(spec):
        scheme, _, address = single.partition(":")
        folder = pathlib.Path(address).expanduser().parent
        task = _task_of(scheme, address)
        assert task is not None  # `singles` names tasks alone
        splits = ("train",) if weight else task.splits
        for number, split in enumerate(splits):
            path = local_files.file_of(task, folder, split)
            if path.is_file():
                chosen.append((task, split))
            elif number == 0:
                raise UserError(f"data.source={single}: {path}: no such file")

    return TaskRows(
        spec=spec,
        weight=weight,
        index=index,
        form=form,
        data_dir=str(folder),
        tasks=tuple(chosen),
        cache_dir=cache_dir,
    )


def _task_of(suite: str, address: str) -> Task | None:
    """Return the task whose folder `address` is; None if it is that of a suite."""
    name = pathlib.PurePath(address).name
    return next((task for task in SUITES[suite] if task.folder == name and not task.first), None)
