"""The encoder: blocks, their stack, the masked-language-modelling head, and pure functions on them.

crammed BERT, the original BERT, 24hBERT and ModernBERT are values of one `EncoderConfig` (the
recipes in `configs`). Masking and losses are in `objectives`, shardings in `parallel`. The paths of
the parameters are public names: exports, decay masks and growth refer to them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models import module, pooling, stack
from cramjax.models.activations import gelu
from cramjax.models.attention import Attention, Rotary, Source, attention_mask
from cramjax.models.dropout import dropout
from cramjax.models.feedforward import FeedForward
from cramjax.models.layers import (
    Embeddings,
    Linear,
    Norm,
    Precision,
    by_rows,
    product,
    rotary_tables,
)
from cramjax.models.module import param

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The numbers of an encoder (`network.Network`).

    The keys of `model` in `config/schema.py` say what each one means. Besides:

    Attributes:
        vocab_size: rows of the embedding, padding included.
        pruned_heads: heads that were taken out of each block, besides the `n_heads` it has.
        local_window: with a window, only every `global_every`-th block, from the first on, sees
            everything. The others see positions at most half the window away, and turn by
            `local_rotary_base` (ModernBERT, arXiv 2412.13663, section 2.1.2).
        unroll: "auto", a bool, or a number of blocks (`stack.run`).

    Raises:
        ValueError: for numbers that no network has.
    """

    family: ClassVar[str] = "encoder"

    vocab_size: int
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    pruned_heads: int = 0
    ffn: str = "gelu"
    ffn_rank: int = 0
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
    local_window: int = 0
    global_every: int = 1
    local_rotary_base: float = 10000.0
    token_types: int = 0
    head_transform: bool = False
    head_bias: bool = False
    decoder_bias: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    document_attention: bool = False
    attention: str = "auto"
    unroll: str | int | bool = "auto"
    remat: str = "none"

    def __post_init__(self):
        n_heads = self.n_heads + self.pruned_heads
        if self.d_model % n_heads:
            raise ValueError(f"d_model {self.d_model} does not divide by n_heads {n_heads}")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head dimension, not {self.head_dim}")
        if not self.first_norm and (self.norm_position == "post" or self.n_layers < 2):
            raise ValueError("first_norm=False needs norm_position 'pre' and at least 2 layers")

    @property
    def head_dim(self) -> int:
        """Dimensions of an attention head."""
        return self.d_model // (self.n_heads + self.pruned_heads)

    @property
    def n_blocks(self) -> int:
        """Blocks of all stacks together."""
        return self.n_layers

    @property
    def max_length(self) -> int | None:
        """The longest sequence in tokens, or None if any length is possible."""
        return self.max_positions if self.positions == "learned" else None

    @property
    def unscaled_norms(self) -> tuple[str, ...]:
        """No norm: see `network.Network`."""
        return ()

    def build(self, precision: Precision) -> Callable[[nnx.Rngs], EncoderLM]:
        """Returns the constructor of the modules."""
        return functools.partial(EncoderLM, self, precision)

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
        """Predicts the one masked token of each sequence; see `network.Network`."""
        del gap_id, pad_id
        hidden = encode(self, precision, params, tokens, padding_mask=padding_mask)
        # The head is the most of a small model: only where a token is hidden.
        hidden = jnp.take_along_axis(hidden, places[:, None, None], axis=1)[:, 0]  # [batch, embed]
        return head(self, precision, params, hidden)


class View(NamedTuple):
    """The places that a block's attention sees.

    Attributes:
        mask: as from `attention_mask`.
        rotary: cosines and sines as from `rotary_tables`; None without rotary positions.
    """

    mask: jax.Array | None
    rotary: Rotary | None


def _views(
    cfg: EncoderConfig, length: int, positions: jax.Array | None, mask: jax.Array | None
) -> tuple[View, ...]:
    """Returns the view of a block that sees everything and, with a window, that of the others."""

    def rotary(base: float) -> Rotary | None:
        if cfg.positions != "rotary":
            return None
        return rotary_tables(length, cfg.head_dim, base, positions)

    everything = View(mask, rotary(cfg.rotary_base))
    if not cfg.local_window:
        return (everything,)

    at = jnp.arange(length)[None] if positions is None else positions  # [1 or batch, length]
    distances = jnp.abs(at[:, :, None] - at[:, None, :])  # [1 or batch, length, length]
    near = (distances <= cfg.local_window // 2)[:, None]  # [1 or batch, 1, length, length]
    visible = jnp.ones_like(near) if mask is None else mask
    neighbourhood = View(near & visible, rotary(cfg.local_rotary_base))
    return everything._replace(mask=visible), neighbourhood


def _view(views: tuple[View, ...], sees_all: jax.Array | None) -> View:
    """Returns the view of a block; `sees_all` (bool scalar) chooses between two."""
    if len(views) == 1 or sees_all is None:
        return views[0]
    return jax.tree.map(lambda everything, near: jnp.where(sees_all, everything, near), *views)


class Block(nnx.Module):
    """Attention and feed-forward with their residuals.

    x + f(norm(x)) with `norm_position` "pre", norm(x + f(x)) with "post".
    """

    def __init__(
        self,
        cfg: EncoderConfig,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        attention_norm: bool = True,
    ):
        self.cfg = cfg
        norm = functools.partial(Norm, cfg, precision, bias=cfg.norm_bias, rngs=rngs)
        normal = jax.nn.initializers.normal(cfg.init_std)
        # Each module draws from `rngs`: their order is part of what a seed means.
        self.attention_norm = norm() if attention_norm else None
        self.attention = Attention(cfg, precision, rngs)
        self.mlp_norm = norm()
        self.mlp = FeedForward(cfg, precision, rngs, init_in=normal, init_out=normal)

    def __call__(
        self, x: jax.Array, view: View, key: jax.Array | None, source: Source | None = None
    ) -> jax.Array:
        """x [batch, length, embed] → the same shape; it attends to `source` if that is given."""
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        is_pre = self.cfg.norm_position == "pre"

        def norm(y: jax.Array) -> jax.Array:
            return y if self.attention_norm is None else self.attention_norm(y)

        if source is not None and is_pre:
            source = source._replace(hidden=norm(source.hidden))

        def attend(y: jax.Array) -> jax.Array:
            mixed = self.attention(y, view.mask, view.rotary, keys[0], source)
            return dropout(mixed, self.cfg.dropout, keys[1])

        def feed(y: jax.Array) -> jax.Array:
            return dropout(self.mlp(y), self.cfg.dropout, keys[2])

        if not is_pre:
            x = norm(x + attend(x))
            return self.mlp_norm(x + feed(x))

        x = x + attend(norm(x))
        return x + feed(self.mlp_norm(x))


def _part(keys: jax.Array | None, index: int | slice) -> jax.Array | None:
    return None if keys is None else keys[index]


class Encoder(nnx.Module):
    """Embeddings, `n_layers` blocks stacked on a leading axis, final norm.

    Without `embeds` there are no embeddings, and `mix` alone may be called.
    """

    def __init__(
        self,
        cfg: EncoderConfig,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        embeds: bool = True,
    ):
        self.cfg, self.precision = cfg, precision
        norm = functools.partial(Norm, cfg, precision, bias=cfg.norm_bias)
        self.embeddings = Embeddings(cfg, precision, rngs) if embeds else None
        self.layers = module.stack(lambda rngs: Block(cfg, precision, rngs), cfg.n_layers, rngs)
        if not cfg.first_norm:
            # ModernBERT's first block has none, and counts of parameters are exact: this stack is
            # one shorter than the others.
            self.layers.attention_norm = module.stack(
                lambda rngs: norm(rngs=rngs), cfg.n_layers - 1, rngs
            )
        self.final_norm = norm(rngs=rngs) if cfg.final_norm else None

    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array | None,
        positions: jax.Array | None,
        mask: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """tokens int [batch, length] → [batch, length, embed]; dropout if there is a key."""
        assert self.embeddings is not None
        keys = self._split(key)
        x = self.embeddings(tokens, token_types, positions, _part(keys, -1))
        return self.mix(x, positions, mask, _part(keys, slice(-1)))

    def mix(
        self,
        x: jax.Array,
        positions: jax.Array | None,
        mask: jax.Array | None,
        keys: jax.Array | None,
    ) -> jax.Array:
        """x [batch, length, embed] → the same shape; dropout if there is a key for each block."""
        x = self._run_blocks(x, _views(self.cfg, x.shape[1], positions, mask), keys)
        return x if self.final_norm is None else self.final_norm(x)

    def pooled(
        self, tokens: jax.Array, targets: jax.Array, size: int, key: jax.Array | None
    ) -> jax.Array:
        """Returns the hidden states of `targets`; see `encode_pooled`."""
        assert self.embeddings is not None
        keys = self._split(key)
        x = self.embeddings(tokens, None, None, _part(keys, -1))  # [batch, length, embed]
        source = Source(x, _views(self.cfg, tokens.shape[1], None, None)[0].rotary)

        x, places = pooling.pool(x, targets, size)  # [batch, pooled, embed], [batch, pooled]
        views = _views(self.cfg, tokens.shape[1], places, None)
        x = self._run_blocks(x, views, _part(keys, slice(-1)), source)
        x = x[:, -targets.shape[1] :]  # [batch, predicted, embed]
        return x if self.final_norm is None else self.final_norm(x)

    def _split(self, key: jax.Array | None) -> jax.Array | None:
        """Returns one key for each block, and that of the embeddings at the end."""
        return None if key is None else jax.random.split(key, self.cfg.n_layers + 1)

    def _run_blocks(
        self,
        x: jax.Array,
        views: tuple[View, ...],
        keys: jax.Array | None,
        source: Source | None = None,
    ) -> jax.Array:
        """Returns `x` [batch, length, embed] after all blocks; the first attends to `source`."""
        cfg = self.cfg

        @stack.rematerialize(cfg.remat)
        def block(x, params, rest, source=None):
            key, sees_all = rest
            has_norm = "attention_norm" in params
            build = functools.partial(Block, cfg, self.precision, attention_norm=has_norm)
            # The first block, which alone has a source, sees everything.
            view = _view(views, sees_all) if source is None else views[0]._replace(mask=None)
            return module.bind(build, params)(x, view, key, source)

        params = module.params_of(self.layers)  # leaves [layer, ...]
        later_norms = None if cfg.first_norm else params.pop("attention_norm")
        sees_all = None
        if len(views) == 2:
            sees_all = np.arange(cfg.n_layers) % cfg.global_every == 0
        layers = params, (keys, sees_all)
        n_layers = cfg.n_layers

        if source is not None or later_norms is not None:
            # The first block differs from the others, so it runs outside of their loop.
            first = jax.tree.map(lambda leaf: leaf[0], layers)
            layers = jax.tree.map(lambda leaf: leaf[1:], layers)
            x = block(x, *first, source)
            n_layers -= 1
        if n_layers == 0:
            return x

        params, rest = layers
        if later_norms is not None:
            params = params | {"attention_norm": later_norms}
        return stack.run(block, x, params, rest, n_layers=n_layers, unroll=cfg.unroll)


class Head(nnx.Module):
    """From hidden states to logits.

    With a `head_transform` dense, GELU and norm first; then the transposed token embedding, and a
    bias with `decoder_bias`.
    """

    def __init__(self, cfg: EncoderConfig, precision: Precision, rngs: nnx.Rngs):
        self.precision = precision
        dense = norm = bias = None
        if cfg.head_transform:
            shape = (cfg.d_model, cfg.d_model)
            axes = (ax.EMBED, ax.EMBED_OUT)
            normal = jax.nn.initializers.normal(cfg.init_std)
            common = {"bias": cfg.head_bias, "precision": precision, "rngs": rngs}
            dense = Linear("te,ef->tf", shape, axes, init=normal, **common)
            norm = Norm(cfg, **common)
        if cfg.decoder_bias:
            bias = param(jax.nn.initializers.zeros, rngs, (cfg.vocab_size,), (ax.VOCAB,))
        self.dense, self.norm, self.bias = dense, norm, bias

    def __call__(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        """hidden [tokens, embed], embedding [vocab, embed] → float32 [tokens, vocab]."""
        if self.dense is not None and self.norm is not None:
            hidden = self.norm(gelu(self.dense(hidden)))  # [tokens, embed]
        return decode(hidden, embedding, self.bias, self.precision)


def decode(
    hidden: jax.Array, embedding: jax.Array, bias: nnx.Param | None, precision: Precision
) -> jax.Array:
    """Returns logits from hidden states [tokens, embed]: float32 [tokens, vocab].

    They are the products with `embedding` [vocab, embed], plus a bias [vocab] if there is one.
    """
    wide = jnp.dtype(jnp.float32)
    logits = product("te,ve->tv", hidden, embedding, precision.matmul_dtype, wide)
    logits = by_rows(logits, precision)
    return logits if bias is None else logits + bias[...][None]


class EncoderLM(nnx.Module):
    """Encoder and head: the whole tree of parameters."""

    def __init__(self, cfg: EncoderConfig, precision: Precision, rngs: nnx.Rngs):
        self.encoder = Encoder(cfg, precision, rngs)
        self.head = Head(cfg, precision, rngs)


def encode(
    cfg: EncoderConfig,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    padding_mask: jax.Array | None = None,
    token_types: jax.Array | None = None,
    positions: jax.Array | None = None,
    causal: bool = False,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns hidden states after the final norm: [batch, length, embed] in the activation dtype.

    Args:
        cfg: the network.
        precision: its number formats.
        params: as from `network.init_params`; those of the encoder are enough.
        tokens: int [batch, length].
        segment_ids: int [batch, length], documents of a pack that do not see each other.
        padding_mask: bool [batch, length], False where nobody should look.
        token_types: int [batch, length]; all 0 if not given.
        positions: int [batch, length], the place of each token in its own sequence, where several
            stand in a row; 0, 1, 2, … if not given.
        causal: a position sees no later one.
        key: dropout is on if given.

    Raises:
        ValueError: for sequences longer than a learned table of positions.
    """
    length = tokens.shape[1]
    if cfg.max_length is not None and positions is None and length > cfg.max_length:
        raise ValueError(f"{length} tokens a sequence, but only {cfg.max_length} learned positions")

    model = module.bind(cfg.build(precision), params)
    mask = attention_mask(segment_ids, padding_mask)
    if causal:
        # A mask and no other kernel: short sequences have the same kernels with and without it.
        earlier = jnp.tri(length, dtype=bool)[None, None]  # [1, 1, length, length]
        mask = earlier if mask is None else mask & earlier
    return model.encoder(tokens, token_types, positions, mask, key)


def encode_pooled(
    cfg: EncoderConfig,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    *,
    size: int,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns hidden states of the targets, with the other tokens in means.

    The queries of the first block are the first embedding, means of every `size` of the others, and
    those of the targets; its keys and values are all embeddings. From there on the sequence is as
    short as those queries (CompoundGrow, arXiv 2010.12562, on its pooling operator). The parameters
    are those of `encode`.

    Args:
        cfg: the network.
        precision: its number formats.
        params: as for `encode`.
        tokens: int [batch, length].
        targets: int [batch, predicted], the positions to be predicted.
        size: tokens in a mean.
        key: dropout is on if given.

    Returns:
        [batch, predicted, embed] in the activation dtype.
    """
    model = module.bind(cfg.build(precision), params)
    return model.encoder.pooled(tokens, targets, size, key)


def head(cfg: EncoderConfig, precision: Precision, params: Params, hidden: jax.Array) -> jax.Array:
    """Returns the logits of `hidden` [..., embed]: float32 [..., vocab].

    `params` are all parameters, or those of `head_params` alone.
    """
    build = functools.partial(Head, cfg, precision)
    rows = hidden.reshape((-1, cfg.d_model))  # [tokens, embed]
    embedding = params["encoder"]["embeddings"]["tokens"]  # [vocab, embed]
    logits = module.bind(build, params.get("head", {}))(rows, embedding)
    return logits.reshape(hidden.shape[:-1] + (cfg.vocab_size,))


def head_params(params: Params) -> Params:
    """Returns the part of `params` that `head` reads."""
    tokens = params["encoder"]["embeddings"]["tokens"]
    return {"head": params.get("head", {}), "encoder": {"embeddings": {"tokens": tokens}}}
