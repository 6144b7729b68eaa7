"""Plans as people look at them: tables, a list of kernels, and a picture of memory and of what the budget buys."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from cramjax import figures
from cramjax.planning import kernels
from cramjax.planning.ledger import Row
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
_EXPECTED_HEAD = (
    "expected",
    "step ms",
    "tokens/s",
    "MFU",
    "tokens",
    "steps",
    "hours",
    *kernels.KINDS,
    "",
)
_KERNEL_HEAD = ("ms", "count", "kind", "GFLOP", "MB read", "written", "kernel", "operation")


def table(plans: Sequence[Plan]) -> str:
    """A line for each plan, with notes and remedies below: the best there can be, and then what is expected, with its share by kind."""
    lines = _aligned([_HEAD, *map(_row, plans)], left=(0, 1, 9, 10, 12))
    notes = [f"{plan.card.name}: {plan.note}" for plan in plans if plan.note]
    notes += [f"{plan.card.name}: does not fit; {_advice(plan)}" for plan in plans if not plan.fits]
    whole = "microbatch: the largest that fits; rates: at most, by the card's dense peak and its memory's bandwidth"
    return "\n".join([*lines, whole, *notes, "", *_expected(plans)])


def _expected(plans: Sequence[Plan]) -> list[str]:
    """Lines on what is expected of each plan, and of which nothing is."""
    known = [plan for plan in plans if plan.expected]
    notes = [f"{plan.card.name}: {plan.expected.note}" for plan in known if plan.expected.note]
    notes += [f"{plan.card.name}: {plan.unexpected}" for plan in plans if not plan.expected]
    if not known:
        return notes
    lines = _aligned(
        [_EXPECTED_HEAD, *map(_expected_row, known)], left=(0, len(_EXPECTED_HEAD) - 1)
    )
    whole = "expected: every kernel of the compiled step at the rate such kernels reach; MFU of the dense peak"
    return [*lines, whole, *notes]


def _expected_row(plan: Plan) -> tuple[str, ...]:
    expected = plan.expected
    kinds = [f"{expected.s_by_kind[kind] / expected.step_s:.0%}" for kind in kernels.KINDS]
    return (
        plan.card.name,
        _ms(expected.step_s),
        f"{expected.tokens_per_s:,.0f}",
        f"{expected.mfu:.1%}",
        _large(expected.tokens),
        f"{expected.steps:,.0f}",
        f"{expected.hours:.3g}",
        *kinds,
        expected.basis,
    )


def kernel_list(ledger: Sequence[Row], n_rows: int) -> str:
    """The kernels of a step that take longest: one a line, those of equal work and origin together."""
    together: dict[tuple, list[Row]] = {}
    for row in ledger:
        kernel = row.kernel
        together.setdefault(
            (kernel.kind, kernel.work, re.sub(r"\d+", "", kernel.op_name)), []
        ).append(row)
    groups = sorted(together.values(), key=lambda rows: -sum(row.seconds for row in rows))

    lines = _aligned([_KERNEL_HEAD, *map(_kernel_row, groups[:n_rows])], left=(2, 6, 7))
    rest = 1e3 * sum(row.seconds for rows in groups[n_rows:] for row in rows)
    whole = 1e3 * sum(row.seconds for row in ledger)
    return "\n".join([*lines, f"the other {len(groups[n_rows:])}: {rest:.2f} ms of {whole:.2f}"])


def _kernel_row(rows: Sequence[Row]) -> tuple[str, ...]:
    kernel = rows[0].kernel
    return (
        f"{1e3 * sum(row.seconds for row in rows):.2f}",
        f"{sum(row.kernel.count for row in rows):,}",
        kernel.kind,
        f"{kernel.work.flops / 1e9:,.1f}",
        f"{kernel.work.read / 1e6:,.1f}",
        f"{kernel.work.written / 1e6:,.1f}",
        kernel.name,
        kernel.op_name,
    )


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lines of the rows, columns under each other; those of `left` start at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(plan: Plan) -> tuple[str, ...]:
    n = plan.card.n_devices
    gib = {kind: f"{plan.memory[kind] / GIB:.1f}" for kind in (*_KINDS, "needed", "limit")}
    slowest = max(plan.step_s, key=plan.step_s.get)
    return (
        plan.card.name + (f" ({n} devices)" if n > 1 else ""),
        "yes" if plan.fits else "no",
        "-" if plan.microbatch_size is None else f"{plan.microbatch_size:,}",
        gib["needed"],
        gib["limit"],
        *(gib[kind] for kind in _KINDS),
        plan.precision,
        plan.attention,
        _ms(plan.step_s[slowest]),
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
        return "try --config.model.remat=full, --config.optimizer.name=adafactor, or --config.mesh.fsdp=-1 on more devices"
    return "take a smaller model, shorter sequences, or more devices with --config.mesh.data=1 --config.mesh.fsdp=-1"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.01 else f"{1e3 * seconds:.2g}"


def _large(number: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:,.0f}"


def plot(plans: Sequence[Plan], path: pathlib.Path) -> None:
    """Draw for each device the memory of a step by kind beside its limit, and the tokens that the budget buys, at most and expected."""
    from matplotlib.ticker import EngFormatter

    figure = figures.new_figure(14, 1.5 + 0.42 * len(plans), dpi=110)
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

    colours = ["#b5d3bc" if plan.fits else "#d9d9d9" for plan in plans]
    bought.barh(places, [plan.tokens for plan in plans], color=colours, height=0.7, label="at most")
    known = [(place, plan.expected.tokens) for place, plan in enumerate(plans) if plan.expected]
    if known:
        bought.barh(*zip(*known, strict=True), color="#3f7d50", height=0.4, label="expected")
        bought.legend(
            fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2
        )

    memory.plot([], [], color="#b02020", linewidth=2, label="limit")
    memory.set_yticks(
        places, [plan.card.name + ("*" if plan.source == "analytic" else "") for plan in plans]
    )
    memory.invert_yaxis()
    memory.set_xlabel(
        "GiB of a device"
        + (" (* by formula)" if any(plan.source == "analytic" for plan in plans) else "")
    )
    memory.set_xlim(0, 1.18 * max(max(left), *(plan.memory["limit"] / GIB for plan in plans)))
    memory.legend(fontsize=8, frameon=False, loc="lower right")
    bought.set_xscale("log")
    bought.xaxis.set_major_formatter(EngFormatter(sep=" "))
    bought.set_xlabel("tokens the budget buys")
    for axes in (memory, bought):
        figures.style_panel(axes, grid=None)
    figures.save(figure, path)
