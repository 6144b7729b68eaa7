"""Reads the configuration that a run wrote: its config.json, or the copy beside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cramjax.config import schema
from cramjax.config.families import FAMILIES, model_keys
from cramjax.config.fields import Field
from cramjax.config.resolve import freeze
from cramjax.config.views import Config
from cramjax.errors import UserError


def read(content: Mapping[str, Any], where: str, cure: str) -> Config:
    """Returns the configuration in the content of a config.json; arguments as for `current`."""
    values = current(content, where, cure)
    try:
        return freeze(values)
    except (TypeError, ValueError) as error:  # stages that are no lists of keys
        raise UserError(f"{where}: growth.stages is no list of stages; {cure}") from error


def current(content: Mapping[str, Any], where: str, cure: str) -> dict[str, Any]:
    """Returns the content of a config.json as this version writes it.

    Keys that came later have their defaults, which do what the version did that wrote the file.
    Until 0.1, `model` held the keys of all families. Keys of the other families are left out: they
    had one value that was allowed, or no effect.

    Args:
        content: the JSON object; it may be damaged.
        where: the file, for messages.
        cure: what to do, the end of the error's sentence.

    Raises:
        UserError: if a key has a value of another type, or the family is unknown.
    """
    model = content.get("model")
    family = model.get("family") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or family not in list(FAMILIES):
        raise UserError(f"{where}: its model is of no family that this version knows; {cure}")

    foreign: set[str] = set()
    for other in FAMILIES:
        foreign |= model_keys(other).keys()
    foreign -= model_keys(family).keys()
    kept = {key: value for key, value in model.items() if key not in foreign}

    filled = _filled({**content, "model": kept}, schema.sections(family))
    for dotted, value in _wrong(filled, schema.sections(family)):
        raise UserError(f"{where}: {dotted}={value!r:.80} is of another type; {cure}")
    return filled


def _filled(values: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `values` with the defaults of the keys that are missing."""
    filled = schema.default_values(entries) | dict(values)
    for key, entry in entries.items():
        if not isinstance(entry, Field) and isinstance(filled[key], Mapping):
            filled[key] = _filled(filled[key], entry)
    return filled


def _wrong(
    values: Mapping[str, Any], entries: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any]]:
    """Returns the dotted keys, with values, whose values are of no type that the key takes."""
    wrong = []
    for key, entry in entries.items():
        value = values[key]
        # Choices and limits are not compared: an earlier version may have had others.
        if isinstance(entry, Field):
            is_right = entry.takes(value)
        else:
            is_right = isinstance(value, Mapping)
        if not is_right:
            wrong.append((prefix + key, value))
        elif not isinstance(entry, Field):
            wrong += _wrong(value, entry, f"{prefix}{key}.")
    return wrong
