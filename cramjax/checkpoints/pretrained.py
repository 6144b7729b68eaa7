"""A model that is there already: a checkpoint of a run, or a model of `transformers`, for use and for training on."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import tokenizers
from flax.traverse_util import unflatten_dict

from cramjax.checkpoints import packed
from cramjax.checkpoints.checkpoint import Checkpoints
from cramjax.data import tokenizers as tokenizer_files
from cramjax.errors import UserError
from cramjax.hub import directory, download
from cramjax.objectives.families import network_of
from cramjax.parallel import mesh as meshes

# What may differ between a network and the parameters it starts from.
_FREE = {
    "vocab_size",
    "dropout",
    "attention_dropout",
    "init_std",
    "document_attention",
    "attention",
    "unroll",
    "remat",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """A network with its parameters (float32), as it lies at `path`.

    Attributes:
        tokenizer_file: its tokenizer.json. extra: as of `hub.tables.from_hf`; {} for a run. step: of a run's checkpoint.
        finetuned: of a finetuned model, what `tools.finetune --save` notes. is_run: it was trained here.
    """

    path: pathlib.Path
    config: Any
    params: dict[str, Any]
    tokenizer: tokenizers.Tokenizer
    tokenizer_file: pathlib.Path
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int | None = None
    finetuned: dict[str, Any] | None = None
    is_run: bool = True


def find(checkpoint: str | os.PathLike) -> pathlib.Path:
    """The folder of a run, of a packed model or of a model of `transformers`; one on the Hub is downloaded.

    Raises:
        UserError: where `checkpoint` is neither.
    """
    path = pathlib.Path(checkpoint)
    if (path / "checkpoints").is_dir() or packed.is_packed(path) or directory.is_hf_directory(path):
        return path
    if download.is_hub_id(str(checkpoint)):
        return download.download(str(checkpoint))
    raise UserError(
        f"{path}: no checkpoint of a run there, nor a Hugging Face model (config.json, model.safetensors, tokenizer.json); "
        f"train one with python -m cramjax.main --workdir {path}, or name a directory that save_pretrained wrote"
    )


def tokenizer_file(path: pathlib.Path) -> pathlib.Path:
    """The tokenizer.json of the run or the model in the folder `path`."""
    is_ours = (path / "checkpoints").is_dir() or packed.is_packed(path)
    return path / "tokenizer" / "tokenizer.json" if is_ours else path / "tokenizer.json"


def read(checkpoint: str | os.PathLike, step: int | None = None, *, whole: bool = False) -> Origin:
    """The model at `checkpoint` (as of `find`): of a run its newest checkpoint, or that of a `step`.

    With `whole`, matrices that were stored as whole numbers of 8 bits stay such (`models.int8`): nothing can train them then.

    Raises:
        UserError: where there is none, or one that our networks cannot be.
    """
    path = find(checkpoint)
    file = tokenizer_file(path)
    if packed.is_packed(path):
        return _read_packed(path, file, whole)
    if not (path / "checkpoints").is_dir():
        found = directory.read(path)
        return Origin(
            path=path,
            config=found.config,
            params=found.params,
            tokenizer=found.tokenizer,
            tokenizer_file=file,
            extra=found.extra,
            is_run=False,
        )
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    params, sidecar = checkpoints.restore_params(step)
    step = checkpoints.latest() if step is None else step
    checkpoints.close()
    return Origin(
        path=path,
        config=network_of(sidecar["model"]),
        params=params,
        tokenizer=tokenizers.Tokenizer.from_file(str(file)),
        tokenizer_file=file,
        step=step,
        finetuned=sidecar.get("finetuned"),
    )


def _read_packed(path: pathlib.Path, file: pathlib.Path, whole: bool) -> Origin:
    content, tensors = packed.read(path)
    return Origin(
        path=path,
        config=network_of(content["network"]),
        params=unflatten_dict(packed.values(tensors, whole=whole), sep="/"),
        tokenizer=tokenizers.Tokenizer.from_file(str(file)),
        tokenizer_file=file,
        finetuned=content["finetuned"],
        is_run=False,
    )


def with_tokenizer(config: Any) -> Any:
    """`config` with the tokenizer of the model it starts from, if any: with another one that model's embeddings mean nothing.

    Raises:
        UserError: where there is no such model.
    """
    if not config.init_from:
        return config
    file = tokenizer_file(find(config.init_from))
    tokenizer, _ = tokenizer_files.load(file)
    family = "t5" if tokenizer_files.count_extra_ids(tokenizer) else "encoder"
    if family != config.model.family:
        raise UserError(
            f"init_from={config.init_from}: is a model of family {family}, but model.family={config.model.family}; take another recipe"
        )
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.data.update(
        tokenizer=str(file),
        extra_ids=tokenizer_files.count_extra_ids(tokenizer),
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
    )
    return ml_collections.FrozenConfigDict(changed)


def start_from(
    origin: Origin, description: dict[str, Any], fresh: dict[str, Any]
) -> dict[str, Any]:
    """The parameters `fresh` of a new run with the values of `origin`, sharded as they are.

    Rows of the vocabulary that `origin` lacks stay fresh; surplus ones, which no token has, are left out.

    Args:
        description: of the new run's network, as a checkpoint has it.

    Raises:
        UserError: where the networks differ; it names the keys and their values in `origin`.
    """
    if origin.finetuned:
        raise UserError(
            f"init_from={origin.path}: is finetuned for {origin.finetuned['task']}; name the run it was finetuned from"
        )
    theirs = dataclasses.asdict(origin.config)
    changes = {
        key: value
        for key, value in theirs.items()
        if key not in _FREE and description.get(key) != value
    }
    if changes:
        flags = " ".join(f"--config.model.{key}={value}" for key, value in changes.items())
        raise UserError(
            f"init_from={origin.path}: is another network than the configuration's; add {flags}"
        )
    return jax.tree.map(_take, fresh, origin.params)


def _take(fresh: jax.Array, given: Any) -> jax.Array:
    given = np.asarray(given)
    if given.shape != fresh.shape:
        whole = np.asarray(fresh).copy()
        shared = tuple(
            slice(min(ours, others)) for ours, others in zip(fresh.shape, given.shape, strict=True)
        )
        whole[shared] = given[shared]
        given = whole
    return meshes.place(given, fresh.sharding)
