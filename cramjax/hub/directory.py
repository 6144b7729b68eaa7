"""Reads a directory that `save_pretrained` wrote.

It holds config.json, the weights in safetensors (one file or several) and tokenizer.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the name bfloat16, which safetensors asks it for
import numpy as np
import safetensors
import tokenizers

from cramjax.data.adoption import check_unknown, complete_decoder
from cramjax.data.tokenizers import special_ids
from cramjax.errors import UserError
from cramjax.files import member, read_json
from cramjax.hub import equivalence, families, sentence_files, tables
from cramjax.models.classifier import EMBEDDING, ClassifierConfig
from cramjax.models.encoder import EncoderConfig

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZER = "tokenizer.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ROLES = {"encoder": ("pad", "cls", "sep", "mask"), "t5": ("pad", "sep")}
_SAVE = "write it again with save_pretrained"
_COPY = "copy all parts of the model"
_CONVERT = "AutoModel.from_pretrained({path!r}).save_pretrained({path!r}, safe_serialization=True)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """A model of `transformers` as one of ours.

    Attributes:
        family: its `model_type`.
        config: our configuration, with dropout 0 and a `vocab_size` that counts all rows of the
            embedding.
        params: float32 NumPy arrays in the tree of `init_params`.
        tokenizer: neither truncates nor pads.
        extra: parts that our networks lack, see `tables.from_hf`.
    """

    family: str
    config: families.Network
    params: tables.Params
    tokenizer: tokenizers.Tokenizer
    extra: tables.Extra


def is_hf_directory(path: str | os.PathLike) -> bool:
    """Returns whether `transformers` wrote the directory `path`, complete or not.

    It knows such a directory by the names of weights, or by a config.json with a model_type.
    """
    path = pathlib.Path(path)
    if any((path / name).is_file() for name in (_WEIGHTS, _INDEX, *_PICKLES)):
        return True
    try:
        return "model_type" in read_json(path / _CONFIG, _SAVE)
    except UserError:
        return False


def _member(folder: pathlib.Path, name: str, cure: str) -> pathlib.Path:
    """Returns the path of a regular file in a folder; see `cramjax.files.member`.

    In a snapshot of the cache of `huggingface_hub`, links end in the blobs of the same repository,
    where all its files are.
    """
    home = folder.resolve()
    blobs = []
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        blobs.append(home.parents[1] / "blobs")
    return member(folder, name, cure, also=blobs)


def read_model(path: str | os.PathLike) -> Imported:
    """Returns the model in the directory `path`; its family is one of `families.FAMILIES`.

    Raises:
        UserError: if a file is missing, unreadable or does not fit the others, or our networks do
            not cover the model.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; name one that save_pretrained wrote")

    where = _member(path, _CONFIG, "name a directory that save_pretrained wrote")
    raw = read_json(where, _SAVE)
    family, config = families.from_json(raw, str(where))
    tokenizer = _tokenizer(path, family)

    with open_weights(path) as tensors:
        config = _with_all_rows(family, config, tensors)
        pad_id = families.pad_id(family, raw, str(where))
        try:
            params, extra = tables.from_hf(family, config, tensors, pad_id=pad_id)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    config, params = equivalence.as_trained(raw, config, params)
    check_rows(path / _TOKENIZER, tokenizer, config.vocab_size)
    return Imported(family=family, config=config, params=params, tokenizer=tokenizer, extra=extra)


def _tokenizer(path: pathlib.Path, family: str) -> tokenizers.Tokenizer:
    return read_tokenizer(
        path / _TOKENIZER,
        family,
        f"write it with AutoTokenizer.from_pretrained({str(path)!r})"
        f".save_pretrained({str(path)!r})",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedHead:
    """A model of `transformers` with a head for sequences, tokens or answers, or of embeddings.

    Attributes:
        config: the network with its head; dropout is 0.
        params: float32 NumPy arrays in the tree of `init_params`.
        tokenizer: neither truncates nor pads.
        labels: the names of its outputs; () for embeddings.
        max_length: tokens at which its tokenizer cuts a text; None if it does not say.
        normalize: its embeddings have length 1.
    """

    config: ClassifierConfig
    params: tables.Params
    tokenizer: tokenizers.Tokenizer
    labels: tuple[str, ...]
    max_length: int | None
    normalize: bool = False


def read_head(path: str | os.PathLike) -> ImportedHead:
    """Returns the model in the directory `path` with the head that its class has.

    A class without a head gives embeddings, the mean over the tokens of a text, unless files of
    `sentence_transformers` say otherwise.

    Raises:
        UserError: if it has no such head, or as `read_model` does.
    """
    path = pathlib.Path(path)
    where = _member(path, _CONFIG, "name a directory that save_pretrained wrote")
    raw = read_json(where, _SAVE)
    sentence = None
    head = EMBEDDING
    if sentence_files.is_sentence_model(path):
        sentence = sentence_files.read(path, functools.partial(_member, path))
    else:
        head = _head_of(raw, str(where))
    if head == EMBEDDING:
        sentence = sentence or sentence_files.SentenceModel(pooling="mean", max_length=None)
        pooling, labels = sentence.pooling, ()
    else:
        pooling = "mean" if raw.get("classifier_pooling") == "mean" else "first"
        labels = _labels(raw, str(where))
    family, config = families.from_json(raw, str(where))
    if not isinstance(config, EncoderConfig):
        raise UserError(f"{where}: a T5 has no such head; take an encoder")
    tokenizer = _tokenizer(path, family)

    with open_weights(path) as tensors:
        with_rows = _with_all_rows(family, config, tensors)
        assert isinstance(with_rows, EncoderConfig)
        network = ClassifierConfig(
            encoder=with_rows,
            width=config.d_model,
            n_outputs=len(labels),
            pooling=pooling,
            transform=families.FAMILIES[family].transform_of(head),
            head=head,
        )
        pad_id = families.pad_id(family, raw, str(where))
        try:
            params, _ = tables.from_hf(family, network, tensors, pad_id=pad_id)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    check_rows(path / _TOKENIZER, tokenizer, with_rows.vocab_size)
    return ImportedHead(
        config=network,
        params=params,
        tokenizer=tokenizer,
        labels=labels,
        max_length=(sentence and sentence.max_length) or _max_length(path),
        normalize=bool(sentence and sentence.normalize),
    )


def _max_length(path: pathlib.Path) -> int | None:
    """Returns the length in tokenizer_config.json, where a huge number stands for none."""
    with contextlib.suppress(UserError):
        length = read_json(path / "tokenizer_config.json", _SAVE).get("model_max_length")
        if type(length) is int and 1 <= length <= families.MAX_NUMBER:
            return length
    return None


def _head_of(raw: Mapping[str, Any], where: str) -> str:
    """Returns the head of the class in a config.json."""
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    for head, ending in families.ENDINGS.items():
        if isinstance(name, str) and name.endswith(ending):
            if raw.get("problem_type") == "multi_label_classification":
                raise UserError(f"{where}: several labels a text are not supported; take another")
            return head
    endings = ", ".join(families.ENDINGS.values())
    raise UserError(
        f"{where}: architectures={names!r:.80} has no head that predicts; give a model whose class "
        f"ends in one of {endings}"
    )


def _labels(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Returns the names of a head's outputs."""
    # save_pretrained leaves out what two outputs are called by default.
    names = raw.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        by_number = {int(number): name for number, name in names.items()}
        labels = tuple(by_number[number] for number in range(len(by_number)))
    except (AttributeError, TypeError, ValueError, KeyError):
        labels = ()
    if not labels or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{where}: id2label does not name outputs from 0 on; {_SAVE}")
    return labels


def read_tokenizer(file: pathlib.Path, family: str, cure: str) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a model; it neither truncates nor pads.

    Args:
        file: a tokenizer.json in the folder of the model.
        family: "t5", or any other for an encoder.
        cure: what to do, the end of the error's sentence.

    Raises:
        UserError: if there is no such file, it is damaged, or lacks a special token or an id for
            what it does not know.
    """
    _member(file.parent, file.name, cure)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise UserError(f"{file}: not a readable tokenizer.json ({error}); {cure}") from error

    check_unknown(tokenizer, str(file))
    complete_decoder(tokenizer)
    # Rows are cut and padded elsewhere.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    special = special_ids(tokenizer)
    for role in _ROLES["t5" if family == "t5" else "encoder"]:
        if special.get(role) is None:
            raise UserError(
                f"{file}: has no token for {role} under a usual name; rename it to [{role.upper()}]"
            )
    return tokenizer


def check_rows(file: pathlib.Path, tokenizer: tokenizers.Tokenizer, n_rows: int) -> None:
    """Raises UserError for an entry without a row in the embedding: it would read another row."""
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= n_rows:
        raise UserError(
            f"{file}: has an entry {largest}, but the embedding {n_rows} rows; "
            "take both from the same model"
        )


class _Weights(Mapping[str, np.ndarray]):
    """The tensors of open files by name; each is read from disk when it is asked for."""

    def __init__(self, files: Mapping[str, Any]):
        self.files = files

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.files[name].get_tensor(name)
        # TypeError, AttributeError: a number format that NumPy lacks.
        except (safetensors.SafetensorError, TypeError, AttributeError) as error:
            raise UserError(
                f"the tensor {name} is not readable ({error}); save the model in float32"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor without reading it."""
        return tuple(self.files[name].get_slice(name).get_shape())


@contextlib.contextmanager
def open_weights(path: pathlib.Path) -> Iterator[_Weights]:
    """Yields the tensors in a directory; the files stay open until the end of the block.

    Raises:
        UserError: if a file is missing or unreadable.
    """
    files: dict[str, str] | None = None  # name of a tensor → file
    if (path / _WEIGHTS).is_file():
        parts = [_WEIGHTS]
    elif (path / _INDEX).is_file():
        files = read_json(_member(path, _INDEX, _COPY), _SAVE).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(part, str) for part in files.values()):
            raise UserError(f"{path / _INDEX}: has no weight_map; {_SAVE}")
        parts = sorted(set(files.values()))
    else:
        raise UserError(_missing_weights(path))

    with contextlib.ExitStack() as stack:
        opened = {part: _open(path, part, stack) for part in parts}
        if files is None:
            files = dict.fromkeys(opened[_WEIGHTS].keys(), _WEIGHTS)
        present = {part: set(opened[part].keys()) for part in parts}
        for name, part in files.items():
            if name not in present[part]:
                raise UserError(f"{path / part}: has no tensor {name!r:.200}; {_COPY}")
        yield _Weights({name: opened[part] for name, part in files.items()})


def _open(folder: pathlib.Path, part: str, stack: contextlib.ExitStack) -> Any:
    file = _member(folder, part, _COPY)
    try:
        return stack.enter_context(safetensors.safe_open(str(file), framework="np"))
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not readable as safetensors ({error}); copy it or save it again"
        ) from error


def _missing_weights(path: pathlib.Path) -> str:
    """Returns the message about a directory without safetensors."""
    convert = _CONVERT.format(path=str(path))
    for name in _PICKLES:
        if (path / name).is_file():
            return f"{path / name}: pickled weights are not read; convert them with {convert}"
    return f"{path / _WEIGHTS}: no such file; write it with {convert}"


def _with_all_rows(family: str, config: families.Network, tensors: _Weights) -> families.Network:
    """Returns `config` with a vocabulary as large as the embedding.

    The embedding may have rows of padding that config.json does not count.
    """
    table = tables.family_table(family, config)
    (embedding,) = table.entries[0].names
    for name in (embedding, embedding.removeprefix(table.prefix)):
        if name in tensors:
            (n_rows, *_) = tensors.shape(name) or (1,)
            return dataclasses.replace(config, vocab_size=n_rows)
    return config
