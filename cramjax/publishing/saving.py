"""Writes a model as the directory that `transformers` loads, and reads it back.

The directory holds config.json, the weights in safetensors (several files if they are large), the
tokenizer, and for embeddings the files of `sentence_transformers`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from cramjax.data import tokenizers as tokenizer_files
from cramjax.errors import RunFailed, UserError
from cramjax.files import read_json, write_json
from cramjax.hub import directory as hf_directory
from cramjax.hub import equivalence, families, sentence_files, tables
from cramjax.models import classifier
from cramjax.publishing import classes
from cramjax.publishing.stock import StockModel

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
WEIGHTS = "model*.safetensors*"
"""Matches the files of the weights and their index."""

_PATTERN = "model{suffix}.safetensors"
_INDEX = "model.safetensors.index.json"
_T5_ENDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
_MAX_NEW_TOKENS = 64


def save(
    directory: pathlib.Path,
    model: StockModel,
    *,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
) -> dict[str, Any]:
    """Write `model` into `directory`, which exists, and check names and shapes against its class.

    Args:
        directory: the folder to write into.
        model: the network with its parameters and tokenizer.
        dtype: of the weights, a key of `DTYPES`.
        max_shard_size: the largest file of weights, for example "5GB".

    Returns:
        The content of config.json.

    Raises:
        UserError: if no class of `transformers` computes this network, or `dtype` cannot hold its
            weights.
        RunFailed: if config.json or the tensors are not as the class has them.
    """
    family, stock = equivalence.find_family(model.config)
    special = {
        role: number
        for role, number in tokenizer_files.special_ids(model.tokenizer).items()
        if number is not None
    }
    raw = families.to_json(family, stock, special=special, labels=model.labels)
    raw |= {"dtype": dtype}
    raw |= equivalence.note(model.config, stock)
    tensors = tables.to_hf(
        family, stock, equivalence.widen(stock, model.params), pad_id=special["pad"]
    )

    # Check before anything is written.
    classes.check_config(raw)
    classes.check_tensors(raw, {name: tensor.shape for name, tensor in tensors.items()})

    write_json(directory / "config.json", raw)
    _save_tensors(directory, tensors, DTYPES[dtype], max_shard_size)
    # ModernBERT has no token types; its config.json does not count them.
    types = family != "modernbert" and raw.get("type_vocab_size", 1) > 1
    tokenizer_files.save(model.tokenizer, directory, types=types, max_length=model.max_length)
    if model.sentence:
        sentence_files.write(directory, model.sentence, families.network(stock).d_model)
    if family == "t5":
        generation = {key: raw[key] for key in _T5_ENDS} | {"max_new_tokens": _MAX_NEW_TOKENS}
        write_json(directory / "generation_config.json", generation)
    return raw


def read_back(
    directory: pathlib.Path, model: StockModel, *, exact: bool
) -> tuple[families.Config, dict[str, Any]]:
    """Returns the network and the parameters that the files in `directory` hold.

    Raises:
        RunFailed: if these are not the parameters of `model`: bit for bit if `exact`, by shape
            otherwise.
    """
    written = model.params
    if isinstance(model.config, classifier.ClassifierConfig):
        # `hub.directory` reads networks with the head that predicts tokens only.
        family, config = equivalence.find_family(model.config)
        raw = read_json(directory / "config.json", "export again")
        with hf_directory.open_weights(directory) as tensors:
            params, _ = tables.from_hf(family, config, tensors, pad_id=raw["pad_token_id"])
        written = equivalence.widen(config, written)
    else:
        imported = hf_directory.read_model(directory)
        config, params = imported.config, imported.params
        if imported.extra.get("head_missing"):
            params, written = ({"encoder": tree["encoder"]} for tree in (params, written))

    def is_same(read: np.ndarray, expected: np.ndarray) -> bool:
        return read.shape == expected.shape and (not exact or np.array_equal(read, expected))

    if not all(jax.tree.leaves(jax.tree.map(is_same, params, written))):
        raise RunFailed(
            f"{directory}: does not hold the parameters that were written; "
            "check the disk and export again"
        )
    return config, params


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
        shard = {name: _cast(name, tensors[name], dtype) for name in names}
        save_file(shard, directory / file, {"format": "pt"})
        (directory / file).chmod(0o644)  # the library gives nobody else the right to read

    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(directory / _INDEX, index)


def _cast(name: str, tensor: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype)
    if not np.isfinite(cast.astype(np.float32)).all() and np.isfinite(tensor).all():
        raise UserError(
            f"--dtype {np.dtype(dtype)}: {name} holds numbers up to {np.abs(tensor).max():g}; "
            "take bfloat16 or float32"
        )
    return cast
