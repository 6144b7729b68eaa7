"""When a run evaluates and when it saves: pure rules over the clock's readings."""

from __future__ import annotations

import dataclasses
import math

# Added before rounding down, so that 0.3 / 0.1 counts as 3.
_HAIR = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalDue:
    """Says that an evaluation is due each time another share of the budget is spent.

    Attributes:
        every: the share of the budget between two evaluations; 0 for no evaluation on the way.
        n_passed: the multiples of `every` that are passed.
    """

    every: float
    n_passed: int = 0

    def is_due(self, fraction: float) -> bool:
        """Returns whether `fraction` of the budget has passed another multiple of `every`."""
        return self._count(fraction) > self.n_passed

    def after(self, fraction: float) -> EvalDue:
        """Returns the rule from `fraction` on: multiples up to there are passed.

        This is the rule after an evaluation and at the start of a run. A long step that passes
        several multiples is followed by one evaluation.
        """
        return dataclasses.replace(self, n_passed=self._count(fraction))

    def resumed(self, fraction: float, n_passed: int | None) -> EvalDue:
        """Returns the rule for a run that goes on at `fraction`.

        Args:
            fraction: the share of the budget that is spent.
            n_passed: the multiples that had been passed, or None to take those up to `fraction`.
        """
        if n_passed is None:
            return self.after(fraction)
        return dataclasses.replace(self, n_passed=n_passed)

    def _count(self, fraction: float) -> int:
        return math.floor(fraction / self.every + _HAIR) if self.every else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveDue:
    """Says that a checkpoint is due after so many minutes or steps, whichever comes first.

    Attributes:
        every_minutes: minutes of the run's clock between two checkpoints.
        every_steps: steps between two checkpoints; None or 0 for minutes alone.
        saved_at_s: the clock's seconds at the latest checkpoint.
        saved_step: the step of the latest checkpoint.
    """

    every_minutes: float
    every_steps: int | None
    saved_at_s: float = 0.0
    saved_step: int = 0

    def is_due(self, elapsed_s: float, step: int) -> bool:
        """Returns whether `step`, reached after `elapsed_s` seconds, is to be saved.

        A step is never due twice, and step 0 never: it is a function of the seed.
        """
        n_steps = step - self.saved_step
        if n_steps <= 0:
            return False
        if self.every_steps and n_steps >= self.every_steps:
            return True
        return (elapsed_s - self.saved_at_s) / 60 >= self.every_minutes

    def after(self, elapsed_s: float, step: int) -> SaveDue:
        """Returns the rule after a save, or a restart, of `step` at `elapsed_s` seconds."""
        return dataclasses.replace(self, saved_at_s=elapsed_s, saved_step=step)
