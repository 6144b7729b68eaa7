"""A trained or finetuned model as a folder for `transformers`: weights, tokenizer and model card, checked before it stands there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tokenizers

from cramjax.checkpoints import packed
from cramjax.data import tokenizers as tokenizer_files
from cramjax.errors import RunFailed, UserError
from cramjax.glue.tasks import Task, find_tasks
from cramjax.hub import directory, equivalence, families, tables
from cramjax.inference import LoadedModel, load
from cramjax.models import classifier, lowrank
from cramjax.publishing import card, parity, saving

_PARTS = "model*.safetensors*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is written: dtype of the weights, size of a file at most, whether torch shall verify it, and what the card says.

    `results`: results.json of `tools.finetune`, whose table the card shows. `name`: of the model there, None: that of the folder.
    `step`: of an older checkpoint than the newest.
    """

    dtype: str = "float32"
    max_shard_size: str = "5GB"
    verify: bool = False
    license: str = "unknown"
    language: str = "en"
    results: pathlib.Path | None = None
    name: str | None = None
    step: int | None = None


def export(
    checkpoint: str | pathlib.Path,
    out: str | pathlib.Path,
    options: Options | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write the model of a run's or a finetuned model's folder `checkpoint` to `out`; returns {"architecture", "step"}.

    The files of an earlier export in `out` are replaced once the new ones are complete and checked; other files there stay.

    Raises:
        UserError: where there is no such model, no class of `transformers` computes it, or `out` holds something else.
        RunFailed: where the export does not hold what it should.
    """
    options, source, out = options or Options(), pathlib.Path(checkpoint), pathlib.Path(out)
    _check_out(out)
    if not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", options.max_shard_size):
        raise UserError(
            f"--max_shard_size {options.max_shard_size}: must be a size as 5GB or 500MB"
        )
    if not (source / "checkpoints").is_dir() and not packed.is_packed(source):
        what = (
            "is a model of transformers already"
            if directory.is_hf_directory(source)
            else "no checkpoint of a run there"
        )
        raise UserError(f"{source}: {what}; name the folder of a run or of a finetuned model")
    model = _whole(load(source, options.step, dequantize=True))
    facts = card.read_facts(source, options.results, model.step)
    cfg, params, labels = _with_head(model)
    tokenizer = _as_read(model)
    with _staged(out) as staged:
        raw = saving.save(
            staged,
            cfg,
            params,
            tokenizer,
            labels=labels,
            max_length=_max_length(source, model),
            dtype=options.dtype,
            max_shard_size=options.max_shard_size,
        )
        tell(f"{raw['architectures'][0]}: config.json and all tensors are as the class has them")
        read_cfg, read_params = _read_back(staged, cfg, params, exact=options.dtype == "float32")
        tell(
            f"read back{', bit for bit' if options.dtype == 'float32' else f' from {options.dtype}'}"
        )
        if options.verify:
            difference = parity.compare(staged, read_cfg, read_params, tokenizer)
            tell(f"transformers: the same token ids, logits within {difference:.1e}")
        card.write(
            staged,
            facts,
            raw,
            name=options.name or out.name,
            license=options.license,
            language=options.language,
        )
    return {"architecture": raw["architectures"][0], "step": model.step}


def _check_out(out: pathlib.Path) -> None:
    """Raises UserError where `out` holds anything but an export or a checkout of one."""
    if out.is_dir() and any(out.iterdir()) and not directory.is_hf_directory(out):
        raise UserError(
            f"--out {out}: holds other files; name a new folder or that of an earlier export"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")


@contextlib.contextmanager
def _staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `out`; its files are moved to `out` at the end of the block, unless that ends in an error."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staged = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error
    try:
        yield staged
        out.mkdir(exist_ok=True)
        kept = {path.name for path in staged.iterdir()}
        for path in out.glob(_PARTS):
            if path.name not in kept:
                path.unlink()
        for path in staged.iterdir():
            path.replace(out / path.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _whole(model: LoadedModel) -> LoadedModel:
    """`model` with the matrices its factors stand for, as no class has factors."""
    if not model.config.ffn_rank:
        return model
    return dataclasses.replace(
        model,
        config=dataclasses.replace(model.config, ffn_rank=0),
        params=lowrank.merged(model.params),
    )


def _with_head(
    model: LoadedModel,
) -> tuple[families.Config, dict[str, Any], tuple[str, ...] | None]:
    """The network with the head it was trained for, its parameters, and the names of a classifier's outputs."""
    params = jax.tree.map(np.asarray, model.params)
    if not model.finetuned or model.is_t5:
        return model.config, params, None
    task, head = _task(model), params["classifier"]
    settings = model.finetuned["settings"]
    cfg = classifier.ClassifierConfig(
        encoder=dataclasses.replace(
            model.config,
            dropout=settings["dropout"],
            attention_dropout=settings["attention_dropout"],
        ),
        width=head["dense"]["kernel"].shape[1],
        n_outputs=task.n_classes,
        dropout=settings["dropout"],
        pooling=settings["pooling"],
        transform="prediction" if "norm" in head else "pooler",
    )
    # One head fits all tasks; outputs that this one does not have were never trained.
    out = {name: leaf[..., : task.n_classes] for name, leaf in head["out"].items()}
    labels = task.labels if task.kind in ("classification", "answers") else ("no", "yes")
    return (
        cfg,
        params | {"classifier": head | {"out": out}},
        ("score",) if task.n_classes == 1 else labels,
    )


def _task(model: LoadedModel) -> Task:
    (task,) = find_tasks([model.finetuned["task"]], prefer=model.finetuned["suite"])
    return task


def _as_read(model: LoadedModel) -> tokenizers.Tokenizer:
    """The tokenizer, giving a single text the special tokens it had in finetuning."""
    if not model.finetuned or model.is_t5 or not model.finetuned["settings"]["single_as_pair"]:
        return model.tokenizer
    return (
        tokenizer_files.with_empty_second(model.tokenizer)
        if len(_task(model).fields) == 1
        else model.tokenizer
    )


def _max_length(source: pathlib.Path, model: LoadedModel) -> int:
    """Tokens of a text that the model has seen, or can."""
    if getattr(model.config, "positions", None) in ("learned", "scaled_sinusoidal"):
        return model.config.max_positions
    if model.finetuned:
        return model.finetuned["settings"]["max_length"]
    if packed.is_packed(source):
        return packed.read_index(source)["max_length"]
    return json.loads((source / "config.json").read_text())["data"]["seq_len"]


def _read_back(
    staged: pathlib.Path, cfg: families.Config, params: dict[str, Any], *, exact: bool
) -> tuple[families.Config, dict[str, Any]]:
    """The network and the parameters that the files hold. Raises RunFailed where they are not `params`, bit for bit if `exact`."""
    if isinstance(cfg, classifier.ClassifierConfig):
        family, read_cfg = equivalence.find(cfg)
        raw = json.loads((staged / "config.json").read_text())
        with directory.open_weights(staged) as tensors:
            found, _ = tables.from_hf(family, read_cfg, tensors, pad_id=raw["pad_token_id"])
        params = equivalence.widen(cfg, read_cfg, params)
    else:
        imported = directory.read(staged)
        read_cfg, found = imported.config, imported.params
    same = jax.tree.map(
        lambda a, b: a.shape == b.shape and (not exact or np.array_equal(a, b)), found, params
    )
    if not all(jax.tree.leaves(same)):
        raise RunFailed(
            f"{staged}: does not hold the parameters that were written; check the disk and export again"
        )
    return read_cfg, found
