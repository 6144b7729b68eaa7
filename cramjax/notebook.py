"""Shows the loss curve of a run under the notebook cell that trains it."""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from cramjax.training import plots

SHARE = 0.03
"""Drawing takes at most this share of the time: the budget is for training."""


class LivePlot:
    """A sink of `cramjax.train` that draws the loss curve.

    Use it as `cramjax.train(config, workdir, sinks=[cramjax.LivePlot(workdir)])`. The picture has
    held-out losses and the unigram baseline, and is drawn again while the run goes on.
    """

    def __init__(self, workdir: str | os.PathLike):
        """`workdir` is the folder of the run."""
        self._metrics = pathlib.Path(workdir) / "metrics.jsonl"
        self._unigram_loss: float | None = None
        self._handle: Any = None
        self._next_draw = 0.0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Draw, unless the last drawing was a moment ago."""
        self._unigram_loss = values.get("unigram_loss", self._unigram_loss)
        if time.monotonic() >= self._next_draw:
            self._draw()

    def close(self) -> None:
        """Draw the final curve."""
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
        # Wait long enough that drawing stays within its share.
        finished = time.monotonic()
        self._next_draw = finished + (finished - started) / SHARE
