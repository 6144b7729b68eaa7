"""Changes to a small T5, each one a variant, tried in turn: what transfers from the small BERT?

The control is T5 v1.1 in miniature (2 + 2 layers of width 128), trained as nanoT5 does (arXiv
2309.02373): AdamW with updates scaled by the RMS of each matrix, cosine. A variant changes one
thing, and + joins several. `python -m tools.study track_t5` tries them in turn, as `track` does
for configs/best_small.py.

Cost of one run: 10 TFLOP, five minutes on one slow CPU core.

    python -m cramjax.main --config configs/best_small_t5.py:muon+average
    python -m tools.study track_t5 --out runs/track_t5 --config.data.source=text:articles.jsonl.zst
"""

from cramjax.config import recipes
from cramjax.config.changes import lr_times, setting, together


def get_config(arg=None):
    """The control, or the changes after the colon."""
    config = recipes.like("best_small_t5", "t5_shapes")
    config.model.update(n_layers=2, d_model=128, n_heads=4, d_ff=512)
    config.budget.update(hours=None, flops=1e13)
    config.data.max_mb = 160.0
    config.eval.every_fraction = 0.25
    config.log.fill_masks = 0
    return recipes.apply_variant(config, arg, VARIANTS)


VARIANTS = {
    "control": together(),
    "lr_up": lr_times(1.6),
    "lr_down": lr_times(1 / 1.6),
    # Its updates have one size for every matrix, so nothing is scaled by the matrix's own.
    "muon": setting("optimizer", name="muon", parameter_scale="off", lr=1e-2, weight_decay=0.01),
    "cooccurrence": lambda config: config.update(init_embeddings="cooccurrence"),
    "momentum": setting("optimizer", momentum_warmup=300),
    "embeddings": setting("optimizer", embedding_lr=3.0),
    "scalars": setting("optimizer", scalar_lr=3.0),
    "cautious": setting("optimizer", cautious=True, weight_decay=0.1),
    "cooldown": setting("schedule", name="constant", warmup=0.02, cooldown=0.5),
    "average": setting("optimizer", average=200),
    "wide": together(
        setting("budget", flops=3e13), setting("model", d_model=256, n_heads=8, d_ff=1024)
    ),
}
