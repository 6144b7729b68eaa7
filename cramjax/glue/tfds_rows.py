"""Rows of a task from TensorFlow Datasets (`glue/*`, `super_glue/*`); the only file here that imports it."""

from __future__ import annotations

import os
from typing import Any

from cramjax.errors import UserError
from cramjax.glue.tasks import Row, Task


def read(task: Task, split: str) -> list[Row]:
    """The rows of a split of a dataset that is built already (`TFDS_DATA_DIR` says where, ~/tensorflow_datasets if unset).

    Raises:
        UserError: where TensorFlow Datasets is missing, or the dataset, or a field of it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"--data_dir tfds: needs tensorflow-cpu and tensorflow-datasets ({error}); pip install them"
        ) from error
    tensorflow.config.set_visible_devices([], "GPU")
    builder = tensorflow_datasets.builder(task.tfds)
    if not builder.is_prepared():
        raise UserError(
            f"--data_dir tfds: {task.tfds} is not built in {builder.data_dir}; set TFDS_DATA_DIR, or build it with "
            f"python -m tensorflow_datasets.scripts.cli.main build {task.tfds}"
        )
    if split not in builder.info.splits:
        raise UserError(
            f"--data_dir tfds: {task.tfds} has no split {split!r}; there are {', '.join(sorted(builder.info.splits))}"
        )
    dataset = builder.as_dataset(split=split, shuffle_files=False)
    rows = [_row(task, example) for example in tensorflow_datasets.as_numpy(dataset)]
    return sorted(rows, key=lambda row: row["idx"])  # the builder shuffles them on disk


def _row(task: Task, example: dict[str, Any]) -> Row:
    values = {key: _plain(value) for key, value in example.items()}
    try:
        row: Row = {field: values[field] for field in task.fields}
    except KeyError as error:
        raise UserError(
            f"--data_dir tfds: {task.tfds} has no field {error.args[0]!r} (found: {', '.join(values)})"
        ) from error
    idx, label = values["idx"], values.get("label")
    match task.kind:
        case "answers":
            row["idx"] = (idx["paragraph"], idx["question"], idx["answer"])
            row["group"] = row["idx"][:2]
        case "entities":
            row |= {"idx": (idx["passage"], idx["query"]), "entities": sorted(values["entities"])}
            return row | ({"label": sorted(values["answers"])} if values["answers"] else {})
        case _:
            row["idx"] = idx
    row |= {key: values[key] for key in ("start1", "end1", "start2", "end2") if key in values}
    row |= {
        key: values[key]
        for key in ("span1_text", "span1_index", "span2_text", "span2_index")
        if key in values
    }
    if task.name == "axg":
        row["group"] = idx // 2
    # TFDS gives unlabelled rows the label -1.
    return row if label is None or label < 0 else row | {"label": label}


def _plain(value: Any) -> Any:
    """bytes → str, NumPy numbers and arrays → Python ones."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
