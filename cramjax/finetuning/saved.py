"""Finetuned models on disk: `--save` keeps them, and other tasks start from them."""

from __future__ import annotations

import pathlib
from typing import Any

from cramjax.checkpoints.checkpoint import Checkpoints
from cramjax.errors import RunFailed
from cramjax.files import write_json
from cramjax.finetuning import learning
from cramjax.finetuning.protocols import Settings
from cramjax.glue.tasks import Task
from cramjax.inference import LoadedModel

_STEP = 1
"""A finetuned model is a checkpoint of one step."""


class SavedModels:
    """Saves finetuned models, one folder for each task, point of the grid and seed.

    `cramjax.load` reads such a folder: it holds a checkpoint, the tokenizer and config.json.
    """

    START = (0, 0)
    """The point of the grid and the seed whose model other tasks start from."""

    def __init__(self, folder: pathlib.Path, model: LoadedModel):
        """`model` is the pretrained model that is finetuned."""
        self._folder = folder
        self._model = model

    def _path(self, task: str, index: int, seed: int) -> pathlib.Path:
        return self._folder / task / f"point-{index}" / f"seed-{seed}"

    def has(self, task: str, index: int, seed: int) -> bool:
        """Returns whether the model of a seed at the point `index` of the grid is saved."""
        # A checkpoint is complete or absent, and the rest is written before it.
        return (self._path(task, index, seed) / "checkpoints" / str(_STEP)).is_dir()

    def save(self, task: Task, index: int, seed: int, settings: Settings, params: Any) -> None:
        """Save the parameters of a seed at the point `index` of the grid.

        Raises:
            RunFailed: if the disk is full or cannot be written.
        """
        folder = self._path(task.name, index, seed)
        finetuned = learning.describe(task, settings, seed)
        precision = str(self._model.precision.matmul_dtype)
        try:
            (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
            file = folder / "tokenizer" / "tokenizer.json"
            file.write_text(self._model.tokenizer.to_str(), encoding="utf-8")
            write_json(folder / "config.json", {"precision": precision, "finetuned": finetuned})
        except OSError as error:
            raise RunFailed(
                f"{folder}: cannot be written ({error.strerror}); free space there and give the "
                "same command"
            ) from error

        # This waits until the checkpoint is on disk.
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        sidecar = {"model": self._model.description(), "finetuned": finetuned}
        checkpoints.save(_STEP, {"params": params}, sidecar, block=True)
        checkpoints.close()

    def start(self, settings: Settings) -> Any:
        """Returns the parameters that finetuning by `settings` starts from.

        They are the pretrained model's, or with `start_from` those of another task. Of that task
        the first seed is taken, as MosaicBERT's code does.

        Raises:
            RunFailed: if the model of the other task is not saved.
        """
        if settings.start_from is None:
            return pretrained_params(self._model)

        folder = self._path(settings.start_from, *self.START)
        if not self.has(settings.start_from, *self.START):
            raise RunFailed(
                f"{folder}: the model of {settings.start_from} is missing, which others start "
                "from; remove its runs to redo it"
            )
        checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
        restored = checkpoints.restore_params()
        checkpoints.close()
        return restored.state


def pretrained_params(model: LoadedModel) -> Any:
    """Returns the parameters of a pretrained model, with its pooler if it has one."""
    if "pooler" in model.extra:
        return model.params | {"pooler": model.extra["pooler"]}
    return model.params
