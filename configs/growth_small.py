"""Does growing pay? Ways to train one network at one budget, in miniature, for a CPU or any card.

The network is the quickstart's with half the width and 8 layers. The variants:

- `control` trains all of it from the first step to the last with a learning rate that decays in
  full, the comparison of No Train No Gain (arXiv 2307.06440).
- `stack` doubles its depth twice at the shares of that paper.
- `compound` grows depth, width and length (CompoundGrow, arXiv 2010.12562); `depth`, `width` and
  `length` grow one of them by the same schedule.
- `pool` is `length` by means of two embeddings, `tied` is `width` without noise between the copies.
- `late` is `compound` with later switches and new layers that change nothing at first.
- `small` is a network of 2 layers that stays one.

Cost of one run: its budget, two minutes. docs/studies/growth.md has the sweeps and their results.

    python -m cramjax.main --config configs/growth_small.py:compound
    python -m cramjax.main --config configs/growth_small.py:smoke
    python -m tools.sweep --config configs/growth_small.py --out runs/growth \\
      --grid variant=control,stack,compound --grid seed=0,1
"""

import functools

from cramjax.config import recipes

STAGES = {
    "control": None,
    "stack": [{"until": 0.125, "depth": 0.25}, {"until": 0.3, "depth": 0.5}],
    "depth": [{"until": 0.3, "depth": 0.25}, {"until": 0.6, "depth": 0.5}],
    "width": [{"until": 0.6, "width": 0.5}],
    "length": [{"until": 0.6, "length": 0.5}],
    "pool": [{"until": 0.6, "pool": 2}],
    "compound": [
        {"until": 0.3, "depth": 0.25, "width": 0.5, "length": 0.5},
        {"until": 0.6, "depth": 0.5, "width": 0.5, "length": 0.5},
    ],
    "late": [
        {"until": 0.6, "depth": 0.25, "width": 0.5, "length": 0.5},
        {"until": 0.85, "depth": 0.25},
    ],
}


def get_config(arg=None):
    """The control, or the variant after the colon."""
    config = recipes.like("growth_small", "quickstart")
    config.budget.hours = 2 / 60
    config.model.update(n_layers=8, d_model=64, d_ff=128)
    config.checkpoint.every_minutes = 5.0
    config.log.update(tensorboard=False, fill_masks=0)
    variants = {name: functools.partial(_grow, name) for name in STAGES}
    variants |= {"small": _stay_small, "tied": _grow_tied}
    return recipes.apply_variant(config, arg, variants)


def _grow(name, config):
    config.growth.stages = STAGES[name]
    config.growth.depth = "identity" if name == "late" else "stack"


def _stay_small(config):
    config.model.n_layers = 2


def _grow_tied(config):
    _grow("width", config)
    config.growth.noise = 0.0
