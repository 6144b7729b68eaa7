"""Stages of progressive training, by arithmetic on the configuration alone.

`growth.stages` lists the stages before the network that the configuration describes:
[{"until": 0.3, "depth": 0.25, "width": 0.5, "length": 0.5}, …]. Each one trains until that share of
the budget is spent, or with `growth.until="steps"` that share of the optimizer steps is done; then
the whole network trains to the end. CompoundGrow (arXiv 2010.12562) grows depth, width and length
at once.

Keys of a stage beside `until`; a dimension without a key is whole:

- depth: layers
- width: inner width of the feed-forward
- rank: inner dimension of the feed-forward's matrices; a share is one of the residual stream
- length: tokens
- pool: embeddings in a mean
- hidden: heads, with the residual stream in proportion
- batch: sequences
- lr: factor of the schedule's learning rate
- mask_rate: objective.mask_rate, a share of the positions and not of the whole's rate
- causal: objective.causal, True or False

An int is a number of its own (`"depth": 1` is one layer), a float a share of the whole
(`"depth": 1.0` is all layers).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

import ml_collections

from cramjax.config.families import FAMILIES
from cramjax.config.fields import is_finite
from cramjax.config.views import Config

KEYS = (
    "until",
    "depth",
    "width",
    "rank",
    "length",
    "pool",
    "hidden",
    "batch",
    "lr",
    "mask_rate",
    "causal",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The network and the sequences of a stage, which ends at the share `until`.

    `growth.until` says what it is a share of.
    `n_decoder_layers` is None for a network without a decoder, and for one as deep as its encoder;
    `target_len` for rows without targets, and for targets as long as their sources.
    """

    until: float
    d_model: int
    n_heads: int
    n_layers: int
    n_decoder_layers: int | None
    d_ff: int
    ffn_rank: int
    seq_len: int
    target_len: int | None
    pool: int
    batch_size: int
    lr: float
    mask_rate: float
    causal: bool

    def describe(self) -> str:
        """Returns network and sequences in words."""
        rank = f" of rank {self.ffn_rank}" if self.ffn_rank else ""
        pool = f" in means of {self.pool}" if self.pool > 1 else ""
        return (
            f"{self.n_layers} layers, width {self.d_model}, feed-forward {self.d_ff}{rank}, "
            f"{self.seq_len} tokens{pool}, batch {self.batch_size}"
        )

    @property
    def overrides(self) -> Mapping[str, int | float | bool]:
        """Keys of the configuration with their values in this stage."""
        values: dict[str, int | float | bool] = {
            "model.d_model": self.d_model,
            "model.n_heads": self.n_heads,
            "model.n_layers": self.n_layers,
            "model.d_ff": self.d_ff,
            "model.ffn_rank": self.ffn_rank,
            "data.seq_len": self.seq_len,
            "objective.pool": self.pool,
            "batch_size": self.batch_size,
            "optimizer.lr": self.lr,
            "objective.mask_rate": self.mask_rate,
            "objective.causal": self.causal,
        }
        if self.target_len is not None:
            values["data.target_len"] = self.target_len
        # An encoder has no such key.
        if self.n_decoder_layers is not None:
            values["model.n_decoder_layers"] = self.n_decoder_layers
        return values


# As data.seq_len and data.target_len have at least.
_FEWEST_TOKENS = 8

_KINDS = {
    "until": "a share between 0 and 1",
    "pool": "the number of embeddings in a mean (2)",
    "lr": "a factor of the learning rate (0.5)",
    "mask_rate": "a share of the positions from 0.01 to 0.9",
    "causal": "True or False",
}


def of(config: Config) -> tuple[Stage, ...]:
    """Returns the stages of a sound `config`; the last one is the whole network."""
    entries = [dict(entry) for entry in config.growth.stages or ()]
    entries.append({"until": 1.0})
    return tuple(_stage(config, entry) for entry in entries)


def _stage(config: Config, entry: Mapping[str, Any]) -> Stage:
    model = config.model
    n_layers = _scaled(entry.get("depth"), model.n_layers)
    n_decoder_layers = model.get("n_decoder_layers")
    if n_decoder_layers is not None:
        # A number of layers is one of the encoder; the decoder may have fewer.
        n_decoder_layers = min(n_decoder_layers, _scaled(entry.get("depth"), n_decoder_layers))

    # Heads keep their dimensions.
    n_heads = _scaled(entry.get("hidden"), model.n_heads)
    d_model = model.d_model * n_heads // model.n_heads
    ffn_rank = _scaled(entry["rank"], d_model) if "rank" in entry else model.ffn_rank

    # Targets have a length of their own, which keeps its proportion to that of the sources.
    seq_len = _scaled(entry.get("length"), config.data.seq_len)
    target_len = config.data.target_len
    if target_len is not None:
        target_len = max(1, round(target_len * seq_len / config.data.seq_len))

    return Stage(
        until=float(entry["until"]),
        d_model=d_model,
        n_heads=n_heads,
        n_layers=n_layers,
        n_decoder_layers=n_decoder_layers,
        d_ff=_scaled(entry.get("width"), model.d_ff),
        ffn_rank=ffn_rank,
        seq_len=seq_len,
        target_len=target_len,
        pool=entry.get("pool", config.objective.pool),
        batch_size=_scaled(entry.get("batch"), config.batch_size),
        lr=entry.get("lr", 1.0) * config.optimizer.lr,
        mask_rate=entry.get("mask_rate", config.objective.mask_rate),
        causal=entry.get("causal", config.objective.causal),
    )


def _scaled(value: float | int | None, full: int) -> int:
    """Returns a number of its own (int), or a share of the full number (float)."""
    if value is None:
        return full
    return value if isinstance(value, int) else max(1, round(value * full))


def frozen(listed: Any) -> Any:
    """Returns `growth.stages` as a frozen configuration can hold it: entries as tuples of pairs.

    All functions here take that form as well.
    """
    return listed and tuple(tuple(dict(entry).items()) for entry in listed)


def mistakes(config: Config) -> list[str]:
    """Returns the mistakes in `config.growth.stages`, one sentence each.

    The values of all other keys are sound.
    """
    problems = []
    for number, entry in enumerate(config.growth.stages or ()):
        problems += _entry_problems(f"growth.stages[{number}]", entry)
    return problems or list(_relation_problems(config)) + list(_counting_problems(config))


def _counting_problems(config: Config) -> Iterator[str]:
    """Yields why shares of the steps are no shares of the budget that could be known."""
    if not config.growth.stages or config.growth.until != "steps":
        return
    limits = [name for name, limit in config.budget.items() if limit is not None]
    if len(limits) > 1:
        yield (
            f"growth.until=steps: needs one limit of the budget, there are {', '.join(limits)}; "
            "set the others to None"
        )
    elif limits != ["steps"] and config.schedule.batch_ramp:
        yield (
            "growth.until=steps: the steps of a batch that ramps differ in size by card; set "
            "schedule.batch_ramp=0, or a budget of steps"
        )


def _entry_problems(where: str, entry: Any) -> list[str]:
    """Returns the mistakes in one entry by itself."""
    try:
        entry = dict(entry)
    except (TypeError, ValueError):
        return [f"{where}={entry!r}: must be a dict of {', '.join(KEYS)}"]
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        return [f"{where}: unknown key {unknown[0]}; there are {', '.join(KEYS)}"]
    if "until" not in entry:
        return [f"{where}: needs until, the share (growth.until) at which it ends"]

    problems = []
    for key, value in entry.items():
        if not _is_sound(key, value):
            kind = _KINDS.get(key, "a share between 0 and 1 (0.5), or a number of its own (6)")
            problems.append(f"{where}.{key}={value!r}: must be {kind}")
    return problems


def _is_sound(key: str, value: Any) -> bool:
    # `type` and not `isinstance`: True is no number here.
    if key == "lr":
        return type(value) in (int, float) and is_finite(value) and value > 0
    if key == "causal":
        return type(value) is bool
    if key == "mask_rate":
        return type(value) is float and 0.01 <= value <= 0.9
    if type(value) is float:
        return 0 < value <= 1 and key != "pool"
    return type(value) is int and value >= 1 and key != "until"


def _relation_problems(config: Config) -> Iterator[str]:
    """Yields what does not go together: a stage and the configuration, or a stage and the next."""
    stages = of(config)
    for number, (entry, stage) in enumerate(zip(config.growth.stages or (), stages, strict=False)):
        yield from _misfits(config, f"growth.stages[{number}]", dict(entry), stage)
    for number, stage in enumerate(stages[:-1]):
        yield from _growth_problems(f"growth.stages[{number}]", stage, stages[number + 1])


def _growth_problems(where: str, stage: Stage, following: Stage) -> Iterator[str]:
    """Yields the reasons why a stage cannot grow into the next."""
    if stage.until >= following.until:
        yield (
            f"{where}.until={stage.until:g}: must be below that of the next stage, "
            f"{following.until:g}"
        )
    for key, small, big in (
        ("depth", stage.n_layers, following.n_layers),
        ("width", stage.d_ff, following.d_ff),
        ("length", stage.seq_len, following.seq_len),
        ("hidden", stage.n_heads, following.n_heads),
    ):
        if small > big:
            yield f"{where}.{key}: {small} cannot shrink to the {big} of the next stage"
    if stage.pool < following.pool:
        yield (f"{where}.pool: {stage.pool} cannot rise to the {following.pool} of the next stage")

    if following.ffn_rank not in (0, stage.ffn_rank):
        yield (
            f"{where}.rank: {stage.ffn_rank} cannot become {following.ffn_rank}; "
            "factors become whole matrices (0) alone"
        )
    if following.d_ff % stage.d_ff:
        yield f"{where}.width: the next stage's {following.d_ff} is no multiple of {stage.d_ff}"


def _misfits(config: Config, where: str, entry: Mapping[str, Any], stage: Stage) -> Iterator[str]:
    """Yields what of a stage does not go with the rest of the configuration."""
    yield from _size_problems(config, where, stage)
    model = config.model
    if stage.d_model * model.n_heads != model.d_model * stage.n_heads:
        yield f"{where}.hidden: {model.d_model} does not divide by the {model.n_heads} heads"
        return

    # Another family predicts no share of the positions, and reads in one direction already.
    foreign = [key for key in ("mask_rate", "causal") if key in entry]
    if foreign and model.family != "encoder":
        yield from (f"{where}.{key}: needs model.family=encoder" for key in foreign)
        return

    family_mistakes = FAMILIES[model.family].mistakes
    of_whole = list(family_mistakes(config))
    for problem in family_mistakes(_in_stage(config, stage)):
        if problem not in of_whole:
            yield f"{where}: {problem}"


def _in_stage(config: Config, stage: Stage) -> Config:
    """Returns the configuration with the values of a stage at their keys."""
    copy = ml_collections.ConfigDict(config.to_dict())
    with copy.ignore_type():
        copy.update_from_flattened_dict(dict(stage.overrides))
    return cast(Config, copy)


def _size_problems(config: Config, where: str, stage: Stage) -> Iterator[str]:
    """Yields what is wrong with the lengths and the batch of a stage."""
    if stage.seq_len != config.data.seq_len and config.data.order != "shuffled":
        yield (
            f"{where}.length: data.order={config.data.order} has one length alone; "
            "set data.order=shuffled"
        )
    for n_tokens, kind in ((stage.seq_len, "tokens"), (stage.target_len, "target tokens")):
        if n_tokens is not None and n_tokens < _FEWEST_TOKENS:
            yield f"{where}.length: {n_tokens} {kind} are too few; take {_FEWEST_TOKENS} or more"

    if stage.batch_size % (config.microbatch_size or 1):
        yield (
            f"{where}.batch: {stage.batch_size} is no multiple of "
            f"microbatch_size={config.microbatch_size}"
        )
    ramp_start = config.schedule.ramp_start
    if config.schedule.batch_ramp and ramp_start is not None and stage.batch_size % ramp_start:
        yield (
            f"{where}.batch: {stage.batch_size} is no multiple of schedule.ramp_start={ramp_start}"
        )
