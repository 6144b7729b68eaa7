"""The section about a track: the staircase of the best over its entries, and their table."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.reporting import markdown
from cramjax.reporting.blocks import (
    Axis,
    Block,
    Cell,
    Cloud,
    Note,
    Point,
    Scatter,
    Section,
    Table,
    number,
    text_of,
)
from cramjax.reporting.reading import read_object, read_text
from cramjax.reporting.words import is_number, large

_COLUMNS = (
    "entry", "against", "held-out loss, mean", "sd", "difference", "p", "tokens", "seconds",
    "FLOPs", "verdict",
)  # fmt: skip
_ABOUT = (
    "Each small point is a run, a short line the mean of an entry's seeds. The steps are the mean "
    "of the best so far."
)

Entry = Mapping[str, Any]


def section(name: str, folder: pathlib.Path, place: int, problems: list[str]) -> Section:
    """Returns the section about the track in `folder`.

    Args:
        name: of the track on the page.
        folder: with the track.json. One of an old version has no entries; then the section has the
            tables of report.md.
        place: of the section among its kind.
        problems: takes sentences on what could not be read.
    """
    content = read_object(folder / "track.json", problems)
    listed = content.get("entries")
    entries = listed if isinstance(listed, list) else []
    sound = [entry for entry in entries if _is_sound(entry)]
    if len(sound) < len(entries):
        left_out = len(entries) - len(sound)
        problems.append(f"{folder / 'track.json'}: {left_out} damaged entries are left out")

    blocks: list[Block] = []
    intro = ""
    if sound:
        blocks = [_staircase(sound), _table(sound)]
        intro = _intro(sound, content)
    else:
        blocks += markdown.blocks(read_text(folder / "report.md", problems) or "")
    if not blocks:
        blocks.append(Note(text="No entry is judged yet."))
    return Section(name=f"track-{place}", title=f"Track {name}", blocks=blocks, intro=intro)


def _is_sound(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("losses"), list):
        return False
    # A run that ended with no number has none here either.
    numbers = all(loss is None or is_number(loss) for loss in entry["losses"])
    return numbers and all(isinstance(entry.get(key), str) for key in ("name", "variant"))


def _wins(entry: Entry) -> bool:
    return entry.get("wins") is True and _mean(entry) is not None


def _finite(entry: Entry) -> list[float]:
    return [loss for loss in entry["losses"] if loss is not None]


def _mean(entry: Entry) -> float | None:
    """Returns the mean loss of an entry; None if a seed ended with no number."""
    losses = _finite(entry)
    is_whole = losses and len(losses) == len(entry["losses"])
    return statistics.fmean(losses) if is_whole else None


def _sd(entry: Entry) -> float | None:
    is_known = _mean(entry) is not None and len(entry["losses"]) > 1
    return statistics.stdev(entry["losses"]) if is_known else None


def _intro(entries: Sequence[Entry], content: Mapping[str, Any]) -> str:
    winners = [entry for entry in entries if _wins(entry)]
    text = f"{len(entries)} entries"
    if is_number(content.get("seeds")):
        text += f" of {content['seeds']} seeds each"
    if winners:
        first, best = winners[0], winners[-1]
        text += f". The best now: {best['variant']}, held-out loss {_mean(best):.4f}"
        gain = (_mean(first) or 0.0) - (_mean(best) or 0.0)
        if best is not first:
            text += f", {gain:.4f} below {first['name']}"
    level = content.get("level")
    if is_number(level):
        text += (
            f". An entry is the best from then on if Welch's one-sided test against the best "
            f"before it gives p under {level:g}"
        )
    return f"{text}."


def _labels(entries: Sequence[Entry]) -> list[str]:
    """Returns the names of the entries; one that comes again has its place."""
    labels: list[str] = []
    for place, entry in enumerate(entries):
        label = entry["name"]
        if label in labels:
            label = f"{label} ({place})"
        labels.append(label)
    return labels


def _staircase(entries: Sequence[Entry]) -> Scatter:
    labels = _labels(entries)
    steps: list[Point] = []
    best: Entry | None = None
    for label, entry in zip(labels, entries, strict=True):
        if _wins(entry):
            best = entry
        mean = _mean(best) if best else None
        if best and mean is not None:
            steps.append(Point(x=label, y=mean, lines=[f"best so far: {best['variant']}"]))

    clouds = [Cloud(name="best so far", points=steps, is_line=True)]
    for is_winner, text in ((True, "entry that won"), (False, "entry that did not")):
        chosen = [
            (label, entry)
            for label, entry in zip(labels, entries, strict=True)
            if _wins(entry) is is_winner
        ]
        if chosen:
            clouds += _points(chosen, text, is_winner)
    won = [label for label, entry in zip(labels, entries, strict=True) if _wins(entry)]
    return Scatter(
        title="Held-out loss of every entry",
        about=f"{_ABOUT} In turn the best: {', '.join(won)}.",
        x=Axis(label="entry", categories=labels),
        y=Axis(label="held-out loss, nats"),
        clouds=clouds,
        is_main=True,
    )


def _points(chosen: Sequence[tuple[str, Entry]], text: str, is_winner: bool) -> list[Cloud]:
    """Returns the clouds of seeds and of means of some entries."""
    seeds, means = [], []
    for label, entry in chosen:
        said = _said(entry)
        for place, loss in enumerate(entry["losses"]):
            if loss is not None:
                lines = [f"{label}, seed {place}: {loss:.4f}", *said]
                seeds.append(Point(x=label, y=loss, lines=lines))
        mean = _mean(entry)
        if mean is not None:
            means.append(Point(x=label, y=mean, lines=[label, *said]))
    kind = {"is_more": is_winner, "is_context": not is_winner}
    return [
        Cloud(name=text, points=seeds, **kind),
        Cloud(name=f"{text}, mean", points=means, is_dash=True, **kind),
    ]


def _said(entry: Entry) -> list[str]:
    """Returns the figures of an entry in lines."""
    mean, sd = _mean(entry), _sd(entry)
    lines = ["a seed ended with no number"] if mean is None else [f"mean {mean:.4f}"]
    if sd is not None:
        lines[0] += f" ± {sd:.4f}"
    if is_number(entry.get("difference")) and is_number(entry.get("p")):
        lines.append(f"{entry['difference']:+.4f} against {entry.get('against')}")
        lines.append(f"p = {entry['p']:.2g}")
    lines.append(("does not win", "the best from here on")[_wins(entry)])
    return lines


def _table(entries: Sequence[Entry]) -> Table:
    rows = []
    best: dict[str, str] = {}  # variant → label

    for label, entry in zip(_labels(entries), entries, strict=True):
        is_best = _wins(entry)
        against = text_of(entry.get("against"))
        tokens = entry.get("tokens")
        shown = Cell(text=large(tokens), value=tokens) if is_number(tokens) else Cell(text="–")
        rows.append(
            [
                Cell(text=label, mark=is_best),
                Cell(text=best.get(against, against)),
                number(_mean(entry), ".4f"),
                number(_sd(entry), ".4f"),
                number(entry.get("difference"), "+.4f"),
                number(entry.get("p"), ".2g"),
                shown,
                number(entry.get("seconds"), ",.0f"),
                number(entry.get("flops"), ".3g"),
                Cell(text=("", "best")[is_best], mark=is_best),
            ]
        )
        if is_best:
            best[entry["variant"]] = label

    return Table(title="Entries; costs are medians of the seeds", columns=_COLUMNS, rows=rows)
