"""Stages of progressive training: which network is trained at which share of the budget, by arithmetic on the configuration alone.

`growth.stages` lists what comes before the network the configuration describes: [{"until": 0.3, "depth": 0.25, "width": 0.5, "length":
0.5}, …], each until that share of the budget is spent; then the whole network trains to the end. A dimension that a stage does not name is
whole there: depth (layers), width (of the feed-forward), length (tokens), hidden (heads, and the residual stream in proportion).
CompoundGrow (arXiv 2010.12562) grows the first three at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

KEYS = ("until", "depth", "width", "length", "hidden")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The network and the sequences until a share of the budget is spent; `n_decoder_layers` is None without a decoder of its own."""

    until: float
    d_model: int
    n_heads: int
    n_layers: int
    n_decoder_layers: int | None
    d_ff: int
    seq_len: int

    @property
    def overrides(self) -> dict[str, int | None]:
        """Keys of the configuration and their values in this stage."""
        return {
            "model.d_model": self.d_model,
            "model.n_heads": self.n_heads,
            "model.n_layers": self.n_layers,
            "model.n_decoder_layers": self.n_decoder_layers,
            "model.d_ff": self.d_ff,
            "data.seq_len": self.seq_len,
        }


def of(config: Any) -> tuple[Stage, ...]:
    """The stages of a sound `config`, the last of which is the whole network; one where nothing grows."""
    listed = map(dict, config.growth.stages or ())
    return tuple(_stage(config, entry) for entry in listed) + (_stage(config, {"until": 1.0}),)


def _stage(config: Any, entry: Any) -> Stage:
    model = config.model
    decoder = model.n_decoder_layers
    n_heads = _part(entry.get("hidden"), model.n_heads)
    return Stage(
        until=float(entry["until"]),
        # Heads keep their dimensions.
        d_model=model.d_model * n_heads // model.n_heads,
        n_heads=n_heads,
        n_layers=_part(entry.get("depth"), model.n_layers),
        n_decoder_layers=None if decoder is None else min(decoder, _part(entry.get("depth"), decoder)),
        d_ff=_part(entry.get("width"), model.d_ff),
        seq_len=_part(entry.get("length"), config.data.seq_len),
    )


def _part(value: float | int | None, whole: int) -> int:
    """A number of its own (int), or a share of the whole (float)."""
    if value is None:
        return whole
    return value if type(value) is int else max(1, round(value * whole))


def frozen(listed: Any) -> Any:
    """`growth.stages` as a frozen configuration can hold it: entries as tuples of pairs, which all functions here take as well."""
    return listed and tuple(tuple(dict(entry).items()) for entry in listed)


def mistakes(config: Any) -> list[str]:
    """What is wrong with `config.growth.stages`, one sentence each; its other keys are sound."""
    listed = config.growth.stages
    if not listed:
        return []
    found = [problem for number, entry in enumerate(listed) for problem in _entry_mistakes(number, entry)]
    return found or _order_mistakes(config)


def _entry_mistakes(number: int, entry: Any) -> list[str]:
    where = f"growth.stages[{number}]"
    try:
        entry = dict(entry)
    except (TypeError, ValueError):
        return [f"{where}={entry!r}: must be a dict of {', '.join(KEYS)}"]
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        return [f"{where}: unknown key {unknown[0]}; there are {', '.join(KEYS)}"]
    if "until" not in entry:
        return [f"{where}: needs until, the share of the budget at which it ends"]
    wrong = []
    for key, value in entry.items():
        is_share = type(value) is float and 0 < value <= 1
        if not (is_share or (type(value) is int and value >= 1 and key != "until")):
            kind = (
                "a share between 0 and 1"
                if key == "until"
                else "a share between 0 and 1 (0.5), or a number of its own (6)"
            )
            wrong.append(f"{where}.{key}={value!r}: must be {kind}")
    return wrong


def _order_mistakes(config: Any) -> list[str]:
    found, stages = [], of(config)
    for number, (stage, following) in enumerate(zip(stages, stages[1:], strict=False)):
        where = f"growth.stages[{number}]"
        if stage.until >= following.until:
            found.append(f"{where}.until={stage.until:g}: must be below that of the next stage, {following.until:g}")
        for key, small, big in (
            ("depth", stage.n_layers, following.n_layers),
            ("width", stage.d_ff, following.d_ff),
            ("length", stage.seq_len, following.seq_len),
            ("hidden", stage.n_heads, following.n_heads),
        ):
            if small > big:
                found.append(f"{where}.{key}: {small} cannot shrink to the {big} of the next stage")
        if stage.d_model * config.model.n_heads != config.model.d_model * stage.n_heads:
            found.append(f"{where}.hidden: {config.model.d_model} does not divide by the {config.model.n_heads} heads")
        if following.d_ff % stage.d_ff:
            found.append(f"{where}.width: the next stage's {following.d_ff} is no multiple of {stage.d_ff}")
        if stage.n_layers < 2 and not config.model.first_norm:
            found.append(f"{where}.depth: model.first_norm=False needs at least 2 layers")
        if stage.seq_len != stages[-1].seq_len and config.data.order == "sentence_length":
            found.append(f"{where}.length: data.order=sentence_length has one length alone; set data.order=shuffled")
        if stage.seq_len < 8:
            found.append(f"{where}.length: {stage.seq_len} tokens are too few; take 8 or more")
    return found
