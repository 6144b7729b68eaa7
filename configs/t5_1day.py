"""T5 v1.1 in one day on one GPU: nanoT5's recipe with a schedule that follows the clock.

The model is T5 v1.1-base (arXiv 1910.10683 and its released checkpoints): 12 + 12 layers, gated
GELU, 248 million parameters. The optimizer is nanoT5's (arXiv 2309.02373): AdamW with an update
that is scaled by the RMS of each matrix, at 2e-2 with a cosine to nearly zero. In that paper it
beats Adafactor (held-out loss 1.953 against 1.993), and plain AdamW diverges. nanoT5 reaches 40.7
Rouge-L on Super-Natural Instructions in 16 hours of an A100, google/t5-v1_1-base 40.9. Ours is not
measured yet, and losses do not compare across tokenizers: nanoT5 has T5's, this recipe trains one.

`:adafactor` trains the same network on the same text as T5's code does: Adafactor at 0.01 for
10,000 steps, then falling with the root of the step and in the last tenth to 0, z-loss 1e-4. It
keeps nanoT5's end token between documents, so that losses compare. `:small` has the 77 million
parameters of v1.1-small, for cards under 16 GB.

`:fineweb_edu` and `:climbmix` read better web text (cramjax/config/texts.py), also behind another
variant.

Cost: one GPU for 24 hours, and the C4 text that it reads: downloads of 4 GB for an RTX 3060, 19 GB
for an RTX 4090, 96 GB for an H100.

    python -m cramjax.main --config configs/t5_1day.py
    python -m cramjax.main --config configs/t5_1day.py:small --config.budget.hours=4 \\
      --config.data.source='text:mine/*.jsonl.zst'
    python -m cramjax.main --config configs/t5_1day.py:small+climbmix
    python -m cramjax.main --config configs/t5_1day.py:smoke
"""

from cramjax.config import recipes, texts


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.start("t5_1day")
    config.budget.hours = 24.0

    recipes.t5(config, "1.1")
    config.data.update(source=texts.C4, max_mb="budget", dedup_exact=False)
    config.model.update(n_layers=12, d_model=768, n_heads=12, head_dim=64, d_ff=2048)
    config.batch_size = 256
    config.eval.batch_size = 32  # every target has its logits, 32,128 of them
    config.optimizer.update(
        name="adamw",
        parameter_scale="on",
        lr=2e-2,
        b1=0.9,
        b2=0.999,
        eps=1e-6,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    # The paper warms up from half the peak for an eighth of a day's steps, and ends at 1e-5.
    config.schedule.update(name="cosine", warmup=0.125, warmup_from=0.5, final=5e-4)
    return recipes.apply_variant(config, arg, {"small": _small, "adafactor": _adafactor})


def _small(config):
    config.model.update(n_layers=8, d_model=512, n_heads=6, head_dim=64, d_ff=1024)


def _adafactor(config):
    config.optimizer.update(name="adafactor", parameter_scale="auto", lr=1e-2, clip_norm=None)
    config.schedule.update(name="inverse_sqrt", warmup=0.0, plateau=10_000, cooldown=0.1, final=0.0)
    config.objective.z_loss = 1e-4
