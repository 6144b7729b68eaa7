"""CompoundGrow under a day's budget: a crammed ModernBERT that grows in three dimensions.

CompoundGrow (arXiv 2010.12562), with the operators of its base model. Layers are stacked from a
quarter to a half to all, feed-forwards of half the width share their halves when they grow, and
embeddings are averaged in pairs at first, except at predicted positions. Full width and length come
together at 70%, as in the paper's study of single operators (700 of 1,000 thousand steps; recalled,
not checked). The first doubling of the depth at half that is our choice.

By default these are shares of the time, moments grow with the network, copies are set a little
apart, and learning rate and batch ramp go on. A step of the stages takes 17%, 27% and 100% of the
FLOPs, so 92% of the steps are of the small networks.

`:paper` counts and starts anew as its code does. Stages end at 35% and 70% of the steps, which are
13% and 34% of the budget. Each one begins with fresh moments and 1% of the steps (10 of 1,000
thousand) of warm-up, batches are whole from the start, the decay is linear, and copies are equal.
Its code starts a new decay with each stage, for numbers that were not released; here one decay
spans the budget.

`:large` has the depth, width and heads of BERT-large, and a gated feed-forward of twice the width:
286 million parameters. `:control` is the run that does not grow: `bert_1day_modern` by another
name. Variants combine: `:large+paper`, and `:large+paper+control` beside it. Network, data and
masking are those of `bert_1day_modern`, not the paper's post-norm BERT at 512 tokens. Nobody has
measured yet which arm is better at this budget; docs/studies/growth.md has the measurements in
miniature, and `growth.control` writes the time to equal loss into summary.json.

Cost: one GPU for 24 hours, and the C4 text that it reads, or that of another variant, as in
`bert_1day_modern`; more of it, because small stages are fast.

    python -m cramjax.main --config configs/bert_compoundgrow.py
    python -m cramjax.main --config configs/bert_compoundgrow.py:control
    python -m cramjax.main --config configs/bert_compoundgrow.py:large+paper
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
    return recipes.apply_variant(config, arg, _VARIANTS)


def _control(config):
    config.growth.stages = None


def _large(config):
    config.model.update(n_layers=24, d_model=1024, n_heads=16, d_ff=2048)


def _paper(config):
    config.growth.update(until="steps", moments="reset", rewarm=0.01, noise=0.0)
    config.schedule.update(name="linear", warmup=0.01, final=0.0, batch_ramp=0.0)


def _smoke(config):
    recipes.smoke(config)
    # A quarter of 8 layers is the least that a network without a first norm can have.
    config.model.n_layers = 8


_VARIANTS = {"control": _control, "large": _large, "paper": _paper, "smoke": _smoke}
