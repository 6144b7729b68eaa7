"""Train large, then compress: sizes from 3 layers of width 256 to 24 of 1,536 for the same time.

Train Large, Then Compress (arXiv 2002.11794): for a fixed time, train a model that is too large to
converge in it, stop by the clock, then prune and quantise it. Here the clock is the budget, and the
learning rate decays with it: every size stops at the same second with a schedule of its own. The
network is that of `bert_1day_modern` (Cramming's training, ModernBERT's layers), with heads of 64
dimensions and a feed-forward of twice the width; the paper's is a RoBERTa's.

A sweep says which size is best for the budget:

    python -m tools.sweep --config configs/bert_train_large.py --out runs/sizes \\
      --config.budget.hours=6 --grid \\
      variant=L3-H768,L6-H768,L12-H768,L18-H768,L24-H768,L12-H256,L12-H512,L12-H1024,L12-H1536

These are the depths at one width and the widths at one depth of the paper (recalled, not checked);
every other pair of them is a variant as well. `:mask15` predicts 15% of the tokens, as the paper's
RoBERTa, instead of Cramming's 25%; variants combine: `:L12-H768+mask15`.

Its study of the batch is a sweep as well. The best batch grows with the size and with the time, and
`--config.log.noise_scale=True` logs the gradient noise scale: larger batches than that begin to pay
less. Learning rate and schedule stay the same, as they do between the paper's sizes:

    python -m tools.sweep --config configs/bert_train_large.py --out runs/batches \\
      --config.budget.hours=6 --grid variant=L12-H768,L24-H768 \\
      --grid batch_size=2048,4096,8192,16384

Cost: one GPU for 24 hours a size, and 40 GB of C4 text (15 GB of downloads), the same for every
size; a small one on a fast card reads it several times. Not measured yet.

    python -m cramjax.main --config configs/bert_train_large.py
    python -m cramjax.main --config configs/bert_train_large.py:L12-H768
    python -m cramjax.main --config configs/bert_train_large.py:smoke
"""

import functools
import itertools

from cramjax.config import recipes

SIZES = tuple(itertools.product((3, 6, 12, 18, 24), (256, 512, 768, 1024, 1536)))


def get_config(arg=None):
    """24 layers of width 1,024, or the size after the colon."""
    config = recipes.like("bert_train_large", "bert_1day_modern")
    # Not "budget": sizes differ in speed, and are compared on one dataset.
    config.data.max_mb = 40_000.0
    _size(24, 1024, config)
    variants = {f"L{n}-H{width}": functools.partial(_size, n, width) for n, width in SIZES}
    return recipes.apply_variant(config, arg, variants | {"mask15": _mask15})


def _size(n_layers, width, config):
    config.model.update(n_layers=n_layers, d_model=width, n_heads=width // 64, d_ff=2 * width)


def _mask15(config):
    config.objective.mask_rate = 0.15
