"""CompoundGrow under a day's budget: a crammed ModernBERT that grows in three dimensions.

CompoundGrow (arXiv 2010.12562), with the operators of its base model. Layers are stacked from a
quarter to a half to all, feed-forwards of half the width share their halves when they grow, and
embeddings are averaged in pairs at first, except at predicted positions. Full width and length come
together at 70% of the budget, as in the paper's study of single operators (700 of 1,000 thousand
steps; recalled, not checked). The first doubling of the depth at half that time is our choice.

`:control` is the run that does not grow: `bert_1day_modern` by another name. Nobody has measured
yet which of the two is better at this budget; docs/studies/growth.md has the measurements in
miniature.

Cost: one GPU for 24 hours, and the C4 text that it reads, or that of another variant, as in
`bert_1day_modern`; more of it, because small stages are fast.

    python -m cramjax.main --config configs/bert_compoundgrow.py
    python -m cramjax.main --config configs/bert_compoundgrow.py:control
    python -m cramjax.main --config configs/bert_compoundgrow.py:smoke
"""

from cramjax.config import recipes


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.like("bert_compoundgrow", "bert_1day_modern")
    config.growth.depth = "stack"
    config.growth.stages = [
        {"until": 0.35, "depth": 0.25, "width": 0.5, "pool": 2},
        {"until": 0.7, "depth": 0.5, "width": 0.5, "pool": 2},
    ]
    return recipes.apply_variant(config, arg, {"control": _control, "smoke": _smoke})


def _control(config):
    config.growth.stages = None


def _smoke(config):
    recipes.smoke(config)
    # A quarter of 8 layers is the least that a network without a first norm can have.
    config.model.n_layers = 8
