"""Stages of progressive training: which network is trained at which share of the budget, by arithmetic on the configuration alone.

`growth.stages` lists what comes before the network the configuration describes: [{"until": 0.3, "depth": 0.25, "width": 0.5, "length":
0.5}, …], each until that share of the budget is spent; then the whole network trains to the end. A dimension that a stage does not name is
whole there: depth (layers), width (of the feed-forward) or rank (of its matrices, a share of the residual stream), length (tokens) or pool
(embeddings in a mean), hidden (heads, and the residual stream in proportion). CompoundGrow (arXiv 2010.12562) grows depth, width
and length at once. A stage may have a batch (sequences) and an lr (a factor of the schedule's) of its own, larger or smaller.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from cramjax.config.views import Config

KEYS = ("until", "depth", "width", "rank", "length", "pool", "hidden", "batch", "lr")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The network and the sequences until a share of the budget is spent; `n_decoder_layers` is None without a decoder of its own."""

    until: float
    d_model: int
    n_heads: int
    n_layers: int
    n_decoder_layers: int | None
    d_ff: int
    ffn_rank: int
    seq_len: int
    pool: int
    batch_size: int
    lr: float

    def describe(self) -> str:
        """Network and sequences in words."""
        rank = f" of rank {self.ffn_rank}" if self.ffn_rank else ""
        pool = f" in means of {self.pool}" if self.pool > 1 else ""
        return (
            f"{self.n_layers} layers, width {self.d_model}, feed-forward {self.d_ff}{rank}, {self.seq_len} tokens{pool}, "
            f"batch {self.batch_size}"
        )

    @property
    def overrides(self) -> dict[str, int | float | None]:
        """Keys of the configuration and their values in this stage."""
        return {
            "model.d_model": self.d_model,
            "model.n_heads": self.n_heads,
            "model.n_layers": self.n_layers,
            "model.n_decoder_layers": self.n_decoder_layers,
            "model.d_ff": self.d_ff,
            "model.ffn_rank": self.ffn_rank,
            "data.seq_len": self.seq_len,
            "objective.pool": self.pool,
            "batch_size": self.batch_size,
            "optimizer.lr": self.lr,
        }


_KINDS = {
    "until": "a share between 0 and 1",
    "pool": "the number of embeddings in a mean (2)",
    "lr": "a factor of the learning rate (0.5)",
}


def of(config: Config) -> tuple[Stage, ...]:
    """The stages of a sound `config`, the last of which is the whole network; one where nothing grows."""
    listed = map(dict, config.growth.stages or ())
    return tuple(_stage(config, entry) for entry in listed) + (_stage(config, {"until": 1.0}),)


def _stage(config: Config, entry: Any) -> Stage:
    model = config.model
    decoder = model.n_decoder_layers
    n_heads = _part(entry.get("hidden"), model.n_heads)
    # Heads keep their dimensions.
    d_model = model.d_model * n_heads // model.n_heads
    return Stage(
        until=float(entry["until"]),
        d_model=d_model,
        n_heads=n_heads,
        n_layers=_part(entry.get("depth"), model.n_layers),
        n_decoder_layers=None
        if decoder is None
        else min(decoder, _part(entry.get("depth"), decoder)),
        d_ff=_part(entry.get("width"), model.d_ff),
        ffn_rank=_part(entry["rank"], d_model) if "rank" in entry else model.ffn_rank,
        seq_len=_part(entry.get("length"), config.data.seq_len),
        pool=entry.get("pool", config.objective.pool),
        batch_size=_part(entry.get("batch"), config.batch_size),
        lr=entry.get("lr", 1.0) * config.optimizer.lr,
    )


def _part(value: float | int | None, whole: int) -> int:
    """A number of its own (int), or a share of the whole (float)."""
    if value is None:
        return whole
    return value if type(value) is int else max(1, round(value * whole))


def frozen(listed: Any) -> Any:
    """`growth.stages` as a frozen configuration can hold it: entries as tuples of pairs, which all functions here take as well."""
    return listed and tuple(tuple(dict(entry).items()) for entry in listed)


def mistakes(config: Config) -> list[str]:
    """What is wrong with `config.growth.stages`, one sentence each; its other keys are sound."""
    listed = config.growth.stages
    if not listed:
        return []
    found = [
        problem for number, entry in enumerate(listed) for problem in _entry_mistakes(number, entry)
    ]
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
        is_share = type(value) is float and 0 < value <= 1 and key != "pool"
        is_factor = key == "lr" and type(value) in (int, float) and value > 0
        if not (is_share or is_factor or (type(value) is int and value >= 1 and key != "until")):
            kind = _KINDS.get(key, "a share between 0 and 1 (0.5), or a number of its own (6)")
            wrong.append(f"{where}.{key}={value!r}: must be {kind}")
    return wrong


def _order_mistakes(config: Config) -> list[str]:
    stages = of(config)
    found = [
        problem
        for number, stage in enumerate(stages[:-1])
        for problem in _misfits(config, number, stage)
    ]
    for number, (stage, following) in enumerate(zip(stages, stages[1:], strict=False)):
        where = f"growth.stages[{number}]"
        if stage.until >= following.until:
            found.append(
                f"{where}.until={stage.until:g}: must be below that of the next stage, {following.until:g}"
            )
        for key, small, big in (
            ("depth", stage.n_layers, following.n_layers),
            ("width", stage.d_ff, following.d_ff),
            ("length", stage.seq_len, following.seq_len),
            ("hidden", stage.n_heads, following.n_heads),
            ("pool", -stage.pool, -following.pool),
        ):
            if small > big:
                found.append(
                    f"{where}.{key}: {abs(small)} cannot {'shrink' if big > 0 else 'rise'} to the {abs(big)} of the next stage"
                )
        if following.ffn_rank not in (0, stage.ffn_rank):
            found.append(
                f"{where}.rank: {stage.ffn_rank} cannot become {following.ffn_rank}; factors become whole matrices (0) alone"
            )
        if following.d_ff % stage.d_ff:
            found.append(
                f"{where}.width: the next stage's {following.d_ff} is no multiple of {stage.d_ff}"
            )
    return found


def _misfits(config: Config, number: int, stage: Stage) -> list[str]:
    """What of a stage does not go with the rest of the configuration."""
    where, model, found = f"growth.stages[{number}]", config.model, []
    if stage.d_model * model.n_heads != model.d_model * stage.n_heads:
        found.append(
            f"{where}.hidden: {model.d_model} does not divide by the {model.n_heads} heads"
        )
    if stage.n_layers < 2 and not model.first_norm:
        found.append(f"{where}.depth: model.first_norm=False needs at least 2 layers")
    if stage.seq_len != config.data.seq_len and config.data.order == "sentence_length":
        found.append(
            f"{where}.length: data.order=sentence_length has one length alone; set data.order=shuffled"
        )
    if stage.seq_len < 8:
        found.append(f"{where}.length: {stage.seq_len} tokens are too few; take 8 or more")
    if stage.batch_size % (config.microbatch_size or 1):
        found.append(
            f"{where}.batch: {stage.batch_size} is no multiple of microbatch_size={config.microbatch_size}"
        )
    if stage.pool > 1 and (model.family != "encoder" or model.document_attention):
        needed = (
            "model.family=encoder"
            if model.family != "encoder"
            else "model.document_attention=False"
        )
        found.append(f"{where}.pool: means of embeddings need {needed}")
    return found
