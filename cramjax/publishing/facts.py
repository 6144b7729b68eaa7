"""Reads what a run or a finetuning noted about a model: the facts of its model card."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.checkpoints.sealing import noted_config
from cramjax.config import stored
from cramjax.errors import UserError
from cramjax.files import check_types, read_json
from cramjax.glue.tasks import OTHER, SUITES, TITLES
from cramjax.publishing import starts
from cramjax.publishing.starts import Start
from cramjax.reporting import outcomes
from cramjax.reporting.reading import read_lines
from cramjax.tasks import catalogue

FINETUNINGS = pathlib.Path("runs/finetune")
"""The folder of `tools.finetune` without --out."""


_NUMBER = (int, float)
_NONE = type(None)
_CURE = "restore the file"

# Dotted key → its types, of what the card reads.
_ENVIRONMENT = {
    "command": (str, _NONE),
    "git": (str, _NONE),
    "packages": (dict, _NONE),
    "devices": (list, _NONE),
}
_SETTINGS = {
    "settings.dropout": _NUMBER,
    "settings.attention_dropout": _NUMBER,
    "settings.pooling": (str,),
    "settings.single_as_pair": (bool,),
    "settings.max_length": (int,),
}
_RESULTS = {
    "suite": (str,),
    "model": (str,),
    "protocol.name": (str,),
    "protocol.source": (str,),
    "command": (str, _NONE),
}
_SPREAD = {"median": _NUMBER, "std": _NUMBER, "seeds": (list,)}
_SPENT = (
    "steps", "tokens", "flops", "params", "elapsed_s", "eval_loss", "eval_accuracy", "unigram_loss",
    "bleu", "chrf", "detection_accuracy", "original",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts about the model in a folder.

    Attributes:
        folder: its path.
        config: the configuration of the run; {} for a finetuned or compressed model.
        environment: the environment of the run; {} without one.
        spent: figures at the checkpoint, named as in summary.json.
        finetuned: task, suite, labels, settings and seed of a finetuned model; None for a run.
        results: content of a results.json of `tools.finetune`, or None.
        scores: metric → score of this one finetuned model, in percent.
        compression: what was done to a packed model; None for others.
        starts: those of the run that the model has its training from; empty if nothing says.
        n_entries: of its tokenizer; None if nobody has counted them.
    """

    folder: pathlib.Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    spent: Mapping[str, Any]
    finetuned: Mapping[str, Any] | None
    results: Mapping[str, Any] | None
    scores: Mapping[str, float]
    compression: Mapping[str, Any] | None = None
    starts: Sequence[Start] = ()
    n_entries: int | None = None


def find_results(checkpoint: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the results.json that `tools.finetune` wrote for `checkpoint` into its usual folder.

    That folder is runs/finetune/NAME-PROTOCOL. Returns None if there is no such file, or files of
    several protocols.
    """
    name = pathlib.Path(checkpoint).resolve().name
    results = []
    for path in FINETUNINGS.glob(f"{name}-*/results.json"):
        # The name of a protocol has no "-": "NAME-untrained-PROTOCOL" is another model.
        if path.parent.name.count("-") == name.count("-") + 1:
            results.append(path)
    return results[0] if len(results) == 1 else None


def read_facts(folder: pathlib.Path, results: pathlib.Path | None, step: int | None) -> Facts:
    """Returns the facts about the model of a run or of a finetuning.

    Args:
        folder: of the run, of the finetuned model or of the packed model.
        results: a results.json of `tools.finetune` for it, or None.
        step: of the checkpoint; None for a model without steps.

    Raises:
        UserError: if `results` is not a results.json of `tools.finetune`.
    """
    where = folder / "config.json"
    if not where.exists():
        where = folder / "packed.json"
    config = _read_object(where) or {}
    # A later start may have written another config.json, and failed before it trained anything.
    noted = None if step is None else noted_config(folder / "checkpoints", step)
    if noted:
        where = folder / "checkpoints" / str(step)
        config = noted
    finetuned = config.get("finetuned")
    compression = config.get("compression")
    spent = {}
    if not finetuned:
        spent = _read_spent(folder, step)
    if finetuned or compression:
        _check_notes(finetuned, compression, where)
        config = {}  # the content of config.json is not that of a run
    elif config:
        config = stored.current(config, str(where), _CURE)

    scored, scores = None, {}
    if results is not None:
        scored = _read_results(results)
        if not scored:
            raise UserError(
                f"--results {results}: is no results.json of tools.finetune; "
                "name one, or leave --results out"
            )
    elif finetuned:
        scored, scores = _read_finetuning(folder.resolve(), finetuned["task"])

    environment = _read_object(folder / "environment.json") or {}
    check_types(environment, _ENVIRONMENT, folder / "environment.json", _CURE)
    return Facts(
        folder=folder,
        config=config,
        environment=environment,
        spent=spent,
        finetuned=finetuned,
        compression=compression,
        results=scored,
        scores=scores,
        starts=starts.read(folder, step),
    )


def _check_notes(finetuned: Any, compression: Any, where: pathlib.Path) -> None:
    """Raises UserError if the notes about a finetuned or compressed model are damaged."""
    if finetuned:
        check_types({"finetuned": finetuned}, {"finetuned": (dict,)}, where, _CURE)
        check_types(
            finetuned, {"task": (str,), "suite": (str,), "seed": (int,)} | _SETTINGS, where, _CURE
        )
        known = {task.name for task in SUITES.get(finetuned["suite"], ())}
        if finetuned["suite"] == OTHER:
            catalogue.noted_task(finetuned)
        elif finetuned["task"] not in known:
            raise UserError(f"{where}: finetuned names no task that is known; {_CURE}")
    if compression:
        check_types({"compression": compression}, {"compression": (dict,)}, where, _CURE)
        check_types(compression, {"prune": _NUMBER, "bits": (int,)}, where, _CURE)


def _read_results(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns a results.json of `tools.finetune`; None if there is none, or it is another file."""
    content = _read_object(path)
    if not content or "protocol" not in content:
        return None
    check_types(content, _RESULTS, path, _CURE)
    if content["suite"] not in TITLES:
        raise UserError(f"{path}: suite={content['suite']!r:.80} is not known; {_CURE}")
    for name in task_names(content):
        entry = content.get(name, {})
        check_types({"entry": entry}, {"entry": (dict,)}, path, _CURE)
        for spread in entry.values():
            if isinstance(spread, dict) and "median" in spread:
                check_types(spread, _SPREAD, path, _CURE)
    return content


def task_names(results: Mapping[str, Any]) -> list[str]:
    """Returns the names of the tasks that a results.json may have, in the order of their suite."""
    if results["suite"] != OTHER:
        return [task.name for task in SUITES[results["suite"]]]
    return [
        name for name, entry in results.items() if isinstance(entry, dict) and "n_eval" in entry
    ]


def _read_finetuning(
    folder: pathlib.Path, task: str
) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """Returns the results.json around a finetuned model's `folder`, and the scores of this model.

    `tools.finetune` saves models as OUT/models/TASK/point-i/seed-n. A model that was moved away
    from there has neither: None and {}.
    """
    if len(folder.parents) < 4 or folder.parents[2].name != "models":
        return None, {}
    out = folder.parents[3]
    path = (out / "runs" / folder.relative_to(out / "models")).with_suffix(".json")
    run = _read_object(path)
    if not run:
        return _read_results(out / "results.json"), {}
    check_types(run, {f"metrics.{task}": (dict,)}, path, _CURE)
    scores = run["metrics"][task]
    check_types(scores, dict.fromkeys(scores, _NUMBER), path, _CURE)
    return _read_results(out / "results.json"), scores


def _read_spent(folder: pathlib.Path, step: int | None) -> dict[str, Any]:
    """Returns the figures of summary.json, or the metrics up to a `step` before the run's end.

    A line that a crash cut short is left out.
    """
    where = folder / "summary.json"
    summary = _read_object(where)
    if summary is None or step not in (None, summary.get("steps")):
        where = folder / "metrics.jsonl"
        lines = read_lines(where, [])
        lines = [line for line in lines if step is None or line["step"] <= step]
        summary = {"steps": step} | outcomes.figures(lines, {})
    numbers = {key: summary[key] for key in _SPENT if summary.get(key) is not None}
    check_types(numbers, dict.fromkeys(numbers, _NUMBER), where, _CURE)
    if isinstance(summary.get("precision"), str):
        numbers["precision"] = summary["precision"]
    return numbers


def _read_object(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file, or None without a file; raises UserError if damaged."""
    return read_json(path, _CURE) if path.exists() else None
