"""What `transformers` expects of config.json and the tensors of its classes: `classes.json`, read off the classes themselves.

It knows nothing of our networks, so that an export is held against a second source; the tests hold it against the classes. There,
"{num_layers}" in a name counts 0, 1, … below that key of config.json, "{1:num_layers}" from 1; a shape is a product of keys on each axis;
what stands before a colon is the condition under which the tensor exists.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from cramjax.errors import RunFailed

_FILE = pathlib.Path(__file__).with_name("classes.json")
_COUNTED = re.compile(r"\{(?:(\d+):)?(\w+)\}")
_KINDS = {
    "size": lambda value, _: type(value) is int and value >= 1,
    "id": lambda value, raw: (
        value is None or (type(value) is int and 0 <= value < raw["vocab_size"])
    ),
    "number": lambda value, _: type(value) in (int, float) and value >= 0,
    "share": lambda value, _: type(value) in (int, float) and 0 <= value < 1,
    "flag": lambda value, _: type(value) is bool,
    "text": lambda value, _: type(value) is str,
    "names": lambda value, _: type(value) is list and all(type(name) is str for name in value),
    "object": lambda value, _: isinstance(value, Mapping),
}


@functools.cache
def known() -> Mapping[str, Any]:
    """Class → {"config": key → kind or the values possible, "tensors": name → shape}."""
    return json.loads(_FILE.read_text(encoding="utf-8"))


def check_config(raw: Mapping[str, Any]) -> None:
    """Raises RunFailed where `raw` is no config.json of its class: a key is missing, or its value of another kind."""
    (name,) = raw["architectures"]
    for key, kind in known()[name]["config"].items():
        if key not in raw:
            raise RunFailed(
                f"config.json: {name} needs {key}, which is missing; this is a mistake of cramjax, please report it"
            )
        fits = raw[key] in kind if isinstance(kind, list) else _KINDS[kind](raw[key], raw)
        if not fits:
            raise RunFailed(
                f"config.json: {key}={raw[key]!r} is no {kind} of {name}; please report this mistake of cramjax"
            )


def check_tensors(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises RunFailed where `shapes` (name → shape) are not those of the class and sizes in config.json `raw`."""
    wanted = expected(raw)
    (name,) = raw["architectures"]
    for tensor in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(tensor) != shapes.get(tensor):
            described = [tensors.get(tensor, "no such tensor") for tensors in (wanted, shapes)]
            raise RunFailed(
                f"{tensor}: {name} has {described[0]}, this model {described[1]}; this is a mistake of cramjax, please report it"
            )


def expected(raw: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name → shape of all tensors of the model that config.json `raw` describes; tied ones once."""
    (name,) = raw["architectures"]
    values = dict(raw) | {
        "num_labels": len(raw.get("id2label", ())),
        "gated": str(raw.get("feed_forward_proj")).startswith("gated"),
        "untied": not raw.get("tie_word_embeddings", True),
    }
    values["plain"] = not values["gated"]
    found = {}
    for pattern, described in known()[name]["tensors"].items():
        condition, _, axes = described.rpartition(": ")
        if not condition or values[condition]:
            shape = tuple(_product(axis, values) for axis in axes.split())
            found |= dict.fromkeys(_names(pattern, values), shape)
    return found


def _product(axis: str, values: Mapping[str, Any]) -> int:
    return math.prod(
        int(factor) if factor.isdigit() else values[factor] for factor in axis.split("*")
    )


def _names(pattern: str, values: Mapping[str, Any]) -> list[str]:
    counted = _COUNTED.search(pattern)
    if not counted:
        return [pattern]
    first, key = counted.groups()
    return [_COUNTED.sub(str(i), pattern) for i in range(int(first or 0), values[key])]
