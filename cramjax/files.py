"""Small files: JSON and copies, whole or not at all and read with care, and lock files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import pathlib
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Self

from cramjax.errors import RunFailed, UserError

MAX_JSON_BYTES = 32 * 2**20
"""The largest file that `read_json` reads; parsed, it may take twenty times as much memory."""

# What a file system answers that does not know a call.
_UNKNOWN_CALL = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
# What a disk answers that takes no more.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
_COPIED_BYTES = 1 << 20

_log = logging.getLogger("cramjax")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON; infinity and NaN, which JSON does not have, become null.

    A reader finds the old file or the new one, also after a crash at any moment.

    Raises:
        UserError: if the folder cannot be written.
        RunFailed: if the disk takes no more.
    """
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    # A name that is no UTF-8 has lone surrogates. Their codes are JSON's own escapes.
    content = f"{text}\n".encode("utf-8", errors="backslashreplace")
    _write_whole(pathlib.Path(path), lambda file: file.write(content))


def copy_file(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Copy the content of a regular file, without its mode: a copy can be replaced later.

    A reader finds the old file or the new one, also after a crash at any moment.

    Raises:
        UserError: if `source` is no regular file (a link is none), or cannot be read, or the folder
            of `target` cannot be written.
        RunFailed: if the disk takes no more.
    """
    try:
        # Without blocking, because a pipe that nobody writes to would wait.
        number = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{source}: is a link; put the file itself there") from error
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error

    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f"{source}: is no regular file; put the file itself there")

    with open(number, "rb") as file:

        def copy(copied: BinaryIO) -> None:
            while block := file.read(_COPIED_BYTES):
                copied.write(block)

        _write_whole(pathlib.Path(target), copy)


def _write_whole(path: pathlib.Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace the file at `path` by what `write` writes, in one moment."""
    # It lies in the same folder: a rename is atomic on one file system only. It has one name, so
    # that what a killed process has left there is replaced.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _open_alone(temporary) as file:
            try:
                write(file)
                file.flush()
                with _if_known():
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: pathlib.Path, error: OSError) -> UserError | RunFailed:
    kind = RunFailed if error.errno in _NO_ROOM else UserError
    return kind(f"{path}: cannot be written ({error.strerror})")


def _open_alone(path: pathlib.Path) -> BinaryIO:
    """Returns the empty file at `path`, open for writing and locked against other writers."""
    while True:
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            # A killed process of another user has left it, or a link lies there.
            if error.errno not in (errno.EACCES, errno.ELOOP) or not os.path.lexists(path):
                raise
            path.unlink()
            continue

        file = open(number, "wb")
        try:
            with _if_known():
                fcntl.flock(number, fcntl.LOCK_EX)
            # The writer before has given it its final name, or removed it.
            if path.exists() and os.path.samestat(os.fstat(number), path.lstat()):
                os.ftruncate(number, 0)
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


@contextlib.contextmanager
def _if_known() -> Any:
    """Inside, a call that the file system does not know does nothing."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNKNOWN_CALL:
            raise


def finite(value: Any) -> Any:
    """Returns a copy of a value of JSON with None in place of infinity and NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to; at the end that file takes the place of `path`.

    A reader finds the old file or the new one, also if the process is killed at any moment.

    Raises:
        UserError: if the file cannot be written.
        RunFailed: if the disk takes no more.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | os.PathLike, cure: str) -> dict[str, Any]:
    """Returns the JSON object in a file that may be damaged or a stranger's.

    Args:
        path: of the file.
        cure: what to do if the file cannot be used, the end of the error's sentence.

    Raises:
        UserError: if there is no such file, it is no regular file, is larger than
            `MAX_JSON_BYTES`, or holds anything but one JSON object in UTF-8.
    """
    value = _parsed(path, cure)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; {cure}")
    return value


def read_json_objects(path: str | os.PathLike, cure: str) -> list[dict[str, Any]]:
    """Returns the list of JSON objects in a file; arguments and errors as for `read_json`."""
    value = _parsed(path, cure)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UserError(f"{path}: holds no list of JSON objects; {cure}")
    return value


def read_content(path: str | os.PathLike, cure: str, *, most_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Returns the content of a regular file that may be a stranger's; a pipe is not waited for.

    Args:
        path: of the file; a link is followed.
        cure: what to do if the file cannot be used, the end of the error's sentence.
        most_bytes: the largest content.

    Raises:
        UserError: if there is no such file, it is no regular file, cannot be read or is larger.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: is no regular file; {cure}")
            content = file.read(most_bytes + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {cure}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {cure}") from error
    if len(content) > most_bytes:
        raise UserError(f"{path}: is larger than {most_bytes >> 20} MB; {cure}")
    return content


def _parsed(path: str | os.PathLike, cure: str) -> Any:
    """Returns the JSON in a file; raises UserError if there is none."""
    content = read_content(path, cure)
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); {cure}") from error
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise UserError(f"{path}: not readable as JSON ({error}); {cure}") from error
    except RecursionError:
        raise UserError(f"{path}: its JSON is nested too deeply; {cure}") from None


def check_types(
    content: Mapping[str, Any],
    kinds: Mapping[str, tuple[type, ...]],
    where: str | os.PathLike,
    cure: str,
) -> None:
    """Compare the values of an object of JSON with the types that a reader expects.

    Args:
        content: the object.
        kinds: dotted key → types. A key that is missing counts as None.
        where: the file, for messages.
        cure: what to do, the end of the error's sentence.

    Raises:
        UserError: if a value is of another type.
    """
    for dotted, allowed in kinds.items():
        value: Any = content
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None

        is_wrong_bool = isinstance(value, bool) and bool not in allowed
        if is_wrong_bool or not isinstance(value, allowed):
            names = " or ".join(kind.__name__ for kind in allowed)
            raise UserError(
                f"{where}: {dotted}={value!r:.80} is of another type than {names}; {cure}"
            )


def member(
    folder: pathlib.Path, name: str, cure: str, *, also: Sequence[pathlib.Path] = ()
) -> pathlib.Path:
    """Returns the path of a regular file in a folder that may be damaged or a stranger's.

    Args:
        folder: the folder.
        name: of the file, relative to it; it may come from another file of the stranger's.
        cure: what to do, the end of the error's sentence.
        also: folders, beside this one, in which a link may end.

    Raises:
        UserError: if there is no such file, or it is a pipe, a device or a link out of the folder.
    """
    path = folder / name
    if "\0" in name or os.path.isabs(name) or ".." in pathlib.PurePath(name).parts:
        raise UserError(f"{folder}: names the file {name!r:.200}, which is outside; {cure}")
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file; {cure}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links
        raise UserError(f"{path}: cannot be read ({error}); {cure}") from error

    if not any(real.is_relative_to(home) for home in (folder.resolve(), *also)):
        raise UserError(f"{path}: is a link out of its folder; copy the file there, or {cure}")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is no regular file; {cure}")
    return path


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file for reading; a pipe that nobody writes to would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextlib.contextmanager
def alone_in(folder: pathlib.Path, flag: str) -> Iterator[None]:
    """Inside, no other command works in the folder that `flag` names, made if it is missing.

    Raises:
        UserError: if another command works there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
    except OSError as error:
        raise UserError(
            f"{flag} {folder}: cannot be written ({error.strerror}); give another folder"
        ) from error
    with lock:
        if not lock.acquire():
            raise UserError(
                f"{flag} {folder}: another command is using it; wait for it to end or give another "
                "folder"
            )
        yield


class FileLock:
    """Locks a file between processes: `with FileLock(path) as lock: lock.acquire()`.

    The lock is the operating system's (flock). It ends with the process, however that ends, so a
    process that was killed leaves no lock behind. The text in the file is for people: who holds it.
    A file system without locks gives a warning, and nobody is kept out.
    """

    def __init__(self, path: str | os.PathLike):
        """Open the file, made if it is missing. Raises OSError if it cannot be written."""
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def acquire(self) -> bool:
        """Take the lock without waiting; returns False if another process holds it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _UNKNOWN_CALL:
                raise
            _log.warning(
                "%s: this file system has no locks (%s); start no second command on this folder",
                self._path,
                error.strerror,
            )
        return True

    def is_at(self, path: str | os.PathLike) -> bool:
        """Returns whether `path` still is the file of this lock; it may have been deleted."""
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(path))
        except OSError:
            return False

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
