"""Names of metrics say split and type, and no type is taken for a split."""

import dataclasses

from cramjax.finetuning.heads import head_of
from cramjax.tasks import catalogue, metric_names


def test_a_type_called_as_a_split_is_no_split():
    tags = ("O", "B-test", "B-x", "B-x_test", "B-a:b")
    task = dataclasses.replace(catalogue.CONLL, labels=tags, splits=("validation", "test"))
    rows = [{"label": list(tags)}]
    found = {}
    n_metrics = 0
    for split in task.splits:
        scores = metric_names.of_split(task, head_of(task).score(task, rows, [list(tags)]), split)
        n_metrics += len(scores)
        assert {metric_names.split_of(name, "validation") for name in scores} == {split}
        found |= scores
    assert len(found) == n_metrics == 2 * (4 + 4 * 3)
    assert {"f1:test", "f1_test", "f1_test:x", "f1:x_test", "recall_test:a:b"} <= found.keys()


def test_thresholds_are_no_percent():
    assert not metric_names.is_percent("best_f1_threshold_test")
    assert metric_names.is_percent("f1:_threshold")
