"""Train large, then compress, in miniature: five sizes for the same minutes on a CPU.

The recipe is the quickstart's, on networks of 2 to 6 layers. Train Large, Then Compress (arXiv
2002.11794) asks which of them is best at equal time, and again at equal bytes after
`tools.compress`. docs/studies/train_large_compress.md has the answer at this size. L2-H128 is the
quickstart's.

Cost of one run: its budget, eight minutes.

    python -m cramjax.main --config configs/train_large_small.py:L4-H192
    python -m cramjax.main --config configs/train_large_small.py:smoke
    python -m tools.sweep --config configs/train_large_small.py --out runs/sizes \\
      --grid variant=L2-H32,L2-H64,L2-H128,L4-H192,L6-H256
"""

import functools

from cramjax.config import recipes

SIZES = ((2, 32), (2, 64), (2, 128), (4, 192), (6, 256))


def get_config(arg=None):
    """The quickstart's size, or that after the colon."""
    config = recipes.like("train_large_small", "quickstart")
    config.budget.hours = 8 / 60
    config.data.max_mb = 160.0
    config.checkpoint.every_minutes = 5.0
    config.log.update(tensorboard=False, fill_masks=0)
    variants = {f"L{n}-H{width}": functools.partial(_size, n, width) for n, width in SIZES}
    return recipes.apply_variant(config, arg, variants)


def _size(n_layers, width, config):
    config.model.update(n_layers=n_layers, d_model=width, n_heads=width // 64 or 1, d_ff=2 * width)
