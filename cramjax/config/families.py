"""The families of networks: the keys of `model` that each one has, and the rules between them.

`model.family` chooses an entry of `FAMILIES`. Another family is another entry here and a network in
`cramjax/models`. Tests compare the keys with the fields of the network's own config class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import cast

from cramjax.config import pairs, replaced_tokens
from cramjax.config.fields import Field, count, flag, number, optional_count, share, text
from cramjax.config.span_lengths import span_lengths
from cramjax.config.views import Config, EncoderModelConfig, ModelConfig, T5ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyKeys:
    """A family of networks.

    Attributes:
        keys: keys of `model` beside `COMMON`, or common keys with another default.
        objectives: names of the objectives that train it.
        mistakes: yields what is wrong between the keys of a configuration, one sentence each.
    """

    keys: dict[str, Field]
    objectives: tuple[str, ...]
    mistakes: Callable[[Config], Iterator[str]]


# What every family has, and code that knows no family may read.
COMMON = {
    "n_layers": count(12, "transformer blocks; in an encoder-decoder those of the encoder"),
    "d_model": count(768, "width"),
    "n_heads": count(12, "attention heads; must divide d_model unless head_dim is given"),
    "d_ff": count(
        3072, "inner width of the feed-forward; for a GLU the width of each of its two halves"
    ),
    "ffn": text(
        "gelu",
        "gelu, relu: two matrices; geglu: gated, three matrices; "
        "geglu_tanh: with the tanh form of GELU (T5 v1.1)",
        ("gelu", "geglu", "relu", "geglu_tanh"),
    ),
    "ffn_rank": count(
        0, "inner dimension of the feed-forward's matrices as products of two; 0: not factored", 0
    ),
    "norm_eps": number(1e-12, "epsilon of the normalisations"),
    "dropout": share(
        0.0, "dropout on embeddings, attention and feed-forward outputs in pretraining"
    ),
    "attention_dropout": share(0.0, "dropout on attention probabilities in pretraining"),
    "vocab_multiple": count(1, "the embedding is padded to a multiple of this many entries"),
    "attention": text(
        "auto",
        "attention kernel; auto: times the kernels that the card can run and takes the fastest",
        ("auto", "xla", "cudnn"),
    ),
    "unroll": Field(
        default="auto",
        kinds=(str, int, bool),
        help="blocks unrolled in the scan: auto, True, or a number",
    ),
    "remat": text("none", "what the backward pass recomputes", ("none", "dots", "full")),
}

ENCODER = {
    "norm_position": text("pre", "pre: x + f(norm(x)); post: norm(x + f(x))", ("pre", "post")),
    "norm": text("layernorm", "normalisation", ("layernorm", "rmsnorm")),
    "norm_bias": flag(True, "normalisations have a bias"),
    "first_norm": flag(True, "the first block has an attention norm (ModernBERT: no)"),
    "embedding_norm": flag(True, "norm after the embeddings"),
    "final_norm": flag(True, "norm after the last block"),
    "linear_bias": flag(False, "biases in attention and feed-forward"),
    "positions": text(
        "scaled_sinusoidal",
        "position information",
        ("learned", "scaled_sinusoidal", "rotary", "none"),
    ),
    "max_positions": count(128, "longest sequence of absolute positions"),
    "rotary_base": number(10000.0, "base of the rotary angles", 1.0),
    "local_window": count(
        0, "tokens a local block sees, half before and half after; 0: every block sees all", 0
    ),
    "global_every": count(
        1, "with a local_window: each block with this distance from the first sees all"
    ),
    "local_rotary_base": number(10000.0, "base of the rotary angles in local blocks", 1.0),
    "token_types": count(0, "entries of the token type embedding; 0: no such embedding", 0),
    "head_transform": flag(False, "dense, GELU and norm before the decoder"),
    "head_bias": flag(False, "the head transform's dense layer and norm have biases"),
    "decoder_bias": flag(False, "the tied decoder has a bias"),
    "init_std": number(0.02, "standard deviation of the normal initialisation"),
    "document_attention": flag(
        False, "tokens attend within their own document only (block-diagonal over the pack)"
    ),
}

RELATIVE_BUCKETS = 32
"""Buckets of relative positions in every released T5."""

T5 = {
    "ffn": dataclasses.replace(COMMON["ffn"], default="relu"),
    "norm_eps": dataclasses.replace(COMMON["norm_eps"], default=1e-6),
    "n_decoder_layers": optional_count(None, "blocks of the decoder; None: as many as n_layers"),
    "vocab_multiple": dataclasses.replace(COMMON["vocab_multiple"], default=128),
    "head_dim": optional_count(64, "dimensions of a head; None: d_model / n_heads"),
    "relative_buckets": count(RELATIVE_BUCKETS, "buckets of relative positions", 4),
    "relative_max_distance": count(128, "distance in tokens from which all share a bucket", 8),
    "tie_embeddings": flag(
        True, "the decoder's matrix is the token embedding; v1.1 has a matrix of its own"
    ),
}


def _encoder_mistakes(config: Config) -> Iterator[str]:
    model, data = cast(EncoderModelConfig, config.model), config.data
    yield from _head_mistakes(model)

    head_dim = model.d_model // model.n_heads
    if model.positions == "rotary" and head_dim % 2:
        yield (
            f"model.n_heads={model.n_heads}: rotary positions need an even head size, "
            f"got {head_dim}"
        )
    if model.positions not in ("rotary", "none") and data.seq_len > model.max_positions:
        yield f"data.seq_len={data.seq_len}: longer than model.max_positions={model.max_positions}"
    if not model.first_norm and (model.norm_position != "pre" or model.n_layers < 2):
        yield "model.first_norm=False: needs model.norm_position=pre and at least 2 layers"

    objective = config.objective
    if round(objective.mask_rate * data.seq_len) < 1:
        yield (
            f"objective.mask_rate={objective.mask_rate}: predicts nothing at seq_len {data.seq_len}"
        )
    if objective.causal and objective.name != "mlm":
        yield f"objective.causal=True: objective.name={objective.name} masks tokens; set it to mlm"
    if objective.hard_masks and objective.causal:
        yield f"objective.hard_masks={objective.hard_masks}: objective.causal=True masks nothing"
    if objective.pool != 1 and objective.causal:
        yield (
            f"objective.pool={objective.pool}: a mean holds later tokens; "
            "set objective.causal=False"
        )
    if model.document_attention and not data.document_end:
        yield "data.document_end=False: model.document_attention=True tells documents by their ends"
    if data.order == "fragment" and not data.document_end:
        yield "data.document_end=False: data.order=fragment counts the ends of documents"
    if objective.pool != 1 and model.document_attention:
        yield (
            f"objective.pool={objective.pool}: means of embeddings go over the ends of documents; "
            "set model.document_attention=False"
        )
    if objective.pool > 1 and objective.name == "script":
        yield f"objective.pool={objective.pool}: must be 1 where objective.name is script"
    if objective.name == replaced_tokens.OBJECTIVE:
        yield from replaced_tokens.mistakes(config)
    if objective.mask_share + objective.random_share > 1:
        yield "objective.mask_share and objective.random_share: together at most 1"


def _t5_mistakes(config: Config) -> Iterator[str]:
    model = cast(T5ModelConfig, config.model)
    if model.head_dim is None:
        yield from _head_mistakes(model)
    if model.relative_buckets % 4:
        yield f"model.relative_buckets={model.relative_buckets}: must be a multiple of 4"
    if model.relative_max_distance <= model.relative_buckets // 2:
        yield (
            f"model.relative_max_distance={model.relative_max_distance}: must be over half of "
            "model.relative_buckets"
        )

    # There are no means of embeddings, and no rows that begin with [CLS] or come in an order.
    for key, value, wanted in (
        ("objective.pool", config.objective.pool, 1),
        ("objective.causal", config.objective.causal, False),
        ("data.cls_token", config.data.cls_token, False),
        ("data.order", config.data.order, "shuffled"),
    ):
        if value != wanted:
            yield f"{key}={value!r}: must be {wanted!r} where model.family is t5"

    if config.objective.name == "span_corruption":
        yield from _span_mistakes(config)


def _span_mistakes(config: Config) -> Iterator[str]:
    data, objective = config.data, config.objective
    try:
        lengths = span_lengths(data.seq_len, objective.noise_density, objective.mean_span)
    except ValueError as error:
        yield (
            f"data.seq_len={data.seq_len}: {error} at this objective.noise_density and "
            "objective.mean_span"
        )
        return
    # A prepared dataset has its own number of sentinels, which is checked when it is opened.
    is_prepared = str(data.source).startswith("prepared:")
    if not is_prepared and lengths.n_spans > data.extra_ids:
        yield (
            f"data.extra_ids={data.extra_ids}: {data.seq_len} input tokens have {lengths.n_spans} "
            "spans, each with a sentinel"
        )


def _head_mistakes(model: ModelConfig) -> Iterator[str]:
    if model.d_model % model.n_heads:
        yield f"model.n_heads={model.n_heads}: must divide model.d_model={model.d_model}"


FAMILIES: dict[str, FamilyKeys] = {
    "encoder": FamilyKeys(
        keys=ENCODER,
        objectives=("mlm", "script", replaced_tokens.OBJECTIVE),
        mistakes=_encoder_mistakes,
    ),
    "t5": FamilyKeys(
        keys=T5, objectives=("span_corruption", pairs.OBJECTIVE), mistakes=_t5_mistakes
    ),
}


def family_key(default: str = "encoder") -> Field:
    """Returns the key `model.family`."""
    return text(default, "kind of network; it decides the other keys of model", tuple(FAMILIES))


def model_keys(family: str) -> dict[str, Field]:
    """Returns the keys of `model` in the family of that name."""
    return {"family": family_key(family)} | COMMON | FAMILIES[family].keys
