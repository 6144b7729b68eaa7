"""Names of metrics in results: of an evaluation split, and of a type of entities.

"f1" is of the first evaluation split, "f1_test" of the test split, "f1:person" of one type, and
"f1_test:person" of both. A split stands before the colon, so that no type is taken for one.
"""

from __future__ import annotations

from collections.abc import Mapping

from cramjax.glue.tasks import Task

_SUFFIXES = {"validation_mismatched": "_mm", "test": "_test"}
_OF_TYPE = ":"


def suffix_of(task: Task, split: str) -> str:
    """Returns the end of the names of a further evaluation split: MNLI's second one has _mm."""
    return "" if split == task.splits[0] else _SUFFIXES[split]


def of_split(task: Task, metrics: Mapping[str, float], split: str) -> dict[str, float]:
    """Returns the metrics of a split by their names in results."""
    suffix = suffix_of(task, split)
    named = {}
    for name, value in metrics.items():
        metric, colon, kind = name.partition(_OF_TYPE)
        named[f"{metric}{suffix}{colon}{kind}"] = value
    return named


def of_type(metric: str, kind: str) -> str:
    """Returns the name of a metric of one type of entities."""
    return f"{metric}{_OF_TYPE}{kind}"


def split_of(name: str, first: str) -> str:
    """Returns the split that a name in results is of.

    Args:
        name: as from `of_split`.
        first: the first evaluation split of the task.
    """
    metric = name.partition(_OF_TYPE)[0]
    for split, suffix in _SUFFIXES.items():
        if metric.endswith(suffix):
            return split
    return first


def is_percent(name: str) -> bool:
    """Returns whether a metric is in percent: thresholds of odds are not."""
    return "_threshold" not in name.partition(_OF_TYPE)[0]
