"""Changes to a small crammed BERT, each one a variant, tried in turn: what pays within minutes?

The control is the quickstart's network, a stock ModernBERT, as Cramming (arXiv 2212.14034) trains:
AdamW, 25% masked, a triangle of the learning rate. With batch 8 and rate 2e-3 AdamW leaves the
unigram plateau within three minutes of one slow core; with 16 and 5e-3 it did not
(docs/studies/track.md). A variant changes one thing, and + joins several. `python -m tools.study
track` tries them in turn, each on top of the best before it, with five seeds; `wide`, for a second
look at what has won, is twice the width and five times the time.

Cost of one run: its budget, three minutes on two CPU cores.

    python -m cramjax.main --config configs/best_small.py:muon+average
    python -m tools.study track --out runs/track --config.data.source=text:articles.jsonl.zst
"""

from cramjax.config import recipes


def get_config(arg=None):
    """The control, or the changes after the colon."""
    config = recipes.like("best_small", "quickstart")
    config.batch_size = config.microbatch_size = 8
    config.optimizer.update(name="adamw", lr=2e-3, eps=1e-12)
    config.data.max_mb = 160.0
    config.checkpoint.every_minutes = 5.0
    config.log.update(tensorboard=False, fill_masks=0)
    return recipes.apply_variant(config, arg, VARIANTS)


def _control(config):
    """Nothing changes."""


def _wide(config):
    config.budget.hours = 15 / 60
    config.model.update(d_model=256, n_heads=4, d_ff=512, n_layers=4)


def _set(section, **values):
    return lambda config: config[section].update(**values)


def _batch(size):
    return lambda config: config.update(batch_size=size, microbatch_size=size)


def _muon(**values):
    """Returns a change to Muon at the quickstart's rate, or with other values."""
    return _set("optimizer", **{"name": "muon", "lr": 1e-2, "eps": 1e-9} | values)


def _momentum(config):
    if config.optimizer.name != "muon":
        _muon()(config)
    config.optimizer.momentum_warmup = 300


def _in_thirds(**by_key):
    """Returns a change of the first two thirds of the budget; the last is as it was."""

    def change(config):
        whole = ({"until": 1 / 3}, {"until": 2 / 3})
        stages = [dict(stage) for stage in config.growth.stages or whole]
        for key, values in by_key.items():
            for stage, value in zip(stages, values, strict=True):
                stage[key] = value
        config.growth.stages = stages

    return change


def _falling_masks(config):
    _in_thirds(mask_rate=(0.3, 0.2))(config)
    config.objective.mask_rate = 0.15


VARIANTS = {
    "control": _control,
    "lr_up": _set("optimizer", lr=3.2e-3),
    "lr_down": _set("optimizer", lr=1.25e-3),
    "decay": _set("optimizer", weight_decay=0.1),
    "batch_down": _batch(4),
    "batch_up": _batch(16),
    "muon": _muon(),
    "muon_up": _muon(lr=1.6e-2),
    "muon_down": _muon(lr=1e-2 / 1.6),
    "momentum": _momentum,
    "embeddings": _set("optimizer", embedding_lr=3.0),
    "scalars": _set("optimizer", scalar_lr=3.0),
    "cautious": _set("optimizer", cautious=True, weight_decay=0.1),
    "cooldown": _set("schedule", name="constant", warmup=0.02, cooldown=0.5),
    "masks": _falling_masks,
    "causal": _in_thirds(causal=(True, False)),
    "short": _in_thirds(length=(0.5, 0.5)),
    "documents": _set("model", document_attention=True),
    "average": _set("optimizer", average=200),
    "wide": _wide,
}
