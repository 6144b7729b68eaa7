"""Reads datasets of TensorFlow Datasets; the only file that imports it.

TensorFlow sees no GPU from here.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator
from typing import Any

from cramjax.config.keep import Keep
from cramjax.data.pair_text import PairForm
from cramjax.data.record import refuse_field, text_cures, with_keep
from cramjax.data.source import Drop, Part
from cramjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsPart(Part):
    """The examples `first` to `last` (exclusive) of the split."""

    first: int
    last: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSplit:
    """The examples of a built split.

    Attributes:
        spec: See `TextSource`.
        weight: See `TextSource`.
        index: Index of this source in the mixture.
        name: "NAME/CONFIG" or "NAME/CONFIG:VERSION".
        split: Name of the split.
        revision: The dataset's version.
        shard_lengths: Examples in each shard, in order.
        field: Field of an example that holds its text.
        form: The fields of its pair in place of one text, or None.
        keep: Which examples are kept, or None for all.
    """

    spec: str
    weight: float
    index: int
    name: str
    split: str
    revision: str
    shard_lengths: tuple[int, ...]
    field: str
    form: PairForm | None = None
    keep: Keep | None = None

    def parts(self) -> list[TfdsPart]:
        """Make each shard that is not empty a part."""
        parts = []
        first = 0
        for number, length in enumerate(self.shard_lengths):
            part = TfdsPart(
                source=self.index,
                name=f"tfds:{self.name}:{self.split}/{number}",
                key=f"{self.name}:{self.revision}:{self.split}:{first}+{length}",
                n_bytes=None,
                first=first,
                last=first + length,
            )
            if length:
                parts.append(part)
            first += length
        return parts

    def read(self, part: TfdsPart, drop: Drop) -> Iterator[str]:
        """Yield the text, or the pair, of each example."""
        tfds = _tfds()
        wanted = f"{self.split}[{part.first}:{part.last}]"
        builder = tfds.builder(self.name)
        if builder.info.file_format.value == "array_record":
            examples = builder.as_data_source(split=wanted)
        else:
            # Read once: a copy in memory would be useless.
            config = tfds.ReadConfig(try_autocache=False)
            dataset = builder.as_dataset(split=wanted, shuffle_files=False, read_config=config)
            examples = tfds.as_numpy(dataset)

        for number, example in enumerate(examples):
            if self.keep is not None and not self.keep.accepts(_plain(example)):
                drop("keep", "")
                continue
            if self.form is not None:
                where = f"{part.name}:{number}"
                document = self.form.of_record(_plain(example), where, drop)
                if document is not None:
                    yield document
                continue
            text = example[self.field]
            if not isinstance(text, bytes):
                drop("text_not_a_string", f"{part.name}:{number}")
                continue
            try:
                yield text.decode("utf-8")
            except UnicodeDecodeError:
                drop("invalid_utf8_repaired", f"{part.name}:{number}")
                yield text.decode("utf-8", errors="replace")


def _plain(example: Any) -> Any:
    """Return a field's value, or a dict of them, with Python's own strings, numbers and lists."""
    if isinstance(example, dict):
        return {name: _plain(value) for name, value in example.items()}
    if hasattr(example, "tolist"):
        example = example.tolist()
    if isinstance(example, list):
        return [_plain(item) for item in example]
    return example.decode("utf-8", errors="replace") if isinstance(example, bytes) else example


def open_tfds(
    *,
    spec: str,
    weight: float,
    index: int,
    name: str,
    field: str,
    allow_build: bool,
    form: PairForm | None = None,
    keep: Keep | None = None,
) -> TfdsSplit:
    """Open a split of a dataset that is on disk, or build it.

    Args:
        spec: The specification in `data.source`.
        weight: Share of the mixture.
        index: Index of this source in the mixture.
        name: "NAME/CONFIG" or "NAME/CONFIG:VERSION", either with "@SPLIT"; the default split is
            train.
        field: Field of an example that holds its text.
        allow_build: Build the dataset if it is not on disk.
        form: The fields of its pair in place of one text, or None.
        keep: Which examples are kept, or None for all.

    Raises:
        UserError: for an unknown dataset, split or field, and for a dataset that is not on disk
            unless `allow_build`.
    """
    name, _, split = name.partition("@")
    split = split or "train"
    builder = _builder(name, spec)
    if not builder.is_prepared():
        if not allow_build:
            raise UserError(
                f"data.source={spec}: not on disk ({builder.data_dir}), and TensorFlow Datasets "
                f"would build it from {download_size(builder)}; set "
                "--config.data.allow_build=True to let it, or TFDS_DATA_DIR to where it is"
            )
        build(builder, spec)

    splits = builder.info.splits
    if split not in splits:
        raise UserError(
            f"data.source={spec}: no split {split!r}; there are {', '.join(sorted(splits))}"
        )
    _check_fields(builder.info.features, f"data.source={spec}", field, form, keep)

    return TfdsSplit(
        spec=spec,
        weight=weight,
        index=index,
        name=name,
        split=split,
        revision=str(builder.version),
        shard_lengths=tuple(splits[split].shard_lengths),
        field=field,
        form=form,
        keep=keep,
    )


def _check_fields(
    features: Any, where: str, field: str, form: PairForm | None, keep: Keep | None
) -> None:
    """Raise a UserError if examples lack a field that is read."""
    cures = text_cures(field, keep) if form is None else with_keep(form.cures, keep)
    for name, cure in cures.items():
        # Dots reach into the records of pairs.
        feature = name if form is None else name.partition(".")[0]
        if feature not in features:
            refuse_field(where, name, features, cure)


def _builder(name: str, spec: str) -> Any:
    """Return the builder of a dataset; UserError if TFDS does not know it."""
    tfds = _tfds()
    try:
        return tfds.builder(name)
    except tfds.core.DatasetNotFoundError as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"data.source={spec}: TensorFlow Datasets knows no {name} ({first_line})"
        ) from error
    except (AssertionError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(f"data.source={spec}: {first_line}") from error


def build(builder: Any, spec: str) -> None:
    """Build a dataset; UserError if that fails for another reason than a full disk."""
    try:
        builder.download_and_prepare()
    except Exception as error:
        # The dataset's own code raises anything: no network, a missing package, another checksum.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"data.source={spec}: TensorFlow Datasets cannot build it "
            f"({type(error).__name__}: {first_line}); set TFDS_DATA_DIR to where it is built, or "
            "name another data.source, as installed-docs or text:GLOB"
        ) from error


def download_size(builder: Any) -> str:
    """Describe what building downloads, as far as TFDS knows.

    That is this configuration's size, or the size of all files on its record. The record has files
    fetched once by name. For c4 it holds 0.04 GB, and building that crawl takes terabytes.
    """
    if n_bytes := int(builder.info.download_size or 0):
        return f"{n_bytes / 1e9:.2f} GB of downloads, and about as much disk again"

    files = (getattr(builder, "url_infos", None) or {}).values()
    n_recorded = sum(file.size or 0 for file in files)
    recorded = "nothing"
    if n_recorded:
        recorded = f"{n_recorded / 1e9:.2f} GB for all configurations of {builder.name}"
    return (
        f"downloads of unknown size ({recorded} on record; what is gathered by crawling, as c4, "
        "takes terabytes)"
    )


def _tfds() -> Any:
    """Import TensorFlow Datasets, with a quiet TensorFlow that leaves GPUs alone."""
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
