"""Crammed BERT with rotary positions, in a form that `transformers` loads as a stock ModernBERT.

Budget, data and schedule are those of `bert_1day` (Cramming, arXiv 2212.14034). The network is
ModernBERT's (arXiv 2412.13663, section 2.1) at crammed size: rotary positions, GeGLU, no biases but
the decoder's, no norm before the first attention. Attention is global everywhere: at 128 tokens a
window saves nothing.

`:fineweb_edu`, `:climbmix` and `:pile_ids` read other text than C4 (cramjax/config/texts.py).

Cost: one GPU for 24 hours, and the text that it reads: downloads of 5 GB for an RTX 3060, 24 GB for
an RTX 4090, 120 GB for an H100. There is no published score at this budget.

    python -m cramjax.main --config configs/bert_1day_modern.py
    python -m cramjax.main --config configs/bert_1day_modern.py:smoke
"""

from cramjax.config import recipes, texts


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.start("bert_1day_modern")
    config.budget.hours = 24.0

    config.data.update(
        source=texts.C4,
        max_mb="budget",
        seq_len=128,
        vocab_size=32768,
        language="en",
        dedup_exact=False,
        order="sentence_length",
    )
    config.model.update(
        n_layers=16,
        d_model=768,
        n_heads=12,
        d_ff=1536,
        ffn="geglu",
        norm_position="pre",
        norm_bias=False,
        norm_eps=1e-5,
        first_norm=False,
        embedding_norm=True,
        final_norm=True,
        linear_bias=False,
        positions="rotary",
        rotary_base=10000.0,
        head_transform=True,
        head_bias=False,
        decoder_bias=True,
    )
    config.objective.update(mask_rate=0.25, mask_share=0.8, random_share=0.1)
    config.batch_size = 8192
    config.optimizer.update(
        name="adamw", lr=1e-3, b1=0.9, b2=0.98, eps=1e-12, weight_decay=0.01, clip_norm=0.5
    )
    # The authors' first batch on an RTX A6000 and the stairs of their ramp, here on every card.
    config.schedule.update(name="triangle2", batch_ramp=0.6, ramp_start=512)
    return recipes.apply_variant(config, arg)
