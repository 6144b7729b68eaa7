"""The least time that a step can take on a card, and what a budget buys at a rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from cramjax.budget import schedules
from cramjax.config.views import Config
from cramjax.planning.cards import Card

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Points of the budget at which the growing batch is looked at.
_N_POINTS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """The roofline of a step (Williams et al., 2009).

    Attributes:
        flops: FLOPs of a step on all devices.
        peak_flops: dense FLOP/s of one device in the step's precision.
        step_s: seconds that the step takes at least, by "compute" and by "memory" traffic.
        tokens_per_s: the rate at the slower of the two.
    """

    flops: float
    peak_flops: float
    step_s: Mapping[str, float]
    tokens_per_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Purchase:
    """Tokens, steps and hours until the first limit of a budget is reached."""

    tokens: float
    steps: float
    hours: float


def roofline(
    config: Config,
    card: Card,
    *,
    precision: str,
    flops_per_sequence: float,
    microbatch_size: int,
    memory: Mapping[str, int],
    activations_per_sequence: float,
) -> Roofline:
    """Returns the roofline of a step.

    The traffic is what must pass through memory: weights three times a pass, the sum of gradients,
    activations out and back, and once a step the optimizer.

    Args:
        config: the configuration of the run.
        card: the device.
        precision: "float32", "bfloat16" or "float16".
        flops_per_sequence: FLOPs of a sequence, forward and backward.
        microbatch_size: sequences a pass, of all devices.
        memory: bytes of one device by kind.
        activations_per_sequence: bytes of the activations of one sequence of a pass.
    """
    peak = 1e12 * (getattr(card.peak, precision) or card.peak.float32)
    flops = config.batch_size * flops_per_sequence

    n_params = memory["parameters"] // 4
    weights = (3 * _BYTES[precision] + 8) * n_params
    one_pass = weights + 2 * microbatch_size * activations_per_sequence
    n_passes = config.batch_size / microbatch_size
    traffic = n_passes * one_pass + 12 * n_params + 2 * memory["optimizer"]

    step_s = {
        "compute": flops / (peak * card.n_devices),
        "memory": traffic / (1e9 * card.peak.bandwidth),
    }
    tokens_per_s = config.batch_size * config.data.seq_len / max(step_s.values())
    return Roofline(flops=flops, peak_flops=peak, step_s=step_s, tokens_per_s=tokens_per_s)


def purchase(
    config: Config, *, tokens_per_s: float, flops_per_sequence: float, microbatch_size: int
) -> Purchase:
    """Returns what the budget of `config` buys at `tokens_per_s`.

    The batch may grow while the budget is spent, so steps are shorter in the beginning.
    """
    batches = []
    for point in range(_N_POINTS):
        fraction = (point + 0.5) / _N_POINTS
        n_microbatches = schedules.n_microbatches(
            config.schedule, fraction, config.batch_size, microbatch_size
        )
        batches.append(microbatch_size * n_microbatches)
    sequences_per_s = tokens_per_s / config.data.seq_len
    steps_per_s = sequences_per_s * sum(1 / batch for batch in batches) / _N_POINTS

    budget = config.budget
    limits_s = []
    if budget.hours is not None:
        limits_s.append(3600 * budget.hours)
    if budget.tokens is not None:
        limits_s.append(budget.tokens / tokens_per_s)
    if budget.steps is not None:
        limits_s.append(budget.steps / steps_per_s)
    if budget.flops is not None:
        limits_s.append(budget.flops / (flops_per_sequence * sequences_per_s))
    seconds = min(limits_s)
    return Purchase(
        tokens=tokens_per_s * seconds, steps=steps_per_s * seconds, hours=seconds / 3600
    )
