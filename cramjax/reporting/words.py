"""Numbers of runs in words: amounts, durations, hardware. Pages and model cards share them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

UNITS = {
    "tokens": ((1e9, 1e9, "billions"), (1e6, 1e6, "millions"), (1e3, 1e3, "thousands")),
    "elapsed_s": ((7200, 3600, "hours"), (180, 60, "minutes"), (0, 1, "seconds")),
}
"""Values along an axis of a chart → (used from this largest value on, divisor, name) of each unit
in which its numbers stay short."""

_DURATIONS = (("hours", 3600), ("minutes", 60))
_LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
# An integer of JSON may be too large for a float; sums and products of these are not.
_LARGEST = 1e100
_BYTES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def is_number(value: Any) -> TypeGuard[int | float]:
    """Returns whether `value` is a finite number, at most 1e100; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST


def amounts(spent: Mapping[str, Any]) -> str:
    """Returns what a run spent: steps, tokens, FLOPs and time, of what is known."""
    parts = []
    if is_number(spent.get("steps")):
        parts.append(f"{spent['steps']:,} steps")
    if is_number(spent.get("tokens")):
        parts.append(f"{spent['tokens'] / 1e6:,.1f}M tokens")
    if is_number(spent.get("flops")):
        parts.append(f"{spent['flops']:.3g} FLOPs")
    if is_number(spent.get("elapsed_s")):
        parts.append(duration(spent["elapsed_s"]))
    return ", ".join(parts)


def duration(elapsed_s: float) -> str:
    """Returns a time in the largest unit that it reaches."""
    for unit, seconds in _DURATIONS:
        if elapsed_s >= seconds:
            return f"{elapsed_s / seconds:.3g} {unit}"
    return f"{elapsed_s:.3g} seconds"


def hardware(environment: Mapping[str, Any]) -> str:
    """Returns the devices of an environment.json with their number, and its CPU cores."""
    listed = environment.get("devices")
    devices = list(map(str, listed)) if isinstance(listed, list) else []  # the kind of each device
    kinds = ", ".join(f"{devices.count(kind)} × {kind}" for kind in dict.fromkeys(devices))
    if "cpus" in environment:
        return f"{kinds} ({environment['cpus']} CPU cores)"
    return kinds


def unit(key: str, largest: float) -> tuple[float, str]:
    """Returns the divisor and the name, "" for none, of the unit of an axis, a key of `UNITS`."""
    for least, divisor, name in UNITS[key]:
        if largest >= least:
            return divisor, name
    return 1.0, ""


def large(number: float) -> str:
    """Returns a count in short: "12.3M"."""
    for factor, unit in _LARGE:
        if abs(number) >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:,.4g}"


def size(n_bytes: float) -> str:
    """Returns a number of bytes in the largest unit that it reaches."""
    for unit, factor in _BYTES:
        if n_bytes >= factor:
            value = n_bytes / factor
            return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"
    return f"{n_bytes:,.0f} bytes"
