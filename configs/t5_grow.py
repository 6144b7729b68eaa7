"""A T5 that grows under a day's budget: 3 + 3 layers at first, then 6 + 6, then all 12 + 12.

The first stage has half the feed-forward. Depth grows by stacking at 12.5% and 30% of the budget
(No Train No Gain, arXiv 2307.06440, which finds no gain beside a fully decayed learning rate).
Width grows by the parameter sharing of CompoundGrow (arXiv 2010.12562). No Train No Gain's T5 grows
in depth alone, has batch 144, and starts its moments anew at a switch (`growth.moments=reset`).

`:ntng` is the arm of No Train No Gain: depth alone grows, the optimizer starts anew each time, and
the batch is 144.

`:control` is the run that does not grow: `t5_1day` by another name. Nobody has measured yet which
of the two is better at this budget.

Cost: one GPU for 24 hours, and the C4 text that it reads, or that of another variant, as in
`t5_1day`; more of it, because small stages are fast.

    python -m cramjax.main --config configs/t5_grow.py
    python -m cramjax.main --config configs/t5_grow.py:control
    python -m cramjax.main --config configs/t5_grow.py:smoke
"""

from cramjax.config import recipes


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.like("t5_grow", "t5_1day")
    config.growth.depth = "stack"
    config.growth.stages = [
        {"until": 0.125, "depth": 0.25, "width": 0.5},
        {"until": 0.3, "depth": 0.5},
    ]
    return recipes.apply_variant(config, arg, {"control": _control, "ntng": _ntng})


def _control(config):
    config.growth.stages = None


def _ntng(config):
    config.growth.stages = [{"until": 0.125, "depth": 0.25}, {"until": 0.3, "depth": 0.5}]
    config.growth.moments = "reset"
    config.batch_size = 144
