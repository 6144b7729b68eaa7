"""Reads a pretrained model wherever it lies, for use or for more training.

It may be a checkpoint of a run, a packed model, a directory of `transformers`, or a model on the
Hugging Face Hub.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.checkpoints import described, packed
from cramjax.checkpoints.checkpoint import Checkpoints
from cramjax.config.resolve import changed
from cramjax.config.views import Config
from cramjax.data import tokenizers as tokenizer_files
from cramjax.data.hub_tokenizer import with_local_tokenizer
from cramjax.errors import UserError
from cramjax.hub import directory, download
from cramjax.models import network
from cramjax.models.detector import DetectorConfig, ElectraConfig
from cramjax.parallel import mesh as meshes

_LOAD_ANOTHER = "load another step, or update cramjax"
_COMPRESS = "compress the model again"
# Fields that may differ between a network and the parameters it starts from.
_FREE = network.FREE_FIELDS | {"vocab_size", "document_attention"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A network with its parameters, as it lies at `path`.

    Attributes:
        path: the folder of the model.
        config: the network.
        params: float32; matrices may be `models.int8.Int8` if `read` was asked for it.
        tokenizer: of the model.
        tokenizer_file: the path of its tokenizer.json.
        extra: parts that our networks lack, see `hub.tables.from_hf`; {} for a run.
        step: of a run's checkpoint; None for other models.
        finetuned: the notes of `tools.finetune --save` about a finetuned model; None for others.
        is_run: the path is the workdir of a run.
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


def locate(checkpoint: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of a model; a model on the Hub is downloaded.

    Args:
        checkpoint: the folder of a run, of a packed model or of a model of `transformers`, or the
            id of a model on the Hub.

    Raises:
        UserError: if `checkpoint` is none of these.
    """
    path = pathlib.Path(checkpoint)
    if _is_run(path) or packed.is_packed(path) or directory.is_hf_directory(path):
        return path
    if download.is_hub_id(str(checkpoint)):
        return download.download(str(checkpoint))
    raise UserError(
        f"{path}: no checkpoint of a run there, nor a Hugging Face model (config.json, "
        "model.safetensors, tokenizer.json); "
        f"train one with python -m cramjax.main --workdir {path}, "
        "or name a directory that save_pretrained wrote"
    )


def _is_run(path: pathlib.Path) -> bool:
    return (path / "checkpoints").is_dir()


def tokenizer_file(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of tokenizer.json for the model in the folder `path`."""
    if _is_run(path) or packed.is_packed(path):
        return path / "tokenizer" / "tokenizer.json"
    return path / "tokenizer.json"


def read(
    checkpoint: str | os.PathLike, step: int | None = None, *, whole: bool = False
) -> Pretrained:
    """Returns the model at `checkpoint`, see `locate`.

    Args:
        checkpoint: the folder or the id of the model.
        step: of a run's checkpoint; None for the newest.
        whole: keep matrices that are stored in 8 bits as whole numbers (`models.int8`). Such a
            model cannot be trained.

    Raises:
        UserError: if there is no model, or our networks do not cover it.
    """
    path = locate(checkpoint)
    if packed.is_packed(path):
        return _read_packed(path, whole)
    if _is_run(path):
        return _read_run(path, step)

    imported = directory.read_model(path)
    return Pretrained(
        path=path,
        config=imported.config,
        params=imported.params,
        tokenizer=imported.tokenizer,
        tokenizer_file=tokenizer_file(path),
        extra=imported.extra,
        is_run=False,
    )


def _read_run(path: pathlib.Path, step: int | None) -> Pretrained:
    # The run may still be going on.
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    restored = checkpoints.restore_params(step)
    checkpoints.close()

    where = str(path / "checkpoints" / str(restored.step))
    sidecar = restored.sidecar
    config = described.network(sidecar.get("model"), where, _LOAD_ANOTHER)
    finetuned = _finetuned(sidecar.get("finetuned"), where, _LOAD_ANOTHER)
    arrays: dict[str, Any] = dict(flatten_dict(restored.state, sep="/"))
    shapes = {key: leaf.shape for key, leaf in arrays.items()}
    described.check_shapes(config, shapes, finetuned, where, _LOAD_ANOTHER)

    file = tokenizer_file(path)
    cure = "copy the one of the run's prepared data there"
    tokenizer = _tokenizer(file, config, cure)
    # A finetuned model does not note the hash.
    trained_with = sidecar.get("tokenizer_sha256")
    if trained_with and trained_with != hashlib.sha256(file.read_bytes()).hexdigest():
        raise UserError(f"{file}: is not the tokenizer that the run was trained with; {cure}")

    config, params = _kept(config, restored.state, finetuned)
    return Pretrained(
        path=path,
        config=config,
        params=params,
        tokenizer=tokenizer,
        tokenizer_file=file,
        step=restored.step,
        finetuned=finetuned,
    )


def _read_packed(path: pathlib.Path, whole: bool) -> Pretrained:
    content, tensors = packed.read(path)
    where = str(path / packed.INDEX)
    config = described.network(content["network"], where, _COMPRESS)
    finetuned = _finetuned(content["finetuned"], where, _COMPRESS)
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    described.check_shapes(config, shapes, finetuned, where, _COMPRESS)

    file = tokenizer_file(path)
    params = unflatten_dict(packed.values(tensors, whole=whole), sep="/")
    config, params = _kept(config, params, finetuned)
    return Pretrained(
        path=path,
        config=config,
        params=params,
        tokenizer=_tokenizer(file, config, _COMPRESS),
        tokenizer_file=file,
        finetuned=finetuned,
        is_run=False,
    )


def _kept(
    config: Any, params: dict[str, Any], finetuned: Mapping[str, Any] | None
) -> tuple[Any, dict[str, Any]]:
    """Returns the part of a network that is used after training, and its parameters.

    A generator has done its work when its discriminator is trained; a finetuned discriminator is an
    encoder with another head.
    """
    if isinstance(config, ElectraConfig):
        config = config.discriminator()
        params = {name: part for name, part in params.items() if name != "generator"}
    if finetuned and isinstance(config, DetectorConfig):
        config = config.without_head()
    return config, params


def _tokenizer(file: pathlib.Path, config: Any, cure: str) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a model of ours; raises UserError if it cannot be the model's."""
    tokenizer = directory.read_tokenizer(file, config.family, cure)
    directory.check_rows(file, tokenizer, config.vocab_size)
    return tokenizer


def _finetuned(notes: Any, where: str, cure: str) -> dict[str, Any] | None:
    """Returns the notes about a finetuned model, with the keys that are always there; or None."""
    if notes is None:
        return None
    kinds = {"task": str, "suite": str, "settings": dict, "seed": int}
    for key, kind in kinds.items():
        if not isinstance(notes, dict) or not isinstance(notes.get(key), kind):
            raise UserError(f"{where}: finetuned has no {key} of type {kind.__name__}; {cure}")
    return notes


def with_tokenizer(config: Config) -> Config:
    """Returns `config` with the tokenizer of the model it starts from, if it starts from one.

    The embeddings of that model mean nothing under another tokenizer.

    Raises:
        UserError: if there is no such model, it is of another family, or `data.tokenizer` names
            another tokenizer.
    """
    if not config.init_from:
        return config
    file = tokenizer_file(locate(config.init_from))
    tokenizer, _ = tokenizer_files.load(file)
    extra_ids = tokenizer_files.count_extra_ids(tokenizer)
    family = "t5" if tokenizer_files.is_of_t5(tokenizer) else "encoder"
    if family != config.model.family:
        raise UserError(
            f"init_from={config.init_from}: is a model of family {family}, "
            f"but model.family={config.model.family}; take another recipe"
        )

    _refuse_another(config, tokenizer)
    # Ids may have gaps, so the number of entries is not enough.
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    values = {
        "data.tokenizer": str(file),
        "data.extra_ids": extra_ids,
        "data.vocab_size": vocab_size,
    }
    return changed(config, values)


def _refuse_another(config: Config, tokenizer: tokenizers.Tokenizer) -> None:
    """Raise a UserError if `data.tokenizer` names a file with another vocabulary.

    Data that are ids already would be read as other words.
    """
    named = config.data.tokenizer
    if named in tokenizer_files.KINDS:
        return
    file = with_local_tokenizer(config.data).tokenizer
    if tokenizer_files.load(file)[0].get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"data.tokenizer={named}: has other entries than the tokenizer of "
            f"init_from={config.init_from}, which its parameters are for; leave data.tokenizer out "
            "for text, and for token ids take those of that tokenizer"
        )


def start_from(
    pretrained: Pretrained, description: dict[str, Any], fresh: dict[str, Any]
) -> dict[str, Any]:
    """Returns the parameters of a new run with the values of a pretrained model.

    Rows of the vocabulary that the model lacks stay fresh. Rows beyond the new vocabulary are left
    out: they have no token.

    Args:
        pretrained: the model to start from.
        description: of the new run's network, as a checkpoint has it.
        fresh: the parameters of the new run. The result is sharded like these.

    Raises:
        UserError: if the networks differ. It names the keys and their values in the model.
    """
    if pretrained.finetuned:
        raise UserError(
            f"init_from={pretrained.path}: is finetuned for {pretrained.finetuned['task']}; "
            "name the run it was finetuned from"
        )

    if isinstance(pretrained.config, DetectorConfig):
        raise UserError(
            f"init_from={pretrained.path}: finds replaced tokens and has no head that predicts "
            "words; name a run of another objective, or finetune this one"
        )

    # The flags that would make the new network the same.
    flags = []
    for key, value in dataclasses.asdict(pretrained.config).items():
        if key not in _FREE and description.get(key) != value:
            flags.append(f"--config.model.{key}={value}")
    if flags:
        raise UserError(
            f"init_from={pretrained.path}: is another network than the configuration's; "
            f"add {' '.join(flags)}"
        )

    return jax.tree.map(_start_leaf, fresh, pretrained.params)


def _start_leaf(fresh: jax.Array, given: Any) -> jax.Array:
    """Returns `given` in the shape and the sharding of `fresh`, which fills what is missing."""
    given = np.asarray(given)
    if given.shape != fresh.shape:
        sizes = [min(pair) for pair in zip(fresh.shape, given.shape, strict=True)]
        shared = tuple(slice(size) for size in sizes)
        filled = np.asarray(fresh).copy()
        filled[shared] = given[shared]
        given = filled
    return meshes.place(given, fresh.sharding)
