"""Reads manifest.json of a prepared dataset, and refuses what cannot be true in it.

The folder may be damaged, or come from somebody else. So a file is read only if it is a regular
file inside the folder, and nothing that the manifest claims is believed before it is compared.
"""

from __future__ import annotations

import hashlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from cramjax.errors import UserError
from cramjax.files import member, read_json

FORMAT = 1
SPLITS = ("train", "heldout")
SPECIAL_TOKENS = ("pad", "unk", "cls", "sep", "mask")
# The special tokens of a T5's vocabulary.
T5_SPECIAL_TOKENS = ("pad", "unk", "sep")

REPAIR = "delete the folder and prepare the dataset again with python -m tools.prepare_data"

# A tokenizer of a million entries has 60 MB.
_MAX_TOKENIZER_BYTES = 512 << 20
_KEYS = {
    "vocab_size": int,
    "tokenizer_sha256": str,
    "dtype": str,
    "special_tokens": dict,
    "documents": int,
    "train_tokens": int,
    "heldout_tokens": int,
    "source": str,
    "sources": list,
    "filters": dict,
    "dropped": dict,
    "shards": list,
}
# Earlier versions did not write these.
_LATER_KEYS = {
    "extra_ids": int,
    "pairs": bool,
    "files": dict,
    "unknown_token_share": float,
    "unknown_character_share": float,
    "deleted_character_share": float,
}
_SHARD_KEYS = {
    "file": str,
    "split": str,
    "source": int,
    "tokens": int,
    "documents": int,
    "sha256": str,
    "boundaries": str,
}


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """Read and check manifest.json in `directory`.

    Raises:
        UserError: if it is missing, damaged or of another format; says what is wrong.
    """
    path = directory / "manifest.json"
    if not path.exists():
        raise UserError(
            f"{directory} is not a prepared dataset (it has no manifest.json): name another "
            "directory, or prepare one with python -m tools.prepare_data."
        )
    manifest = read_json(member(directory, "manifest.json", REPAIR), REPAIR)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} is of format {_short(manifest.get('format'))}, this version reads format "
            f"{FORMAT}: {REPAIR}."
        )

    later = {key: kind for key, kind in _LATER_KEYS.items() if key in manifest}
    _check_kinds(path, "", manifest, _KEYS | later)
    for number, entry in enumerate(manifest["shards"]):
        _check_kinds(path, f"shards[{number}].", entry, _SHARD_KEYS)
    for problem in _contradictions(manifest):
        raise UserError(f"{path}: {problem}; {REPAIR}.")
    return manifest


def read_tokenizer(directory: pathlib.Path, manifest: dict[str, Any]) -> pathlib.Path:
    """Return the path of tokenizer.json, whose SHA-256 is the manifest's.

    Raises:
        UserError: if it is another tokenizer, or damaged.
    """
    name = "tokenizer/tokenizer.json"
    path = member(directory, name, REPAIR)
    try:
        n_bytes = path.stat().st_size
        if n_bytes > _MAX_TOKENIZER_BYTES:
            raise UserError(f"{path} has {n_bytes} bytes, which no tokenizer has: {REPAIR}.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    if hashlib.sha256(content).hexdigest() != manifest["tokenizer_sha256"]:
        raise UserError(
            f"{path} is not the tokenizer of this dataset (its SHA-256 is not the "
            f"manifest's): {REPAIR}."
        )
    return path


def _check_kinds(path: pathlib.Path, prefix: str, entries: Any, kinds: dict[str, type]) -> None:
    """Check that `entries` is an object with a value of the right type for every key of `kinds`."""
    if not isinstance(entries, dict):
        entries = {}
    wrong = [prefix + key for key, kind in kinds.items() if not _is_of(entries.get(key), kind)]
    if wrong:
        raise UserError(f"{path} lacks a valid {', '.join(wrong)}: {REPAIR}.")


def _is_of(value: Any, kind: type) -> bool:
    """Returns whether `value` has the type; True is no number, and no count is negative."""
    if kind is int:
        return type(value) is int and 0 <= value < 1 << 63
    return isinstance(value, kind)


def _contradictions(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what cannot be true in a manifest that has all its keys."""
    vocab_size = manifest["vocab_size"]
    if manifest["dtype"] not in ("uint16", "uint32"):
        yield f"dtype is {_short(manifest['dtype'])} instead of 'uint16' or 'uint32'"
    elif vocab_size > 1 << (16 if manifest["dtype"] == "uint16" else 32):
        yield f"vocab_size is {vocab_size}, more than {manifest['dtype']} can hold"

    extra_ids = manifest.get("extra_ids", 0)
    if not 0 <= extra_ids < vocab_size:
        yield f"extra_ids is {extra_ids!r}, not a number below {vocab_size}"
    of_t5 = extra_ids or manifest.get("pairs")
    for name in T5_SPECIAL_TOKENS if of_t5 else SPECIAL_TOKENS:
        token = manifest["special_tokens"].get(name)
        if not _is_of(token, int) or token >= vocab_size:
            yield f"special_tokens.{name} is {_short(token)}, not an id below {vocab_size}"

    for number, source in enumerate(manifest["sources"]):
        weight = source.get("weight") if isinstance(source, dict) else None
        if not _is_weight(weight):
            yield f"sources[{number}].weight is {_short(weight)}, not a number of at least 0"
    for reason, count in manifest["dropped"].items():
        if not _is_of(count, int):
            yield f"dropped.{_short(reason)} is {_short(count)}, not a count"
    for name, digest in manifest.get("files", {}).items():
        if not isinstance(digest, str):
            yield f"files.{_short(name)} is {_short(digest)}, not a SHA-256"
    yield from _shard_contradictions(manifest)


def _is_weight(value: Any) -> bool:
    """Returns whether `value` is a number of at least 0 that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= sys.float_info.max


def _shard_contradictions(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what cannot be true of the entries of the shards, which have all their keys."""
    n_sources = len(manifest["sources"])
    totals = dict.fromkeys(SPLITS, 0)
    names: set[str] = set()
    for number, entry in enumerate(manifest["shards"]):
        split, source = entry["split"], entry["source"]
        if split not in SPLITS or source >= n_sources:
            yield f"shards[{number}] has split {_short(split)} and source {source} of {n_sources}"
            return
        totals[split] += entry["tokens"]
        for key in ("file", "boundaries"):
            name = entry[key]
            if pathlib.PurePath(name).name != name or "\0" in name:
                yield f"shards[{number}].{key} is {_short(name)}, not the name of a file"
            if name in names:
                yield f"shards[{number}].{key} is {_short(name)}, which stands there twice"
            names.add(name)

    for split, n_tokens in totals.items():
        if manifest[f"{split}_tokens"] != n_tokens:
            yield f"{split}_tokens is {manifest[f'{split}_tokens']}, but its shards have {n_tokens}"


def _short(value: Any) -> str:
    """Returns `value` as it is quoted in a sentence."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "…"
