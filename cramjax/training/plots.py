"""The picture of a run: loss.png."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cramjax import figures
from cramjax.reporting import curves, words
from cramjax.training import metrics

TRAIN, HELD_OUT, BASELINE = "#4c78a8", "#e45756", "#6b6b6b"


def plot_loss(
    metrics_path: str | os.PathLike, out_png: str | os.PathLike, unigram_loss: float | None = None
) -> None:
    """Draw train and held-out loss (nats) over tokens and over time to `out_png`.

    A damaged line of the metrics is left out; a run without lines gives an empty frame.

    Args:
        metrics_path: a metrics.jsonl.
        out_png: the picture.
        unigram_loss: the loss of the unigram baseline, or None to leave it out.
    """
    train, held_out = curves.split(metrics.read(metrics_path))
    train = curves.thinned(train, curves.MOST)

    figure = figures.new_figure(10, 4, dpi=130)
    over_tokens, over_time = figure.subplots(1, 2, sharey=True)
    for axes, key in ((over_tokens, "tokens"), (over_time, "elapsed_s")):
        most = max((line[key] for line in [*train, *held_out]), default=0.0)
        scale, unit = words.unit(key, most)
        axes.set_xlabel(", ".join(filter(None, (curves.LABELS[key], unit))))
        _draw(axes, train, held_out, key, scale, unigram_loss)

    over_tokens.set_ylabel(f"loss, {curves.LOSS}")
    over_tokens.set_ylim(*_limits(train, held_out, unigram_loss))
    if train or held_out or unigram_loss is not None:
        over_time.legend(frameon=True, framealpha=1.0, edgecolor="none", loc="upper right")
    figures.save(figure, out_png)


def smoothed(values: Sequence[float], share: float = 0.03) -> list[float]:
    """Returns the centred mean of `values` over a window of about `share` of them.

    The window narrows towards both ends.
    """
    half = max(1, round(len(values) * share / 2))
    means = []
    for centre in range(len(values)):
        reach = min(half, centre, len(values) - 1 - centre)
        window = values[centre - reach : centre + reach + 1]
        means.append(sum(window) / len(window))
    return means


def _draw(
    axes: Any,
    train: Sequence,
    held_out: Sequence,
    key: str,
    scale: float,
    unigram_loss: float | None,
) -> None:
    """Draw one panel; positions are the lines' `key` divided by `scale`."""
    if train:
        at = [line[key] / scale for line in train]
        loss = [line["loss"] for line in train]
        axes.plot(at, loss, color=TRAIN, alpha=0.25, linewidth=0.8)
        axes.plot(at, smoothed(loss), color=TRAIN, linewidth=1.6, label=curves.TRAIN)

    if held_out:
        at = [line[key] / scale for line in held_out]
        loss = [line["eval_loss"] for line in held_out]
        style = {"linewidth": 1.6, "marker": "o", "markersize": 3.5}
        axes.plot(at, loss, color=HELD_OUT, label=curves.HELD_OUT, **style)
        # The last loss stands in the margin, where no line crosses it.
        axes.annotate(
            f"{loss[-1]:.2f}",
            (at[-1], loss[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            annotation_clip=False,
            color=HELD_OUT,
        )

    if unigram_loss is not None:
        axes.axhline(
            unigram_loss,
            color=BASELINE,
            linewidth=1.2,
            linestyle=(0, (4, 3)),
            label=curves.BASELINE,
        )

    axes.set_xlim(left=0)
    figures.style_panel(axes, grid="y")


def _limits(
    train: Sequence, held_out: Sequence, unigram_loss: float | None
) -> tuple[float | None, float | None]:
    """Returns the lowest and highest loss to show.

    The highest hundredth is left out: the start of a run that diverged would flatten the rest.
    """
    losses = [line["loss"] for line in train] + [line["eval_loss"] for line in held_out]
    if unigram_loss is not None:
        losses.append(unigram_loss)
    if not losses:
        return None, None

    top = max(sorted(losses)[int(0.99 * (len(losses) - 1))], unigram_loss or 0.0)
    low = min(losses)
    margin = max(0.06 * (top - low), 0.05)
    return low - margin, top + 2 * margin
