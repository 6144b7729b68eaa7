"""The folder of a run, locked against a second run; and a description of where the run happens.

Checkpoints and metrics have modules of their own.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import re
import shlex
import socket
import subprocess
import sys
from typing import Any, Self

from cramjax.errors import UserError
from cramjax.files import FileLock

LOCK = "lock"
PACKAGES = (
    "cramjax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tokenizers",
    "tensorflow-cpu",
)
# Words in the names of variables that hold secrets.
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL")

_log = logging.getLogger("cramjax")


class Workdir:
    """A run's folder, locked while the object is open: `with Workdir("runs/mine") as workdir`.

    A lock ends with its process, so a run takes over the folder of a dead one without asking.
    """

    def __init__(self, path: str | os.PathLike):
        """Make and lock `path`; raises UserError if it cannot be written or a run holds it."""
        self.path = pathlib.Path(path)
        self._lock = self._locked()

    def _locked(self) -> FileLock:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK)
            is_ours = lock.acquire()
        except OSError as error:
            raise UserError(
                f"--workdir {self.path}: cannot be written ({error.strerror}); give another folder"
            ) from error

        if not is_ours:
            owner = _describe_owner(lock.read())
            lock.close()
            raise UserError(
                f"--workdir {self.path}: another run is using it ({owner}); "
                "wait for it to end or give another folder"
            )

        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}
        # The text is for people: a full disk keeps nobody from the lock.
        with contextlib.suppress(OSError):
            lock.write(json.dumps(owner))
        return lock

    def restore(self) -> bool:
        """Make and lock the folder again if somebody has deleted it; returns whether that was so.

        Raises:
            UserError: if it cannot be made, or another run has taken its place.
        """
        if self._lock.is_at(self.path / LOCK):
            return False
        lock = self._locked()
        self._lock.close()
        self._lock = lock
        _log.warning(
            "%s: the folder was deleted while the run goes on; it is made again", self.path
        )
        return True

    def close(self) -> None:
        """Give the lock up; a second call does nothing."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def environment(devices: list[str]) -> dict[str, Any]:
    """Returns what environment.json records: the command, the machine, packages and settings.

    Args:
        devices: the device kinds that JAX reports.
    """
    versions = {name: _version(name) for name in PACKAGES}
    names = sorted(name for name in os.environ if name.startswith(("JAX_", "XLA_")))
    flags = {name: os.environ[name] for name in names}
    for name in names:
        # The file is shared with the model, so a secret must not be in it.
        if _SECRET.search(name):
            flags[name] = "(hidden)"

    return {
        "command": shlex.join(sys.orig_argv),
        "started": _now(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": devices,
        "packages": {name: version for name, version in versions.items() if version is not None},
        "git": _git_revision(),
        "flags": flags,
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Returns the revision of this code's checkout, with "+changes" if files differ from it.

    None outside a checkout.
    """
    folder = str(pathlib.Path(__file__).parent)
    describe = ("describe", "--always", "--abbrev=40", "--dirty=+changes")
    command = ["git", "-C", folder, *describe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _describe_owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (ValueError, KeyError, TypeError):
        return "its lock does not say which"
