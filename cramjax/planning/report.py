"""Plans as people look at them: a table, and a picture of memory and of what the budget buys."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from cramjax.planning.plan import Plan

GIB = 2**30
_KINDS = {
    "parameters": "#3b6fb6",
    "optimizer": "#7fa8d9",
    "activations": "#e0a040",
    "temporaries": "#c9c9c9",
}
_HEAD = (
    "device", "fits", "microbatch", "GiB needed", "of", "params", "optim", "activ", "temp", "precision", "attention",
    "step ms", "bound by", "tokens/s", "tokens", "steps", "hours",
)  # fmt: skip


def table(plans: Sequence[Plan]) -> str:
    """A line for each plan, with notes and remedies below; rates are the best there can be, so tokens and steps are at most these."""
    rows = [_HEAD, *map(_row, plans)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, 1, 9, 10, 12) else cell.rjust(width) for i, (cell, width) in enumerate(cells)
        )
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    notes = [f"{plan.card.name}: {plan.note}" for plan in plans if plan.note]
    notes += [f"{plan.card.name}: does not fit; {_advice(plan)}" for plan in plans if not plan.fits]
    whole = "microbatch: the largest that fits; rates: at most, by the card's dense peak and its memory's bandwidth"
    return "\n".join([*map(str.rstrip, lines), whole, *notes])


def _row(plan: Plan) -> tuple[str, ...]:
    n = plan.card.n_devices
    gib = {kind: f"{plan.memory[kind] / GIB:.1f}" for kind in (*_KINDS, "needed", "limit")}
    slowest = max(plan.step_s, key=plan.step_s.get)
    step_ms = 1e3 * plan.step_s[slowest]
    return (
        plan.card.name + (f" ({n} devices)" if n > 1 else ""),
        "yes" if plan.fits else "no",
        "-" if plan.microbatch_size is None else f"{plan.microbatch_size:,}",
        gib["needed"],
        gib["limit"],
        *(gib[kind] for kind in _KINDS),
        plan.precision,
        plan.attention,
        f"{step_ms:,.0f}" if step_ms >= 10 else f"{step_ms:.2g}",
        slowest,
        f"{plan.tokens_per_s:,.0f}",
        _large(plan.tokens),
        f"{plan.steps:,.0f}",
        f"{plan.hours:.3g}",
    )


def _advice(plan: Plan) -> str:
    if plan.remedies:
        return "these settings do: " + ", ".join(plan.remedies)
    if plan.source == "analytic":
        return (
            "try --config.model.remat=full, --config.optimizer.name=adafactor, or --config.mesh.fsdp=-1 on more devices"
        )
    return "take a smaller model, shorter sequences, or more devices with --config.mesh.data=1 --config.mesh.fsdp=-1"


def _large(number: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:,.0f}"


def plot(plans: Sequence[Plan], path: pathlib.Path) -> None:
    """Draw for each device the memory of a step by kind beside its limit, and the tokens that the budget buys at most."""
    # matplotlib takes most of a second to import; the pyplot interface would also leave figures in memory.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(14, 1.5 + 0.42 * len(plans)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    memory, bought = figure.subplots(1, 2, sharey=True)
    places = range(len(plans))
    left = [0.0] * len(plans)
    for kind, colour in _KINDS.items():
        sizes = [plan.memory[kind] / GIB for plan in plans]
        memory.barh(places, sizes, left=left, color=colour, label=kind, height=0.7)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for place, plan in zip(places, plans, strict=True):
        limit = plan.memory["limit"] / GIB
        memory.plot([limit, limit], [place - 0.42, place + 0.42], color="#b02020", linewidth=2)
        size = "does not fit" if plan.microbatch_size is None else f"{plan.microbatch_size} a pass"
        memory.text(max(left[place], limit), place, f"  {size}", va="center", fontsize=8)
        bought.text(plan.tokens, place, f" {_large(plan.tokens)}", va="center", fontsize=8)
    colours = ["#5a9367" if plan.fits else "#d9d9d9" for plan in plans]
    bought.barh(places, [plan.tokens for plan in plans], color=colours, height=0.7)
    memory.plot([], [], color="#b02020", linewidth=2, label="limit")
    memory.set_yticks(places, [plan.card.name + ("*" if plan.source == "analytic" else "") for plan in plans])
    memory.invert_yaxis()
    memory.set_xlabel(
        "GiB of a device" + (" (* by formula)" if any(plan.source == "analytic" for plan in plans) else "")
    )
    memory.set_xlim(0, 1.18 * max(max(left), *(plan.memory["limit"] / GIB for plan in plans)))
    memory.legend(fontsize=8, frameon=False, loc="lower right")
    bought.set_xscale("log")
    bought.xaxis.set_major_formatter(EngFormatter(sep=" "))
    bought.set_xlabel("tokens the budget buys, at most")
    for axes in (memory, bought):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
