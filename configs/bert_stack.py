"""Progressive stacking under a day's budget: a crammed ModernBERT of 4, then 8, then 16 layers.

Gong et al. (ICML 2019) copy the trained stack on top of itself and train on. Here the optimizer's
moments are copied with it. Stages end at 12.5% and 30% of the budget, as in No Train No Gain (arXiv
2307.06440). That paper finds no gain from stacking over a run with a fully decayed learning rate.
`:ntng` starts the optimizer anew at each growth, as its code does.

`:control` is that run: `bert_1day_modern` by another name. Nobody has measured yet which of the two
is better at this budget.

Cost: one GPU for 24 hours, and the C4 text that it reads, or that of another variant, as in
`bert_1day_modern`; more of it, because small stages are fast.

    python -m cramjax.main --config configs/bert_stack.py
    python -m cramjax.main --config configs/bert_stack.py:control
    python -m cramjax.main --config configs/bert_stack.py:smoke
"""

from cramjax.config import recipes


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.like("bert_stack", "bert_1day_modern")
    config.growth.depth = "stack"
    config.growth.stages = [{"until": 0.125, "depth": 0.25}, {"until": 0.3, "depth": 0.5}]
    variants = {"control": _control, "ntng": _ntng, "smoke": _smoke}
    return recipes.apply_variant(config, arg, variants)


def _control(config):
    config.growth.stages = None


def _ntng(config):
    config.growth.moments = "reset"


def _smoke(config):
    recipes.smoke(config)
    # A quarter of 8 layers is the least that a network without a first norm can have.
    config.model.n_layers = 8
