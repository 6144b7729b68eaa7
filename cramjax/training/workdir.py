"""The folder of a run: made, locked against a second run; and a description of where it ran.

Checkpoints and metrics have modules of their own.
"""

from __future__ import annotations

import datetime
import fcntl
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
    """A run's folder, locked while the object is open: `with Workdir("runs/mine") as workdir: workdir.path`.

    The lock is the operating system's (flock): it ends with the process, however that ends, so a lock left by
    a dead run is taken over without asking.
    """

    def __init__(self, path: str | os.PathLike):
        """Make and lock `path`. Raises UserError where it cannot be written or another run holds it."""
        self.path = pathlib.Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"--workdir {self.path}: cannot be written ({error.strerror}); give another folder"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _describe_owner(os.read(self._lock, 4096))
            os.close(self._lock)
            raise UserError(
                f"--workdir {self.path}: another run is using it ({owner}); wait for it to end or give another folder"
            ) from error
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": now}
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, json.dumps(owner).encode(), 0)

    def close(self) -> None:
        """Give the lock up."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def environment(devices: list[str]) -> dict[str, Any]:
    """What a run ran on and with, for environment.json; `devices` are the device kinds JAX found."""
    return {
        "command": shlex.join(sys.orig_argv),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": devices,
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": _git_revision(),
        "flags": {
            name: os.environ[name]
            for name in sorted(os.environ)
            if name.startswith(("JAX_", "XLA_"))
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the checkout this code is in, with "+changes" where files differ; None outside one."""
    command = [
        "git",
        "-C",
        str(pathlib.Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+changes",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _describe_owner(text: bytes) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (ValueError, KeyError, TypeError):
        return "its lock does not say which"
