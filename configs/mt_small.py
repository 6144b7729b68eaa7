"""A small translation model, German to English, in 7.5 minutes on two cores of a CPU.

The text is Multi30k (Elliott et al. 2016, arXiv 1605.00459): 29,000 captions of pictures, in files
of lines in the folder `multi30k`. The network has T5 v1.0's blocks, 2 in each stack, width 128. The
recipe is the Transformer's (arXiv 1706.03762): one vocabulary for both languages, label smoothing,
dropout, and Adam, here in steps that are relative to each matrix (arXiv 2309.02373). BLEU is that
of the 1,000 captions of test_2016_flickr, by sacrebleu's default.

`tools.study mt` compares four of the sizes after the colon: Train Large, Then Compress (arXiv
2002.11794) in miniature. docs/studies/translation.md has what they reach.

Cost of one run: its budget. On one core of an AMD EPYC it reaches 27.8 BLEU, and in 1,200 steps
30.4.

    python -m cramjax.main --config configs/mt_small.py
    python -m cramjax.main --config configs/mt_small.py:L3-H256 \\
      --config.data.source='pairs:mine/train.fr,mine/train.en' \\
      --config.data.heldout='pairs:mine/val.fr,mine/val.en' \\
      --config.eval.bleu_source='pairs:mine/test.fr,mine/test.en'
    python -m cramjax.main --config configs/mt_small.py:smoke
"""

import functools

from cramjax.config import recipes

SIZES = ((1, 64), (1, 128), (2, 128), (2, 256), (3, 256), (4, 384))


def get_config(arg=None):
    """Two layers of width 128, or the size after the colon."""
    config = recipes.start("mt_small")
    config.budget.hours = 0.125

    recipes.t5(config, "1.0")
    config.objective.update(name="text_to_text", label_smoothing=0.1)
    config.data.update(
        source=_files("train"),
        heldout=_files("val"),
        vocab_size=6144,
        extra_ids=0,
        seq_len=64,
        tokenizer_sample_mb=8.0,
    )
    config.data.loader = "numpy"  # importing TensorFlow takes longer than reading this corpus
    config.model.dropout = 0.1
    _size(2, 128, config)
    config.batch_size = 32
    config.microbatch_size = 32
    # Embeddings are a dozen times as large as matrices: the same step for both, of Adam alone, is
    # too long for these or too short for those.
    config.optimizer.update(
        name="adamw",
        parameter_scale="on",
        lr=1.5e-2,
        b1=0.9,
        b2=0.98,
        eps=1e-9,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    config.schedule.update(name="cosine", warmup=0.08)
    config.checkpoint.every_minutes = 5.0
    config.eval.update(batch_size=32, batches=64, every_fraction=0.1)
    config.eval.update(bleu=True, bleu_source=_files("test_2016_flickr"))
    config.log.update(tensorboard=False)

    variants = {f"L{n}-H{width}": functools.partial(_size, n, width) for n, width in SIZES}
    return recipes.apply_variant(config, arg, variants)


def _files(split):
    return f"pairs:multi30k/{split}.de.gz,multi30k/{split}.en.gz"


def _size(n_layers, width, config):
    config.model.update(
        n_layers=n_layers, d_model=width, n_heads=width // 64, head_dim=64, d_ff=2 * width
    )
