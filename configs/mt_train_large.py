"""Train large, then compress, for translation: encoder-decoders of many sizes for the same time.

The second half of Train Large, Then Compress (arXiv 2002.11794): for a fixed time, train a
translation model that is too large to converge in it, stop by the clock, then prune and quantise
it. There the text is WMT14 English to French, and widening pays sooner than deepening. No code was
released. Ours are the sizes (2 to 8 layers in each stack, widths of 128 to 2,048; recalled from the
paper, not checked), the network (T5 v1.0's blocks: ReLU, one matrix for embeddings and logits, so
that the export is a stock T5), vocabulary and batch. Label smoothing, dropout and beams are the
Transformer's and T5's (arXiv 1706.03762, section 5.4; arXiv 1910.10683, section 3.1.3). The
learning rate decays with the clock: every size stops at the same second with a schedule of its own.

    python -m tools.sweep --config configs/mt_train_large.py --out runs/mt_sizes \\
      --config.budget.hours=6 --grid \\
      variant=L2-H512,L6-H256,L6-H512,L6-H1024,L2-H2048
    python -m tools.compress --checkpoint runs/mt_sizes/variant-L6-H1024 \\
      --prune 0,0.3,0.6 --bits 32,8,4 --out runs/mt_pareto

Cost: one GPU for 24 hours a size, and WMT14 from TensorFlow Datasets, which builds it once. Not
measured yet. docs/guide/translation.md has a small one that is.

    python -m cramjax.main --config configs/mt_train_large.py --config.data.allow_build=True
    python -m cramjax.main --config configs/mt_train_large.py:L6-H512 \\
      --config.data.source='pairs:train.en,train.fr' --config.data.heldout='pairs:dev.en,dev.fr' \\
      --config.eval.bleu_source='pairs:test.en,test.fr'
    python -m cramjax.main --config configs/mt_train_large.py:smoke
"""

import functools
import itertools

from cramjax.config import recipes

SIZES = tuple(itertools.product((2, 4, 6, 8), (128, 256, 512, 1024, 2048)))
_WMT = "tfds:wmt14_translate/fr-en"


def get_config(arg=None):
    """The largest size, or that after the colon."""
    config = recipes.start("mt_train_large")
    config.budget.hours = 24.0

    recipes.t5(config, "1.0")
    config.objective.update(name="text_to_text", label_smoothing=0.1)
    config.data.update(
        source=_WMT,
        heldout=f"{_WMT}@validation",
        source_field="en",
        target_field="fr",
        vocab_size=32768,
        extra_ids=0,
        seq_len=256,
        long_pairs="drop",
    )
    config.model.dropout = 0.1
    _size(8, 2048, config)
    config.batch_size = 128
    config.optimizer.update(
        name="adamw",
        parameter_scale="on",
        lr=1e-2,
        b1=0.9,
        b2=0.98,
        eps=1e-9,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.schedule.update(name="cosine", warmup=0.05, final=1e-3)
    config.eval.update(batch_size=32, bleu=True, bleu_source=f"{_WMT}@test")
    config.eval.bleu_every_fraction = 0.1

    variants = {f"L{n}-H{width}": functools.partial(_size, n, width) for n, width in SIZES}
    return recipes.apply_variant(config, arg, variants)


def _size(n_layers, width, config):
    config.model.update(
        n_layers=n_layers, d_model=width, n_heads=width // 64, head_dim=64, d_ff=4 * width
    )
