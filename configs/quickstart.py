"""Three minutes on two CPU cores: a small BERT from text that is already on the machine.

The crammed recipe (arXiv 2212.14034) at a size a CPU can train, in the form of a stock ModernBERT.
Positions are rotary, because absolute ones stay on the unigram plateau for the first thousands of
steps, more than this budget holds. The optimizer is Muon (arXiv 2502.16982) in place of AdamW.
docs/studies/quickstart.md has the alternatives that were tried.

Cost: two CPU cores for three minutes and no network. docs/benchmarks.md has the loss it reaches.

    python -m cramjax.main --config configs/quickstart.py
"""

from cramjax.config import recipes


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.start("quickstart")
    config.budget.hours = 0.05

    config.data.update(
        source="installed-docs",
        language="en",
        max_mb=32.0,
        seq_len=128,
        vocab_size=8192,
        tokenizer_sample_mb=8.0,
        compressibility=None,
    )
    config.data.loader = "numpy"  # importing TensorFlow takes longer than reading this corpus
    config.model.update(
        n_layers=2,
        d_model=128,
        n_heads=2,
        d_ff=256,
        ffn="geglu",
        norm_bias=False,
        norm_eps=1e-6,
        first_norm=False,
        positions="rotary",
        head_transform=True,
        decoder_bias=True,
    )
    config.objective.update(mask_rate=0.25)
    config.batch_size = 16
    config.microbatch_size = 16
    config.optimizer.update(
        name="muon", lr=1e-2, b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.01, clip_norm=0.5
    )
    config.schedule.update(name="triangle2")
    config.checkpoint.every_minutes = 1.0
    config.eval.update(every_fraction=0.1, batches=8, batch_size=64)
    return recipes.apply_variant(config, arg)
