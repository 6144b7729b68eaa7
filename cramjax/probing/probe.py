"""A probe from checkpoint to accuracies, beside a control with random weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from cramjax import inference
from cramjax.console import Meter, Pace, announce, time_left
from cramjax.probing import likelihood, results
from cramjax.probing.blimp import Pair


def probe(checkpoint: str, pairs: Sequence[Pair], *, with_control: bool) -> dict[str, Any]:
    """Score minimal pairs with a model, and return what `tools/probe.py` prints and writes.

    Args:
        checkpoint: anything `cramjax.load` reads.
        with_control: scores the same network with random weights as well.

    Raises:
        UserError: for a model that cannot score sentences, or a sentence that is too long for it.
    """
    model = inference.load(checkpoint)
    started = time.monotonic()
    scores = _scores(model, pairs, "model")
    pairs_per_s = len(pairs) / (time.monotonic() - started)

    control = None
    if with_control:
        control = _scores(inference.untrained(model), pairs, "random weights")
    return {
        "suite": "blimp",
        "checkpoint": checkpoint,
        "method": "span" if model.is_t5 else "pll",
        **results.accuracies(pairs, scores, control),
        "pairs_per_s": round(pairs_per_s, 1),
    }


def _scores(model: inference.LoadedModel, pairs: Sequence[Pair], name: str) -> np.ndarray:
    """Returns float64 [pairs, 2], the scores of good and bad sentences; shows the progress."""
    announce(f"{name}: {len(pairs):,} pairs, compiling…")
    sentences: list[str] = []
    places: list[str] = []
    for pair in pairs:
        sentences += [pair.good, pair.bad]
        places += [pair.where, pair.where]

    with Meter(announce) as meter:
        pace = Pace()

        def show(fraction: float) -> None:
            left_s = pace.left_s(fraction, 1.0)
            if left_s is not None and fraction < 1:
                rate = pace.rate(fraction) * len(pairs)
                text = f"  {fraction:4.0%}  {rate:,.0f} pairs/s  {time_left(left_s)}"
                meter.update(text, fraction)

        scores = likelihood.sentence_scores(model, sentences, where=places, progress=show)
    return scores.reshape(-1, 2)
