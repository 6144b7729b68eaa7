"""The encoder-decoder of T5 (arXiv 1910.10683, section 2.1), versions 1.0 and 1.1.

The module has its network and pure functions on it.

Pre-norm blocks with RMSNorm, no biases, one table of relative position buckets for all layers of a
stack, no scaling of the scores. 1.0 has ReLU and ties the logits to the embedding; 1.1 has a gated
GELU and a matrix of its own for the logits. Depths of encoder and decoder, and the width of a head,
are free (arXiv 2109.10686). Corruption is in `objectives`, text generation in `generation.py`. The
paths of the parameters are public names.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models import module, stack
from cramjax.models.attention import attend, attend_to_cache, attention_mask, projections
from cramjax.models.dropout import dropout
from cramjax.models.feedforward import FeedForward
from cramjax.models.layers import Linear, Norm, Precision, by_rows, product
from cramjax.models.module import Initializer, param
from cramjax.models.relative import RelativeBias

Params = dict[str, Any]
LayerCache = dict[str, jax.Array]

# A normal cut off at two deviations is narrower than the one it is cut from, by this factor.
_TRUNCATED_STD = 0.87962566103423978


class Cache(NamedTuple):
    """Keys and values of a decoder, in the dtype of products.

    Attributes:
        layers: for each layer "key" and "value" of the positions before, [batch, heads, length,
            beams, head_dim], and "cross_key" and "cross_value" of the input, [batch, heads,
            kv_length, head_dim].
        mask: bool [batch, kv_length], False where nobody should look.
    """

    layers: list[LayerCache]
    mask: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """The numbers of a T5 (`network.Network`).

    The keys of `model` in `config/schema.py` say what each one means. `vocab_size` counts the
    padding of the embedding.

    Raises:
        ValueError: for numbers that no network has.
    """

    family: ClassVar[str] = "t5"
    # The shared layers read these; no T5 has others.
    norm: ClassVar[str] = "rmsnorm"
    linear_bias: ClassVar[bool] = False

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

    def __post_init__(self):
        n_buckets, distance = self.relative_buckets, self.relative_max_distance
        if n_buckets % 4 or distance <= n_buckets // 2:
            raise ValueError(f"{n_buckets} relative buckets do not fit distance {distance}")

    @property
    def n_blocks(self) -> int:
        """Blocks of both stacks together."""
        return self.n_layers + self.n_decoder_layers

    @property
    def max_length(self) -> int | None:
        """None: relative positions have no limit."""
        return None

    @property
    def unscaled_norms(self) -> tuple[str, ...]:
        """The norm before a tied head, which divides by the square root of the width (`head`)."""
        return ("decoder/final_norm",) if self.tie_embeddings else ()

    def build(self, precision: Precision) -> Callable[[nnx.Rngs], T5]:
        """Returns the constructor of the modules."""
        return functools.partial(T5, self, precision)

    def gap_logits(
        self,
        precision: Precision,
        params: Params,
        tokens: jax.Array,
        places: jax.Array,
        *,
        gap_id: int,
        pad_id: int,
        padding_mask: jax.Array,
    ) -> jax.Array:
        """Predicts the one token behind the sentinel `gap_id`; see `network.Network`.

        The decoder reads the start token and the sentinel, and says next what the sentinel hides.
        """
        del places
        common = (self, precision, params)
        encoded = encode(*common, tokens, padding_mask=padding_mask)
        start = jnp.asarray([[pad_id, gap_id]], jnp.int32)
        start = jnp.broadcast_to(start, (tokens.shape[0], 2))
        hidden = decode(*common, encoded, start, padding_mask=padding_mask)[:, 1]  # [batch, embed]
        return head(*common, hidden)


def _normal(fan_in: int) -> Initializer:
    return jax.nn.initializers.normal(fan_in**-0.5)


def _truncated(fan_in: int) -> Initializer:
    return jax.nn.initializers.truncated_normal(fan_in**-0.5 / _TRUNCATED_STD)


class SelfAttention(nnx.Module):
    """Attention of a sequence to itself, with a fused projection and a bias for positions.

    The scores are not scaled.
    """

    def __init__(self, cfg: T5Config, precision: Precision, rngs: nnx.Rngs, *, causal: bool):
        self.cfg, self.precision, self.causal = cfg, precision, causal
        self.qkv = _projection(cfg, precision, rngs, 3, query=0)
        self.out = _output(cfg, precision, rngs)

    def __call__(
        self, x: jax.Array, bias: jax.Array, mask: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """x [batch, length, embed] → the same shape; dropout if there is a key.

        Args:
            x: the residual stream after its norm.
            bias: float32 [1, heads, length, length], as from `RelativeBias`.
            mask: as from `attention_mask`.
            key: dropout is on if given.
        """
        # Each is [batch, length, heads, head_dim].
        query, key_, value = projections(self.qkv, x)

        mixed = attend(
            self.cfg,
            self.precision,
            query,
            key_,
            value,
            mask=mask,
            bias=bias,
            causal=self.causal,
            scale=1.0,
            dropout_key=key,
        )
        return self.out(mixed)

    def step(
        self, x: jax.Array, bias: jax.Array, mask: jax.Array, cache: LayerCache, index: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        """Attends from one position of each hypothesis, x [batch, beams, embed].

        Args:
            x: the residual stream after its norm.
            bias: float32 [1, heads, 1, length * beams].
            mask: bool [batch, 1, beams, length * beams].
            cache: "key" and "value" [batch, heads, length, beams, head_dim].
            index: int32 scalar, the position.

        Returns:
            [batch, beams, embed], and the cache with the position in it.
        """
        # Each is [batch, heads, beams, head_dim].
        query, key_, value = (jnp.swapaxes(one, 1, 2) for one in projections(self.qkv, x))
        updated = {}
        for name, new in (("key", key_), ("value", value)):
            new = new.astype(cache[name].dtype)[:, :, None]
            updated[name] = jax.lax.dynamic_update_slice_in_dim(cache[name], new, index, axis=2)

        batch, n_heads, _, head_dim = query.shape
        flat = (batch, n_heads, -1, head_dim)
        keys, values = updated["key"].reshape(flat), updated["value"].reshape(flat)
        return self.out(attend_to_cache(self.precision, query, keys, values, mask, bias)), updated


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
        """x [batch, length, embed], `kv` as from `keys_and_values` → [batch, length, embed]."""
        (query,) = projections(self.query, x)  # [batch, length, heads, head_dim]
        options = {"mask": mask, "scale": 1.0, "dropout_key": key}
        return self.out(attend(self.cfg, self.precision, query, *kv, **options))

    def step(self, x: jax.Array, cache: LayerCache, mask: jax.Array) -> jax.Array:
        """Attends from one position of each hypothesis, x [batch, beams, embed]: the same shape.

        All hypotheses of a row read the same "cross_key" and "cross_value" of `cache`, [batch,
        heads, kv_length, head_dim]. `mask` is bool [batch, 1, 1, kv_length].
        """
        (query,) = projections(self.query, x)
        keys, values = cache["cross_key"], cache["cross_value"]
        query = jnp.swapaxes(query, 1, 2)  # [batch, heads, beams, head_dim]
        return self.out(attend_to_cache(self.precision, query, keys, values, mask))

    def keys_and_values(self, encoded: jax.Array) -> list[jax.Array]:
        """encoded [batch, kv_length, embed] → two of [batch, kv_length, heads, head_dim]."""
        return projections(self.kv, encoded)


def _projection(
    cfg: T5Config, precision: Precision, rngs: nnx.Rngs, n: int, query: int | None = None
) -> Linear:
    """Returns `n` fused projections.

    The one at index `query` starts smaller by head_dim^-0.5, in place of scaled scores.
    """

    def init(key, shape, dtype):
        kernel = _normal(cfg.d_model)(key, shape, dtype)
        return kernel if query is None else kernel.at[:, query].multiply(cfg.head_dim**-0.5)

    shape = (cfg.d_model, n, cfg.n_heads, cfg.head_dim)
    axes = (ax.EMBED, None, ax.HEADS, ax.HEAD_DIM)
    common = {"bias": False, "precision": precision, "rngs": rngs}
    return Linear("bte,esnh->btsnh", shape, axes, init=init, **common)


def _output(cfg: T5Config, precision: Precision, rngs: nnx.Rngs) -> Linear:
    shape = (cfg.n_heads, cfg.head_dim, cfg.d_model)
    axes = (ax.HEADS, ax.HEAD_DIM, ax.EMBED)
    init = _normal(cfg.n_heads * cfg.head_dim)
    common = {"bias": False, "precision": precision, "rngs": rngs}
    return Linear("btnh,nhe->bte", shape, axes, init=init, **common)


class Block(nnx.Module):
    """Self-attention, in a decoder cross-attention, and feed-forward, each as x + f(norm(x))."""

    def __init__(self, cfg: T5Config, precision: Precision, rngs: nnx.Rngs, *, decoder: bool):
        self.cfg = cfg
        norm = functools.partial(Norm, cfg, precision, bias=False, rngs=rngs)
        # Each module draws from `rngs`: their order is part of what a seed means.
        self.attention_norm = norm()
        self.attention = SelfAttention(cfg, precision, rngs, causal=decoder)
        self.cross_norm = norm() if decoder else None
        self.cross_attention = CrossAttention(cfg, precision, rngs) if decoder else None
        self.mlp_norm = norm()
        init = {"init_in": _truncated(cfg.d_model), "init_out": _truncated(cfg.d_ff)}
        self.mlp = FeedForward(cfg, precision, rngs, **init)

    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        mask: jax.Array | None,
        encoded: jax.Array | None,
        cross_mask: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """x [batch, length, embed] → the same shape.

        Args:
            x: the residual stream.
            bias: float32 [1, heads, length, length], as from `RelativeBias`.
            mask: as from `attention_mask`, over the positions of `x`.
            encoded: [batch, kv_length, embed], the encoder's output; read by a decoder only.
            cross_mask: bool [batch, 1, 1 or length, kv_length], False where nobody should look.
            key: dropout is on if given.
        """
        keys = (None,) * 6 if key is None else jax.random.split(key, 6)
        attended = self.attention(self.attention_norm(x), bias, mask, keys[0])
        x = x + self._drop(attended, keys[1])

        if self.cross_attention is not None:
            assert self.cross_norm is not None and encoded is not None
            kv = self.cross_attention.keys_and_values(encoded)
            attended = self.cross_attention(self.cross_norm(x), kv, cross_mask, keys[2])
            x = x + self._drop(attended, keys[3])

        return x + self._drop(self.mlp(self.mlp_norm(x), keys[4]), keys[5])

    def step(
        self,
        x: jax.Array,
        bias: jax.Array,
        mask: jax.Array,
        cross_mask: jax.Array,
        cache: LayerCache,
        index: jax.Array,
    ) -> tuple[jax.Array, LayerCache]:
        """Runs one position of a decoder, x [batch, beams, embed].

        The arguments are those of the steps of both attentions. Returns the same shape, and the
        cache of this layer with the position in it.
        """
        attended, updated = self.attention.step(self.attention_norm(x), bias, mask, cache, index)
        x = x + attended

        assert self.cross_norm is not None and self.cross_attention is not None
        x = x + self.cross_attention.step(self.cross_norm(x), cache, cross_mask)
        return x + self.mlp(self.mlp_norm(x)), cache | updated

    def _drop(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return dropout(x, self.cfg.dropout, key)


class Stack(nnx.Module):
    """Encoder or decoder: relative positions, blocks stacked on a leading axis, final norm."""

    def __init__(self, cfg: T5Config, precision: Precision, rngs: nnx.Rngs, *, decoder: bool):
        self.cfg, self.precision, self.decoder = cfg, precision, decoder
        self.n_layers = cfg.n_decoder_layers if decoder else cfg.n_layers
        self.relative_bias = RelativeBias(cfg, rngs, bidirectional=not decoder)
        self.layers = module.stack(self.build_block, self.n_layers, rngs)
        self.final_norm = Norm(cfg, precision, bias=False, rngs=rngs)

    @property
    def build_block(self) -> Callable[[nnx.Rngs], Block]:
        """The constructor of one block."""
        return functools.partial(Block, self.cfg, self.precision, decoder=self.decoder)

    def block(self, number: int) -> Block:
        """Returns the block of a layer, with its parameters."""
        params = jax.tree.map(lambda leaf: leaf[number], module.params_of(self.layers))
        return module.bind(self.build_block, params)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        encoded: jax.Array | None,
        cross_mask: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """x [batch, length, embed] → the same shape; other arguments as for `Block`."""
        # One key a block; the last two are those of the output and the input.
        keys = None if key is None else jax.random.split(key, self.n_layers + 2)
        x = x if keys is None else dropout(x, self.cfg.dropout, keys[-1])
        bias = self.relative_bias(x.shape[1], x.shape[1])  # [1, heads, length, length]

        @stack.rematerialize(self.cfg.remat)
        def block(x, params, key):
            model = module.bind(self.build_block, params)
            return model(x, bias, mask, encoded, cross_mask, key)

        params = module.params_of(self.layers)  # leaves [layer, ...]
        block_keys = None if keys is None else keys[:-2]
        x = stack.run(block, x, params, block_keys, n_layers=self.n_layers, unroll=self.cfg.unroll)
        x = self.final_norm(x)
        return x if keys is None else dropout(x, self.cfg.dropout, keys[-2])

    def step(
        self, x: jax.Array, cache: Cache, index: jax.Array, lineage: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Runs one position of a decoder, x [batch, beams, embed], and writes it into the cache.

        Args:
            x: the embeddings.
            cache: as from `generation.init_cache`.
            index: int32 scalar, the position.
            lineage: int32 [batch, beams, length], see `decoding`.
        """
        batch, n_beams, length = lineage.shape
        # Every hypothesis sees, of each position, the place that its lineage stood in.
        bias = jnp.repeat(self.relative_bias.row(index, length), n_beams, axis=-1)
        places = jnp.arange(n_beams, dtype=lineage.dtype)[None, None, None]
        mask = (lineage[..., None] == places).reshape(batch, 1, n_beams, length * n_beams)
        cross_mask = cache.mask[:, None, None]  # [batch, 1, 1, kv_length]

        layers = []
        for number, layer in enumerate(cache.layers):
            x, layer = self.block(number).step(x, bias, mask, cross_mask, layer, index)
            layers.append(layer)
        return self.final_norm(x), Cache(layers, cache.mask)


class Embedding(nnx.Module):
    """The tokens' vectors, which encoder and decoder share."""

    def __init__(self, cfg: T5Config, rngs: nnx.Rngs):
        normal = jax.nn.initializers.normal(1.0)
        self.tokens = param(normal, rngs, (cfg.vocab_size, cfg.d_model), (ax.VOCAB, ax.EMBED))


class Head(nnx.Module):
    """The matrix of the logits, where they are not tied to the embedding."""

    def __init__(self, cfg: T5Config, rngs: nnx.Rngs):
        # Deviation d_model^-0.5 as in T5X; the 1.0 of transformers starts the loss near 110
        # (huggingface/transformers#26441).
        init = _truncated(cfg.d_model)
        self.kernel = param(init, rngs, (cfg.vocab_size, cfg.d_model), (ax.VOCAB, ax.EMBED))


class T5(nnx.Module):
    """The whole tree of parameters.

    They start in T5X's distributions: deviation fan_in^-0.5, and 1 for the embedding.
    """

    def __init__(self, cfg: T5Config, precision: Precision, rngs: nnx.Rngs):
        self.cfg, self.precision = cfg, precision
        self.embeddings = Embedding(cfg, rngs)
        self.encoder = Stack(cfg, precision, rngs, decoder=False)
        self.decoder = Stack(cfg, precision, rngs, decoder=True)
        self.head = None if cfg.tie_embeddings else Head(cfg, rngs)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """int [batch, length] → [batch, length, embed] in the activation dtype."""
        rows = self.embeddings.tokens[...][tokens]  # float32 [batch, length, embed]
        return by_rows(rows.astype(self.precision.activation_dtype), self.precision)


def encode(
    cfg: T5Config,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    *,
    padding_mask: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns the encoder's output: [batch, length, embed] in the activation dtype.

    Args:
        cfg: the network.
        precision: its number formats.
        params: as from `network.init_params`.
        tokens: int [batch, length].
        padding_mask: bool [batch, length], False where nobody should look.
        segment_ids: int [batch, length]; tokens see only their own segment.
        key: dropout is on if given.
    """
    model = module.bind(cfg.build(precision), params)
    mask = attention_mask(segment_ids, padding_mask)
    return model.encoder(model.embed(tokens), mask, None, None, key)


def decode(
    cfg: T5Config,
    precision: Precision,
    params: Params,
    encoded: jax.Array,
    tokens: jax.Array,
    *,
    padding_mask: jax.Array | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns the decoder's hidden states for all of `tokens` at once.

    Args:
        cfg: the network.
        precision: its number formats.
        params: as from `network.init_params`.
        encoded: [batch, kv_length, embed] as from `encode`.
        tokens: int [batch, length], the targets after `shift_right`.
        padding_mask: bool [batch, kv_length] of the encoder's tokens.
        segment_ids: int [batch, kv_length] of the encoder's tokens and int [batch, length] of
            these; tokens see only their own segment, in both.
        key: dropout is on if given.

    Returns:
        [batch, length, embed] in the activation dtype.
    """
    model = module.bind(cfg.build(precision), params)
    mask = cross_mask = None
    if padding_mask is not None:
        cross_mask = padding_mask.astype(bool)[:, None, None]  # [batch, 1, 1, kv_length]
    if segment_ids is not None:
        of_encoded, own = segment_ids
        mask = attention_mask(own, None)
        same = own[:, None, :, None] == of_encoded[:, None, None, :]
        # [batch, 1, length, kv_length]
        cross_mask = same if cross_mask is None else same & cross_mask

    return model.decoder(model.embed(tokens), mask, encoded, cross_mask, key)


def head(cfg: T5Config, precision: Precision, params: Params, hidden: jax.Array) -> jax.Array:
    """Returns the logits of the decoder's `hidden` [..., embed]: float32 [..., vocab].

    `params` are all parameters, or those of `head_params` alone.
    """
    if cfg.tie_embeddings:
        matrix = params["embeddings"]["tokens"]  # [vocab, embed]
        hidden = hidden * cfg.d_model**-0.5
    else:
        matrix = params["head"]["kernel"]
    rows = hidden.reshape((-1, cfg.d_model))  # [tokens, embed]
    logits = product("te,ve->tv", rows, matrix, precision.matmul_dtype, jnp.dtype(jnp.float32))
    return by_rows(logits, precision).reshape(hidden.shape[:-1] + (cfg.vocab_size,))


def head_params(cfg: T5Config, params: Params) -> Params:
    """Returns the part of `params` that `head` reads."""
    if cfg.tie_embeddings:
        return {"embeddings": {"tokens": params["embeddings"]["tokens"]}}
    return {"head": params["head"]}


def shift_right(targets: jax.Array, start_id: int) -> jax.Array:
    """Returns what the decoder reads to predict `targets` int [batch, length].

    That is `start_id` (T5: the padding token), then all targets but the last.
    """
    return jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)
