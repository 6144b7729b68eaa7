"""Tasks through TensorFlow Datasets: local datasets of its own builder classes."""

import json
import os
import subprocess
import sys

import pytest

from cramjax.glue import rows
from cramjax.glue.tasks import SUITES, find_tasks
from tests.glue import distributed

pytest.importorskip("tensorflow_datasets")
# Nine datasets are built for it; tests/data reads what TFDS builds by default.
pytestmark = pytest.mark.slow

# The features are those of tensorflow_datasets.text, the rows those of tests/glue/distributed.py.
SCRIPT = """
import json, sys
import numpy as np
import tensorflow_datasets as tfds
from cramjax.glue import rows
from cramjax.glue.tasks import find_tasks
from cramjax.errors import UserError
from cramjax.tasks import catalogue

given = json.loads(sys.argv[1])

def build(official, config, splits):
    reference = official(config=config)
    with tfds.core.registered.skip_registration():
        class Local(official):
            name = reference.name
            def _split_generators(self, dl_manager):
                return {split: list(enumerate(examples)) for split, examples in splits.items()}
    Local(config=config).download_and_prepare()

classes = {"glue": tfds.text.glue.Glue, "super_glue": tfds.text.super_glue.SuperGlue}
for name in ("squad", "conll2003"):
    classes[name] = tfds.builder_cls(name)
for name, config, splits in given["build"]:
    build(classes[name], config, splits)
found = {}
for name in given["others"]:
    (task,) = catalogue.find([name])
    data = catalogue.open_task(task, "tfds", lambda _: None)
    found[name] = [data.splits, data.task.labels]
for task_name, suite in given["read"]:
    (task,) = find_tasks([task_name], suite)
    try:
        found[task_name] = rows.open_task(task, "tfds", lambda _: None, test=True).splits
    except UserError as error:
        found[task_name] = str(error)
print(json.dumps(found))
"""


def example(row, idx):
    """Returns a row as an example of TFDS, with the label -1 if it has none."""
    kept = {key: value for key, value in row.items() if key not in ("idx", "group")}
    return kept | {"idx": idx, "label": kept.get("label", -1)}


@pytest.fixture(scope="module")
def found(root, tmp_path_factory):
    row = distributed.FIRST_ROWS
    multirc = example(row["superglue", "multirc"], {"paragraph": 3, "question": 8, "answer": 1})
    record = {key: row["superglue", "record"][key] for key in ("passage", "query", "entities")}
    record |= {"answers": ["Ann"], "idx": {"passage": 4, "query": 7}}
    mnli = example(row["glue", "mnli"], 0)
    stsb = example(row["glue", "stsb"], 0)
    wsc = example(row["superglue", "wsc"], 0)
    first, second = example(row["glue", "cola"], 0), example(row["glue", "cola"], 1)
    # The second row stands first, as after the builder's shuffling.
    cola = {"train": [second, first], "validation": [first], "test": [first | {"label": -1}]}
    mnli_splits = ("train", "validation_matched", "validation_mismatched")
    build = [
        ("glue", "cola", cola),
        ("glue", "mnli", dict.fromkeys(mnli_splits, [mnli])),
        ("glue", "stsb", dict.fromkeys(("train", "validation"), [stsb])),
        ("super_glue", "multirc", dict.fromkeys(("train", "validation"), [multirc])),
        ("super_glue", "record", dict.fromkeys(("train", "validation"), [record])),
        ("super_glue", "wsc.fixed", dict.fromkeys(("train", "validation"), [wsc])),
    ]
    question = {
        "id": "q",
        "title": "x",
        "question": "who ?",
        "context": "a cat",
        "answers": {"text": ["cat"], "answer_start": [2]},
    }
    none = question | {"is_impossible": True, "plausible_answers": question["answers"]}
    tags = {"tokens": ["Oslo"], "ner": ["B-LOC"], "pos": ["NN"], "chunks": ["B-NP"]}
    build += [
        ("squad", "v1.1", dict.fromkeys(("train", "validation"), [question])),
        ("squad", "v2.0", dict.fromkeys(("train", "validation"), [none])),
        ("conll2003", "conll2003", dict.fromkeys(("train", "dev", "test"), [tags])),
    ]
    others = ["squad", "squad2", "conll"]
    names = ("cola", "mnli", "stsb", "multirc", "record", "wsc")
    read = [*((name, None) for name in names), ("rte", "superglue")]

    environment = os.environ | {
        "PYTHONPATH": str(root),
        "TFDS_DATA_DIR": str(tmp_path_factory.mktemp("tfds")),
    }
    environment.pop("XLA_FLAGS", None)
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        json.dumps({"build": build, "read": read, "others": others}),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["cola", "mnli", "stsb", "multirc", "record", "wsc"])
def test_rows_are_those_of_the_files(found, name):
    (task,) = find_tasks([name])
    expected = json.loads(json.dumps(distributed.FIRST_ROWS[task.suite, name]))
    assert found[name]["train"][0] == expected
    assert set(found[name]) >= {"train", *task.splits}


def test_rows_of_squad_and_conll(found):
    question = found["squad"][0]["validation"][0]
    assert question["label"] == [{"text": "cat", "start": 2}]
    assert (question["idx"], question["context"]) == ("q", "a cat")
    assert found["squad2"][0]["train"][0]["label"] == []
    splits, labels = found["conll"]
    assert splits["validation"] == [{"idx": 0, "words": ["Oslo"], "label": ["B-LOC"]}]
    assert labels == ["B-LOC"]


def test_order_and_missing_labels(found):
    assert [row["idx"] for row in found["cola"]["train"]] == [0, 1]
    assert "label" not in found["cola"]["test"][0]


def test_what_is_not_built_is_one_sentence(found):
    assert "super_glue/rte is not built in" in found["rte"]
    assert "TFDS_DATA_DIR" in found["rte"]


def test_every_task_has_a_name_there():
    assert [task.tfds for task in SUITES["superglue"]][6:8] == [
        "super_glue/wic",
        "super_glue/wsc.fixed",
    ]
    assert rows.has_data(SUITES["glue"][0], "nowhere") is False
