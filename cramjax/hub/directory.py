"""A directory as `save_pretrained` writes it: config.json, weights in safetensors (one file or several) and tokenizer.json."""

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

_CONFIG, _WEIGHTS, _INDEX, _TOKENIZER = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
)
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_ROLES = {"encoder": ("pad", "cls", "sep", "mask"), "t5": ("pad", "sep")}
_CONVERT = "AutoModel.from_pretrained({path!r}).save_pretrained({path!r}, safe_serialization=True)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """A model of `transformers` as one of ours.

    Attributes:
        family: its `model_type`. config: our configuration, with dropout 0 and a `vocab_size` that counts all rows of the embedding.
        params: float32 NumPy arrays in a tree as of `init_params`. tokenizer: neither truncating nor padding.
        extra: as of `tables.from_hf`.
    """

    family: str
    config: families.Config
    params: tables.Params
    tokenizer: tokenizers.Tokenizer
    extra: tables.Extra


def is_hf_directory(path: str | os.PathLike) -> bool:
    """Whether `transformers` wrote the directory `path`, complete or not: weights by its names, or a config.json with a model_type."""
    path = pathlib.Path(path)
    if any((path / name).is_file() for name in (_WEIGHTS, _INDEX, *_PICKLES)):
        return True
    try:
        content = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" in content


def read(path: str | os.PathLike) -> Imported:
    """The model in the directory `path`, whose family is one of `families.FAMILIES`.

    Raises:
        UserError: where a file is missing, unreadable or does not fit the others, or our networks are no such model.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; name one that save_pretrained wrote")
    where = path / _CONFIG
    if not where.is_file():
        raise UserError(f"{where}: no such file; name a directory that save_pretrained wrote")
    raw = _json(where)
    family, config = families.from_json(raw, str(where))
    tokenizer = _tokenizer(path, family)
    with open_weights(path) as tensors:
        config = _with_all_rows(family, config, tensors)
        try:
            params, extra = tables.from_hf(
                family, config, tensors, pad_id=families.pad_id(family, raw, str(where))
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    config, params = equivalence.as_trained(raw, config, params)
    top = max(tokenizer.get_vocab().values(), default=0)
    if top >= config.vocab_size:
        raise UserError(
            f"{path / _TOKENIZER}: has an entry {top}, but the embedding {config.vocab_size} rows; take both from the same model"
        )
    return Imported(family=family, config=config, params=params, tokenizer=tokenizer, extra=extra)


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: not readable as JSON ({error}); write it anew with save_pretrained"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; write it anew with save_pretrained")
    return content


def _tokenizer(path: pathlib.Path, family: str) -> tokenizers.Tokenizer:
    file = path / _TOKENIZER
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; write it with AutoTokenizer.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise UserError(
            f"{file}: not a readable tokenizer.json ({error}); write it anew with save_pretrained"
        ) from error
    # How rows are cut and filled is not the tokenizer's business here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = special_ids(tokenizer)
    missing = [
        role for role in _ROLES["t5" if family == "t5" else "encoder"] if special.get(role) is None
    ]
    if missing:
        raise UserError(
            f"{file}: has no token for {missing[0]} under a usual name; rename it to [{missing[0].upper()}]"
        )
    return tokenizer


class _Weights(Mapping):
    """Name → tensor, read from disk when asked for."""

    def __init__(self, files: Mapping[str, Any]):
        self.files = files

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.files[name].get_tensor(name)
        except (
            safetensors.SafetensorError,
            TypeError,
        ) as error:  # TypeError: a number format NumPy has not
            raise UserError(
                f"the tensor {name} is not readable ({error}); save the model in float32"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, name: str) -> int:
        """The length of axis 0 of a tensor, which is not read."""
        return (self.files[name].get_slice(name).get_shape() or [1])[0]


@contextlib.contextmanager
def open_weights(path: pathlib.Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The tensors of the one file, or of the several that the index names, open until the end of the block."""
    names = None
    if (path / _WEIGHTS).is_file():
        parts = [_WEIGHTS]
    elif (path / _INDEX).is_file():
        names = _json(path / _INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(part, str) for part in names.values()):
            raise UserError(
                f"{path / _INDEX}: has no weight_map; write it anew with save_pretrained"
            )
        parts = sorted(set(names.values()))
    else:
        raise UserError(_no_weights(path))
    with contextlib.ExitStack() as stack:
        opened = {part: _open(path / part, stack) for part in parts}
        if names is None:
            names = dict.fromkeys(opened[_WEIGHTS].keys(), _WEIGHTS)
        yield _Weights({name: opened[part] for name, part in names.items()})


def _open(file: pathlib.Path, stack: contextlib.ExitStack) -> Any:
    if not file.is_file():
        raise UserError(
            f"{file}: no such file, but the index names it; copy all parts of the model"
        )
    try:
        return stack.enter_context(safetensors.safe_open(str(file), framework="np"))
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not readable as safetensors ({error}); copy or save it anew"
        ) from error


def _no_weights(path: pathlib.Path) -> str:
    convert = _CONVERT.format(path=str(path))
    for name in _PICKLES:
        if (path / name).is_file():
            return f"{path / name}: pickled weights are not read; convert them with {convert}"
    return f"{path / _WEIGHTS}: no such file; write it with {convert}"


def _with_all_rows(family: str, config: families.Config, tensors: _Weights) -> families.Config:
    """A vocabulary as large as the embedding, which may have rows of padding that config.json does not count."""
    entry = tables.table(family, config).entries[0]
    for name in (entry.names[0], entry.names[0].removeprefix(tables.table(family, config).prefix)):
        if name in tensors:
            return dataclasses.replace(config, vocab_size=tensors.rows(name))
    return config
