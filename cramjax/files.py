"""Small files: JSON that is written whole or not at all and read with care, and lock files."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import stat
import tempfile
from typing import Any, Self

from cramjax.errors import UserError

MAX_JSON_BYTES = 32 * 2**20
"""The largest file that `read_json` reads; parsed, it may take twenty times as much memory."""


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON.

    A reader finds the old file or the new one, also after a crash at any moment.

    Raises:
        UserError: if the folder cannot be written.
    """
    path = pathlib.Path(path)

    # The temporary file lies in the same folder: a rename is atomic on one file system only.
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


def read_json(path: str | os.PathLike, cure: str) -> dict[str, Any]:
    """Returns the JSON object in a file that may be damaged or a stranger's.

    Args:
        path: of the file.
        cure: what to do if the file cannot be used, the end of the error's sentence.

    Raises:
        UserError: if there is no such file, it is no regular file, is larger than
            `MAX_JSON_BYTES`, or holds anything but one JSON object in UTF-8.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: is no regular file; {cure}")
            content = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {cure}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {cure}") from error
    if len(content) > MAX_JSON_BYTES:
        raise UserError(f"{path}: is larger than {MAX_JSON_BYTES >> 20} MB; {cure}")

    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); {cure}") from error
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise UserError(f"{path}: not readable as JSON ({error}); {cure}") from error
    except RecursionError:
        raise UserError(f"{path}: its JSON is nested too deeply; {cure}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; {cure}")
    return value


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file for reading; a pipe that nobody writes to would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


class FileLock:
    """Locks a file between processes: `with FileLock(path) as lock: lock.acquire()`.

    The lock is the operating system's (flock). It ends with the process, however that ends, so a
    process that was killed leaves no lock behind. The text in the file is for people: who holds it.
    """

    def __init__(self, path: str | os.PathLike):
        """Open the file, made if it is missing. Raises OSError if it cannot be written."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def acquire(self) -> bool:
        """Take the lock without waiting; returns False if another process holds it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self) -> str:
        """Returns the text in the file."""
        return os.pread(self._file, 4096, 0).decode("utf-8", errors="replace")

    def write(self, text: str) -> None:
        """Replace the text in the file."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def close(self) -> None:
        """Give the lock up; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
