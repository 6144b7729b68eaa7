"""The sections about the results of runs: figures, curves, speed, where the time went, texts."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.reporting import curves, outcomes, spending, stages
from cramjax.reporting.blocks import (
    Axis,
    Block,
    Cell,
    Hidden,
    Lines,
    Note,
    Reading,
    Samples,
    Section,
    Series,
    Shown,
    Table,
    by_run,
    number,
    text_of,
)
from cramjax.reporting.drawing import X_AXES, Drawn
from cramjax.reporting.reading import RunFiles
from cramjax.reporting.words import is_number, large

MOST_READINGS = 6
"""Evaluations at which the page shows a text: early, late and some between."""

# Rows that a run which goes on has not settled yet.
_PASSING = ("spent", "precision")

MOST_SENTENCES = 4
"""Runs that have a sentence and a state each."""

# Key of a line → title and label of the axis, and whether it is logarithmic at first.
_CHARTS = {
    "lr": ("Learning rate", "learning rate", False),
    "batch_size": ("Batch", "sequences a step", False),
    "grad_norm": ("Gradient norm", "norm before clipping", True),
    "skipped": ("Skipped steps", "steps without an update, so far", False),
    "noise_scale": ("Gradient noise scale", "sequences", True),
}
_SPEED = {
    "tokens_per_s": ("Rate", "tokens a second"),
    "mfu": ("MFU", "share of the device's peak FLOPs"),
}
# Row of the table of results → how its number is written.
_RESULTS = {
    "eval_loss": ".4f",
    "eval_accuracy": ".2%",
    "bleu": ".2f",
    "chrf": ".2f",
    "unigram_loss": ".4f",
    "train_loss": ".4f",
    "steps": ",",
    "tokens": ",",
    "flops": ".4g",
    "params": ",",
    "elapsed_s": ",.1f",
    "progress": ".1%",
    "tokens_per_s": ",.0f",
    "mfu": ".2%",
    "goodput": ".2%",
    "data_wait_fraction": ".2%",
    "compile_s": ",.1f",
    "time_to_first_step_s": ",.1f",
    "skipped_updates": ",",
    "data_epochs": ".3g",
}


def names(runs: Sequence[RunFiles]) -> list[Shown]:
    """Returns the runs as the reader can hide them, with their state.

    A state that all of many runs have is left out.
    """
    states = [state(run) for run in runs]
    if len(runs) > MOST_SENTENCES and len(set(states)) == 1:
        states = [""] * len(runs)
    return [Shown(name=run.name, note=note) for run, note in zip(runs, states, strict=True)]


def state(run: RunFiles) -> str:
    """Returns whether a run has ended or how far it is."""
    if run.is_finished:
        return f"finished: {run.summary.get('stop_reason', 'no reason is noted')}"
    if not run.lines:
        return "no step is noted yet"
    progress = latest(run).get("progress")
    done = f"{progress:.0%} of the budget, " if is_number(progress) else ""
    written = datetime.datetime.fromtimestamp(run.written_s or 0.0, datetime.UTC)
    return f"{done}last line at {written:%Y-%m-%d %H:%M:%S} UTC; goes on, or was stopped"


def latest(run: RunFiles) -> dict[str, Any]:
    """Returns the figures of a run, named as in summary.json."""
    return outcomes.figures(run.lines, run.summary)


def sections(drawn: Sequence[Drawn], price: float | None) -> list[Section]:
    """Returns the sections about runs; `price` is that of an hour of each."""
    if not drawn:
        return []
    runs = [one.run for one in drawn]
    result = [
        Section(
            name="results",
            title="Results",
            blocks=[_results(runs), _accounts(runs)],
            intro=_headline(runs),
        ),
        Section(name="loss", title="Loss", blocks=_losses(drawn)),
        Section(name="training", title="Training", blocks=_charts(drawn, _CHARTS)),
        Section(
            name="speed",
            title="Speed and cost",
            blocks=[
                *_charts(drawn, {key: (*texts, False) for key, texts in _SPEED.items()}),
                *spending.blocks([(run.name, latest(run), run.lines) for run in runs], price),
            ],
        ),
    ]

    growth = stages.blocks(drawn)
    if growth:
        result.append(Section(name="growth", title="Stages of growth", blocks=growth))
    samples = [block for number, run in enumerate(runs) for block in _samples(number, run)]
    if samples:
        intro = (
            "Held-out text with hidden pieces, as the model filled them at its evaluations: the "
            f"same pieces every time. At most {MOST_READINGS} evaluations are shown; samples.jsonl "
            "has all."
        )
        result.append(
            Section(name="samples", title="What it learned when", blocks=samples, intro=intro)
        )
    return result


def _headline(runs: Sequence[RunFiles]) -> str:
    """Returns the results in a sentence a run; of many runs the best and the worst."""
    if len(runs) > MOST_SENTENCES:
        return _range(runs)
    sentences = []
    for run in runs:
        said = outcomes.held_out(latest(run)) or "No evaluation yet."
        sentences.append(f"{run.name} ({state(run)}): {said}")
    return " ".join(sentences)


def _range(runs: Sequence[RunFiles]) -> str:
    """Returns the lowest and the highest held-out loss of many runs."""
    losses = [(latest(run).get("eval_loss"), run) for run in runs]
    known = sorted(
        ((loss, run.name) for loss, run in losses if is_number(loss)), key=lambda one: one[0]
    )
    n_finished = sum(run.is_finished for run in runs)
    text = f"{len(runs)} runs, {n_finished} of them finished"
    if not known:
        return f"{text}. No evaluation yet."
    (low, best), (high, worst) = known[0], known[-1]
    return f"{text}. Held-out loss from {low:.3f} nats ({best}) to {high:.3f} ({worst})."


def _results(runs: Sequence[RunFiles]) -> Table:
    every = [latest(run) for run in runs]
    rows = []
    for key, form in _RESULTS.items():
        if any(is_number(values.get(key)) for values in every):
            rows.append([Cell(text=key), *(number(values.get(key), form) for values in every)])
    for key in ("stop_reason", "precision", "microbatch_size", "resumed_from", "bleu_signature"):
        if any(values.get(key) is not None for values in every):
            rows.append(
                [Cell(text=key), *(Cell(text=text_of(values.get(key))) for values in every)]
            )
    return by_run("Figures, named as in summary.json", [run.name for run in runs], rows)


def _accounts(runs: Sequence[RunFiles]) -> Table:
    """Returns the table of what each run was, with the rows of a model card."""
    every = []
    for run in runs:
        sources = outcomes.sources_of(run.config)
        rows = outcomes.rows(run.config, latest(run), run.environment, sources=sources)
        every.append({heading: "".join(pieces) for heading, pieces in rows.items()})
    table = []
    for heading in dict.fromkeys(heading for rows in every for heading in rows):
        texts = [rows.get(heading, "") for rows in every]
        is_marked = len(set(texts)) > 1 and heading not in _PASSING
        table.append([Cell(text=heading), *(Cell(text=text, mark=is_marked) for text in texts)])
    return by_run("The training in words", [run.name for run in runs], table)


def _losses(drawn: Sequence[Drawn]) -> list[Block]:
    loss, accuracy = [], []
    said = []
    for one in drawn:
        if one.train:
            loss.append(one.training("loss", curves.TRAIN, "faint"))
        if one.held_out:
            loss.append(one.losses("eval_loss", curves.HELD_OUT))
            accuracy.append(one.losses("eval_accuracy", "accuracy"))
            first, last = one.evaluations[0]["eval_loss"], one.evaluations[-1]["eval_loss"]
            said.append(
                f"{one.run.name}: {len(one.evaluations)} evaluations, held-out loss from "
                f"{first:.3f} to {last:.3f}."
            )
        unigram = latest(one.run).get("unigram_loss")
        if is_number(unigram):
            name = f"{one.run.name}: {curves.BASELINE}"
            loss.append(Series(name=name, run=one.number, style="level", x=None, y=[unigram]))

    marks = [mark for one in drawn for mark in stages.marks(one)]
    about = "Train loss (thin), held-out loss (points) and the unigram baseline (dashed). "
    charts: list[Block] = [
        Lines(
            title="Loss",
            about=about + _together(said),
            x=X_AXES,
            y=Axis(label=curves.LOSS),
            series=loss,
            marks=marks,
            is_main=True,
        )
    ]
    if accuracy:
        charts.append(
            Lines(
                title="Held-out accuracy",
                about="Share of hidden tokens that the most likely token is.",
                x=X_AXES,
                y=Axis(label="accuracy"),
                series=accuracy,
                marks=marks,
            )
        )
    charts += _scores(drawn)
    n_lines = max(one.n_lines for one in drawn)
    n_shown = max(len(one.train) for one in drawn)
    if n_lines > n_shown:
        text = f"A point of a curve stands for up to {-(-n_lines // n_shown)} lines of the metrics."
        charts.append(Note(text=text))
    return charts


def _together(sentences: Sequence[str]) -> str:
    """Returns what is said of each run; nothing of many, which have a table under the chart."""
    return " ".join(sentences) if len(sentences) <= MOST_SENTENCES else ""


def _scores(drawn: Sequence[Drawn]) -> list[Block]:
    """Returns the chart of BLEU, of the runs that score what they write."""
    scored = [one for one in drawn if one.scored]
    if not scored:
        return []
    said = [f"{one.run.name}: {one.scored[-1]['bleu']:.2f} at the last." for one in scored]
    return [
        Lines(
            title="BLEU",
            about="BLEU of what the network writes for held-out pairs. " + _together(said),
            x=X_AXES,
            y=Axis(label="BLEU"),
            series=[one.scores("bleu", "BLEU") for one in scored],
        )
    ]


def _charts(drawn: Sequence[Drawn], wanted: Mapping[str, tuple[str, str, bool]]) -> list[Block]:
    """Returns a chart for each key that any run has."""
    charts: list[Block] = []
    for key, (title, label, is_log) in wanted.items():
        series = []
        said = []
        for one in drawn:
            values = [line[key] for line in one.train if is_number(line.get(key))]
            if values:
                series.append(one.training(key, title.lower(), "solid"))
                said.append(f"{one.run.name}: {large(min(values))} to {large(max(values))}.")
        # A chart of nothing but zeros, as of skipped steps, says no more than the table.
        if any(any(one.y) for one in series):
            y = Axis(label=label, is_log=is_log)
            charts.append(Lines(title=title, about=_together(said), x=X_AXES, y=y, series=series))
    return charts


def _samples(number: int, run: RunFiles) -> list[Block]:
    """Returns the texts of samples.jsonl, each as it was read at every evaluation."""
    texts: list[list[Reading]] = []
    for line in _spread(run.samples, MOST_READINGS):
        listed = line.get("texts")
        if not isinstance(listed, list):
            continue
        for place, pieces in enumerate(listed):
            if len(texts) <= place:
                texts.append([])
            texts[place].append(Reading(label=_moment(line), pieces=_pieces(pieces)))
    if not texts:
        return []
    return [Samples(title=run.name, run=number, texts=texts)]


def _spread(lines: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Returns at most `most` lines at about equal distances, the first and the last among them."""
    if len(lines) <= most:
        return list(lines)
    places = {round(number * (len(lines) - 1) / (most - 1)) for number in range(most)}
    return [lines[place] for place in sorted(places)]


def _moment(line: Mapping[str, Any]) -> str:
    label = f"step {line['step']:,}"
    if is_number(line.get("tokens")):
        label += f" · {large(line['tokens'])} tokens"
    if is_number(line.get("eval_loss")):
        label += f" · loss {line['eval_loss']:.3f}"
    return label


def _pieces(listed: Any) -> list[str | Hidden]:
    """Returns texts and hidden pieces; a stranger's file may hold anything."""
    pieces: list[str | Hidden] = []
    for piece in listed if isinstance(listed, list) else []:
        if isinstance(piece, dict):
            pieces.append(Hidden(truth=str(piece.get("truth")), guess=str(piece.get("guess"))))
        else:
            pieces.append(str(piece))
    return pieces
