"""Reads a directory that `save_pretrained` wrote.

It holds config.json, the weights in safetensors (one file or several) and tokenizer.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the name bfloat16, which safetensors asks it for
import numpy as np
import safetensors
import tokenizers

from cramjax.data.tokenizers import special_ids
from cramjax.errors import UserError
from cramjax.hub import equivalence, families, tables

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZER = "tokenizer.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ROLES = {"encoder": ("pad", "cls", "sep", "mask"), "t5": ("pad", "sep")}
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
        content = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" in content


def read_model(path: str | os.PathLike) -> Imported:
    """Returns the model in the directory `path`; its family is one of `families.FAMILIES`.

    Raises:
        UserError: if a file is missing, unreadable or does not fit the others, or our networks do
            not cover the model.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; name one that save_pretrained wrote")
    where = path / _CONFIG
    if not where.is_file():
        raise UserError(f"{where}: no such file; name a directory that save_pretrained wrote")

    raw = _read_json(where)
    family, config = families.from_json(raw, str(where))
    tokenizer = _read_tokenizer(path, family)
    with open_weights(path) as tensors:
        config = _with_all_rows(family, config, tensors)
        pad_id = families.pad_id(family, raw, str(where))
        try:
            params, extra = tables.from_hf(family, config, tensors, pad_id=pad_id)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    config, params = equivalence.as_trained(raw, config, params)

    # A token without a row would read another row.
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        raise UserError(
            f"{path / _TOKENIZER}: has an entry {largest}, but the embedding "
            f"{config.vocab_size} rows; take both from the same model"
        )
    return Imported(family=family, config=config, params=params, tokenizer=tokenizer, extra=extra)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); write it again with save_pretrained"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; write it again with save_pretrained")
    return content


def _read_tokenizer(path: pathlib.Path, family: str) -> tokenizers.Tokenizer:
    file = path / _TOKENIZER
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; write it with "
            f"AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise UserError(
            f"{file}: not a readable tokenizer.json ({error}); write it again with save_pretrained"
        ) from error

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


class _Weights(Mapping[str, np.ndarray]):
    """The tensors of open files by name; each is read from disk when it is asked for."""

    def __init__(self, files: Mapping[str, Any]):
        self.files = files

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.files[name].get_tensor(name)
        # TypeError: a number format that NumPy lacks.
        except (safetensors.SafetensorError, TypeError) as error:
            raise UserError(
                f"the tensor {name} is not readable ({error}); save the model in float32"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def n_rows(self, name: str) -> int:
        """Returns the length of axis 0 without reading the tensor."""
        return (self.files[name].get_slice(name).get_shape() or [1])[0]


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
        files = _read_json(path / _INDEX).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(part, str) for part in files.values()):
            raise UserError(
                f"{path / _INDEX}: has no weight_map; write it again with save_pretrained"
            )
        parts = sorted(set(files.values()))
    else:
        raise UserError(_missing_weights(path))

    with contextlib.ExitStack() as stack:
        opened = {part: _open(path / part, stack) for part in parts}
        if files is None:
            files = dict.fromkeys(opened[_WEIGHTS].keys(), _WEIGHTS)
        yield _Weights({name: opened[part] for name, part in files.items()})


def _open(file: pathlib.Path, stack: contextlib.ExitStack) -> Any:
    if not file.is_file():
        raise UserError(
            f"{file}: no such file, but the index names it; copy all parts of the model"
        )
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
            return dataclasses.replace(config, vocab_size=tensors.n_rows(name))
    return config
