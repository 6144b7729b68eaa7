"""The tasks of GLUE (arXiv 1804.07461) and SuperGLUE (arXiv 1905.00537) as one table.

The table has names, labels, metrics and sizes. A row of a task is a dict of strings and numbers,
the same from the files as distributed and from TensorFlow Datasets: the text fields of the task,
`idx` and, if it is known, `label`. The label is a number of `labels`, a float for a regression, and
for ReCoRD the list of right entities. Questions of MultiRC have a row for each answer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.errors import UserError

Row = dict[str, Any]

OTHER = "other"
"""The suite of tasks that are in none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task.

    Attributes:
        name: its name on the command line and in results.
        suite: "glue", "superglue" or `OTHER`.
        folder, tfds: its names as distributed and in TensorFlow Datasets.
        fields: the text fields of a row, in the order in which an encoder reads them.
        labels: names of the classes or tags by number; None for a regression, for entities and for
            answers that are text.
        metrics: names of its scores, of which those of GLUE are in `metrics.METRICS`.
        headline: the metrics that enter the suite's average, as the mean of their task.
        sizes: published rows by split: "train", "validation", "test" and those of `splits`.
        splits: the evaluation splits; only MNLI has two.
        kind: "classification", "regression", "choice", "answers" or "entities"; and for tasks of
            `OTHER` also "tags" of words, a "span" of a context, "embeddings" of texts, or "text".
        in_average: whether the suite's average includes it.
        first: the task whose model also answers this one, which has no training data.
    """

    name: str
    suite: str
    folder: str
    tfds: str
    fields: tuple[str, ...]
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    headline: tuple[str, ...]
    sizes: dict[str, int]
    splits: tuple[str, ...] = ("validation",)
    kind: str = "classification"
    in_average: bool = True
    first: str | None = None

    @property
    def n_classes(self) -> int:
        """Outputs of an encoder's head.

        A regression and a choice have one score, an entity has two: it fits or it does not.
        """
        if self.kind in ("regression", "choice"):
            return 1
        return 2 if self.labels is None else len(self.labels)


def _task(
    suite: str,
    name: str,
    folder: str,
    fields: tuple[str, ...],
    labels: tuple[str, ...] | None,
    metrics: tuple[str, ...],
    sizes: tuple[int, int, int],
    extra_sizes: Mapping[str, int] | None = None,
    **more: Any,
) -> Task:
    """Returns a row of the table.

    Args:
        sizes: rows of train, validation and test; 0 means no such split.
        extra_sizes: rows of further splits.
        more: fields of `Task` that differ from the usual.
    """
    by_split = zip(("train", "validation", "test"), sizes, strict=True)
    prefix = "glue" if suite == "glue" else "super_glue"

    values: dict[str, Any] = {
        "suite": suite,
        "name": name,
        "folder": folder,
        "tfds": f"{prefix}/{name}",
        "fields": fields,
        "labels": labels,
        "metrics": metrics,
        # GLUE averages the first metric of a task, SuperGLUE the mean of both.
        "headline": metrics[:1] if suite == "glue" else metrics,
        "sizes": {split: n for split, n in by_split if n} | dict(extra_sizes or {}),
    }
    return Task(**values | more)


_glue = functools.partial(_task, "glue")
_superglue = functools.partial(_task, "superglue")
_PAIR = ("sentence1", "sentence2")
_PREMISE = ("premise", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")
_BOOLEAN = ("False", "True")

# In the order in which results are printed. The headline metrics are those of Cramming (arXiv
# 2212.14034, section 5): F1 for MRPC and QQP, Pearson for STS-B. The others are computed and stored
# as well.
# fmt: off
_TASKS = (
    _glue("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"),
          ("matthews",), (8551, 1043, 1063)),
    _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"),
          ("accuracy",), (67349, 872, 1821)),
    _glue("mrpc", "MRPC", _PAIR, ("not_equivalent", "equivalent"),
          ("f1", "accuracy"), (3668, 408, 1725)),
    _glue("stsb", "STS-B", _PAIR, None,
          ("pearson", "spearman"), (5749, 1500, 1379), kind="regression"),
    _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"),
          ("f1", "accuracy"), (363846, 40430, 390965)),
    _glue("mnli", "MNLI", _PREMISE, ("entailment", "neutral", "contradiction"),
          ("accuracy",), (392702, 9815, 9796),
          splits=("validation_matched", "validation_mismatched"),
          headline=("accuracy", "accuracy_mm"),
          extra_sizes={"validation_matched": 9815, "validation_mismatched": 9832,
                       "test_matched": 9796, "test_mismatched": 9847}),
    _glue("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT,
          ("accuracy",), (104743, 5463, 5463)),
    _glue("rte", "RTE", _PAIR, _ENTAILMENT,
          ("accuracy",), (2490, 277, 3000)),
    _glue("wnli", "WNLI", _PAIR, ("not_entailment", "entailment"),
          ("accuracy",), (635, 71, 146), in_average=False),
    _superglue("boolq", "BoolQ", ("question", "passage"), _BOOLEAN,
               ("accuracy",), (9427, 3270, 3245)),
    _superglue("cb", "CB", _PREMISE, ("entailment", "contradiction", "neutral"),
               ("accuracy", "macro_f1"), (250, 56, 250)),
    _superglue("copa", "COPA", ("premise", "choice1", "choice2", "question"),
               ("choice1", "choice2"),
               ("accuracy",), (400, 100, 500), kind="choice"),
    _superglue("multirc", "MultiRC", ("paragraph", "question", "answer"), _BOOLEAN,
               ("f1a", "exact_match"), (27243, 4848, 9693), kind="answers"),
    _superglue("record", "ReCoRD", ("query", "passage"), None,
               ("f1", "exact_match"), (100730, 10000, 10000), kind="entities"),
    _superglue("rte", "RTE", _PREMISE, _ENTAILMENT,
               ("accuracy",), (2490, 277, 3000)),
    _superglue("wic", "WiC", ("sentence1", "sentence2", "word"), _BOOLEAN,
               ("accuracy",), (5428, 638, 1400)),
    _superglue("wsc", "WSC", ("text",), _BOOLEAN,
               ("accuracy",), (554, 104, 146), tfds="super_glue/wsc.fixed"),
    _superglue("axb", "AX-b", _PAIR, _ENTAILMENT,
               ("matthews",), (0, 0, 1104),
               splits=("test",), in_average=False, first="rte"),
    _superglue("axg", "AX-g", _PREMISE, _ENTAILMENT,
               ("accuracy", "gender_parity"), (0, 0, 356),
               splits=("test",), in_average=False, first="rte"),
)
# fmt: on

SUITES = {
    "glue": tuple(task for task in _TASKS if task.suite == "glue"),
    "superglue": tuple(task for task in _TASKS if task.suite == "superglue"),
}
"""Tasks of each suite in the order in which results are printed."""

TITLES = {"glue": "GLUE", "superglue": "SuperGLUE", OTHER: "Tasks"}
"""Suite → its name for people."""


def find_tasks(names: Sequence[str], prefer: str | None = None) -> tuple[Task, ...]:
    """Returns the tasks behind `names`, each once, in the order of their suite.

    Args:
        names: names of tasks, in any spelling, or of a suite.
        prefer: the suite meant by a name that both suites have, RTE, if no other name tells.
            Default: GLUE.

    Raises:
        UserError: for an unknown name, or for tasks of both suites.
    """
    chosen: list[Task] = []
    ambiguous: list[Task] = []
    for name in names:
        matches = _matches(name)
        if len({task.suite for task in matches}) > 1:
            ambiguous.extend(matches)
        else:
            chosen.extend(matches)

    suites = {task.suite for task in chosen}
    if len(suites) > 1:
        raise UserError(
            f"--task {','.join(names)}: tasks of GLUE and of SuperGLUE; run each suite by itself"
        )
    suite = suites.pop() if suites else prefer or "glue"
    wanted = chosen + ambiguous
    return tuple(task for task in SUITES[suite] if task in wanted)


def _matches(name: str) -> Sequence[Task]:
    """Returns the tasks that `name` may mean: of a suite, or one in each suite.

    Raises:
        UserError: for an unknown name.
    """
    key = _plain(name.strip()).replace("_", "")
    if key in SUITES:
        return SUITES[key]

    matches = [task for task in _TASKS if key in (task.name, _plain(task.folder))]
    if not matches:
        known = ", ".join(dict.fromkeys(task.name for task in _TASKS))
        raise UserError(f"--task {name}: unknown; the tasks are {known}, glue and superglue")
    return matches


def _plain(name: str) -> str:
    return name.lower().replace("-", "")
