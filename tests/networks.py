"""The networks of the recipes, by the names that papers and libraries use."""

import dataclasses

from cramjax.config.resolve import get_config
from cramjax.models.encoder import EncoderConfig
from cramjax.objectives.masked_lm import encoder_config

# name → (recipe, vocabulary, changed fields)
NETWORKS = {
    "crammed-bert": ("bert_1day", 32768, {}),
    "bert-base": ("bert_original", 30522, {}),
    "hf-bert-base": ("bert_original", 32768, {}),
    "hf-bert-tiny": (
        "bert_original",
        32768,
        {"n_layers": 2, "d_model": 128, "n_heads": 2, "d_ff": 512},
    ),
    "bert-large-24h": ("bert_24h_academic", 30522, {}),
    "modernbert-crammed": ("bert_1day_modern", 32768, {}),
}


def named(name: str, **changes) -> EncoderConfig:
    """The network of a recipe, with some fields changed."""
    recipe, vocab_size, fields = NETWORKS[name]
    config = encoder_config(get_config(recipe).model, vocab_size)
    return dataclasses.replace(config, **fields | changes)
