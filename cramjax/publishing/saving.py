"""A model as the directory that `transformers` loads: config.json, weights in safetensors (in parts if they are large), tokenizer."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tokenizers
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from cramjax.data import tokenizers as tokenizer_files
from cramjax.errors import UserError
from cramjax.files import write_json
from cramjax.hub import equivalence, families, tables
from cramjax.publishing import classes

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_PATTERN = "model{suffix}.safetensors"
_INDEX = "model.safetensors.index.json"


def save(
    directory: pathlib.Path,
    cfg: families.Config,
    params: tables.Params,
    tokenizer: tokenizers.Tokenizer,
    *,
    labels: Sequence[str] | None = None,
    max_length: int,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
) -> dict[str, Any]:
    """Write the model into `directory`, which exists, and check what is written against `classes.json`; returns config.json.

    Args:
        cfg: the network. params: as of its `init_params`.
        labels: of a classifier, the name of each output. max_length: tokens of a text the tokenizer tells users to cut at.
        dtype: of the weights, one of `DTYPES`. max_shard_size: of a file, as "5GB".

    Raises:
        UserError: where no class of `transformers` computes this network, or `dtype` cannot hold its weights.
    """
    family, wide = equivalence.find(cfg)
    special = {
        role: number
        for role, number in tokenizer_files.special_ids(tokenizer).items()
        if number is not None
    }
    raw = families.to_json(family, wide, special=special, labels=labels) | {"dtype": dtype}
    raw |= equivalence.note(cfg, wide)
    tensors = tables.to_hf(
        family, wide, equivalence.widen(cfg, wide, params), pad_id=special["pad"]
    )
    classes.check_config(raw)
    classes.check_tensors(raw, {name: tensor.shape for name, tensor in tensors.items()})
    write_json(directory / "config.json", raw)
    _save_tensors(directory, tensors, DTYPES[dtype], max_shard_size)
    types = family != "modernbert" and raw.get("type_vocab_size", 1) > 1
    tokenizer_files.save(tokenizer, directory, types=types, max_length=max_length)
    if family == "t5":
        ends = {key: raw[key] for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
        write_json(directory / "generation_config.json", ends | {"max_new_tokens": 64})
    return raw


def _save_tensors(
    directory: pathlib.Path, tensors: Mapping[str, np.ndarray], dtype: Any, max_shard_size: str
) -> None:
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.size * np.dtype(dtype).itemsize,
        filename_pattern=_PATTERN,
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        save_file(
            {name: _cast(name, tensors[name], dtype) for name in names},
            directory / file,
            {"format": "pt"},
        )
        (directory / file).chmod(0o644)  # the library lets nobody else read it
    if split.is_sharded:
        write_json(
            directory / _INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        )


def _cast(name: str, tensor: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype)
    if not np.isfinite(cast.astype(np.float32)).all() and np.isfinite(tensor).all():
        raise UserError(
            f"--dtype {np.dtype(dtype)}: {name} holds numbers up to {np.abs(tensor).max():g}; take bfloat16 or float32"
        )
    return cast
