"""A configuration key's description, and the constructors that the schema is written with."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

NoneType = type(None)
LARGEST = (1 << 63) - 1
"""The largest whole number of 64 bits."""
AUTO = "auto"
"""The value of a key that `data.language` decides."""
LARGEST_SEED = (1 << 32) - 1
"""The largest seed that JAX tells from all others."""


def _accept(value: Any) -> None:
    """Finds no problem."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One key.

    Attributes:
        default: the value of a recipe that does not set the key.
        kinds: accepted Python types; None is accepted if its type is listed.
        help: one line on the meaning and the unit.
        choices: accepted values; empty if any value of `kinds` is.
        check: returns the problem of a value as text, or None.
    """

    default: Any
    kinds: tuple[type, ...]
    help: str
    choices: tuple[Any, ...] = ()
    check: Callable[[Any], str | None] = _accept

    def takes(self, value: Any) -> bool:
        """Returns whether `value` is of an accepted type."""
        # bool is an int to Python, never to a reader of configurations.
        if isinstance(value, bool) and bool not in self.kinds:
            return False
        return isinstance(value, self.kinds)


def text(default: str, help: str, choices: tuple[str, ...] = ()) -> Field:
    """A string, one of `choices` if there are any."""
    return Field(default=default, kinds=(str,), help=help, choices=choices)


def optional_text(default: str | None, help: str) -> Field:
    """A string or None."""
    return Field(default=default, kinds=(str, NoneType), help=help)


def flag(default: bool, help: str) -> Field:
    """True or False."""
    return Field(default=default, kinds=(bool,), help=help)


def auto_flag(help: str) -> Field:
    """True, False, or "auto", the default: `data.language` decides."""
    return Field(
        default=AUTO, kinds=(bool, str), help=f"{help}; auto: by data.language", check=_is_auto
    )


def _is_auto(value: Any) -> str | None:
    is_sound = isinstance(value, bool) or value == AUTO
    return None if is_sound else "must be True, False or 'auto'"


def count(default: int, help: str, low: int = 1) -> Field:
    """A whole number of at least `low` that 64 bits hold."""
    return Field(default=default, kinds=(int,), help=help, check=within(low, LARGEST))


def optional_count(default: int | None, help: str, low: int = 1) -> Field:
    """A whole number of at least `low` that 64 bits hold, or None."""
    return Field(default=default, kinds=(int, NoneType), help=help, check=within(low, LARGEST))


def number(default: float, help: str, low: float | None = 0.0, high: float | None = None) -> Field:
    """A number between `low` and `high`; None is no limit."""
    return Field(default=default, kinds=(int, float), help=help, check=within(low, high))


def optional_number(
    default: float | None, help: str, low: float | None = 0.0, high: float | None = None
) -> Field:
    """A number between `low` and `high`, or None."""
    kinds = (int, float, NoneType)
    return Field(default=default, kinds=kinds, help=help, check=within(low, high))


def share(default: float, help: str) -> Field:
    """A number between 0 and 1."""
    return number(default, help, 0.0, 1.0)


def is_finite(value: float) -> bool:
    """Returns whether `value` is a number that a float can hold: not NaN, and not too large."""
    return abs(value) <= sys.float_info.max


def within(low: float | None, high: float | None) -> Callable[[Any], str | None]:
    """Returns the check of a number's limits; it accepts None, which `kinds` decides about."""

    def check(value: float | None) -> str | None:
        if value is None:
            return None
        if not is_finite(value):
            return "must be a finite number"
        if low is not None and value < low:
            return f"must be at least {low:g}"
        if high is not None and value > high:
            return f"must be at most {high if isinstance(high, int) else format(high, 'g')}"
        return None

    return check
