"""Changes to a configuration that recipes offer as variants, made from their keys and values."""

from __future__ import annotations

from typing import Any

from cramjax.config.recipes import Variant
from cramjax.config.views import Config


def setting(section: str, **values: Any) -> Variant:
    """Returns a change that sets keys of one section."""

    def change(config: Config) -> None:
        config[section].update(**values)

    return change


def lr_times(factor: float) -> Variant:
    """Returns a change that multiplies the learning rate."""

    def change(config: Config) -> None:
        # Rounded, so that a rate that goes up and down again is the same rate.
        config.optimizer.lr = float(f"{factor * config.optimizer.lr:.6g}")

    return change


def together(*changes: Variant) -> Variant:
    """Returns a change that makes all of `changes`, in their order; without any it is none."""

    def change(config: Config) -> None:
        for part in changes:
            part(config)

    return change
