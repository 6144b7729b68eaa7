"""BERT-base by its original recipe under the same budget: the control for the other recipes.

BERT (arXiv 1810.04805, section 3.1 and appendix A.2) without next-sentence prediction, as Cramming
runs it for comparison (arXiv 2212.14034, section 4.1; `bert-original` in its code): post-norm,
biases, learned positions, dropout 0.1, 15% masked, Adam at 1e-4 with linear decay, batch 512.

By default it is the strongest form of that control: the learning rate warms up for 9% of the budget
and decays to 0 with it, and every sequence begins with [CLS]. `:cramming` is the control as
Cramming ran it. Its schedule spans 8 million microbatches of 64 sequences with 80,000 of warm-up,
whatever the budget: 1,000,000 steps and 10,000. So a day of 100,000 steps ends with the learning
rate at 91% of its peak. There is no [CLS], and [SEP] may be masked.

What still differs from its code with either: only predicted positions reach the decoder (the same
loss, fewer FLOPs), weight decay is decoupled from Adam, and the text is C4 instead of Wikipedia and
BookCorpus. Its scripts set a microbatch by card (32 to 256 sequences) under the same 8 million, so
their schedules have 0.5 to 4 million steps.

`:fineweb_edu` and `:climbmix` read other text (cramjax/config/texts.py).

Cost: one GPU for 24 hours, and the C4 text that it reads: downloads of 5 GB for an RTX 3060, 31 GB
for an RTX 4090, 150 GB for an H100. The paper's score under one day on an RTX 2080 Ti is GLUE 52.1
(recalled, not checked). It belongs to `:cramming`: that run hardly leaves the plateau, which is the
point of the control. Neither is measured here yet.

    python -m cramjax.main --config configs/bert_original.py
    python -m cramjax.main --config configs/bert_original.py:cramming
    python -m cramjax.main --config configs/bert_original.py:smoke
"""

from cramjax.config import recipes, texts


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.start("bert_original")
    config.budget.hours = 24.0

    config.data.update(
        source=texts.C4,
        max_mb="budget",
        seq_len=128,
        vocab_size=32768,
        language="cramming",
        compressibility=None,
        dedup_exact=False,
        cls_token=True,
    )
    config.model.update(
        n_layers=12,
        d_model=768,
        n_heads=12,
        d_ff=3072,
        ffn="gelu",
        norm_position="post",
        norm_eps=1e-12,
        embedding_norm=True,
        final_norm=False,
        linear_bias=True,
        positions="learned",
        max_positions=512,
        token_types=2,
        head_transform=True,
        head_bias=True,
        decoder_bias=True,
        dropout=0.1,
        attention_dropout=0.1,
    )
    config.objective.update(mask_rate=0.15, mask_share=0.8, random_share=0.1)
    config.batch_size = 512
    config.optimizer.update(
        name="adamw", lr=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=None
    )
    config.schedule.update(name="linear", warmup=0.09, final=0.0)
    return recipes.apply_variant(config, arg, {"cramming": _cramming})


def _cramming(config):
    config.data.cls_token = False
    config.objective.mask_special = True
    # 8 million microbatches of 64 are a million batches of 512.
    config.schedule.update(span_steps=1_000_000, warmup=0.01)
