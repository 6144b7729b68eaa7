"""Shapes of T5 in miniature, from shallow and wide to deep and narrow.

Scale Efficiently (arXiv 2109.10686) asks which shape learns most, of T5s from 5 million to 30
billion parameters (12 million to 11 billion are released). Here they are small enough for a CPU or
any card: a sweep over all of them at one budget, in FLOPs or in hours, takes minutes.
docs/studies/scale_efficiently.md has the results.

`nl2-dm256` is 2 + 2 layers of width 256. Heads have 32 dimensions, feed-forwards 4 times the width.
The blocks of each family take about the same FLOPs a token.

Cost of one run: its budget. A sweep of one family on two CPU cores takes a quarter of an hour.

    python -m cramjax.main --config configs/t5_shapes.py:nl4-dm96
    python -m cramjax.main --config configs/t5_shapes.py:smoke
    python -m tools.sweep --config configs/t5_shapes.py --out runs/shapes \\
      --grid variant=nl1-dm192,nl2-dm128,nl4-dm96
"""

import functools

from cramjax.config import recipes

# Layers and width.
SMALL = {
    "nl1-dm192": (1, 192),
    "nl2-dm128": (2, 128),
    "nl4-dm96": (4, 96),
    "nl8-dm64": (8, 64),
    "nl16-dm48": (16, 48),
}
LARGE = {
    "nl1-dm384": (1, 384),
    "nl2-dm256": (2, 256),
    "nl4-dm192": (4, 192),
    "nl8-dm128": (8, 128),
    "nl16-dm96": (16, 96),
}
BETWEEN = {"nl4-dm128": (4, 128)}


def get_config(arg=None):
    """The shape nl4-dm96, or the one after the colon."""
    config = recipes.start("t5_shapes")
    config.budget.hours = 2 / 60

    recipes.t5(config, "1.1")
    config.data.update(
        source="installed-docs", max_mb=32.0, seq_len=128, vocab_size=4096, tokenizer_sample_mb=8.0
    )
    config.data.loader = "numpy"  # importing TensorFlow takes longer than reading this corpus
    config.batch_size = 16
    config.microbatch_size = 16
    config.optimizer.update(
        name="adamw",
        parameter_scale="on",
        lr=3e-2,
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.schedule.update(name="cosine", warmup=0.05)
    config.checkpoint.every_minutes = 5.0
    config.eval.update(every_fraction=0.1, batches=8, batch_size=64)
    config.log.update(tensorboard=False)

    shapes = {}
    for name, (n_layers, width) in (SMALL | LARGE | BETWEEN).items():
        shapes[name] = functools.partial(_shape, n_layers=n_layers, width=width)
    shapes["nl4-dm96"](config)
    return recipes.apply_variant(config, arg, shapes)


def _shape(config, n_layers, width):
    config.model.update(
        n_layers=n_layers, d_model=width, n_heads=width // 32, head_dim=32, d_ff=4 * width
    )
