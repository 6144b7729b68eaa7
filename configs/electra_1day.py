"""ELECTRA-base for one card and a day: the network finds the words that a small one put in.

ELECTRA (arXiv 2003.10555): a generator fills masks with its guesses, and the model says for every
token whether it is one of them. So it learns from all tokens, not from the masked ones alone. The
network is BERT-base; the generator has as many blocks, of a quarter of the width. 15% of the
tokens are predicted, 85% of those masked (the authors' code), the loss is the generator's plus 50
times the model's. What is kept and exported is the model, a stock `ElectraForPreTraining`.

`:small` is ELECTRA-small: 12 blocks of width 256. Theirs has embeddings of width 128, ours of 256.
`:control` is masked language modelling with the same network, text and budget: BERT.

Ours are the budget of a day with its linear decay, batches of 512 sequences of 128 tokens (theirs
are 256 of 512 tokens, and 128 of 128 for small), and C4 instead of Wikipedia and BookCorpus. The
learning rates are the authors': 2e-4 for base, 5e-4 for small. In finetuning all layers have one
learning rate, where theirs falls from layer to layer.

Cost: one GPU for 24 hours, and the C4 text that it reads: downloads of 5 GB for an RTX 3060, 29 GB
for an RTX 4090, 140 GB for an H100. A sequence takes 7% more FLOPs than in `:control`. The authors'
ELECTRA-small has GLUE 77.7 after a day on a V100 and 79.9 after four, as others quote the paper.
This recipe is not measured yet: neither its score, nor that a day is enough for it to pass its
control. The held-out loss of a run is its generator's and says nothing against `:control`; compare
GLUE scores.

    python -m cramjax.main --config configs/electra_1day.py
    python -m cramjax.main --config configs/electra_1day.py:small
    python -m cramjax.main --config configs/electra_1day.py:control
    python -m cramjax.main --config configs/electra_1day.py:smoke
"""

from cramjax.config import recipes, texts


def get_config(arg=None):
    """The recipe, or its variant after the colon."""
    config = recipes.start("electra_1day")
    config.budget.hours = 24.0

    config.data.update(
        source=texts.C4,
        max_mb="budget",
        seq_len=128,
        vocab_size=32768,
        language="en",
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
    config.objective.update(
        name="replaced_tokens",
        generator_width=0.25,
        mask_rate=0.15,
        mask_share=0.85,
        random_share=0,
    )
    config.batch_size = 512
    config.optimizer.update(
        name="adamw", lr=2e-4, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01, clip_norm=1.0
    )
    config.schedule.update(name="linear", warmup=0.02, final=0.0)
    return recipes.apply_variant(config, arg, {"small": _small, "control": _control})


def _small(config):
    config.model.update(d_model=256, n_heads=4, d_ff=1024)
    config.optimizer.lr = 5e-4


def _control(config):
    config.objective.update(name="mlm", mask_share=0.8, random_share=0.1)
