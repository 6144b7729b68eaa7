"""Reads what a run or a finetuning noted about a model: the facts of its model card."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from cramjax.errors import UserError

FINETUNINGS = pathlib.Path("runs/finetune")
"""The folder of `tools.finetune` without --out."""


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
    """

    folder: pathlib.Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    spent: Mapping[str, Any]
    finetuned: Mapping[str, Any] | None
    results: Mapping[str, Any] | None
    scores: Mapping[str, float]
    compression: Mapping[str, Any] | None = None


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
    config = _read_object(folder / "config.json") or _read_object(folder / "packed.json") or {}
    finetuned = config.get("finetuned")
    compression = config.get("compression")
    spent = {}
    if not finetuned:
        spent = _read_spent(folder, step)
    if finetuned or compression:
        config = {}  # the content of config.json is not that of a run

    scored, scores = None, {}
    if results is not None:
        scored = _read_object(results)
        if not scored or "protocol" not in scored:
            raise UserError(
                f"--results {results}: is no results.json of tools.finetune; "
                "name one, or leave --results out"
            )
    elif finetuned:
        scored, scores = _read_finetuning(folder.resolve(), finetuned["task"])

    return Facts(
        folder=folder,
        config=config,
        environment=_read_object(folder / "environment.json") or {},
        spent=spent,
        finetuned=finetuned,
        compression=compression,
        results=scored,
        scores=scores,
    )


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
    run = _read_object((out / "runs" / folder.relative_to(out / "models")).with_suffix(".json"))
    scores = run["metrics"][task] if run else {}
    return _read_object(out / "results.json"), scores


def _read_spent(folder: pathlib.Path, step: int | None) -> dict[str, Any]:
    """Returns summary.json, or the metrics up to a `step` before the end of the run."""
    summary = _read_object(folder / "summary.json")
    if summary and step in (None, summary["steps"]):
        return summary

    # The last value of each metric, as summary.json would have it.
    latest: dict[str, Any] = {}
    if (folder / "metrics.jsonl").is_file():
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if step is None or entry["step"] <= step:
                latest |= entry
    return {"steps": latest.pop("step", step), "train_loss": latest.pop("loss", None)} | latest


def _read_object(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file, or None if there is no such file or object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
