"""Writes small files whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from typing import Any

from cramjax.errors import UserError


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON; a reader, or a crash at any moment, finds the old file or the new one.

    Raises UserError where the folder cannot be written.
    """
    path = pathlib.Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
