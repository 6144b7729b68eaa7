"""Figures without a display: makes them, styles their panels, saves them as PNG.

matplotlib takes most of a second to import, so this module imports it on first use.
The pyplot interface is avoided because it keeps every figure in memory.
"""

from __future__ import annotations

import logging
import os
import pathlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID_COLOUR = "#e6e6e6"


def new_figure(width: float, height: float, *, dpi: float) -> Figure:
    """Returns an empty figure of `width` by `height` inches that lays out its panels itself."""
    # A user without a home would get two warnings: the figure is drawn all the same.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    # The canvas registers itself with the figure; it measures texts before they are drawn.
    FigureCanvasAgg(figure)
    return figure


def style_panel(axes: Axes, *, grid: Literal["both", "x", "y"] | None = "both") -> None:
    """Remove the top and right frame of a panel; draw a light grid along `grid` below the data."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid is not None:
        axes.grid(axis=grid, color=GRID_COLOUR, linewidth=0.8)
        axes.set_axisbelow(True)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write `figure` to `path` as a PNG."""
    figure.savefig(pathlib.Path(path), format="png")
