"""Time and FLOPs to equal loss: the clock by which papers on growth compare two runs.

CompoundGrow (arXiv 2010.12562) says how much sooner a run that grows is as good as one that does
not. Here both runs are compared by their held-out losses, between evaluations and never beyond
them.
"""

from __future__ import annotations

import math
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cramjax.config.views import Config
from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.files import check_types, read_json, write_json
from cramjax.parallel import processes
from cramjax.training import metrics

_NUMBER = (int, float)
_NEEDED = {
    "eval_loss": _NUMBER,
    "unigram_loss": _NUMBER,
    "elapsed_s": _NUMBER,
    "flops": _NUMBER,
}
_KEYS = ("eval_loss", "elapsed_s", "flops")


def reached(curve: Sequence[Mapping[str, float]], key: str, loss: float) -> float | None:
    """Returns the value of `key` when the held-out loss first fell to `loss`.

    Args:
        curve: evaluations in order. Between two of them the loss is a straight line.
        key: a number that grows along the curve, as "elapsed_s".
        loss: the loss to reach, in nats.

    Returns:
        The value, or None if the loss was never reached.
    """
    before = None
    for line in curve:
        if line["eval_loss"] <= loss:
            if before is None:
                return line[key]
            share = (before["eval_loss"] - loss) / (before["eval_loss"] - line["eval_loss"])
            return before[key] + share * (line[key] - before[key])
        before = line
    return None


def curve(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the evaluations of a run, in order.

    Lines that lack a loss, a time or FLOPs, or in which one is no number, are left out.
    """
    return list(_evaluations(metrics.read(workdir / "metrics.jsonl")))


def _evaluations(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if all(_is_finite(line.get(key)) for key in _KEYS):
            yield line


def _is_finite(value: Any) -> bool:
    # A file of JSON may hold True, and whole numbers that no float can hold.
    return type(value) in _NUMBER and abs(value) <= sys.float_info.max


def against(
    control: str | os.PathLike, workdir: pathlib.Path, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what it took a run and its control to be as good as the other in the end.

    Args:
        control: the workdir of the control, which has ended.
        workdir: the workdir of the run.
        summary: the run's.

    Returns:
        workdir, eval_loss, elapsed_s and flops of the control; reached_after_s and
        reached_after_flops of the run at the control's final loss; and the same of the control at
        the run's, with "control_" in front. Each is None if that loss was not reached.

    Raises:
        UserError: if the control has not ended, or was evaluated on other text.
    """
    folder = pathlib.Path(control)
    path = folder / "summary.json"
    if not path.exists():
        raise UserError(
            f"growth.control={control}: has no summary.json; when it has ended, start this run "
            "again with the same key, and its summary.json gets the time to equal loss"
        )
    cure = "name the workdir of a run that has ended"
    other = read_json(path, cure)
    check_types(other, _NEEDED, path, cure)
    if not all(_is_finite(other[key]) and other[key] > 0 for key in _NEEDED):
        raise UserError(f"{path}: its losses, seconds and FLOPs must be over 0; {cure}")
    # The loss of word frequencies depends on the tokens and positions that are scored, and nothing
    # else: another one means other text, tokenizer or sequences.
    if other["unigram_loss"] != summary["unigram_loss"]:
        raise UserError(
            f"growth.control={control}: was evaluated on other text (unigram baseline "
            f"{other['unigram_loss']:.4f} nats, here {summary['unigram_loss']:.4f}); name a run "
            "with the same data, data.seq_len and eval keys"
        )

    own, theirs = curve(workdir), curve(folder)
    found = {"workdir": str(control)} | {key: other[key] for key in _KEYS}
    found |= _after(own, other["eval_loss"], "")
    # JSON has null for NaN: a run that came to nothing has no loss to reach.
    own_loss = summary["eval_loss"]
    if own_loss is None or not math.isfinite(own_loss):
        theirs = []
        own_loss = math.inf
    return found | _after(theirs, own_loss, "control_")


def _after(evaluations: Sequence[dict[str, Any]], loss: float, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}reached_after_s": reached(evaluations, "elapsed_s", loss),
        f"{prefix}reached_after_flops": reached(evaluations, "flops", loss),
    }


def compared(
    config: Config, workdir: pathlib.Path, summary: dict[str, Any], announce: Announce
) -> dict[str, Any]:
    """Returns the summary of a run that has ended, with the entry "control" if it has one.

    The entry is `against`, or None where the two cannot be compared; `announce` is told why.
    """
    control = config.growth.control
    if control is None:
        return summary
    try:
        found = against(control, workdir, summary)
    except UserError as error:
        announce(f"no time to equal loss: {error}")
        return summary | {"control": None}
    announce(_described(found))
    return summary | {"control": found}


def compare_again(
    config: Config, workdir: pathlib.Path, summary: dict[str, Any], announce: Announce
) -> dict[str, Any]:
    """Returns the summary of a finished run compared anew, and writes it if that changes it.

    So the control may end after the run that grows.
    """
    again = compared(config, workdir, summary, announce)
    if again != summary and processes.is_first():
        write_json(workdir / "summary.json", again)
    return again


def _described(found: Mapping[str, Any]) -> str:
    """Returns one line on the time to equal loss."""
    after = found["reached_after_s"]
    if after is None:
        return (
            f"the loss of the control ({found['eval_loss']:.3f} nats) was not reached; the control "
            f"is {found['workdir']}"
        )
    return (
        f"the loss of the control ({found['eval_loss']:.3f} nats) was reached after "
        f"{after / found['elapsed_s']:.0%} of its time and "
        f"{found['reached_after_flops'] / found['flops']:.0%} of its FLOPs"
    )
