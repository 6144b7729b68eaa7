"""Schedules over the share of the budget spent: learning rate, batch ramp, early termination.

All are pure functions of a fraction in [0, 1] (`clock.py`). The shapes are those of Cramming (arXiv
2212.14034, section 4.3 and its released code) and 24hBERT (arXiv 2104.07705, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cramjax.config.views import ScheduleConfig
from cramjax.errors import UserError


def learning_rate(schedule: ScheduleConfig, peak: float, fraction: float, step: int) -> float:
    """Returns the learning rate of a step: `peak` times the schedule's shape, never below 0.

    Args:
        schedule: the shape and its numbers.
        peak: the highest learning rate.
        fraction: share of the budget that is spent at the end of the step.
        step: number of the step, from 1.
    """
    return peak * multiplier(
        schedule.name,
        fraction,
        warmup=schedule.warmup,
        warmup_from=schedule.warmup_from,
        plateau=plateau_share(schedule.plateau, fraction, step),
        cooldown=schedule.cooldown,
        final=schedule.final,
    )


def plateau_share(plateau: float, fraction: float, step: int) -> float:
    """Returns the share of the budget at which a plateau ends.

    T5's plateau is a number of steps (10,000), of a run whose length in steps is only known at its
    end where hours are the budget. By the steps of the share so far, step `plateau` is at this
    share. On it, the shape is T5's function of the step alone: sqrt(plateau / max(step, plateau)).

    Args:
        plateau: a share of the budget below 1, or a number of optimizer steps.
        fraction: share of the budget that is spent at the end of `step`.
        step: number of a step, from 1.
    """
    return plateau if plateau < 1 else plateau * fraction / step


def multiplier(
    name: str,
    fraction: float,
    *,
    warmup: float = 0.0,
    warmup_from: float = 0.0,
    plateau: float = 0.01,
    cooldown: float = 0.0,
    final: float = 0.0,
) -> float:
    """Returns the share of the peak learning rate, in [0, 1].

    Args:
        name: the shape; triangle2 and one_cycle are fixed and read no other argument.
        fraction: share of the budget that is spent, clamped to [0, 1].
        warmup: share of the budget with a linear rise.
        warmup_from: share of the peak from which it rises.
        plateau: share of the budget at which an inverse square root starts to decay, if its
            warm-up ends no later.
        cooldown: share of the budget with a linear fall to `final`.
        final: learning rate at the end, as a share of the peak.

    Raises:
        UserError: no shape has this name.
    """
    f = min(max(fraction, 0.0), 1.0)
    if name == "triangle2":
        return max(0.0, min(0.25 + f, 4 * (1 - f)))
    if name == "one_cycle":
        return min(2 * f, 2 - 2 * f)

    if name not in _DECAYS:
        raise UserError(
            f"schedule.name={name!r}: must be one of triangle2, one_cycle, {', '.join(_DECAYS)}"
        )
    if f < warmup:
        return warmup_from + (1 - warmup_from) * f / warmup
    return _DECAYS[name](f, warmup, plateau, cooldown, final)


def ramp_grain(schedule: ScheduleConfig) -> int | None:
    """Returns the sequences that a growing batch has at first and by which it grows.

    None if the batch does not grow, or grows by microbatches.
    """
    return schedule.ramp_start if schedule.batch_ramp else None


def n_microbatches(
    schedule: ScheduleConfig, fraction: float, batch_size: int, microbatch_size: int
) -> int:
    """Returns the microbatches of the step that starts at `fraction` of the budget.

    The batch rises over `batch_ramp` of the budget in equal stairs, from one stair to `batch_size`,
    as in Cramming's final recipe (0.6 of the budget, arXiv 2212.14034, section 4.3). A stair is
    `ramp_start` sequences, or a microbatch where that is None. A `batch_ramp` of 0 means full
    batches from the start.

    Raises:
        UserError: the microbatch does not divide the stair, or the stair the batch.
    """
    if batch_size % microbatch_size:
        raise UserError(
            f"batch_size={batch_size}: must be a multiple of microbatch_size={microbatch_size}"
        )
    grain = ramp_grain(schedule) or microbatch_size
    if grain % microbatch_size or batch_size % grain:
        raise UserError(
            f"schedule.ramp_start={grain}: must divide batch_size={batch_size}, and be a multiple "
            f"of microbatch_size={microbatch_size}"
        )

    n_stairs = batch_size // grain
    stair = n_stairs
    if fraction < schedule.batch_ramp:
        stair = min(math.floor(n_stairs * max(fraction, 0.0) / schedule.batch_ramp) + 1, n_stairs)
    return stair * grain // microbatch_size


def stops_early(schedule: ScheduleConfig, fraction: float, eval_loss: float) -> bool:
    """Tells if a run with a `stop_loss` has failed, by an evaluation at `fraction` of the budget.

    It has if the held-out loss is NaN, or over `stop_loss` once `stop_after` is spent: the rule of
    24hBERT's code (`check_if_early_stop`).
    """
    if schedule.stop_loss is None:
        return False
    is_late = fraction >= schedule.stop_after
    return math.isnan(eval_loss) or (is_late and eval_loss > schedule.stop_loss)


def rewarm(fraction: float, start: float, share: float) -> float:
    """Returns the factor of the learning rate after the network grew at `start` of the budget.

    It rises from 0 to 1 over another `share` of the budget.
    """
    if not share or not start:
        return 1.0
    return min(1.0, (fraction - start) / share)


def _linear(f: float, warmup: float, plateau: float, cooldown: float, final: float) -> float:
    return final + (1 - final) * (1 - _since(warmup, f))


def _cosine(f: float, warmup: float, plateau: float, cooldown: float, final: float) -> float:
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * _since(warmup, f)))


def _constant(f: float, warmup: float, plateau: float, cooldown: float, final: float) -> float:
    def flat(_: float) -> float:
        return 1.0

    return _cooled(flat, f, max(1 - cooldown, warmup), final)


def _inverse_sqrt(f: float, warmup: float, plateau: float, cooldown: float, final: float) -> float:
    start = max(warmup, plateau)

    def decay(at: float) -> float:
        return 1.0 if at <= start else math.sqrt(start / at)

    return _cooled(decay, f, max(1 - cooldown, warmup), final)


def _cooled(shape: Callable[[float], float], f: float, start: float, final: float) -> float:
    """Returns `shape` until `start`, and from there a line to `final` at the end of the budget."""
    if f <= start:
        return shape(f)
    top = shape(start)
    return top - max(0.0, top - final) * _since(start, f)


def _since(start: float, f: float) -> float:
    """Returns the share of the way from `start` to the end of the budget."""
    return (f - start) / (1 - start) if start < 1 else 0.0


_DECAYS = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "inverse_sqrt": _inverse_sqrt,
}
