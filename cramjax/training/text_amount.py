"""The text that a budget reads: how much is expected, and how much to prepare for it.

The amount names the prepared dataset, so it must be the same wherever the same recipe meets the
same devices: it follows from the configuration, the name of the device and the number of devices,
and is rounded up to a coarse grid. Nothing is measured for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax

from cramjax.budget import rates, schedules
from cramjax.config import stages
from cramjax.config.resolve import changed
from cramjax.config.views import Config
from cramjax.console import Announce
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families
from cramjax.objectives.objective import PretrainingObjective
from cramjax.training import stage_ends
from cramjax.training.history import Earlier
from cramjax.training.session import AssumedVocabulary

BYTES_PER_TOKEN = 4.5
"""Bytes of English text in a token of a vocabulary of 32,768."""
MARGIN = 1.1
"""Text to prepare for each token that is expected: rates and bytes are estimates."""
_STEPS = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0, 10.0)
# Points of a stage at which the growing batch is looked at.
_N_POINTS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """The text that a budget is expected to read.

    Attributes:
        tokens: tokens of text; a T5's inputs have fewer than the text they are made of.
        tokens_per_s: tokens of text a second, if the hours of the budget end the run, else None.
        note: why the rate is a rough one; empty for a device in the table of peak rates.
    """

    tokens: float
    tokens_per_s: float | None
    note: str

    @property
    def is_known(self) -> bool:
        """True unless the run ends by the clock on a device that nothing is known of."""
        return self.tokens_per_s is None or not self.note


def expected(config: Config, device_kind: str, n_devices: int) -> Reading:
    """Returns the text that the budget of `config` is expected to read.

    Args:
        config: the configuration of the run.
        device_kind: `jax.Device.device_kind` of its devices.
        n_devices: devices of all processes together.
    """
    one_device, note = rates.expected_flops(device_kind, config.precision)
    flops_per_s = n_devices * one_device
    budget = config.budget
    totals = dict.fromkeys(("hours", "steps", "tokens", "flops"), 0.0)
    for share, of_stage, objective, mean_batch in _stages(config):
        per_flop = share * objective.row_tokens / objective.flops
        totals["hours"] += (budget.hours or 0) * 3600 * flops_per_s * per_flop
        totals["flops"] += (budget.flops or 0) * per_flop

        totals["steps"] += share * (budget.steps or 0) * mean_batch * objective.row_tokens
        text_per_token = objective.row_tokens / of_stage.data.seq_len
        totals["tokens"] += share * (budget.tokens or 0) * text_per_token

    # A limit that is not set counts nothing.
    limits = {name: total for name, total in totals.items() if total}
    first = min(limits, key=limits.__getitem__)
    rate = None
    if first == "hours" and budget.hours:
        rate = limits[first] / (budget.hours * 3600)
    return Reading(tokens=limits[first], tokens_per_s=rate, note=note)


def _stages(config: Config) -> Iterator[tuple[float, Config, PretrainingObjective, float]]:
    """Yields share of the budget, configuration, objective and mean batch of each stage."""
    vocabulary = AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    since = 0.0
    ends = stage_ends.of(config, vocabulary)
    for stage, end in zip(stages.of(config), ends, strict=True):
        of_stage = changed(config, stage.overrides)
        share = end.until - since
        total = 0
        for point in range(_N_POINTS):
            fraction = since + share * (point + 0.5) / _N_POINTS
            total += schedules.n_microbatches(config.schedule, fraction, of_stage.batch_size, 1)

        objective = families.build(of_stage, vocabulary, FLOAT32)
        yield share, of_stage, objective, total / _N_POINTS
        since = end.until


def on_coarse_grid(value: float) -> float:
    """Returns the next of the numbers 1, 1.25, 1.6, 2, … 8, 10, 12.5, …, not below `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    # The last one also where a quotient is a rounding error over 10.
    step = next((step for step in _STEPS if value <= step * power), _STEPS[-1])
    return round(step * power, 6)


def settled_for(config: Config, device_kind: str, n_devices: int, announce: Announce) -> Config:
    """Returns `config` with a number for data.max_mb='budget': the text that the budget reads once.

    It is never less than what a tokenizer is trained on.

    Args:
        config: the configuration of a run.
        device_kind: the name that JAX gives its devices.
        n_devices: devices of all processes together.
        announce: is told the number, and what it follows from.
    """
    if config.data.max_mb != "budget":
        return config
    reading = expected(config, device_kind, n_devices)
    max_mb = on_coarse_grid(reading.tokens * MARGIN * BYTES_PER_TOKEN / 1e6)
    # A short run, too, needs a tokenizer and text to evaluate on.
    max_mb = max(max_mb, config.data.tokenizer_sample_mb)

    announce(
        f"data.max_mb=budget: at most {max_mb:,.10g} MB of text, for the "
        f"{in_words(reading.tokens)} tokens that the budget reads"
    )
    if reading.tokens_per_s is not None:
        note = f", {reading.note}" if reading.note else ""
        announce(
            f"  at {reading.tokens_per_s:,.0f} tokens/s, expected of {n_devices} × "
            f"{device_kind}{note}"
        )
    return changed(config, {"data.max_mb": max_mb})


def settled(config: Config, earlier: Earlier | None, announce: Announce) -> Config:
    """Returns the same for the devices at hand.

    A run that goes on keeps its amount, also on another card, unless data.allow_change is set.
    """
    if config.data.max_mb != "budget":
        return config
    if earlier is not None and not config.data.allow_change:
        return changed(config, {"data.max_mb": earlier.config.data.max_mb})
    devices = jax.devices()
    return settled_for(config, devices[0].device_kind, len(devices), announce)


def in_words(n: float) -> str:
    """Returns a number of tokens, as "55.7 billion"."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if n >= size:
            return f"{n / size:,.1f} {name}"
    return f"{n:,.0f}"
