"""What follows the share of the budget that is spent: learning rate, batch ramp and early termination.

Pure functions of a fraction in [0, 1] (`clock.py`). Shapes by name are those of Cramming (arXiv 2212.14034,
section 4.3 and its released code) and 24hBERT (arXiv 2104.07705, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cramjax.config.views import ScheduleConfig
from cramjax.errors import UserError

INVERSE_SQRT_PLATEAU = 0.01
"""Share of the budget at the peak before an inverse square root without warm-up decays (T5: 10^4 of 10^6
steps).
"""


def learning_rate(schedule: ScheduleConfig, peak: float, fraction: float) -> float:
    """Learning rate at `fraction` of the budget: `peak` times the shape `schedule.name`; never below 0."""
    return peak * multiplier(
        schedule.name,
        fraction,
        warmup=schedule.warmup,
        cooldown=schedule.cooldown,
        final=schedule.final,
    )


def multiplier(
    name: str, fraction: float, *, warmup: float = 0.0, cooldown: float = 0.0, final: float = 0.0
) -> float:
    """Share of the peak learning rate, in [0, 1], at `fraction` of the budget (clamped to [0, 1]).

    `warmup`, `cooldown` (shares of the budget) and `final` (share of the peak) as in the `schedule` section
    of the configuration; triangle2 and one_cycle are fixed shapes and read none of them. Raises UserError for
    another name.
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
        return f / warmup
    return _DECAYS[name](f, warmup, cooldown, final)


def n_microbatches(
    fraction: float, ramp_share: float, batch_size: int, microbatch_size: int
) -> int:
    """Microbatches of the step that starts at `fraction`: from one to batch_size/microbatch_size over
    `ramp_share`.

    The linear batch ramp of Cramming's final recipe (0.6 of the budget, arXiv 2212.14034, section 4.3);
    `ramp_share` 0 means full batches from the start. Raises UserError where the microbatch does not divide
    the batch.
    """
    n_full, rest = divmod(batch_size, microbatch_size)
    if rest:
        raise UserError(
            f"batch_size={batch_size}: must be a multiple of microbatch_size={microbatch_size}"
        )
    if fraction >= ramp_share:
        return n_full
    return min(math.floor(n_full * max(fraction, 0.0) / ramp_share) + 1, n_full)


def stops_early(schedule: ScheduleConfig, fraction: float, loss: float) -> bool:
    """Whether the run has failed: `loss` is over `stop_loss`, or not a number, once `stop_after` is spent."""
    if schedule.stop_loss is None or fraction < schedule.stop_after:
        return False
    return not loss <= schedule.stop_loss


def rewarm(fraction: float, start: float, share: float) -> float:
    """What multiplies the learning rate after a network grew at the share `start` of the budget: from 0 to 1 over another `share`."""
    return min(1.0, (fraction - start) / share) if share and start else 1.0


def _linear(f: float, warmup: float, cooldown: float, final: float) -> float:
    return final + (1 - final) * (1 - _since(warmup, f))


def _cosine(f: float, warmup: float, cooldown: float, final: float) -> float:
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * _since(warmup, f)))


def _constant(f: float, warmup: float, cooldown: float, final: float) -> float:
    return _cooled(lambda _: 1.0, f, max(1 - cooldown, warmup), final)


def _inverse_sqrt(f: float, warmup: float, cooldown: float, final: float) -> float:
    plateau = warmup or INVERSE_SQRT_PLATEAU
    return _cooled(
        lambda at: math.sqrt(plateau / max(at, plateau)), f, max(1 - cooldown, warmup), final
    )


def _cooled(shape: Callable[[float], float], f: float, start: float, final: float) -> float:
    """`shape` until `start`, from its value there in a line to `final` at the end of the budget."""
    if f <= start:
        return shape(f)
    top = shape(start)
    return top - max(0.0, top - final) * _since(start, f)


def _since(start: float, f: float) -> float:
    """Share of the way from `start` to the end of the budget."""
    return (f - start) / (1 - start) if start < 1 else 0.0


_DECAYS = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "inverse_sqrt": _inverse_sqrt,
}
