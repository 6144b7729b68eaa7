"""The outcome of a run in figures, sentences and rows: pages and model cards share them."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cramjax.config import pairs, replaced_tokens
from cramjax.reporting import words
from cramjax.reporting.words import is_number

_SCORES = ("bleu", "chrf")


class Name(str):
    """A text of others in a row, as of a file or a dataset: a card sets it as code."""


Pieces = list[str]
"""The text of a row in pieces, some of them names."""


def figures(lines: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of a run, named as in summary.json.

    Those that the summary does not have are the last values of the metrics; a figure that is no
    number any more is left out.

    Args:
        lines: of metrics.jsonl.
        summary: content of summary.json; {} for a run that goes on.
    """
    values: dict[str, Any] = {}
    for line in lines:
        values |= line
    if values:
        values["steps"] = values["step"]
    if "loss" in values:
        values["train_loss"] = values["loss"]
    if summary:
        # Scores on the way say nothing about the end.
        values = {key: value for key, value in values.items() if key not in _SCORES}
    values |= summary
    return {key: value for key, value in values.items() if value is not None}


def held_out(values: Mapping[str, Any]) -> str:
    """Returns the held-out results among the figures of a run in sentences; "" without any."""
    sentences = [_loss(values), _detection(values), _translations(values)]
    return " ".join(filter(None, sentences))


def _loss(values: Mapping[str, Any]) -> str:
    if not is_number(values.get("eval_loss")):
        return ""
    text = f"The loss on held-out documents is {values['eval_loss']:.3f} nats per predicted token"
    if is_number(values.get("eval_accuracy")):
        text += f", the accuracy is {values['eval_accuracy']:.1%}"
    text += "."
    if is_number(values.get("unigram_loss")):
        text += (
            f" A model that knows only word frequencies has a loss of {values['unigram_loss']:.3f}."
        )
    return text


def _detection(values: Mapping[str, Any]) -> str:
    if not all(is_number(values.get(key)) for key in ("detection_accuracy", "original")):
        return ""
    return (
        "These are figures of the generator, which is trained beside the model. The model itself "
        f"judges {values['detection_accuracy']:.1%} of all held-out tokens right; "
        f"{values['original']:.1%} of them are original."
    )


def _translations(values: Mapping[str, Any]) -> str:
    if not is_number(values.get("bleu")):
        return ""
    text = f"Its translations of held-out sources have BLEU {values['bleu']:.2f}"
    if is_number(values.get("chrf")):
        text += f" and chrF {values['chrf']:.2f}"
    return f"{text}."


def rows(
    config: Mapping[str, Any],
    values: Mapping[str, Any],
    environment: Mapping[str, Any],
    *,
    sources: Sequence[str],
    n_entries: int | None = None,
) -> dict[str, Pieces]:
    """Returns what a run was and what it spent: heading → text in pieces.

    A row is left out if the files do not say enough for it.

    Args:
        config: content of config.json.
        values: the figures of the run.
        environment: content of environment.json.
        sources: of its text, as they are shown.
        n_entries: of its tokenizer; None if nobody has counted them.
    """
    made: dict[str, Callable[[], Pieces]] = {
        "data": lambda: _listed(sources),
        "objective": lambda: _objective(config["objective"], config["data"]),
        "tokenizer": lambda: _tokenizer(config["data"], n_entries),
        "sequence": lambda: [f"{config['data']['seq_len']} tokens"],
        "budget": lambda: [_budget(config["budget"])],
        "spent": lambda: [words.amounts(values)],
        "batch": lambda: [f"up to {config['batch_size']:,} sequences"],
        "optimizer": lambda: [_optimizer(config["optimizer"], config["schedule"])],
        "hardware": lambda: [words.hardware(environment)],
        "precision": lambda: [str(values.get("precision", config["precision"]))],
    }

    found = {}
    for heading, pieces in made.items():
        # A file of an old version lacks keys, and a stranger's may have anything in them.
        with contextlib.suppress(
            LookupError, TypeError, ValueError, ArithmeticError, AttributeError
        ):
            found[heading] = pieces()
    return found


def sources_of(config: Mapping[str, Any]) -> list[str]:
    """Returns the sources of the training text, as data.source names them; [] without any."""
    data = config.get("data")
    source = data.get("source", []) if isinstance(data, Mapping) else []
    if isinstance(source, str):
        return [source]
    # A mixture lists (source, weight).
    parts = source if isinstance(source, list | tuple) else []
    return [str(part[0]) for part in parts if isinstance(part, list | tuple) and part]


def _listed(names: Sequence[str]) -> Pieces:
    pieces: Pieces = []
    for name in names:
        pieces += [", ", Name(name)] if pieces else [Name(name)]
    return pieces


def _objective(objective: Mapping[str, Any], data: Mapping[str, Any]) -> Pieces:
    if objective["name"] == pairs.OBJECTIVE:
        pieces: Pieces = ["text to text: the target of each source, from pairs"]
        if data["source_prefix"]:
            pieces += ["; each source begins with ", Name(data["source_prefix"])]
        return pieces
    if objective["name"] == "span_corruption":
        return [
            f"span corruption, {objective['noise_density']:.0%} of the tokens, "
            f"in spans of {objective['mean_span']:g} tokens on average"
        ]
    predicted = f"{objective['mask_rate']:.0%} of the positions predicted"
    if objective["name"] == "script":
        return [f"masked language modelling with a critic of its guesses (SCRIPT), {predicted}"]
    if objective["name"] == replaced_tokens.OBJECTIVE:
        return [f"finding the tokens that a small generator replaced (ELECTRA), {predicted} by it"]
    if objective.get("hard_masks"):
        return [f"masked language modelling, {predicted}, hard tokens more often"]
    return [f"masked language modelling, {predicted}"]


def _tokenizer(data: Mapping[str, Any], n_entries: int | None) -> Pieces:
    pieces: Pieces = [Name(pathlib.PurePath(data["tokenizer"]).name)]
    if n_entries:  # data.vocab_size is only the most that a new tokenizer may have
        pieces.append(f", {n_entries:,} entries")
    return pieces


def _budget(budget: Mapping[str, Any]) -> str:
    limits = [f"{value:g} {unit}" for unit, value in budget.items() if value is not None]
    return f"{', '.join(limits)} (learning rate and batch size follow the share that is spent)"


def _optimizer(optimizer: Mapping[str, Any], schedule: Mapping[str, Any]) -> str:
    return (
        f"{optimizer['name']}, peak learning rate {optimizer['lr']:g}, schedule {schedule['name']}"
    )
