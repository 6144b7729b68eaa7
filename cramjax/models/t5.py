"""The encoder-decoder of T5 (arXiv 1910.10683, section 2.1), in its forms 1.0 and 1.1, and the pure functions on it.

Pre-norm blocks with RMSNorm, no biases, one table of relative position buckets for all layers of a stack, no scaling of the scores. 1.0
has ReLU and ties the logits to the embedding, 1.1 has a gated GELU and a matrix of its own. Depths of encoder and decoder, and the width
of a head, are free (arXiv 2109.10686). Corruption is in `objectives`, text generation in `generation.py`. The paths of the parameters are
public names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models import module, stack
from cramjax.models.attention import attend, attention_mask, projections
from cramjax.models.dropout import dropout
from cramjax.models.feedforward import FeedForward
from cramjax.models.layers import FLOAT32, Linear, Norm, Precision, by_rows, product
from cramjax.models.module import param
from cramjax.models.relative import RelativeBias

Params = dict[str, Any]

# A normal cut off at two deviations is narrower than the one it is cut from, by this factor.
_TRUNCATED_STD = 0.87962566103423978


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """The numbers of a network; the keys of `model` in `config/schema.py` say what each one means.

    `vocab_size` counts the padding of the embedding.

    Raises:
        ValueError: for numbers that no network has.
    """

    vocab_size: int
    n_layers: int
    n_decoder_layers: int
    d_model: int
    n_heads: int
    head_dim: int
    d_ff: int
    ffn: str = "relu"
    ffn_rank: int = 0
    tie_embeddings: bool = True
    relative_buckets: int = 32
    relative_max_distance: int = 128
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention: str = "auto"
    unroll: str | int | bool = "auto"
    remat: str = "none"

    # What the shared layers read, and no T5 has otherwise.
    norm = "rmsnorm"
    linear_bias = False

    def __post_init__(self):
        if self.relative_buckets % 4 or self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"{self.relative_buckets} relative buckets do not fit distance {self.relative_max_distance}"
            )


def _normal(fan_in: int):
    return jax.nn.initializers.normal(fan_in**-0.5)


def _truncated(fan_in: int):
    return jax.nn.initializers.truncated_normal(fan_in**-0.5 / _TRUNCATED_STD)


class SelfAttention(nnx.Module):
    """Attention of a sequence to itself with a fused projection and a position bias; the scores are not scaled."""

    def __init__(self, cfg: T5Config, precision: Precision, rngs: nnx.Rngs, *, causal: bool):
        self.cfg, self.precision, self.causal = cfg, precision, causal
        self.qkv = _projection(cfg, precision, rngs, 3, query=0)
        self.out = _output(cfg, precision, rngs)

    def __call__(
        self, x: jax.Array, bias: jax.Array, mask: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """x [batch, length, embed], bias as of `RelativeBias` → [batch, length, embed]; dropout if there is a key."""
        query, key_, value = projections(self.qkv, x)
        options = {
            "mask": mask,
            "bias": bias,
            "causal": self.causal,
            "scale": 1.0,
            "dropout_key": key,
        }
        return self.out(attend(self.cfg, self.precision, query, key_, value, **options))

    def step(
        self, x: jax.Array, bias: jax.Array, cache: dict, index: jax.Array
    ) -> tuple[jax.Array, dict]:
        """x [n, 1, embed] at position `index`, which is written into `cache` {key, value [n, length, heads, head_dim]}."""
        query, key_, value = projections(self.qkv, x)
        cache = {
            name: jax.lax.dynamic_update_slice_in_dim(
                cache[name], new.astype(cache[name].dtype), index, axis=1
            )
            for name, new in (("key", key_), ("value", value))
        }
        mixed = attend(
            self.cfg, self.precision, query, cache["key"], cache["value"], bias=bias, scale=1.0
        )
        return self.out(mixed), cache


class CrossAttention(nnx.Module):
    """Attention of the decoder to the encoder's output: no positions, no scaling."""

    def __init__(self, cfg: T5Config, precision: Precision, rngs: nnx.Rngs):
        self.cfg, self.precision = cfg, precision
        self.query = _projection(cfg, precision, rngs, 1, query=0)
        self.kv = _projection(cfg, precision, rngs, 2)
        self.out = _output(cfg, precision, rngs)

    def __call__(
        self, x: jax.Array, kv: list[jax.Array], mask: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """x [batch, length, embed], `kv` as of `keys_and_values` → [batch, length, embed]."""
        (query,) = projections(self.query, x)
        return self.out(
            attend(self.cfg, self.precision, query, *kv, mask=mask, scale=1.0, dropout_key=key)
        )

    def keys_and_values(self, encoded: jax.Array) -> list[jax.Array]:
        """encoded [batch, kv_length, embed] → two of [batch, kv_length, heads, head_dim]."""
        return projections(self.kv, encoded)


def _projection(
    cfg: T5Config, precision: Precision, rngs: nnx.Rngs, n: int, query: int | None = None
) -> Linear:
    """`n` fused projections; the one at index `query` is smaller by head_dim^-0.5, in place of the scaling of scores."""

    def init(key, shape, dtype):
        kernel = _normal(cfg.d_model)(key, shape, dtype)
        return kernel if query is None else kernel.at[:, query].multiply(cfg.head_dim**-0.5)

    shape, axes = (
        (cfg.d_model, n, cfg.n_heads, cfg.head_dim),
        (ax.EMBED, None, ax.HEADS, ax.HEAD_DIM),
    )
    return Linear(
        "bte,esnh->btsnh", shape, axes, bias=False, init=init, precision=precision, rngs=rngs
    )


def _output(cfg: T5Config, precision: Precision, rngs: nnx.Rngs) -> Linear:
    shape, axes = (cfg.n_heads, cfg.head_dim, cfg.d_model), (ax.HEADS, ax.HEAD_DIM, ax.EMBED)
    init = _normal(cfg.n_heads * cfg.head_dim)
    return Linear(
        "btnh,nhe->bte", shape, axes, bias=False, init=init, precision=precision, rngs=rngs
    )


class Block(nnx.Module):
    """Self-attention, in a decoder cross-attention, and feed-forward, each as x + f(norm(x))."""

    def __init__(self, cfg: T5Config, precision: Precision, rngs: nnx.Rngs, *, decoder: bool):
        self.cfg = cfg
        norm = functools.partial(Norm, cfg, precision, bias=False, rngs=rngs)
        self.attention_norm, self.attention = (
            norm(),
            SelfAttention(cfg, precision, rngs, causal=decoder),
        )
        self.cross_norm = norm() if decoder else None
        self.cross_attention = CrossAttention(cfg, precision, rngs) if decoder else None
        self.mlp_norm = norm()
        init = {"init_in": _truncated(cfg.d_model), "init_out": _truncated(cfg.d_ff)}
        self.mlp = FeedForward(cfg, precision, rngs, **init)

    def __call__(self, x, bias, mask, encoded, cross_mask, key):
        """x [batch, length, embed] → the same; `encoded` [batch, kv_length, embed] in a decoder."""
        keys = (None,) * 6 if key is None else jax.random.split(key, 6)
        x = x + self._drop(self.attention(self.attention_norm(x), bias, mask, keys[0]), keys[1])
        if self.cross_attention is not None:
            kv = self.cross_attention.keys_and_values(encoded)
            x = x + self._drop(
                self.cross_attention(self.cross_norm(x), kv, cross_mask, keys[2]), keys[3]
            )
        return x + self._drop(self.mlp(self.mlp_norm(x), keys[4]), keys[5])

    def step(self, x, bias, cache, cross_mask, index):
        """One position x [n, 1, embed] of a decoder; `cache` {key, value, cross_key, cross_value} of this layer."""
        attended, own = self.attention.step(self.attention_norm(x), bias, cache, index)
        x = x + attended
        kv = [cache["cross_key"], cache["cross_value"]]
        x = x + self.cross_attention(self.cross_norm(x), kv, cross_mask, None)
        return x + self.mlp(self.mlp_norm(x)), own

    def _drop(self, x, key):
        return dropout(x, self.cfg.dropout, key)


class Stack(nnx.Module):
    """Encoder or decoder: relative positions, blocks stacked on a leading axis, final norm."""

    def __init__(self, cfg: T5Config, precision: Precision, rngs: nnx.Rngs, *, decoder: bool):
        self.cfg, self.precision, self.decoder = cfg, precision, decoder
        self.n_layers = cfg.n_decoder_layers if decoder else cfg.n_layers
        self.relative_bias = RelativeBias(cfg, rngs, bidirectional=not decoder)
        self.layers = module.stack(self._build, self.n_layers, rngs)
        self.final_norm = Norm(cfg, precision, bias=False, rngs=rngs)

    def _build(self, rngs):
        return Block(self.cfg, self.precision, rngs, decoder=self.decoder)

    def __call__(self, x, mask, encoded, cross_mask, key):
        """x [batch, length, embed] → the same; dropout if there is a key."""
        keys = None if key is None else jax.random.split(key, self.n_layers + 2)
        x = x if keys is None else dropout(x, self.cfg.dropout, keys[-1])
        bias = self.relative_bias(x.shape[1], x.shape[1])

        @stack.rematerialize(self.cfg.remat)
        def block(x, params, key):
            return module.bind(self._build, params)(x, bias, mask, encoded, cross_mask, key)

        params = module.params_of(self.layers)
        block_keys = None if keys is None else keys[:-2]
        x = stack.run(block, x, params, block_keys, n_layers=self.n_layers, unroll=self.cfg.unroll)
        x = self.final_norm(x)
        return x if keys is None else dropout(x, self.cfg.dropout, keys[-2])

    def step(self, x, cache, index):
        """One position x [n, 1, embed] of a decoder → the same, and the cache with it."""
        bias = self.relative_bias.row(index, cache["key"].shape[2])
        cross_mask = cache["cross_mask"][0][:, None, None]  # [n, 1, 1, kv_length]
        by_layer = {name: leaf for name, leaf in cache.items() if name != "cross_mask"}

        def block(x, layer):
            params, cache = layer
            return module.bind(self._build, params).step(x, bias, cache, cross_mask, index)

        x, own = jax.lax.scan(block, x, (module.params_of(self.layers), by_layer))
        return self.final_norm(x), cache | own


class Embedding(nnx.Module):
    """The tokens' vectors, which encoder and decoder share."""

    def __init__(self, cfg: T5Config, rngs: nnx.Rngs):
        normal = jax.nn.initializers.normal(1.0)
        self.tokens = param(normal, rngs, (cfg.vocab_size, cfg.d_model), (ax.VOCAB, ax.EMBED))


class Head(nnx.Module):
    """The logits' own matrix, where it is not the embedding."""

    def __init__(self, cfg: T5Config, rngs: nnx.Rngs):
        # d_model^-0.5 as in T5X; transformers' 1.0 starts the loss near 110 (huggingface/transformers#26441).
        self.kernel = param(
            _truncated(cfg.d_model), rngs, (cfg.vocab_size, cfg.d_model), (ax.VOCAB, ax.EMBED)
        )


class T5(nnx.Module):
    """The whole tree of parameters."""

    def __init__(self, cfg: T5Config, precision: Precision, rngs: nnx.Rngs):
        self.cfg, self.precision = cfg, precision
        self.embeddings = Embedding(cfg, rngs)
        self.encoder = Stack(cfg, precision, rngs, decoder=False)
        self.decoder = Stack(cfg, precision, rngs, decoder=True)
        self.head = None if cfg.tie_embeddings else Head(cfg, rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [batch, length] → [batch, length, embed] in the activation dtype."""
        return by_rows(
            self.embeddings.tokens[...][tokens].astype(self.precision.activation_dtype),
            self.precision,
        )


def _build(cfg: T5Config, precision: Precision = FLOAT32):
    return functools.partial(T5, cfg, precision)


def bound(cfg: T5Config, precision: Precision, params: Params) -> T5:
    """The modules over `params`; inside a trace this costs nothing."""
    return module.bind(_build(cfg, precision), params)


def init_params(cfg: T5Config, key: jax.Array) -> Params:
    """Fresh float32 parameters, a pure function of `key`, in T5X's distributions: deviation fan_in^-0.5, embedding 1."""
    return module.params_of(_build(cfg)(nnx.Rngs(params=key)))


def abstract_params(cfg: T5Config) -> Params:
    """The tree of `init_params` with a ShapeDtypeStruct at each leaf."""
    return module.params_of(module.abstract(_build(cfg)))


def param_axes(cfg: T5Config) -> Params:
    """The same tree with a tuple of logical axis names (`axes.py`) at each leaf."""
    return module.axes_of(module.abstract(_build(cfg)))


def count_params(cfg: T5Config) -> int:
    """Number of parameters; a tied embedding counts once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(cfg)))


def encode(
    cfg: T5Config,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    *,
    padding_mask: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The encoder's output: [batch, length, embed] in the activation dtype.

    Args:
        cfg: the network. precision: its number formats. params: as from `init_params`.
        tokens: int [batch, length].
        padding_mask: bool [batch, length]: False where nobody should look.
        key: dropout is on if given.
    """
    model = bound(cfg, precision, params)
    return model.encoder(model.embed(tokens), attention_mask(None, padding_mask), None, None, key)


def decode(
    cfg: T5Config,
    precision: Precision,
    params: Params,
    encoded: jax.Array,
    tokens: jax.Array,
    *,
    padding_mask: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The decoder's hidden states for all of `tokens` at once: [batch, length, embed] in the activation dtype.

    Args:
        encoded: [batch, kv_length, embed] as from `encode`.
        tokens: int [batch, length], the targets after `shift_right`.
        padding_mask: bool [batch, kv_length] of the encoder's tokens.
        key: dropout is on if given.
    """
    model = bound(cfg, precision, params)
    cross_mask = None if padding_mask is None else padding_mask.astype(bool)[:, None, None]
    return model.decoder(model.embed(tokens), None, encoded, cross_mask, key)


def head(cfg: T5Config, precision: Precision, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits of the decoder's `hidden` [..., embed]: float32 [..., vocab]. `params`: all, or `head_params` alone."""
    if cfg.tie_embeddings:
        matrix, hidden = params["embeddings"]["tokens"], hidden * cfg.d_model**-0.5
    else:
        matrix = params["head"]["kernel"]
    rows = hidden.reshape((-1, cfg.d_model))
    logits = product("te,ve->tv", rows, matrix, precision.matmul_dtype, jnp.dtype(jnp.float32))
    return by_rows(logits, precision).reshape(hidden.shape[:-1] + (cfg.vocab_size,))


def head_params(cfg: T5Config, params: Params) -> Params:
    """The part of `params` that `head` reads."""
    if cfg.tie_embeddings:
        return {"embeddings": {"tokens": params["embeddings"]["tokens"]}}
    return {"head": params["head"]}


def shift_right(targets: jax.Array, start_id: int) -> jax.Array:
    """What the decoder reads to predict `targets` int [batch, length]: `start_id` (T5: the padding token), then all but the last."""
    return jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)
