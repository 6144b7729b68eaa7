"""The tables and the picture of a study of translation: BLEU over time, at equal time and bytes."""

from __future__ import annotations

import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

from cramjax import figures
from cramjax.sweeps import compression_report
from cramjax.sweeps.studies import Rows, Study, StudyResults, markdown
from cramjax.sweeps.sweep import Result
from cramjax.training import metrics

Curve = list[tuple[float, float]]
"""Seconds and BLEU of each scoring of a run, in order."""

_HEAD = ("size", "parameters", "steps", "target and source tokens", "held-out loss", "BLEU", "chrF")


def report(study: Study, results: StudyResults) -> str:
    """Returns the text of report.md.

    It has the sizes at equal time, BLEU over time, and for each compression the tables of
    `compression_report`.
    """
    parts = []
    all_sizes: dict[str, list[Result]] = {}
    for name, runs in results.sweeps.items():
        sizes = _by_size(runs)
        if sizes:
            parts.append(f"## {study.sweeps[name].title}\n\n{_sizes(sizes)}\n")
            all_sizes |= sizes
    if all_sizes:
        curves = f"![BLEU over time](bleu.png)\n\n{_over_time(all_sizes)}"
        parts.append(f"## BLEU over time\n\n{curves}\n")
    parts += compression_report.compressions(study, results)
    return "# Train large, then compress: translation\n\n" + "\n".join(parts)


def _by_size(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Returns the finished and scored results of each size, in the order of the grid."""
    sizes: dict[str, list[Result]] = {}
    for result in results:
        if "bleu" in result.summary:
            values = [value for key, value in result.point.values.items() if key != "seed"]
            sizes.setdefault(", ".join(values), []).append(result)
    return sizes


def _sizes(sizes: Mapping[str, Sequence[Result]]) -> str:
    rows: Rows = []
    for size, results in sizes.items():
        summaries = [result.summary for result in results]
        rows.append(
            (
                size,
                f"{summaries[0]['params'] / 1e6:.2f} M",
                f"{statistics.median(summary['steps'] for summary in summaries):,.0f}",
                f"{statistics.median(summary['tokens'] for summary in summaries) / 1e6:.1f} M",
                _spread([summary["eval_loss"] for summary in summaries], 3),
                _spread([summary["bleu"] for summary in summaries], 1),
                _spread([summary["chrf"] for summary in summaries], 1),
            )
        )
    return markdown(_HEAD, rows)


def _spread(values: Sequence[float], digits: int) -> str:
    """Returns the median as text, and for several values the least and the largest."""
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def curve(workdir: pathlib.Path) -> Curve:
    """Returns the scorings that a run has written to its metrics.jsonl."""
    lines = metrics.read(workdir / "metrics.jsonl")
    return [(line["elapsed_s"], line["bleu"]) for line in lines if line.get("bleu") is not None]


def _over_time(sizes: Mapping[str, Sequence[Result]]) -> str:
    """Returns a table of BLEU at each scoring, the median of the seeds."""
    curves = {}
    n_scorings = sys.maxsize
    for size, runs in sizes.items():
        curves[size] = [curve(result.workdir) for result in runs]
        # A seed may have been scored once more; the scorings that all have are compared.
        n_scorings = min(n_scorings, *map(len, curves[size]))
    rows: Rows = []
    for size, of_size in curves.items():
        cells = []
        for number in range(n_scorings):
            seconds = statistics.median(one[number][0] for one in of_size)
            bleu = statistics.median(one[number][1] for one in of_size)
            cells.append(f"{bleu:.1f} ({seconds:.0f} s)")
        rows.append((size, *cells))
    return markdown(("size", *(str(number + 1) for number in range(n_scorings))), rows)


def draw(results: StudyResults, path: pathlib.Path) -> None:
    """Draw BLEU over time to `path`: a line for each run, a colour for each size."""
    figure = figures.new_figure(8, 5, dpi=110)
    axes = figure.subplots()
    number = 0
    for runs in results.sweeps.values():
        for size, of_size in _by_size(runs).items():
            label: str | None = size
            for result in of_size:
                seconds, bleu = zip(*curve(result.workdir), strict=True)
                minutes = [value / 60 for value in seconds]
                axes.plot(minutes, bleu, "o-", color=f"C{number}", markersize=3, label=label)
                label = None
            number += 1

    axes.set_xlabel("minutes of training")
    axes.set_ylabel("BLEU")
    if number:
        axes.legend(fontsize=9, framealpha=0.9, edgecolor="none")
    figures.style_panel(axes)
    figures.save(figure, path)
