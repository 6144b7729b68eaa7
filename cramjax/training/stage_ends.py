"""The shares of the budget at which the stages of a growing network end.

`growth.until` says what the shares of `growth.stages` are shares of. CompoundGrow's are of the
optimizer steps (arXiv 2010.12562 trains small for 700 of 1,000 thousand). A small stage's steps are
cheap, so a share of the steps is another share of a budget in FLOPs, tokens or hours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cramjax.config import stages
from cramjax.config.resolve import changed
from cramjax.config.views import Config
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families
from cramjax.objectives.objective import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageEnd:
    """The end of a stage.

    Attributes:
        until: the share of the budget at which it ends.
        rewarm: `growth.rewarm` in this stage, as a share of the budget.
    """

    until: float
    rewarm: float


def of(config: Config, vocabulary: Vocabulary) -> tuple[StageEnd, ...]:
    """Returns the ends of the stages of a sound `config`, in order; the last one is at 1.

    Shares of steps are exact under a limit of steps, tokens or FLOPs, up to the step that a stage
    ends with. Under a limit of hours the time of a step counts as proportional to its FLOPs.
    """
    listed = stages.of(config)
    rewarm = config.growth.rewarm
    if config.growth.until == "budget":
        return tuple(StageEnd(until=stage.until, rewarm=rewarm) for stage in listed)

    costs = [_step_cost(changed(config, stage.overrides), vocabulary) for stage in listed]
    return by_steps([stage.until for stage in listed], costs, rewarm)


def by_steps(until: Sequence[float], costs: Sequence[float], rewarm: float) -> tuple[StageEnd, ...]:
    """Returns the ends of stages that are given in shares of the steps.

    Args:
        until: the share of the steps at which each stage ends; the last one is 1.
        costs: what a step of each stage takes of the budget, in any unit.
        rewarm: share of the steps over which the learning rate comes up again.
    """
    spent = []
    since = 0.0
    for share, cost in zip(until, costs, strict=True):
        spent.append((share - since) * cost)
        since = share
    total = sum(spent)

    ends = []
    for number, cost in enumerate(costs):
        # All of it is exactly 1, however the sum is rounded.
        is_last = number == len(costs) - 1
        share = 1.0 if is_last else sum(spent[: number + 1]) / total
        ends.append(StageEnd(until=share, rewarm=rewarm * cost / total))
    return tuple(ends)


def _step_cost(config: Config, vocabulary: Vocabulary) -> float:
    """Returns what a step of a stage takes of the one limit of the budget."""
    if config.budget.steps is not None:
        return 1.0
    if config.budget.tokens is not None:
        return float(config.batch_size * config.data.seq_len)
    return config.batch_size * families.build(config, vocabulary, FLOAT32).flops
