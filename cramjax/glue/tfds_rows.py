"""Reads rows of a task from TensorFlow Datasets (`glue/*`, `super_glue/*`, `squad/*`, `conll2003`).

No other file of this package imports TensorFlow.
"""

from __future__ import annotations

import os
from typing import Any

from cramjax.errors import UserError
from cramjax.glue.tasks import Row, Task

# Places of the words that rows of WiC and WSC are about.
_SPAN_KEYS = (
    *("start1", "end1", "start2", "end2"),
    *("span1_text", "span1_index", "span2_text", "span2_index"),
)


def read(task: Task, split: str) -> list[Row]:
    """Read the rows of a split of a dataset that is built already.

    It lies in `TFDS_DATA_DIR`, or in ~/tensorflow_datasets if that is not set.

    Raises:
        UserError: if TensorFlow Datasets, the dataset, the split or a field is missing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"--data_dir tfds: needs tensorflow-cpu and tensorflow-datasets ({error}); pip install "
            "them"
        ) from error

    # TensorFlow would otherwise take the memory of the GPU.
    tensorflow.config.set_visible_devices([], "GPU")
    builder: Any = tensorflow_datasets.builder(task.tfds)
    if not builder.is_prepared():
        raise UserError(
            f"--data_dir tfds: {task.tfds} is not built in {builder.data_dir}; set TFDS_DATA_DIR, "
            f"or build it with python -m tensorflow_datasets.scripts.cli.main build {task.tfds}"
        )
    if task.kind == "tags":
        # CoNLL's builder has its own name.
        split = {"validation": "dev"}.get(split, split)
    if split not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise UserError(f"--data_dir tfds: {task.tfds} has no split {split!r}; there are {known}")

    dataset = builder.as_dataset(split=split, shuffle_files=False)
    examples = tensorflow_datasets.as_numpy(dataset)
    if task.kind == "span":
        return [_question(_plain(example)) for example in examples]
    if task.kind == "tags":
        names = builder.info.features["ner"].feature.names
        return [
            _sentence(number, _plain(example), names) for number, example in enumerate(examples)
        ]
    rows = [_row(task, example) for example in examples]
    # The builder shuffles the rows on disk.
    return sorted(rows, key=lambda row: row["idx"])


def _question(values: dict[str, Any]) -> Row:
    """Returns a question of SQuAD; those of version 2.0 may have no answer."""
    answers = values["answers"]
    if values.get("is_impossible"):
        answers = {"text": [], "answer_start": []}
    return {
        "idx": values["id"],
        "question": values["question"],
        "context": values["context"],
        "label": [
            {"text": text, "start": start}
            for text, start in zip(answers["text"], answers["answer_start"], strict=True)
        ],
    }


def _sentence(number: int, values: dict[str, Any], names: list[str]) -> Row:
    """Returns a sentence of CoNLL-2003 with the names of its tags."""
    label = [names[tag] for tag in values["ner"]]
    return {"idx": number, "words": values["tokens"], "label": label}


def _row(task: Task, example: dict[str, Any]) -> Row:
    values = {key: _plain(value) for key, value in example.items()}
    try:
        row: Row = {field: values[field] for field in task.fields}
    except KeyError as error:
        raise UserError(
            f"--data_dir tfds: {task.tfds} has no field {error.args[0]!r} "
            f"(found: {', '.join(values)})"
        ) from error

    idx = values["idx"]
    if task.kind == "entities":
        row["idx"] = (idx["passage"], idx["query"])
        row["entities"] = sorted(values["entities"])
        if values["answers"]:
            row["label"] = sorted(values["answers"])
        return row

    row["idx"] = idx
    if task.kind == "answers":
        row["idx"] = (idx["paragraph"], idx["question"], idx["answer"])
        row["group"] = row["idx"][:2]
    if task.name == "axg":
        row["group"] = idx // 2
    row |= {key: values[key] for key in _SPAN_KEYS if key in values}

    # TensorFlow Datasets gives unlabelled rows the label -1.
    label = values.get("label")
    if label is not None and label >= 0:
        row["label"] = label
    return row


def _plain(value: Any) -> Any:
    """Returns a value with str for bytes, and Python numbers and lists for NumPy's."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
