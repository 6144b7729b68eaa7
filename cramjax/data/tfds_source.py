"""Datasets of TensorFlow Datasets; the only file that imports it. TensorFlow sees no GPU from here."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator
from typing import Any

from cramjax.data.source import Drop, Part
from cramjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsPart(Part):
    """Examples `first` to `last` (exclusive) of the split."""

    first: int
    last: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSplit:
    """The examples of a prepared split; `shard_lengths` in their order, `revision` the dataset's version."""

    spec: str
    weight: float
    index: int
    name: str
    split: str
    revision: str
    shard_lengths: tuple[int, ...]
    field: str

    def parts(self) -> list[TfdsPart]:
        """A part a shard."""
        parts, first = [], 0
        for number, length in enumerate(self.shard_lengths):
            parts.append(
                TfdsPart(
                    source=self.index,
                    name=f"tfds:{self.name}:{self.split}/{number}",
                    key=f"{self.name}:{self.revision}:{self.split}:{first}+{length}",
                    n_bytes=None,
                    first=first,
                    last=first + length,
                )
            )
            first += length
        return [part for part in parts if part.last > part.first]

    def read(self, part: TfdsPart, drop: Drop) -> Iterator[str]:
        """The text field of each example."""
        tfds = _tfds()
        wanted = f"{self.split}[{part.first}:{part.last}]"
        builder = tfds.builder(self.name)
        if builder.info.file_format.value == "array_record":
            examples = builder.as_data_source(split=wanted)
        else:
            config = tfds.ReadConfig(
                try_autocache=False
            )  # read once: a copy in memory would be for nothing
            examples = tfds.as_numpy(
                builder.as_dataset(split=wanted, shuffle_files=False, read_config=config)
            )
        for number, example in enumerate(examples):
            text = example[self.field]
            if not isinstance(text, bytes):
                drop("text_not_a_string", f"{part.name}:{number}")
                continue
            try:
                yield text.decode("utf-8")
            except UnicodeDecodeError:
                drop("invalid_utf8_repaired", f"{part.name}:{number}")
                yield text.decode("utf-8", errors="replace")


def open_tfds(
    *, spec: str, weight: float, index: int, name: str, field: str, allow_build: bool
) -> TfdsSplit:
    """The dataset `name` ("NAME/CONFIG", "NAME/CONFIG:VERSION", either with "@SPLIT"; the split is train if not given).

    Raises:
        UserError: for an unknown dataset, split or field, and for one that is not on disk unless `allow_build`.
    """
    name, _, split = name.partition("@")
    split = split or "train"
    builder = _builder(name, spec)
    if not builder.is_prepared():
        if not allow_build:
            raise UserError(
                f"data.source={spec}: not on disk ({builder.data_dir}), and TensorFlow Datasets would build it from "
                f"{_size(builder)}; set --config.data.allow_build=True to let it, or TFDS_DATA_DIR to where it is"
            )
        _build(builder, spec)
    if split not in builder.info.splits:
        raise UserError(
            f"data.source={spec}: no split {split!r}; there are {', '.join(sorted(builder.info.splits))}"
        )
    if field not in builder.info.features:
        raise UserError(
            f"data.source={spec}: examples have no field {field!r} (found: {', '.join(sorted(builder.info.features))}); "
            "set --config.data.text_field"
        )
    return TfdsSplit(
        spec=spec,
        weight=weight,
        index=index,
        name=name,
        split=split,
        revision=str(builder.version),
        shard_lengths=tuple(builder.info.splits[split].shard_lengths),
        field=field,
    )


def _builder(name: str, spec: str) -> Any:
    tfds = _tfds()
    try:
        return tfds.builder(name)
    except tfds.core.DatasetNotFoundError as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"data.source={spec}: TensorFlow Datasets knows no {name} ({first})"
        ) from error
    except (AssertionError, ValueError) as error:
        raise UserError(f"data.source={spec}: {str(error).strip().splitlines()[0]}") from error


def _build(builder: Any, spec: str) -> None:
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever the dataset's own code raises: no network, a missing package, another checksum
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"data.source={spec}: TensorFlow Datasets cannot build it ({type(error).__name__}: {first}); "
            "set TFDS_DATA_DIR to where it is built, or name another data.source, as installed-docs or text:GLOB"
        ) from error


def _size(builder: Any) -> str:
    """What building downloads, as far as TFDS knows: this configuration's size, or that of all files on its record.

    The record is of files fetched once by name; of c4 it holds 0.04 GB, and building that crawl takes terabytes.
    """
    if n_bytes := int(builder.info.download_size or 0):
        return f"{n_bytes / 1e9:.2f} GB of downloads, and about as much disk again"
    recorded = sum(
        entry.size or 0 for entry in (getattr(builder, "url_infos", None) or {}).values()
    )
    known = (
        f"{recorded / 1e9:.2f} GB for all configurations of {builder.name}"
        if recorded
        else "nothing"
    )
    return f"downloads of unknown size ({known} on record; what is gathered by crawling, as c4, takes terabytes)"


def _tfds() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"tfds: needs tensorflow-cpu and tensorflow-datasets ({error}); pip install them"
        ) from error
    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow_datasets
