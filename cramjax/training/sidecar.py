"""Checks the JSON that a run saved beside the arrays of a checkpoint, before anything uses it.

`training/milestones` writes it. A checkpoint that was killed before it was sealed has no checksums,
and its disk may have lost any part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cramjax.config import stored
from cramjax.errors import UserError
from cramjax.files import check_types

_NUMBER = (int, float)
_NONE = type(None)

_ALWAYS = {
    "clock": (dict,),
    "clock.elapsed_s": _NUMBER,
    "clock.steps": (int,),
    "clock.tokens": (int,),
    "clock.flops": _NUMBER,
    "clock.rows": (int,),
    "clock.fraction": _NUMBER,
    "clock.limits": (dict,),
    "clock.ended_by": (str, _NONE),
    "spent": (dict,),
    "tokenizer_sha256": (str,),
    "model": (dict,),
    "optimizer": (str,),
}
# Versions up to 0.2.0 did not write all of these.
_LATER = {
    "stage": {"stage": (int,)},
    "stop_reason": {"stop_reason": (str, _NONE)},
    "config": {"config": (dict,)},
    "dataset": {"dataset.directory": (str,), "dataset.fingerprint": (str, _NONE)},
    "kept_for_hours": {"kept_for_hours": (list,)},
    "scorings": {"scorings.every": _NUMBER, "scorings.n_passed": (int,)},
    "evaluations": {"evaluations.every": _NUMBER, "evaluations.n_passed": (int,)},
    "record": {
        "record.recent": (list,),
        "record.window": (list,),
        "record.noise": (list, _NONE),
        "record.skipped": (int,),
        "record.first_step_s": (*_NUMBER, _NONE),
        "record.evaluated_step": (int, _NONE),
        "record.evaluated": (list, _NONE),
    },
}


def check(sidecar: Mapping[str, Any]) -> None:
    """Raise ValueError if an entry is missing or of another type."""
    kinds: dict[str, tuple[type, ...]] = dict(_ALWAYS)
    for name, more in _LATER.items():
        if name in sidecar:
            kinds |= more
    where = "its sidecar"
    cure = "the checkpoint is damaged"
    try:
        check_types(sidecar, kinds, where, cure)
        check_types(sidecar["spent"], dict.fromkeys(sidecar["spent"], _NUMBER), where, cure)
        if "config" in sidecar:
            stored.current(sidecar["config"], where, cure)
    except UserError as error:
        # For a checkpoint damage is no mistake: the one before it may be whole.
        raise ValueError(str(error)) from error
    if sidecar["clock"]["steps"] < 1 or sidecar["clock"]["rows"] < 0 or sidecar.get("stage", 0) < 0:
        raise ValueError(f"{where} counts less than nothing; {cure}")
