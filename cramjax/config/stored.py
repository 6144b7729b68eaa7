"""Reads the configuration that a run wrote into its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cramjax.config.families import FAMILIES, model_keys
from cramjax.config.resolve import freeze
from cramjax.config.views import Config


def read(content: Mapping[str, Any]) -> Config:
    """Returns the configuration in the content of a config.json."""
    return freeze(current(content))


def current(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a config.json as this version writes it.

    Until 0.1, `model` held the keys of all families. Keys of the other families are left out: they
    had one value that was allowed, or no effect.
    """
    model = content["model"]
    if model["family"] not in FAMILIES:
        return dict(content)  # of a later version
    foreign: set[str] = set()
    for family in FAMILIES:
        foreign |= model_keys(family).keys()
    foreign -= model_keys(model["family"]).keys()
    kept = {key: value for key, value in model.items() if key not in foreign}
    return {**content, "model": kept}
