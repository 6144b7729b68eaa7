"""Named networks: the field values that make `EncoderConfig` one of the published ones."""

from __future__ import annotations

from cramjax.models.encoder import EncoderConfig

_BERT = {
    "ffn": "gelu",
    "norm_eps": 1e-12,
    "linear_bias": True,
    "positions": "learned",
    "max_positions": 512,
    "token_types": 2,
    "head_transform": True,
    "head_bias": True,
    "decoder_bias": True,
}
_POST_NORM = {"norm_position": "post", "embedding_norm": True, "final_norm": False}

SIZES = {
    # Cramming (arXiv 2212.14034) as in its code of 2023; the feed-forward is 768 → 2 × 1536 → 768.
    "crammed-bert": {
        "vocab_size": 32768,
        "n_layers": 16,
        "d_model": 768,
        "n_heads": 12,
        "d_ff": 1536,
        "ffn": "geglu",
        "positions": "scaled_sinusoidal",
    },
    # BERT (arXiv 1810.04805): `BertForMaskedLM` of bert-base-uncased.
    "bert-base": _BERT
    | _POST_NORM
    | {"vocab_size": 30522, "n_layers": 12, "d_model": 768, "n_heads": 12, "d_ff": 3072},
    # Cramming's controls: the same at its vocabulary.
    "hf-bert-base": _BERT
    | _POST_NORM
    | {"vocab_size": 32768, "n_layers": 12, "d_model": 768, "n_heads": 12, "d_ff": 3072},
    "hf-bert-tiny": _BERT
    | _POST_NORM
    | {"vocab_size": 32768, "n_layers": 2, "d_model": 128, "n_heads": 2, "d_ff": 512},
    # 24hBERT (arXiv 2104.07705): pre-norm BERT-large, 30522 entries padded to a multiple of 8; `MegatronBertForMaskedLM`.
    "bert-large-24h": _BERT
    | {"norm_position": "pre", "embedding_norm": False, "final_norm": True}
    | {"vocab_size": 30528, "n_layers": 24, "d_model": 1024, "n_heads": 16, "d_ff": 4096},
    # ModernBERT (arXiv 2412.13663) at crammed size with global attention everywhere: `ModernBertForMaskedLM`.
    "modernbert-crammed": {
        "vocab_size": 32768,
        "n_layers": 16,
        "d_model": 768,
        "n_heads": 12,
        "d_ff": 1536,
        "ffn": "geglu",
        "norm_bias": False,
        "norm_eps": 1e-5,
        "first_norm": False,
        "positions": "rotary",
        "head_transform": True,
        "decoder_bias": True,
    },
}


def named(name: str, **changes) -> EncoderConfig:
    """The network called `name` in `SIZES`, with some fields changed.

    Raises:
        KeyError: for an unknown name.
    """
    return EncoderConfig(**SIZES[name] | changes)
