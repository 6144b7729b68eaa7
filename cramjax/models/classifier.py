"""A classifier on an encoder: the first token's hidden state or the mean of all, a transform, dropout, scores.

The transform is BERT's pooler (arXiv 1810.04805, section 3.2), whose width is free (Cramming's is 1,024), or the one in front of the
decoder of masked language modelling, tuned on as in ModernBERT (arXiv 2412.13663).
"""

from __future__ import annotations

import dataclasses
import functools
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """`encoder` with a head that gives `n_outputs` scores.

    Attributes:
        transform: "pooler" (dense, tanh) or "prediction" (dense, GELU, norm). width: of its dense layer; of "prediction" the encoder's.
        dropout: before the scores. pooling: what the head sees, "first" or "mean".

    Raises:
        ValueError: for a "prediction" of another width.
    """

    encoder: encoder.EncoderConfig
    width: int
    n_outputs: int
    dropout: float = 0.1
    pooling: str = "first"
    transform: str = "pooler"

    def __post_init__(self):
        if self.transform == "prediction" and self.width != self.encoder.d_model:
            raise ValueError(f"a prediction head is {self.encoder.d_model} wide, not {self.width}")


class Classifier(nnx.Module):
    """dense [embed, width] and tanh, or GELU and norm; dropout; out [width, n_outputs]. Biases, but where the encoder's head has none."""

    def __init__(self, cfg: ClassifierConfig, precision: Precision, rngs: nnx.Rngs):
        self.cfg = cfg
        init = jax.nn.initializers.normal(cfg.encoder.init_std)
        common = {"bias": True, "init": init, "precision": precision, "rngs": rngs}
        predicts = cfg.transform == "prediction"
        bias = cfg.encoder.head_bias or not predicts
        shape, axes = (cfg.encoder.d_model, cfg.width), (ax.EMBED, ax.EMBED_OUT)
        self.dense = Linear("te,ef->tf", shape, axes, **common | {"bias": bias})
        self.norm = Norm(cfg.encoder, precision, bias=bias, rngs=rngs) if predicts else None
        # The scores of a handful of classes in float32: nothing is gained by less.
        wide = dataclasses.replace(FLOAT32, matmul_dtype=precision.matmul_dtype)
        self.out = Linear(
            "te,ef->tf",
            (cfg.width, cfg.n_outputs),
            (ax.EMBED, None),
            **common | {"precision": wide},
        )

    def __call__(self, hidden: jax.Array, key: jax.Array | None) -> jax.Array:
        """[n, embed] → float32 [n, n_outputs]; dropout if there is a key."""
        hidden = self.dense(hidden)
        hidden = jnp.tanh(hidden) if self.norm is None else self.norm(gelu(hidden))
        return self.out(dropout(hidden, self.cfg.dropout, key))


def _build(cfg: ClassifierConfig, precision: Precision = FLOAT32):
    return functools.partial(Classifier, cfg, precision)


def init_params(cfg: ClassifierConfig, key: jax.Array, trained: Params) -> Params:
    """{"encoder", "classifier"}: the encoder of `trained` (as of `encoder.init_params`) and a fresh head, a function of `key`.

    A `pooler` in `trained` (BERT's, of the sentence prediction it was pretrained with) is the dense layer of a head of its width; the
    transform of a masked language model's head is that of a "prediction".
    """
    head = module.params_of(_build(cfg)(nnx.Rngs(params=key)))
    if cfg.transform == "prediction":
        head |= {name: part for name, part in trained.get("head", {}).items() if name in head}
        return {"encoder": trained["encoder"], "classifier": head}
    pooler = trained.get("pooler")
    if pooler is not None and pooler["kernel"].shape == head["dense"]["kernel"].shape:
        head["dense"] = pooler
    return {"encoder": trained["encoder"], "classifier": head}


def abstract_params(cfg: ClassifierConfig) -> Params:
    """The tree of `init_params` with a ShapeDtypeStruct at each leaf."""
    head = module.params_of(module.abstract(_build(cfg)))
    return {"encoder": encoder.abstract_params(cfg.encoder)["encoder"], "classifier": head}


def param_axes(cfg: ClassifierConfig) -> Params:
    """The tree of `init_params` with a tuple of logical axis names at each leaf."""
    head = module.axes_of(module.abstract(_build(cfg)))
    return {"encoder": encoder.param_axes(cfg.encoder)["encoder"], "classifier": head}


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
    """Scores of sequences packed in rows: float32 [n, n_outputs].

    Args:
        cfg: the network. precision: its number formats. params: as from `init_params`.
        tokens: int [rows, length]; `segment_ids`, `positions` and `token_types` as for `encoder.encode`.
        first: int [n], where in the flattened rows each sequence begins; with pooling "mean" sequence i is segment i + 1.
        key: dropout is on if given.
    """
    encoder_key, head_key = (None, None) if key is None else jax.random.split(key)
    hidden = encoder.encode(
        cfg.encoder,
        precision,
        {"encoder": params["encoder"]},
        tokens,
        segment_ids=segment_ids,
        positions=positions,
        token_types=token_types,
        key=encoder_key,
    )
    hidden = hidden.reshape((-1, cfg.encoder.d_model))
    if cfg.pooling == "first":
        hidden = hidden[first]
    else:
        own = (segment_ids.reshape(1, -1) == jnp.arange(1, len(first) + 1)[:, None]).astype(
            jnp.float32
        )
        total = product("nt,te->ne", own, hidden, precision.matmul_dtype, jnp.dtype(jnp.float32))
        hidden = total / jnp.maximum(jnp.sum(own, axis=1, keepdims=True), 1.0)
        hidden = hidden.astype(precision.activation_dtype)
    return module.bind(_build(cfg, precision), params["classifier"])(hidden, head_key)
