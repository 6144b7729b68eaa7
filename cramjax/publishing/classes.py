"""Checks config.json and the tensors against the classes of `transformers`.

`classes.json` was read off the classes themselves and knows nothing of our networks: it is a second
source to hold an export against. The tests compare it with the classes.

For each class it lists the keys of config.json and the tensors, name → shape:

- "{num_layers}" in a name counts 0, 1, … below that key of config.json, "{1:num_layers}" counts
  from 1.
- A shape has a product of keys for each axis.
- Before ": " stands the condition under which the tensor exists.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from cramjax.errors import RunFailed

_FILE = pathlib.Path(__file__).with_name("classes.json")
_COUNTED = re.compile(r"\{(?:(\d+):)?(\w+)\}")

# Kind of a value in config.json → whether a value (with the whole content) is of this kind.
_KINDS: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
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
def known_classes() -> Mapping[str, Any]:
    """Returns class → {"config": key → kind or list of values, "tensors": name → shape}."""
    return json.loads(_FILE.read_text(encoding="utf-8"))


def check_config(raw: Mapping[str, Any]) -> None:
    """Raises RunFailed if `raw` lacks a key of its class, or has a value of another kind there."""
    (name,) = raw["architectures"]
    for key, kind in known_classes()[name]["config"].items():
        if key not in raw:
            raise RunFailed(
                f"config.json: {name} needs {key}, which is missing; "
                "this is a mistake of cramjax, please report it"
            )
        fits = raw[key] in kind if isinstance(kind, list) else _KINDS[kind](raw[key], raw)
        if not fits:
            raise RunFailed(
                f"config.json: {key}={raw[key]!r} is no {kind} of {name}; "
                "this is a mistake of cramjax, please report it"
            )


def check_tensors(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises RunFailed if `shapes` are not those of the class and the sizes in config.json.

    Args:
        raw: the content of config.json.
        shapes: name → shape of the tensors to be written.
    """
    expected = expected_tensors(raw)
    (name,) = raw["architectures"]
    for tensor in sorted(expected.keys() | shapes.keys()):
        theirs = expected.get(tensor, "no such tensor")
        ours = shapes.get(tensor, "no such tensor")
        if theirs != ours:
            raise RunFailed(
                f"{tensor}: {name} has {theirs}, this model {ours}; "
                "this is a mistake of cramjax, please report it"
            )


def expected_tensors(raw: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns name → shape of all tensors of a model; tied tensors appear once.

    Args:
        raw: the content of its config.json.
    """
    (name,) = raw["architectures"]
    is_gated = str(raw.get("feed_forward_proj")).startswith("gated")
    values = dict(raw) | {
        "num_labels": len(raw.get("id2label", ())),
        "gated": is_gated,
        "plain": not is_gated,
        "untied": not raw.get("tie_word_embeddings", True),
    }

    shapes = {}
    for pattern, described in known_classes()[name]["tensors"].items():
        condition, _, axes = described.rpartition(": ")
        if condition and not values[condition]:
            continue
        shape = tuple(_product(axis, values) for axis in axes.split())
        shapes |= dict.fromkeys(_names(pattern, values), shape)
    return shapes


def _product(axis: str, values: Mapping[str, Any]) -> int:
    """Returns the length of an axis, for example "2*hidden_size"."""
    factors = axis.split("*")
    return math.prod(int(factor) if factor.isdigit() else values[factor] for factor in factors)


def _names(pattern: str, values: Mapping[str, Any]) -> list[str]:
    """Returns the names that a pattern stands for."""
    counted = _COUNTED.search(pattern)
    if not counted:
        return [pattern]
    first, key = counted.groups()
    return [_COUNTED.sub(str(i), pattern) for i in range(int(first or 0), values[key])]
