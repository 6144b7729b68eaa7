"""One encoder whose switches cover crammed BERT, the original BERT, 24hBERT and a ModernBERT-compatible network.

`init_params`, `encode` and `head` are pure functions of (config, precision, parameters); the modules below live while they are traced.
Parameter paths ("layers/attention/qkv/kernel") are public names: checkpoints, decay masks and exports refer to them.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from cramjax.models import module
from cramjax.models.attention import attend, attention_backend, attention_mask
from cramjax.models.axes import EMBED, HEAD_DIM, HEAD_EMBED, HEADS, MLP, VOCAB
from cramjax.models.layers import Dense, Norm, dropout, gelu, rotate, sinusoids
from cramjax.models.products import Precision, project

# Up to this depth blocks are unrolled by default: the step is faster (no loop), and compilation still quick.
UNROLLED_LAYERS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The numbers and switches of an encoder; keys, meanings and choices are those of `model` in cramjax/config/schema.py.

    `vocab_size`: rows of the embedding, padding included.
    """

    vocab_size: int
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    ffn: str = "gelu"
    norm_position: str = "pre"
    norm: str = "layernorm"
    norm_bias: bool = True
    norm_eps: float = 1e-12
    first_norm: bool = True
    embedding_norm: bool = True
    final_norm: bool = True
    linear_bias: bool = False
    positions: str = "scaled_sinusoidal"
    max_positions: int = 128
    rotary_base: float = 10000.0
    token_types: int = 0
    head_transform: bool = False
    head_bias: bool = False
    decoder_bias: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    attention: str = "auto"
    unroll: str | int | bool = "auto"
    remat: str = "none"

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.d_model // self.n_heads


def init_params(config: EncoderConfig, key: jax.Array) -> module.Tree:
    """Parameters float32: matrices and embeddings N(0, init_std²), biases 0, norms 1; the row of the padding token is 0."""
    return module.init(_constructor(config), key)


def abstract_params(config: EncoderConfig) -> module.Tree:
    """The tree of `init_params` as ShapeDtypeStructs."""
    return module.abstract(_constructor(config))


def param_axes(config: EncoderConfig) -> module.Tree:
    """The tree of `init_params` with the axis names of each parameter."""
    return module.axes(_constructor(config))


def count_params(config: EncoderConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))


def encode(
    config: EncoderConfig,
    precision: Precision,
    params: module.Tree,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    padding_mask: jax.Array | None = None,
    token_types: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the last block and the final norm.

    Args:
        tokens: int32 [batch, length]. segment_ids: int [batch, length], attention stays within one number. padding_mask: bool
            [batch, length], True for real tokens. token_types: int [batch, length], 0 if not given.
        key: for dropout; none without it.

    Returns:
        [batch, length, embed] in the activation dtype.
    """
    network = module.bind(_constructor(config), params)
    return network.encode(precision, tokens, attention_mask(segment_ids, padding_mask), token_types, key)


def head(config: EncoderConfig, precision: Precision, params: module.Tree, hidden: jax.Array) -> jax.Array:
    """Logits float32 [..., vocab] of hidden states [..., embed], through the decoder tied to the embedding."""
    return module.bind(_constructor(config), params).logits(precision, hidden)


@functools.lru_cache(maxsize=32)
def _constructor(config: EncoderConfig) -> module.Constructor:
    return functools.partial(Encoder, config)


def _norm(config: EncoderConfig, bias: bool | None = None) -> Norm:
    bias = config.norm_bias if bias is None else bias
    return Norm(config.d_model, kind=config.norm, bias=bias, eps=config.norm_eps)


class Embeddings(nnx.Module):
    """Tokens plus positions plus token types, whatever of these the config has, then a norm."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        keys = jax.random.split(key, 3)
        std, width = config.init_std, config.d_model
        table = module.normal(keys[0], (config.vocab_size, width), (VOCAB, EMBED), std)
        table.set_value(table.get_value().at[0].set(0.0))
        self.tokens = table
        if config.positions == "learned":
            self.positions = module.normal(keys[1], (config.max_positions, width), (None, EMBED), std)
        if config.positions == "scaled_sinusoidal":
            # A learned scale for the fixed table, from 1/√width (Cramming, arXiv 2212.14034, section 4.2).
            self.position_scale = module.constant(width**-0.5, (), ())
        if config.token_types:
            self.token_types = module.normal(keys[2], (config.token_types, width), (None, EMBED), std)
        if config.embedding_norm:
            self.norm = _norm(config)

    def __call__(
        self, config: EncoderConfig, precision: Precision, tokens: jax.Array, types: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """int [batch, length] → [batch, length, embed]."""
        x = self.tokens.get_value()[tokens]  # [batch, length, embed] float32
        length = tokens.shape[1]
        if config.positions == "learned":
            x = x + self.positions.get_value()[None, :length]
        if config.positions == "scaled_sinusoidal":
            x = x + self.position_scale.get_value() * sinusoids(length, config.d_model)[None]
        if config.token_types:
            x = x + self.token_types.get_value()[jnp.zeros_like(tokens) if types is None else types]
        if config.embedding_norm:
            x = self.norm(x)
        return dropout(key, config.dropout, x.astype(precision.activation_dtype))


class Attention(nnx.Module):
    """Self-attention with fused query, key and value."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        keys = jax.random.split(key)
        heads, width = (config.n_heads, config.head_dim), config.d_model
        options = {"bias": config.linear_bias, "std": config.init_std}
        self.qkv = Dense(keys[0], (width, 3, *heads), (EMBED, None, HEADS, HEAD_DIM), n_in=1, **options)
        self.out = Dense(keys[1], (*heads, width), (HEADS, HEAD_DIM, EMBED), n_in=2, **options)

    def __call__(
        self, config: EncoderConfig, precision: Precision, x: jax.Array, mask: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """[batch, length, embed] → [batch, length, embed]."""
        qkv = self.qkv(precision, x)  # [batch, length, 3, heads, head_dim]
        query, key_states, value = (qkv[:, :, part] for part in range(3))
        if config.positions == "rotary":
            query, key_states = rotate(query, config.rotary_base), rotate(key_states, config.rotary_base)
        rate = config.attention_dropout if key is not None else 0.0
        backend = attention_backend(config.attention, jax.devices()[0], precision.matmul_dtype, rate)
        mixed = attend(
            precision, backend, query, key_states, value, mask, dropout_key=key, dropout_rate=rate
        )  # [batch, length, heads, head_dim]
        return self.out(precision, mixed)


class FeedForward(nnx.Module):
    """Two matrices around a GELU, or three with a gate: GELU of the first half times the second."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        keys = jax.random.split(key)
        options = {"n_in": 1, "bias": config.linear_bias, "std": config.init_std}
        inner = (2, config.d_ff) if config.ffn == "geglu" else (config.d_ff,)
        self.wi = Dense(keys[0], (config.d_model, *inner), (EMBED, *(None,) * (len(inner) - 1), MLP), **options)
        self.wo = Dense(keys[1], (config.d_ff, config.d_model), (MLP, EMBED), **options)

    def __call__(self, config: EncoderConfig, precision: Precision, x: jax.Array) -> jax.Array:
        """[batch, length, embed] → [batch, length, embed]."""
        inner = self.wi(precision, x)  # [batch, length, (2,) mlp]
        inner = gelu(inner[:, :, 0]) * inner[:, :, 1] if config.ffn == "geglu" else gelu(inner)
        return self.wo(precision, inner)


class Block(nnx.Module):
    """Attention and feed-forward with their norms and residuals."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        keys = jax.random.split(key)
        self.attention_norm = _norm(config)
        self.attention = Attention(config, keys[0])
        self.mlp_norm = _norm(config)
        self.mlp = FeedForward(config, keys[1])

    def __call__(
        self,
        config: EncoderConfig,
        precision: Precision,
        x: jax.Array,
        mask: jax.Array | None,
        is_first: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        """[batch, length, embed] → [batch, length, embed]; `is_first` bool scalar."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        pre = config.norm_position == "pre"
        normed = self.attention_norm(x) if pre else x
        if not config.first_norm:
            normed = jnp.where(is_first, x, normed)
        x = x + dropout(keys[1], config.dropout, self.attention(config, precision, normed, mask, keys[0]))
        x = x if pre else self.attention_norm(x)
        x = x + dropout(keys[2], config.dropout, self.mlp(config, precision, self.mlp_norm(x) if pre else x))
        return x if pre else self.mlp_norm(x)


class Head(nnx.Module):
    """What comes between hidden states and the tied decoder, and the decoder's bias."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        if config.head_transform:
            shape, axes = (config.d_model,) * 2, (EMBED, HEAD_EMBED)
            self.dense = Dense(key, shape, axes, n_in=1, bias=config.head_bias, std=config.init_std)
            self.norm = _norm(config, config.head_bias)
        if config.decoder_bias:
            self.bias = module.constant(0.0, (config.vocab_size,), (VOCAB,))


class Encoder(nnx.Module):
    """Embeddings, a stack of blocks, a head."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.config = config
        self.embeddings = Embeddings(config, keys[0])
        self.layers = module.stack(functools.partial(Block, config), keys[1], config.n_layers)
        if not config.first_norm:
            # One norm fewer than blocks, so that counts and exports are exact; `_run_blocks` fills the gap.
            self.layers.attention_norm = module.stack(lambda _: _norm(config), keys[1], config.n_layers - 1)
        if config.final_norm:
            self.final_norm = _norm(config)
        if config.head_transform or config.decoder_bias:
            self.head = Head(config, keys[2])

    def encode(
        self,
        precision: Precision,
        tokens: jax.Array,
        mask: jax.Array | None,
        types: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """See `encode` above."""
        embed_key, block_key = (None, None) if key is None else jax.random.split(key)
        x = self.embeddings(self.config, precision, tokens, types, embed_key)
        x = self._run_blocks(precision, x, mask, block_key)
        return self.final_norm(x) if self.config.final_norm else x

    def _run_blocks(
        self, precision: Precision, x: jax.Array, mask: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        config, n_layers = self.config, self.config.n_layers
        if not config.first_norm:
            norm = self.layers.attention_norm
            norm.scale.set_value(jnp.pad(norm.scale.get_value(), ((1, 0), (0, 0)), constant_values=1.0))
            if norm.bias is not None:
                norm.bias.set_value(jnp.pad(norm.bias.get_value(), ((1, 0), (0, 0))))
        graph, state = nnx.split(self.layers)
        keys = None if key is None else jax.random.split(key, n_layers)

        def body(x, inputs):
            block_state, is_first, block_key = inputs
            return nnx.merge(graph, block_state)(config, precision, x, mask, is_first, block_key), None

        if config.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        unroll = config.unroll
        if unroll == "auto":
            unroll = True if n_layers <= UNROLLED_LAYERS else 1
        return jax.lax.scan(body, x, (state, jnp.arange(n_layers) == 0, keys), unroll=unroll)[0]

    def logits(self, precision: Precision, hidden: jax.Array) -> jax.Array:
        """See `head` above."""
        if self.config.head_transform:
            hidden = self.head.norm(gelu(self.head.dense(precision, hidden)))
        logits = project(precision, hidden, self.embeddings.tokens.get_value())
        if self.config.decoder_bias:
            logits = logits + self.head.bias.get_value().reshape((1,) * (logits.ndim - 1) + (-1,))
        return logits
