"""When a run evaluates and when it saves: pure rules over the clock's readings."""

from __future__ import annotations

import dataclasses
import math

from cramjax.config.views import Config

# Added before rounding down, so that 0.3 / 0.1 counts as 3.
_HAIR = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalDue:
    """Says that an evaluation is due each time another share of the budget is spent.

    Attributes:
        every: the share of the budget between two evaluations; 0 for no evaluation on the way.
        n_passed: the multiples of `every` and the shares of `also_at` that are passed.
        also_at: shares of the budget at which an evaluation is due as well.
    """

    every: float
    n_passed: int = 0
    also_at: tuple[float, ...] = ()

    def is_due(self, fraction: float) -> bool:
        """Returns whether `fraction` of the budget has passed another point."""
        return self._count(fraction) > self.n_passed

    def after(self, fraction: float) -> EvalDue:
        """Returns the rule from `fraction` on: points up to there are passed.

        This is the rule after an evaluation and at the start of a run. A long step that passes
        several points is followed by one evaluation.
        """
        return dataclasses.replace(self, n_passed=self._count(fraction))

    def following(self, fraction: float) -> float:
        """Returns the first share after `fraction` at which an evaluation is due; 1.0 is the end's.

        The rule at `fraction` is that of a run that has made its evaluations up to there.
        """
        points = [share for share in self.also_at if share > fraction + _HAIR]
        if self.every:
            points.append((math.floor(fraction / self.every + _HAIR) + 1) * self.every)
        return min([*points, 1.0])

    def resumed(self, fraction: float, n_passed: int | None) -> EvalDue:
        """Returns the rule for a run that goes on at `fraction`.

        Args:
            fraction: the share of the budget that is spent.
            n_passed: the points that had been passed, or None to take those up to `fraction`.
        """
        if n_passed is None:
            return self.after(fraction)
        return dataclasses.replace(self, n_passed=n_passed)

    def _count(self, fraction: float) -> int:
        n_multiples = math.floor(fraction / self.every + _HAIR) if self.every else 0
        return n_multiples + sum(fraction + _HAIR >= share for share in self.also_at)


def evaluations(config: Config) -> EvalDue:
    """Returns the rule of a run's evaluations; one stands where `schedule.stop_loss` judges."""
    also_at = ()
    if config.schedule.stop_loss is not None:
        also_at = (config.schedule.stop_after,)
    return EvalDue(every=config.eval.every_fraction, also_at=also_at)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveDue:
    """Says that a checkpoint is due after so many minutes or steps, whichever comes first.

    Attributes:
        every_minutes: minutes of the run's clock between two checkpoints.
        every_steps: steps between two checkpoints; None or 0 for minutes alone.
        at_hours: hours of the run's clock at which a checkpoint is due as well.
        saved_at_s: the clock's seconds at the latest checkpoint.
        saved_step: the step of the latest checkpoint.
        passed_s: the clock's seconds up to which hours are passed: those of the checkpoint, which
            are fewer than `saved_at_s` after a restart.
    """

    every_minutes: float
    every_steps: int | None
    at_hours: tuple[float, ...] = ()
    saved_at_s: float = 0.0
    saved_step: int = 0
    passed_s: float = 0.0

    def is_due(self, elapsed_s: float, step: int) -> bool:
        """Returns whether `step`, reached after `elapsed_s` seconds, is to be saved.

        A step is never due twice, and step 0 never: it is a function of the seed.
        """
        n_steps = step - self.saved_step
        if n_steps <= 0:
            return False
        if self.every_steps and n_steps >= self.every_steps:
            return True
        if self.hours_passed(elapsed_s):
            return True
        return (elapsed_s - self.saved_at_s) / 60 >= self.every_minutes

    def hours_passed(self, elapsed_s: float) -> list[float]:
        """Returns those of `at_hours` that the clock has passed since the latest checkpoint."""
        return [hours for hours in self.at_hours if self.passed_s < hours * 3600 <= elapsed_s]

    def after(self, elapsed_s: float, step: int) -> SaveDue:
        """Returns the rule after a save of `step` at `elapsed_s` seconds."""
        return dataclasses.replace(self, saved_at_s=elapsed_s, saved_step=step, passed_s=elapsed_s)
