"""Plans for people: tables, a list of kernels, and a picture of memory and tokens."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cramjax import figures
from cramjax.planning import kernels
from cramjax.planning.expectation import Expectation
from cramjax.planning.ledger import KernelRow
from cramjax.planning.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB = 2**30
_LIMIT_COLOUR = "#b02020"
_KINDS = {
    "parameters": "#3b6fb6",
    "optimizer": "#7fa8d9",
    "activations": "#e0a040",
    "temporaries": "#c9c9c9",
}
_HEAD = (
    "device", "fits", "microbatch", "GiB needed", "of", "params", "optim", "activ", "temp",
    "precision", "attention", "step ms", "bound by", "tokens/s", "tokens", "steps", "hours",
)  # fmt: skip
_EXPECTED_HEAD = (
    "expected", "step ms", "tokens/s", "MFU", "tokens", "steps", "hours", *kernels.KINDS, "",
)  # fmt: skip
_KERNEL_HEAD = ("ms", "count", "kind", "GFLOP", "MB read", "written", "kernel", "operation")

_LEGEND = (
    "microbatch: the largest that fits; "
    "rates: at most, by the card's dense peak and its memory's bandwidth"
)
_EXPECTED_LEGEND = (
    "expected: every kernel of the compiled step at the rate such kernels reach; "
    "MFU of the dense peak"
)


def table(plans: Sequence[Plan]) -> str:
    """Returns two tables with a line for each plan, with notes and remedies below.

    The first table has the best that is possible, the second the expected times with the share of
    each kind of kernel.
    """
    lines = _aligned([_HEAD, *map(_row, plans)], left=(0, 1, 9, 10, 12))
    lines.append(_LEGEND)
    for plan in plans:
        if plan.note:
            lines.append(f"{plan.card.name}: {plan.note}")
    for plan in plans:
        if not plan.fits:
            lines.append(f"{plan.card.name}: does not fit; {_advice(plan)}")
    return "\n".join([*lines, "", *_expected(plans)])


def _expected(plans: Sequence[Plan]) -> list[str]:
    """Returns lines on the expected times, and on why some plans have none."""
    rows = []
    notes = []
    reasons = []
    for plan in plans:
        if plan.expected is None:
            reasons.append(f"{plan.card.name}: {plan.why_not_expected}")
            continue
        rows.append(_expected_row(plan.card.name, plan.expected))
        if plan.expected.note:
            notes.append(f"{plan.card.name}: {plan.expected.note}")

    if not rows:
        return reasons
    lines = _aligned([_EXPECTED_HEAD, *rows], left=(0, len(_EXPECTED_HEAD) - 1))
    return [*lines, _EXPECTED_LEGEND, *notes, *reasons]


def _expected_row(name: str, expected: Expectation) -> tuple[str, ...]:
    shares = [f"{expected.s_by_kind[kind] / expected.step_s:.0%}" for kind in kernels.KINDS]
    return (
        name,
        _ms(expected.step_s),
        f"{expected.tokens_per_s:,.0f}",
        f"{expected.mfu:.1%}",
        _large(expected.tokens),
        f"{expected.steps:,.0f}",
        f"{expected.hours:.3g}",
        *shares,
        expected.basis,
    )


def kernel_list(ledger: Sequence[KernelRow], n_rows: int) -> str:
    """Returns a table of the kernels of a step that take longest.

    Kernels of equal work and origin share a line.
    """
    groups: dict[tuple, list[KernelRow]] = {}
    for row in ledger:
        kernel = row.kernel
        # Numbers in the path count layers and copies of one operation.
        origin = re.sub(r"\d+", "", kernel.op_name)
        groups.setdefault((kernel.kind, kernel.work, origin), []).append(row)
    longest_first = sorted(groups.values(), key=lambda rows: -_seconds(rows))
    others = longest_first[n_rows:]

    lines = _aligned([_KERNEL_HEAD, *map(_kernel_row, longest_first[:n_rows])], left=(2, 6, 7))
    rest_ms = 1e3 * sum(map(_seconds, others))
    all_ms = 1e3 * _seconds(ledger)
    return "\n".join([*lines, f"the other {len(others)}: {rest_ms:.2f} ms of {all_ms:.2f}"])


def _seconds(rows: Sequence[KernelRow]) -> float:
    return sum(row.seconds for row in rows)


def _kernel_row(rows: Sequence[KernelRow]) -> tuple[str, ...]:
    kernel = rows[0].kernel
    return (
        f"{1e3 * _seconds(rows):.2f}",
        f"{sum(row.kernel.count for row in rows):,}",
        kernel.kind,
        f"{kernel.work.flops / 1e9:,.1f}",
        f"{kernel.work.read / 1e6:,.1f}",
        f"{kernel.work.written / 1e6:,.1f}",
        kernel.name,
        kernel.op_name,
    )


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Returns the rows as lines with aligned columns; those in `left` align at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cell = cell.ljust(width) if place in left else cell.rjust(width)
            cells.append(cell)
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(plan: Plan) -> tuple[str, ...]:
    n_devices = plan.card.n_devices
    device = plan.card.name
    if n_devices > 1:
        device += f" ({n_devices} devices)"
    gib = {kind: f"{plan.memory[kind] / GIB:.1f}" for kind in (*_KINDS, "needed", "limit")}
    slowest = max(plan.step_s, key=lambda bound: plan.step_s[bound])
    return (
        device,
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
        return (
            "try --config.model.remat=full, --config.optimizer.name=adafactor, "
            "or --config.mesh.fsdp=-1 on more devices"
        )
    return (
        "take a smaller model, shorter sequences, or more devices with "
        "--config.mesh.data=1 --config.mesh.fsdp=-1"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.01 else f"{1e3 * seconds:.2g}"


def _large(number: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:,.0f}"


def plot(plans: Sequence[Plan], path: pathlib.Path) -> None:
    """Draw the plans to `path`: memory of a step by kind, and the tokens that the budget buys.

    The limit of each device stands beside its memory, expected tokens inside the possible ones.
    """
    figure = figures.new_figure(14, 1.5 + 0.42 * len(plans), dpi=110)
    memory, tokens = figure.subplots(1, 2, sharey=True)
    _draw_memory(memory, plans)
    _draw_tokens(tokens, plans)

    # Both panels share the axis of the devices; the first plan is at the top.
    names = [plan.card.name for plan in plans]
    for place, plan in enumerate(plans):
        if plan.source == "analytic":
            names[place] += "*"
    memory.set_yticks(range(len(plans)), names)
    memory.invert_yaxis()
    for axes in (memory, tokens):
        figures.style_panel(axes, grid=None)
    figures.save(figure, path)


def _draw_memory(axes: Axes, plans: Sequence[Plan]) -> None:
    places = range(len(plans))
    left = [0.0] * len(plans)
    for kind, colour in _KINDS.items():
        sizes = [plan.memory[kind] / GIB for plan in plans]
        axes.barh(places, sizes, left=left, color=colour, label=kind, height=0.7)
        left = [start + size for start, size in zip(left, sizes, strict=True)]

    limits = [plan.memory["limit"] / GIB for plan in plans]
    for place, (plan, limit) in enumerate(zip(plans, limits, strict=True)):
        axes.plot([limit, limit], [place - 0.42, place + 0.42], color=_LIMIT_COLOUR, linewidth=2)
        size = "does not fit" if plan.microbatch_size is None else f"{plan.microbatch_size} a pass"
        axes.text(max(left[place], limit), place, f"  {size}", va="center", fontsize=8)

    # An empty line, for the legend.
    axes.plot([], [], color=_LIMIT_COLOUR, linewidth=2, label="limit")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.set_xlim(0, 1.18 * max(*left, *limits))
    is_analytic = any(plan.source == "analytic" for plan in plans)
    axes.set_xlabel("GiB of a device" + (" (* by formula)" if is_analytic else ""))


def _draw_tokens(axes: Axes, plans: Sequence[Plan]) -> None:
    from matplotlib.ticker import EngFormatter

    colours = ["#b5d3bc" if plan.fits else "#d9d9d9" for plan in plans]
    tokens = [plan.tokens for plan in plans]
    axes.barh(range(len(plans)), tokens, color=colours, height=0.7, label="at most")
    for place, plan in enumerate(plans):
        axes.text(plan.tokens, place, f" {_large(plan.tokens)}", va="center", fontsize=8)

    expected = {place: plan.expected for place, plan in enumerate(plans) if plan.expected}
    if expected:
        widths = [times.tokens for times in expected.values()]
        axes.barh(list(expected), widths, color="#3f7d50", height=0.4, label="expected")
        axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("tokens the budget buys")
