"""The loss curve of a run under the cell that trains it."""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Mapping

from cramjax.training import plots

# Drawing takes no more than this share of the time: the budget is for training.
SHARE = 0.03


class LivePlot:
    """A sink of `cramjax.train`: `cramjax.train(config, workdir, sinks=[cramjax.LivePlot(workdir)])`.

    The picture is drawn anew as the run goes on, with held-out losses and the unigram baseline.
    """

    def __init__(self, workdir: str | os.PathLike):
        """`workdir`: that of the run."""
        self._metrics = pathlib.Path(workdir) / "metrics.jsonl"
        self._unigram_loss: float | None = None
        self._handle = None
        self._next = 0.0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Draw, unless it was done a moment ago."""
        self._unigram_loss = values.get("unigram_loss", self._unigram_loss)
        if time.monotonic() >= self._next:
            self._draw()

    def close(self) -> None:
        """Draw what there is at the end."""
        self._draw()

    def _draw(self) -> None:
        from IPython import display

        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            picture = pathlib.Path(folder) / "loss.png"
            plots.plot_loss(self._metrics, picture, self._unigram_loss)
            image = display.Image(data=picture.read_bytes(), width=800)
        if self._handle is None:
            self._handle = display.display(image, display_id=True)
        elif self._handle:
            self._handle.update(image)
        self._next = time.monotonic() + (time.monotonic() - started) / SHARE
