"""Text to text on pairs: a small T5 that learns the target of each source, from scratch.

The form is T5's (arXiv 1910.10683, section 2.4), the network a T5 v1.1 of 9 million parameters.
Without other data it reads paragraphs of docstrings that lie on this machine, and writes the line
before each, which sums it up. Give two files of lines, or records, for translation or anything
else:

    python -m cramjax.main --config configs/t5_pairs.py
    python -m cramjax.main --config configs/t5_pairs.py \\
      --config.data.source='pairs:train.de,train.en' --config.data.heldout='pairs:val.de,val.en' \\
      --config.data.source_prefix='translate German to English: '
    python -m cramjax.main --config configs/t5_pairs.py:smoke

Label smoothing and dropout are those of the Transformer (arXiv 1706.03762, section 5.4), the
optimizer and the schedule nanoT5's (arXiv 2309.02373). Cost: a quarter of an hour on one GPU, or a
few hours on a CPU.
"""

from cramjax.config import recipes


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.start("t5_pairs")
    config.budget.hours = 0.25

    recipes.t5(config, "1.1")
    config.objective.update(name="text_to_text", label_smoothing=0.1)
    config.data.update(
        source="pairs:installed-docs",
        vocab_size=8192,
        extra_ids=0,
        seq_len=128,
        target_len=96,
        heldout_fraction=0.03,
        tokenizer_sample_mb=16.0,
    )
    config.data.loader = "numpy"  # importing TensorFlow takes longer than reading this corpus
    config.model.update(n_layers=3, d_model=256, n_heads=4, head_dim=64, d_ff=512, dropout=0.1)
    config.batch_size = 32
    config.eval.update(batch_size=32, batches=64, every_fraction=0.1)
    config.optimizer.update(
        name="adamw",
        parameter_scale="on",
        lr=1e-2,
        b1=0.9,
        b2=0.999,
        eps=1e-6,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.schedule.update(name="cosine", warmup=0.1, final=5e-4)
    return recipes.apply_variant(config, arg)
