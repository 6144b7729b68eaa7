"""The folder of a finetuning: its setup, one file for each finished (task, point of the grid, seed), and who may go on in it."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from cramjax.errors import UserError
from cramjax.files import write_json

SETUP = "setup.json"


class Store:
    """Results of single runs as JSON, each written whole or not at all.

    A run: task, seed, point (settings that differ), metrics {task: {name: percent}}, predictions {task: {split: list}}, status ("ok",
    "diverged"), constant (the same prediction for every row), illegal {split: count}, loss, epoch, n_steps, seconds.
    """

    def __init__(self, folder: pathlib.Path, setup: dict[str, Any]):
        """`setup` is what all runs of a folder share.

        Raises:
            UserError: where the folder holds runs of another setup, or cannot be written.
        """
        self.folder = folder
        path = folder / SETUP
        setup = json.loads(json.dumps(setup))
        if path.is_file():
            earlier = json.loads(path.read_text())
            differing = [key for key in setup if earlier.get(key) != setup[key]]
            if differing:
                raise UserError(
                    f"--out {folder}: holds runs of another {' and '.join(differing)}; take another folder, or go on with what it has"
                )
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: cannot be made ({error.strerror})") from error
        write_json(path, setup)

    def path(self, task: str, point: int, seed: int) -> pathlib.Path:
        """The file of a run."""
        return self.folder / "runs" / task / f"point-{point}" / f"seed-{seed}.json"

    def read(self, task: str, point: int, seed: int) -> dict[str, Any] | None:
        """A finished run; None where there is none."""
        path = self.path(task, point, seed)
        return json.loads(path.read_text()) if path.is_file() else None

    def write(self, run: dict[str, Any], point: int) -> None:
        """Keep a finished run."""
        path = self.path(run["task"], point, run["seed"])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, run)


def digest(params: Any) -> str:
    """Which parameters these are: a hash of names and values."""
    found = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree.leaves_with_path(params):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()
