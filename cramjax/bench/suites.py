"""Benches of several configurations by one command, each with its peer in processes of their own."""

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


@dataclasses.dataclass(frozen=True)
class Member:
    """A configuration of a suite: its name in tables, a recipe with its variant, and overrides as "key=value"."""

    name: str
    spec: str
    overrides: tuple[str, ...]


def _at(recipe: str, seq_len: int, batch_size: int, *more: str) -> Member:
    file, _, variant = recipe.partition(":")
    spec = f"configs/{file}.py" + (f":{variant}" if variant else "")
    own = (f"data.seq_len={seq_len}", f"batch_size={batch_size}", "schedule.batch_ramp=0.0", *more)
    return Member(f"{recipe} at {seq_len}", spec, own)


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
"""By name: what `tools.bench --suite` measures. AdamW everywhere, since that is what the peers have."""


def run(name: str, overrides: Sequence[str], n_steps: int) -> Iterator[dict[str, Any]]:
    """The result of `tools.bench --peer` for each member, with its `member`, one after the other.

    Raises:
        UserError: for an unknown suite. RunFailed: where a member's process fails.
    """
    if name not in SUITES:
        raise UserError(f"--suite {name}: no such suite; there are {', '.join(SUITES)}")
    for member in SUITES[name]:
        flags = [f"--config.{text}" for text in (*member.overrides, *overrides)]
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "bench.json"
            command = [
                sys.executable,
                "-m",
                "tools.bench",
                "--config",
                member.spec,
                *flags,
                "--peer",
            ]
            command += ["--steps", str(n_steps), "--json", str(out)]
            print(f"{member.name}…", file=sys.stderr, flush=True)
            if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                raise RunFailed(f"{member.name}: its bench failed; what it said stands above")
            yield {"member": member.name} | json.loads(out.read_text(encoding="utf-8"))


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each member and precision, in Markdown."""
    head = (
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
    lines = [head, ("---",) * len(head)]
    for result in results:
        for precision, ours in result["ours"].items():
            ran = [
                peer
                for peer in result["peers"]
                if peer["mode"].startswith(precision) and "error" not in peer
            ]
            best = max(ran, key=operator.itemgetter("tokens_per_s"), default=None)
            rates = result["ours_tokens_per_s"][precision]
            stock = max(
                (peer["tokens_per_s"] for peer in ran if peer["peer"] != "TorchEncoder"),
                default=None,
            )
            memory, ratio = ours["peak_memory_bytes"], result["ratio_to_peer"][precision]
            lines.append(
                (
                    result["member"],
                    precision,
                    " and ".join(f"{rate:,.0f}" for rate in rates),
                    f"{ours['mfu']:.0%}",
                    "" if memory is None else f"{memory / 2**30:.1f} GiB",
                    "none" if best is None else f"{best['peer']}, {best['mode'].split()[1]}",
                    "" if best is None else f"{best['tokens_per_s']:,.0f}",
                    "" if ratio is None else f"{ratio:.2f}",
                    "" if stock is None else f"{statistics.mean(rates) / stock:.2f}",
                )
            )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
