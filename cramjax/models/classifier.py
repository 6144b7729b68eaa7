"""A head on an encoder: scores of a sequence or of each of its tokens, or the sequence's embedding.

A sequence is read by its first hidden state or the mean of all. The transform before the scores is
BERT's pooler (arXiv 1810.04805, section 3.2), whose width is free (Cramming's is 1,024), or the one
before the decoder of masked language modelling, trained further as in ModernBERT (arXiv
2412.13663). BERT scores tokens without a transform (its sections 4.2 and 5.3).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models import encoder, module
from cramjax.models.activations import gelu
from cramjax.models.dropout import dropout
from cramjax.models.layers import FLOAT32, Linear, Norm, Precision, product

Params = dict[str, Any]

SEQUENCE, TOKEN, SPAN, EMBEDDING = "sequence", "token", "span", "embedding"
"""Heads: scores of a sequence, of each token, and of each token as start and end of an answer. An
embedding is what a sequence's head would read; nothing is on top of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The numbers of an encoder with a head that gives `n_outputs` scores (`network.Buildable`).

    Attributes:
        encoder: the network below the head.
        width: columns of the head's dense layer; but for a "pooler" the encoder's width.
        n_outputs: scores of a sequence or of a token; a span has 2, an embedding none.
        dropout: rate before the scores.
        pooling: the hidden states that a sequence's head reads, "first" or "mean".
        transform: "pooler" (dense, tanh), "prediction" (dense, GELU, norm) or "none".
        head: `SEQUENCE`, `TOKEN`, `SPAN` or `EMBEDDING`.

    Raises:
        ValueError: for a "prediction" or "none" of another width.
    """

    encoder: encoder.EncoderConfig
    width: int
    n_outputs: int
    dropout: float = 0.1
    pooling: str = "first"
    transform: str = "pooler"
    head: str = SEQUENCE

    def __post_init__(self):
        if self.transform != "pooler" and self.width != self.encoder.d_model:
            raise ValueError(
                f"a {self.transform} head is {self.encoder.d_model} wide, not {self.width}"
            )

    def build(self, precision: Precision) -> Callable[[nnx.Rngs], Classifier]:
        """Returns the constructor of the modules."""
        return functools.partial(Classifier, self, precision)


class ClassifierHead(nnx.Module):
    """The transform: dense [embed, width] and tanh, or GELU and norm; dropout; the scores.

    Layers have biases, except where the encoder's head has none and its transform is taken.
    """

    def __init__(self, cfg: ClassifierConfig, precision: Precision, rngs: nnx.Rngs):
        self.cfg = cfg
        init = jax.nn.initializers.normal(cfg.encoder.init_std)
        predicts = cfg.transform == "prediction"
        bias = cfg.encoder.head_bias or not predicts
        shape, axes = (cfg.encoder.d_model, cfg.width), (ax.EMBED, ax.EMBED_OUT)
        common = {"init": init, "rngs": rngs}
        dense = None
        if cfg.transform != "none":
            dense = Linear("te,ef->tf", shape, axes, bias=bias, precision=precision, **common)
        self.dense = dense
        self.norm = Norm(cfg.encoder, precision, bias=bias, rngs=rngs) if predicts else None

        # The scores of a handful of classes in float32: nothing is gained by less.
        wide = dataclasses.replace(FLOAT32, matmul_dtype=precision.matmul_dtype)
        shape, axes = (cfg.width, cfg.n_outputs), (ax.EMBED, None)
        self.out = Linear("te,ef->tf", shape, axes, bias=True, precision=wide, **common)

    def __call__(self, hidden: jax.Array, key: jax.Array | None) -> jax.Array:
        """[n, embed] → float32 [n, n_outputs]; dropout if there is a key."""
        if self.dense is not None:
            hidden = self.dense(hidden)  # [n, width]
            hidden = jnp.tanh(hidden) if self.norm is None else self.norm(gelu(hidden))
        return self.out(dropout(hidden, self.cfg.dropout, key))


class Classifier(nnx.Module):
    """Encoder and head: the whole tree of parameters. An embedding has no parameters of its own."""

    def __init__(self, cfg: ClassifierConfig, precision: Precision, rngs: nnx.Rngs):
        self.encoder = encoder.Encoder(cfg.encoder, precision, rngs)
        if cfg.head != EMBEDDING:
            self.classifier = ClassifierHead(cfg, precision, rngs)


def init_from(cfg: ClassifierConfig, key: jax.Array, trained: Params) -> Params:
    """Returns {"encoder", "classifier"}: the encoder of `trained` and a head that is new.

    Parts of the head may be trained as well. A `pooler` in `trained` (BERT's, of the sentence
    prediction it was pretrained with) is the dense layer of a head of its width. The transform of a
    masked language model's head is that of a "prediction". An embedding has no head: {"encoder"}.

    Args:
        cfg: the network.
        key: what is fresh in the head is a function of it.
        trained: parameters of an encoder, as from `network.init_params`.
    """
    if cfg.head == EMBEDDING:
        return {"encoder": trained["encoder"]}
    build = functools.partial(ClassifierHead, cfg, FLOAT32)
    head = module.params_of(build(nnx.Rngs(params=key)))
    if cfg.transform == "prediction":
        head |= {name: part for name, part in trained.get("head", {}).items() if name in head}
        return {"encoder": trained["encoder"], "classifier": head}

    pooler = trained.get("pooler")
    if cfg.transform == "none" or pooler is None:
        return {"encoder": trained["encoder"], "classifier": head}
    if pooler["kernel"].shape == head["dense"]["kernel"].shape:
        head["dense"] = pooler
    return {"encoder": trained["encoder"], "classifier": head}


def classify(
    cfg: ClassifierConfig,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    first: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    token_types: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns the scores of sequences packed in rows: float32 [n, n_outputs].

    Args:
        cfg: the network.
        precision: its number formats.
        params: as from `init_from`.
        tokens: int [rows, length].
        first: int [n], where in the flattened rows each sequence begins. With pooling "mean",
            sequence i is segment i + 1.
        segment_ids: as for `encoder.encode`.
        positions: as for `encoder.encode`.
        token_types: as for `encoder.encode`.
        key: dropout is on if given.

    Raises:
        ValueError: for pooling "mean" without `segment_ids`.
    """
    encoder_key, head_key = (None, None) if key is None else jax.random.split(key)
    hidden = _hidden(
        cfg, precision, params, tokens, segment_ids, positions, token_types, encoder_key
    )

    pooled = _pooled(cfg, precision, hidden, first, segment_ids)  # [n, embed]
    build = functools.partial(ClassifierHead, cfg, precision)
    return module.bind(build, params["classifier"])(
        pooled.astype(precision.activation_dtype), head_key
    )


def embed(
    cfg: ClassifierConfig,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    first: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    token_types: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns the embeddings of sequences packed in rows: float32 [n, embed].

    An embedding is the first hidden state or the mean of all, special tokens included. It has the
    length that it has; a cosine divides by it. The arguments and errors are those of `classify`.
    """
    hidden = _hidden(cfg, precision, params, tokens, segment_ids, positions, token_types, key)
    return _pooled(cfg, precision, hidden, first, segment_ids).astype(jnp.float32)


def _pooled(
    cfg: ClassifierConfig,
    precision: Precision,
    hidden: jax.Array,
    first: jax.Array,
    segment_ids: jax.Array | None,
) -> jax.Array:
    """Returns the first hidden state of each sequence, or the mean of all: [n, embed].

    Args:
        hidden: [rows * length, embed].
        first: as for `classify`.
        segment_ids: likewise.
    """
    if cfg.pooling == "first":
        return hidden[first]
    if segment_ids is None:
        raise ValueError("pooling 'mean' needs segment_ids")
    numbers = jnp.arange(1, len(first) + 1)[:, None]
    belongs = (segment_ids.reshape(1, -1) == numbers).astype(jnp.float32)  # [n, rows * length]
    float32 = jnp.dtype(jnp.float32)
    total = product("nt,te->ne", belongs, hidden, precision.matmul_dtype, float32)
    return total / jnp.maximum(jnp.sum(belongs, axis=1, keepdims=True), 1.0)


def score_tokens(
    cfg: ClassifierConfig,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    token_types: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns the scores of every token: float32 [rows, length, n_outputs].

    The arguments are those of `classify`. The two scores of a span's head are those of a start and
    of an end.
    """
    encoder_key, head_key = (None, None) if key is None else jax.random.split(key)
    hidden = _hidden(
        cfg, precision, params, tokens, segment_ids, positions, token_types, encoder_key
    )
    build = functools.partial(ClassifierHead, cfg, precision)
    scores = module.bind(build, params["classifier"])(hidden, head_key)
    return scores.reshape((*tokens.shape, cfg.n_outputs))


def _hidden(
    cfg: ClassifierConfig,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    segment_ids: jax.Array | None,
    positions: jax.Array | None,
    token_types: jax.Array | None,
    key: jax.Array | None,
) -> jax.Array:
    """Returns the hidden states of all tokens: [rows * length, embed]."""
    hidden = encoder.encode(
        cfg.encoder,
        precision,
        {"encoder": params["encoder"]},
        tokens,
        segment_ids=segment_ids,
        positions=positions,
        token_types=token_types,
        key=key,
    )
    return hidden.reshape((-1, cfg.encoder.d_model))
