"""Changes to a small crammed BERT, each one a variant, tried in turn: what pays within minutes?

The control is the quickstart's network, a stock ModernBERT, as Cramming (arXiv 2212.14034) trains:
AdamW, 25% masked, a triangle of the learning rate (docs/studies/track.md has the choice). The
budget is in FLOPs, because seconds depend on the machine and on what else it does. A variant
changes one thing, and + joins several. `python -m tools.study track` tries them in turn, each on
top of the best before it, with five seeds; `wide`, for a second look at what has won, is twice the
width and three times the FLOPs.

Cost of one run: 10 TFLOP, five minutes on one slow CPU core.

    python -m cramjax.main --config configs/best_small.py:muon+average
    python -m tools.study track --out runs/track --config.data.source=text:articles.jsonl.zst
"""

from cramjax.config import recipes
from cramjax.config.changes import lr_times, setting, together


def get_config(arg=None):
    """The control, or the changes after the colon."""
    config = recipes.like("best_small", "quickstart")
    config.batch_size = config.microbatch_size = 8
    config.optimizer.update(name="adamw", lr=2e-3, eps=1e-12)
    config.budget.update(hours=None, flops=1e13)
    config.data.max_mb = 160.0
    config.eval.every_fraction = 0.25
    config.checkpoint.every_minutes = 5.0
    config.log.update(tensorboard=False, fill_masks=0)
    return recipes.apply_variant(config, arg, VARIANTS)


def _batch(size):
    return lambda config: config.update(batch_size=size, microbatch_size=size)


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


def _ramp(config):
    """From half the batch to twice the batch, over half the budget."""
    half = config.batch_size // 2
    config.update(batch_size=4 * half, microbatch_size=half)
    config.schedule.update(batch_ramp=0.5, ramp_start=half)


VARIANTS = {
    "control": together(),
    "lr_up": lr_times(1.6),
    "lr_down": lr_times(1 / 1.6),
    "decay": setting("optimizer", weight_decay=0.1),
    "batch_down": _batch(4),
    "batch_up": _batch(16),
    "ramp": _ramp,
    # The quickstart's optimizer, rate and batch.
    "muon": together(setting("optimizer", name="muon", lr=1e-2, eps=1e-9), _batch(16)),
    "momentum": setting("optimizer", momentum_warmup=300),
    "embeddings": setting("optimizer", embedding_lr=3.0),
    "scalars": setting("optimizer", scalar_lr=3.0),
    "cautious": setting("optimizer", cautious=True, weight_decay=0.1),
    "cooldown": setting("schedule", name="constant", warmup=0.02, cooldown=0.5),
    "masks": together(_in_thirds(mask_rate=(0.3, 0.2)), setting("objective", mask_rate=0.15)),
    # Left to right nothing is masked.
    "causal": together(_in_thirds(causal=(True, False)), setting("objective", hard_masks=0.0)),
    "hard_masks": setting("objective", hard_masks=1.0),
    "short": _in_thirds(length=(0.5, 0.5)),
    "documents": setting("model", document_attention=True),
    "init": setting("model", init_std=0.05),
    "cooccurrence": lambda config: config.update(init_embeddings="cooccurrence"),
    "rotary": setting("model", rotary_base=100.0),
    "average": setting("optimizer", average=200),
    "wide": together(
        setting("budget", flops=3e13), setting("model", d_model=256, n_heads=4, d_ff=512)
    ),
}
