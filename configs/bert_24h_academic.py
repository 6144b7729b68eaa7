"""24hBERT: pre-norm BERT-large in a day on a small server of 8 cards.

"How to Train BERT with an Academic Budget" (arXiv 2104.07705), at the numbers of the best
configuration in its README: short sequences, a big model, sparse prediction, a learning rate that
follows the clock (6% warm-up, then linear to 0), batch 4096. The run ends early if its held-out
loss is above 6 after three hours, or no number at any time. Checkpoints at 50%, 60% and 90% of the
day are kept, as in the README's example of models to finetune:
`tools.export_hf --revisions` exports them all, and `tools.finetune --protocol 24hbert` finetunes as
its README does.

Departures: sequences are packed and split by [SEP] instead of one padded document each, masks are
drawn anew in every epoch, 80/10/10 in exact counts, the text is C4, and the vocabulary is trained
on it. The code leaves Linear layers with an activation at PyTorch's own initial values and does not
apply the decoder's bias; here all matrices start from N(0, 0.02), and the bias is applied.

`:fineweb_edu` and `:climbmix` read other text (cramjax/config/texts.py).

Cost: 8 cards of 12 GB (Titan V class) for 24 hours, and the C4 text that they read, 24 to 48 GB of
downloads. The paper's score is GLUE test 78.5 (mean of nine; BERT-base 79.6 by the same count),
after about 22,500 steps.

    python -m cramjax.main --config configs/bert_24h_academic.py
    python -m cramjax.main --config configs/bert_24h_academic.py:smoke
"""

from cramjax.config import recipes, texts


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.start("bert_24h_academic")
    config.budget.hours = 24.0

    config.data.update(
        source=texts.C4,
        max_mb="budget",
        seq_len=128,
        vocab_size=30522,
        language="en",
        compressibility=None,
        dedup_exact=False,
        cls_token=True,
    )
    config.model.update(
        n_layers=24,
        d_model=1024,
        n_heads=16,
        d_ff=4096,
        ffn="gelu",
        norm_position="pre",
        norm_eps=1e-12,
        embedding_norm=False,
        final_norm=True,
        linear_bias=True,
        positions="learned",
        max_positions=512,
        token_types=2,
        head_transform=True,
        head_bias=True,
        decoder_bias=True,
        dropout=0.1,
        attention_dropout=0.1,
        vocab_multiple=8,
    )
    config.objective.update(mask_rate=0.15, mask_share=0.8, random_share=0.1)
    config.batch_size = 4096
    config.optimizer.update(
        name="adamw", lr=1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, clip_norm=None
    )
    config.schedule.update(name="linear", warmup=0.06, final=0.0, stop_loss=6.0, stop_after=0.125)
    config.checkpoint.at_hours = [12.0, 14.4, 21.6]
    return recipes.apply_variant(config, arg)
