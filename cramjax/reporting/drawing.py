"""The curves of runs as a page draws them: thinned, and with x values that they share."""

from __future__ import annotations

from collections.abc import Sequence

from cramjax.reporting import curves
from cramjax.reporting.blocks import Axis, Series, Value
from cramjax.reporting.reading import RunFiles
from cramjax.reporting.words import UNITS, is_number

MOST_POINTS = 8_000
"""Lines of all runs together that are drawn, of a kind: train, held-out or scored."""

X_AXES = (
    Axis(key="tokens", label=curves.LABELS["tokens"], units=UNITS["tokens"]),
    Axis(key="elapsed_s", label=curves.LABELS["elapsed_s"], units=UNITS["elapsed_s"]),
    Axis(key="flops", label="training FLOPs"),
    Axis(key="step", label="optimizer steps"),
)


class Drawn:
    """A run with its curves, thinned to what a picture shows.

    Attributes:
        number: of the run on the page.
        run: its files.
        evaluations: held-out lines, all of them.
        n_lines: number of train lines.
        train, held_out, scored: lines that are drawn; those of `scored` have BLEU.
        xs: x values of these three, in this order.
    """

    def __init__(self, number: int, run: RunFiles, most: int):
        train, self.evaluations = curves.split(run.lines)
        self.number = number
        self.run = run
        self.n_lines = len(train)
        self.train = curves.thinned(train, most)
        self.held_out = _some(self.evaluations, most)
        self.scored = _some([line for line in run.lines if is_number(line.get("bleu"))], most)
        self.xs = [places(lines) for lines in (self.train, self.held_out, self.scored)]

    def losses(self, key: str, name: str) -> Series:
        """Returns the curve of a key of the evaluations."""
        return self._series(1, "points", name, self.held_out, key)

    def scores(self, key: str, name: str) -> Series:
        """Returns the curve of a key of the lines with scores."""
        return self._series(2, "points", name, self.scored, key)

    def training(self, key: str, name: str, style: str) -> Series:
        """Returns the curve of a key of the train lines."""
        return self._series(0, style, name, self.train, key)

    def _series(
        self, place: int, style: str, name: str, lines: Sequence[curves.Line], key: str
    ) -> Series:
        return Series(
            name=f"{self.run.name}: {name}",
            run=self.number,
            style=style,
            x=self.number * len(self.xs) + place,
            y=curves.column(lines, key, n_digits=5),
        )


def _some(lines: Sequence[curves.Line], most: int) -> list[curves.Line]:
    """Returns at most `most` lines at equal distances, the last among them."""
    step = max(1, -(-len(lines) // most))
    return list(lines[::-step])[::-1]


def places(lines: Sequence[curves.Line]) -> dict[str, Sequence[Value]]:
    """Returns the x values of lines by the key of each axis."""
    return {axis.key: curves.column(lines, axis.key, n_digits=7) for axis in X_AXES}


def draw(runs: Sequence[RunFiles]) -> list[Drawn]:
    """Returns the runs of a page with their curves, fewer points of each where there are many."""
    most = max(20, min(curves.MOST, MOST_POINTS // max(1, len(runs))))
    return [Drawn(number, run, most) for number, run in enumerate(runs)]
