"""JSON of an unfinished preparation in which a changed byte is noticed, and what happens then."""

from __future__ import annotations

import json
import pathlib
import zlib
from typing import Any

_SEAL = "crc32"


class Damaged(Exception):
    """A file of an unfinished preparation is not what was written there.

    Without the files `paths` the preparation goes on, and makes them again.
    """

    def __init__(self, message: str, *paths: pathlib.Path):
        super().__init__(message)
        self.paths = paths


def seal(value: dict[str, Any]) -> str:
    """Return `value` as one line of JSON that holds its own checksum."""
    return json.dumps(value | {_SEAL: zlib.crc32(_canonical(value))})


def unseal(line: str | bytes) -> dict[str, Any]:
    """Return the value of a line of `seal`.

    Raises:
        ValueError: if it is another text.
    """
    try:
        value = json.loads(line)
        checksum = value.pop(_SEAL)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not what was written ({error})") from None
    if checksum != zlib.crc32(_canonical(value)):
        raise ValueError("not what was written (its checksum is another)")
    return value


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
