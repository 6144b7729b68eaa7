"""Suites: several configurations measured by one command, each beside its peer.

Every member is measured in processes of its own.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from cramjax.errors import RunFailed, UserError

_HEAD = (
    "member",
    "precision",
    "tokens/s, before and after",
    "MFU",
    "peak memory",
    "best peer",
    "its tokens/s",
    "ours over it",
    "over transformers' best",
)


@dataclasses.dataclass(frozen=True)
class Member:
    """A configuration of a suite.

    `name` is its name in tables, `spec` a recipe with its variant, `overrides` are "key=value".
    """

    name: str
    spec: str
    overrides: tuple[str, ...]


def _at(recipe: str, seq_len: int, batch_size: int, *more: str) -> Member:
    file, _, variant = recipe.partition(":")
    spec = f"{file}:{variant}".removesuffix(":")
    # A batch that ramps up would measure a smaller one.
    sizes = (f"data.seq_len={seq_len}", f"batch_size={batch_size}", "schedule.batch_ramp=0.0")
    return Member(f"{recipe} at {seq_len}", spec, (*sizes, *more))


# AdamW everywhere, because that is the optimizer that the peers have.
_GPU = ("precision=bfloat16", "microbatch_size=None", "optimizer.name=adamw")
_CPU = ("microbatch_size=32", "optimizer.name=adamw")
_WIDER = ("model.n_layers=4", "model.d_model=256", "model.n_heads=4", "model.d_ff=512")

SUITES = {
    "gpu": (
        _at("bert_1day", 128, 1024, *_GPU),
        _at("bert_1day", 512, 256, *_GPU, "model.max_positions=512"),
        _at("bert_1day_modern", 128, 1024, *_GPU),
        _at("bert_1day_modern", 512, 256, *_GPU, "model.max_positions=512"),
        _at("bert_24h_academic", 128, 1024, *_GPU),
        _at("t5_1day", 512, 128, *_GPU),
        _at("t5_efficient:small-nl24", 512, 128, *_GPU),
    ),
    "cpu": (
        _at("quickstart", 128, 32, *_CPU),
        dataclasses.replace(
            _at("quickstart", 128, 32, *_CPU, *_WIDER), name="quickstart, 4 layers of 256, at 128"
        ),
        _at("t5_efficient:mini", 128, 32, *_CPU),
    ),
}
"""Name → the members that `tools.bench --suite` measures."""


def run(name: str, overrides: Sequence[str], n_steps: int) -> Iterator[dict[str, Any]]:
    """Yield the result of `tools.bench --peer` for each member, with its name as `member`.

    Raises:
        UserError: for an unknown suite.
        RunFailed: if the process of a member fails.
    """
    if name not in SUITES:
        raise UserError(f"--suite {name}: no such suite; there are {', '.join(SUITES)}")
    for member in SUITES[name]:
        print(f"{member.name}…", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "bench.json"
            command = _command(member, overrides, n_steps, out)
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                raise RunFailed(f"{member.name}: its bench failed; see its output above")
            yield {"member": member.name} | json.loads(out.read_text(encoding="utf-8"))


def _command(
    member: Member, overrides: Sequence[str], n_steps: int, out: pathlib.Path
) -> list[str]:
    flags = [f"--config.{text}" for text in (*member.overrides, *overrides)]
    tool = [sys.executable, "-m", "cramjax", "bench", "--config", member.spec, *flags, "--peer"]
    return [*tool, "--steps", str(n_steps), "--json", str(out)]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns a Markdown table with a row for each member and precision."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    for result in results:
        lines += [_row(result, precision) for precision in result["ours"]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _row(result: dict[str, Any], precision: str) -> tuple[str, ...]:
    ours = result["ours"][precision]
    rates = result["ours_tokens_per_s"][precision]
    memory = ours["peak_memory_bytes"]
    cells = (
        result["member"],
        precision,
        " and ".join(f"{rate:,.0f}" for rate in rates),
        f"{ours['mfu']:.0%}",
        "" if memory is None else f"{memory / 2**30:.1f} GiB",
    )

    ran = [
        peer
        for peer in result["peers"]
        if peer["mode"].startswith(precision) and "error" not in peer
    ]
    if not ran:
        return (*cells, "none", "", "", "")
    best = max(ran, key=operator.itemgetter("tokens_per_s"))
    ratio = result["ratio_to_peer"][precision]
    stock_rates = [peer["tokens_per_s"] for peer in ran if peer["peer"] != "TorchEncoder"]
    over_stock = f"{statistics.mean(rates) / max(stock_rates):.2f}" if stock_rates else ""
    return (
        *cells,
        f"{best['peer']}, {best['mode'].split()[1]}",
        f"{best['tokens_per_s']:,.0f}",
        f"{ratio:.2f}",
        over_stock,
    )
