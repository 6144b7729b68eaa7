"""The section about plans of `tools.plan --json`: memory by kind, time by kind, purchases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.reporting.blocks import Bars, Block, Cell, Section, Table, number
from cramjax.reporting.words import is_number, large, size

_KINDS = ("parameters", "optimizer", "activations", "temporaries")
_GIB = 2**30
_COLUMNS = (
    "device", "fits", "microbatch", "memory needed", "of", "step, ms at least",
    "step, ms expected", "tokens/s expected", "MFU expected", "hours", "tokens", "note",
)  # fmt: skip

Plan = Mapping[str, Any]


def entries(content: Any) -> list[Plan]:
    """Returns the plans in the content of such a file; [] if it is another file."""
    listed = content.get("plans") if isinstance(content, dict) else None
    return [plan for plan in listed if _is_plan(plan)] if isinstance(listed, list) else []


def _is_plan(value: Any) -> bool:
    is_entry = isinstance(value, dict) and isinstance(value.get("device"), str)
    return is_entry and isinstance(value.get("memory"), dict)


def section(name: str, plans: Sequence[Plan], place: int) -> Section:
    """Returns the section about the plans of a file with this name."""
    names = [plan["device"] for plan in plans]
    parts = {}
    for kind in _KINDS:
        parts[kind] = [round(_bytes(plan, kind) / _GIB, 4) for plan in plans]
    limits = [round(_bytes(plan, "limit") / _GIB, 4) or None for plan in plans]
    fitting = ", ".join(plan["device"] for plan in plans if plan.get("fits")) or "none"
    blocks: list[Block] = [
        Bars(
            title="Memory of a step by kind",
            about=f"It fits: {fitting}. The line is the memory that a step may take.",
            label="GiB of a device",
            names=names,
            parts=parts,
            limits=limits,
        ),
        *_times(plans),
        Table(title="Plans", columns=_COLUMNS, rows=[_row(plan) for plan in plans]),
    ]
    return Section(name=f"plan-{place}", title=f"Plan {name}", blocks=blocks)


def _bytes(plan: Plan, kind: str) -> float:
    value = plan["memory"].get(kind)
    return value if is_number(value) else 0.0


def _times(plans: Sequence[Plan]) -> list[Block]:
    """Returns the chart of expected times by kind of kernel, of the plans that have them."""
    known = [plan for plan in plans if isinstance(plan.get("expected_s_by_kind"), dict)]
    kinds = dict.fromkeys(str(kind) for plan in known for kind in plan["expected_s_by_kind"])
    if not kinds:
        return []
    parts = {}
    for kind in kinds:
        listed = [plan["expected_s_by_kind"].get(kind) for plan in known]
        parts[kind] = [round(1e3 * value, 4) if is_number(value) else 0.0 for value in listed]
    said = []
    for plan in known:
        if is_number(plan.get("expected_step_s")):
            said.append(f"{plan['device']}: {1e3 * plan['expected_step_s']:,.3g} ms a step.")
    return [
        Bars(
            title="Expected time of a step by kind of kernel",
            about=" ".join(said),
            label="milliseconds",
            names=[plan["device"] for plan in known],
            parts=parts,
        )
    ]


def _row(plan: Plan) -> list[Cell]:
    bounds = plan.get("step_s")
    times = list(bounds.values()) if isinstance(bounds, dict) else []
    least_ms = max((1e3 * value for value in times if is_number(value)), default=None)
    expected_ms = plan.get("expected_step_s")
    if is_number(expected_ms):
        expected_ms *= 1e3

    notes = [plan.get("note"), plan.get("expected_note")]
    remedies = plan.get("remedies")
    if isinstance(remedies, list) and remedies:
        notes.append("these settings fit: " + ", ".join(map(str, remedies)))
    return [
        Cell(text=plan["device"]),
        Cell(text=("no", "yes")[bool(plan.get("fits"))], mark=not plan.get("fits")),
        number(plan.get("microbatch_size"), ",.0f"),
        Cell(text=size(_bytes(plan, "needed")), value=_bytes(plan, "needed")),
        Cell(text=size(_bytes(plan, "limit")), value=_bytes(plan, "limit")),
        number(least_ms, ",.3g"),
        number(expected_ms, ",.3g"),
        number(plan.get("expected_tokens_per_s"), ",.0f"),
        number(plan.get("expected_mfu"), ".1%"),
        number(_first(plan, "expected_hours", "hours"), ".3g"),
        Cell(text=_tokens(plan)),
        Cell(text="; ".join(str(note) for note in notes if note)),
    ]


def _first(plan: Plan, *keys: str) -> float | None:
    return next((plan[key] for key in keys if is_number(plan.get(key))), None)


def _tokens(plan: Plan) -> str:
    tokens = _first(plan, "expected_tokens", "tokens")
    return "–" if tokens is None else large(tokens)
