"""The folder of a finetuning: its setup, and a file for each finished run.

A run is a (task, point of the grid, seed). The setup decides who may go on in the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from cramjax.errors import UserError
from cramjax.files import read_json, write_json
from cramjax.finetuning.protocols import Settings

SETUP = "setup.json"

_KINDS = {
    "task": str,
    "seed": int,
    "point": dict,
    "metrics": dict,
    "predictions": dict,
    "status": str,
    "constant": bool,
    "illegal": dict,
    "loss": int | float | None,
    "epoch": int,
    "n_steps": int,
    "seconds": int | float,
}


_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Settings)
    if field.default is not dataclasses.MISSING
}


class Store:
    """Stores results of single runs as JSON. Each file is written whole or not at all.

    Keys of a run:
        task, seed: the task's name and the seed.
        point: settings that differ at this point of the grid.
        metrics: {task: {name: percent}}, with the diagnostics that the model answers.
        predictions: {task: {split: list}}.
        status: "ok" or "diverged".
        constant: whether every row got the same prediction.
        illegal: {split: outputs that were no answer}.
        loss: mean training loss over the last tenth of the steps.
        epoch: the epoch after which the model was scored.
        n_steps: optimizer steps.
        seconds: time for this run; seeds that are trained together share it.
    """

    def __init__(self, folder: pathlib.Path, setup: dict[str, Any]):
        """Opens `folder`, or makes it for runs that share `setup`.

        Raises:
            UserError: if the folder holds runs of another setup, or cannot be written.
        """
        self.folder = folder
        path = folder / SETUP
        # Tuples become lists, as in the file.
        setup = json.loads(json.dumps(setup))
        if path.is_file():
            _check_setup(folder, setup, read_json(path, "take another --out"))
            return

        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be made ({error.strerror})") from error
        write_json(path, setup)

    def path(self, task: str, point: int, seed: int) -> pathlib.Path:
        """Returns the file of a run."""
        return self.folder / "runs" / task / f"point-{point}" / f"seed-{seed}.json"

    def read(self, task: str, point: int, seed: int) -> dict[str, Any] | None:
        """Returns a finished run, or None if it is not finished.

        Raises:
            UserError: if its file is damaged.
        """
        path = self.path(task, point, seed)
        if not path.exists():
            return None
        cure = "delete the file, and the same command does this run again"
        run = read_json(path, cure)
        for key, kind in _KINDS.items():
            if not isinstance(run.get(key), kind):
                raise UserError(f"{path}: {key} is missing or of another type; {cure}")
        return run

    def write(self, run: dict[str, Any], point: int) -> None:
        """Keep a finished run."""
        path = self.path(run["task"], point, run["seed"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, run)


def _check_setup(folder: pathlib.Path, setup: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Raises UserError if the folder was made with another setup."""
    protocol = earlier.get("protocol")
    if isinstance(protocol, dict) and isinstance(protocol.get("settings"), dict):
        # A folder may be older than a setting, which then had its default value.
        earlier = earlier | {"protocol": protocol | {"settings": _DEFAULTS | protocol["settings"]}}
    differing = [key for key in setup if not _agrees(key, earlier.get(key), setup[key])]
    if differing:
        raise UserError(
            f"--out {folder}: holds runs of another {' and '.join(differing)}; take another "
            "folder, or go on with what it has"
        )


def _agrees(key: str, earlier: Any, now: Any) -> bool:
    """Returns whether a key of the setup has the same value as before."""
    if key == "data" and isinstance(earlier, dict):
        # Older folders count the rows of test sets as well.
        return earlier.items() >= now.items()
    return earlier == now


def digest(params: Any) -> str:
    """Returns a hash of the names and values of parameters."""
    digester = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree.leaves_with_path(params):
        digester.update(jax.tree_util.keystr(path).encode())
        digester.update(np.ascontiguousarray(leaf).data)
    return digester.hexdigest()
