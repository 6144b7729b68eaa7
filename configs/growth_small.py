"""Does growing pay? Six ways to train one network at one budget, in miniature, for a CPU or any card.

The network is the quickstart's with 8 layers. `control` trains all of it from the first step to the last with a learning
rate that decays in full, the comparison of No Train No Gain (arXiv 2307.06440); `stack` doubles its depth twice at the
shares of that paper; `depth`, `width` and `length` grow one dimension by the schedule of `compound`, which grows all
three (CompoundGrow, arXiv 2010.12562).

Cost of one run: what its budget says, a minute; the sweep below on two CPU cores, half an hour. `--config.budget.hours=None
--config.budget.flops=1.2e13` compares at equal FLOPs instead.

    python -m cramjax.main --config configs/growth_small.py:compound
    python -m cramjax.main --config configs/growth_small.py:smoke
    python -m tools.sweep --config configs/growth_small.py --grid variant=control,stack,depth,width,length,compound \\
      --grid seed=0,1,2 --out runs/growth
"""

import functools

from cramjax.config import recipes

STAGES = {
    "control": None,
    "stack": [{"until": 0.125, "depth": 0.25}, {"until": 0.3, "depth": 0.5}],
    "depth": [{"until": 0.3, "depth": 0.25}, {"until": 0.6, "depth": 0.5}],
    "width": [{"until": 0.6, "width": 0.5}],
    "length": [{"until": 0.6, "length": 0.5}],
    "compound": [
        {"until": 0.3, "depth": 0.25, "width": 0.5, "length": 0.5},
        {"until": 0.6, "depth": 0.5, "width": 0.5, "length": 0.5},
    ],
}


def get_config(arg=None):
    """The control, or the variant after the colon."""
    config = recipes.like("growth_small", "quickstart")
    config.budget.hours = 1 / 60
    config.model.n_layers = 8
    config.checkpoint.every_minutes = 5.0
    config.log.update(tensorboard=False, fill_masks=0)
    return recipes.apply_variant(config, arg, {name: functools.partial(_grow, name) for name in STAGES})


def _grow(name, config):
    config.growth.stages = STAGES[name]
