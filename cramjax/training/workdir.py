"""The folder of a run, locked against a second run; and a description of where the run happens.

Checkpoints and metrics have modules of their own.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
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


class Workdir:
    """A run's folder, locked while the object is open: `with Workdir("runs/mine") as workdir`.

    A lock ends with its process, so a run takes over the folder of a dead one without asking.
    """

    def __init__(self, path: str | os.PathLike):
        """Make and lock `path`; raises UserError if it cannot be written or a run holds it."""
        self.path = pathlib.Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / LOCK)
            is_ours = self._lock.acquire()
        except OSError as error:
            raise UserError(
                f"--workdir {self.path}: cannot be written ({error.strerror}); give another folder"
            ) from error

        if not is_ours:
            owner = _describe_owner(self._lock.read())
            self._lock.close()
            raise UserError(
                f"--workdir {self.path}: another run is using it ({owner}); "
                "wait for it to end or give another folder"
            )

        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}
        self._lock.write(json.dumps(owner))

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
    flags = sorted(name for name in os.environ if name.startswith(("JAX_", "XLA_")))
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
        "flags": {name: os.environ[name] for name in flags},
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
