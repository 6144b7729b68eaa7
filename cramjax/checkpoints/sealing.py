"""The files of a checkpoint: their checksums, and the JSON beside the arrays.

Files alone are read here, so neither Orbax nor devices nor other processes are needed.
"""

from __future__ import annotations

import math
import pathlib
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from cramjax.errors import UserError
from cramjax.files import read_json, write_json

_CHECKSUMS = "checksums.json"
_SIDECAR = "sidecar/metadata"


def seal(folder: pathlib.Path) -> None:
    """Write size and CRC-32 of every file: TensorStore does not notice a flipped bit."""
    write_json(folder / _CHECKSUMS, dict(_checksums(folder)))


def verify(folder: pathlib.Path) -> None:
    """Raise ValueError if a file has changed since `seal`, or is no file.

    A checkpoint that was never sealed, because its run was killed just before, passes.
    """
    for path in sorted(folder.rglob("*")):
        # A pipe would be waited for, and a link leads out of the folder.
        if not stat.S_ISREG(path.lstat().st_mode) and not stat.S_ISDIR(path.lstat().st_mode):
            raise ValueError(f"{path.relative_to(folder)} is no regular file")
    if not (folder / _CHECKSUMS).exists():
        return

    sealed = _read_json(folder / _CHECKSUMS)
    if _SIDECAR not in sealed:
        raise ValueError(f"{_CHECKSUMS} has no {_SIDECAR}")
    present = dict(_checksums(folder))
    changed = sorted(name for name, checksum in sealed.items() if present.get(name) != checksum)
    if changed:
        raise ValueError(
            f"{len(changed)} of {len(sealed)} files changed since they were written, "
            f"first {changed[0]}"
        )


def read_sidecar(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON that was saved beside the state; raises ValueError if it is damaged."""
    return _read_json(folder / _SIDECAR)


def newest_sidecar(
    directory: str | pathlib.Path, check: Callable[[dict[str, Any]], None]
) -> tuple[int, dict[str, Any]] | None:
    """Returns step and JSON of the newest checkpoint that is whole, or None without one.

    `check` raises ValueError for the JSON of a damaged one.
    """
    for step in sorted(_steps(pathlib.Path(directory)), reverse=True):
        folder = pathlib.Path(directory) / str(step)
        try:
            verify(folder)
            sidecar = read_sidecar(folder)
            check(sidecar)
            return step, sidecar
        except (OSError, ValueError):
            continue  # `restore` warns of it and moves it away
    return None


def noted_config(directory: str | pathlib.Path, step: int) -> dict[str, Any] | None:
    """Returns the configuration that the checkpoint of `step` was made with.

    None if it does not say, as those of 0.2.0 and older, or is not there.
    """
    try:
        config = read_sidecar(pathlib.Path(directory) / str(step)).get("config")
    except ValueError:
        return None
    return config if isinstance(config, dict) else None


def marked(directory: str | pathlib.Path) -> dict[int, list[float]]:
    """Returns step → hours of the checkpoints that `checkpoint.at_hours` keeps, by step.

    The files of the arrays are not compared. A checkpoint whose JSON is damaged is left out.
    """
    found = {}
    for step in sorted(_steps(pathlib.Path(directory))):
        try:
            hours = read_sidecar(pathlib.Path(directory) / str(step)).get("kept_for_hours")
        except ValueError:
            continue
        if isinstance(hours, list) and hours and all(map(_is_hours, hours)):
            found[step] = hours
    return found


def _is_hours(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _steps(directory: pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints: a folder gets its number when it is whole."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdecimal()]


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return read_json(path, "the checkpoint is damaged")
    except UserError as error:
        # For a checkpoint damage is no mistake: the one before it may be whole.
        raise ValueError(str(error)) from error


def _checksums(folder: pathlib.Path) -> Iterator[tuple[str, list[int]]]:
    """Yields (name, [bytes, CRC-32]) of every file below `folder`."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name == _CHECKSUMS:
            continue
        crc = 0
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                crc = zlib.crc32(block, crc)
        yield path.relative_to(folder).as_posix(), [path.stat().st_size, crc]
