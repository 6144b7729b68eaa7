"""Writes and reads the files by which `sentence_transformers` makes embeddings of an encoder.

They stand beside the encoder: modules.json says what is computed one after the other,
1_Pooling/config.json how a text's tokens become one vector. The form is the oldest one, which all
versions read.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from cramjax.errors import UserError
from cramjax.files import read_json, write_json

NAMES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
"""Files of their own, beside those of the encoder and the folder of the pooling."""

FOLDER = "1_Pooling"

_SAVE = "save it again with SentenceTransformer.save_pretrained"
_PREFIX = "sentence_transformers.models."
# Pooling of ours → their key of older versions, and their name of newer ones.
_POOLINGS = {
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "first": ("pooling_mode_cls_token", "cls"),
}
_OTHER_KEYS = (
    "pooling_mode_max_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceModel:
    """The way from the hidden states of a text to its embedding.

    Attributes:
        pooling: "first" or "mean", as in `models.classifier`.
        max_length: tokens at which a text is cut; None if it does not say.
        normalize: embeddings have length 1.
    """

    pooling: str
    max_length: int | None
    normalize: bool = False


def is_sentence_model(folder: pathlib.Path) -> bool:
    """Returns whether `sentence_transformers` wrote a folder."""
    return (folder / NAMES[0]).is_file()


def write(folder: pathlib.Path, model: SentenceModel, width: int) -> None:
    """Write the files into `folder`, which holds the encoder.

    Args:
        folder: the folder.
        model: without `normalize`; embeddings are written as the encoder gives them.
        width: of an embedding.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{_PREFIX}Transformer"},
        {"idx": 1, "name": "1", "path": FOLDER, "type": f"{_PREFIX}Pooling"},
    ]
    text = json.dumps(modules, indent=2)
    (folder / NAMES[0]).write_text(f"{text}\n", encoding="utf-8")
    write_json(folder / NAMES[1], {"max_seq_length": model.max_length, "do_lower_case": False})
    about = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / NAMES[2], about)

    (folder / FOLDER).mkdir(exist_ok=True)
    flags = {key: pooling == model.pooling for pooling, (key, _) in _POOLINGS.items()}
    config = {"word_embedding_dimension": width} | flags | dict.fromkeys(_OTHER_KEYS, False)
    write_json(folder / FOLDER / "config.json", config | {"include_prompt": True})


def read(folder: pathlib.Path, find: Callable[[str, str], pathlib.Path]) -> SentenceModel:
    """Returns what the files of a folder say.

    Args:
        folder: that `sentence_transformers` wrote.
        find: (name, what to do if there is no such file) → the path of a file of that folder.

    Raises:
        UserError: if they are damaged, or say something that is not computed here.
    """
    where = find(NAMES[0], _SAVE)
    names, paths = _modules(where)
    if names not in (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")):
        raise UserError(
            f"{where}: computes {', '.join(names):.200}; only Transformer, Pooling and Normalize "
            "are supported; load it with sentence_transformers"
        )

    config = read_json(find(f"{paths[1]}/config.json", _SAVE), _SAVE)
    max_length = None
    if (folder / NAMES[1]).is_file():
        max_length = read_json(find(NAMES[1], _SAVE), _SAVE).get("max_seq_length")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise UserError(f"{folder / NAMES[1]}: max_seq_length={max_length!r:.80} is no length")
    return SentenceModel(
        pooling=_pooling(config, f"{folder / paths[1]}/config.json"),
        max_length=max_length,
        normalize=names[-1] == "Normalize",
    )


def _modules(where: pathlib.Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the classes of modules.json without their packages, and their folders."""
    try:
        modules = json.loads(where.read_text(encoding="utf-8"))
        names = tuple(module["type"].rpartition(".")[2] for module in modules)
        paths = tuple(str(module["path"]) for module in modules)
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where}: lists no modules ({error!r:.80}); {_SAVE}") from error
    return names, paths


def _pooling(config: dict[str, Any], where: str) -> str:
    """Returns the one pooling of a config.json, by our name."""
    named = config.get("pooling_mode")
    if named is None:
        known = [*_OTHER_KEYS, *(key for key, _ in _POOLINGS.values())]
        flags = [key for key in known if config.get(key)]
        named = flags[0] if len(flags) == 1 else flags
    for pooling, names in _POOLINGS.items():
        if named in names:
            return pooling
    raise UserError(
        f"{where}: pools by {named!r:.80}; only the mean of all tokens and the first token are "
        "supported"
    )
