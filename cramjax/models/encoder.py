"""The encoder: blocks, their stack, the masked-language-modelling head, and the pure functions the rest of the project calls.

crammed BERT, the original BERT, 24hBERT and ModernBERT are field values of one `EncoderConfig` (the recipes in
`configs`). Masking and losses are in `objectives`, shardings in `parallel`. The paths of the parameters are public
names: exports, decay masks and growth refer to them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models import module, pooling, stack
from cramjax.models.activations import gelu
from cramjax.models.attention import Attention, attention_mask
from cramjax.models.dropout import dropout
from cramjax.models.feedforward import FeedForward
from cramjax.models.layers import (
    FLOAT32,
    Embeddings,
    Linear,
    Norm,
    Precision,
    by_rows,
    product,
    rotary_tables,
)
from cramjax.models.module import param

__all__ = [
    "EncoderConfig",
    "Precision",
    "abstract_params",
    "count_params",
    "encode",
    "encode_pooled",
    "head",
    "init_params",
    "param_axes",
]

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The numbers of a network; the keys of `model` in `config/schema.py` say what each one means.

    `vocab_size` counts the padding of the embedding. `unroll` is "auto", a bool or a number of blocks. With a `local_window` only every
    `global_every`-th block, from the first on, sees everything; the others see positions at most half the window away, and turn by
    `local_rotary_base` (ModernBERT, arXiv 2412.13663, section 2.1.2). `pruned_heads`: heads of each block that were taken out, besides the
    `n_heads` it has.

    Raises:
        ValueError: for numbers that no network has.
    """

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
        if self.d_model % (self.n_heads + self.pruned_heads):
            raise ValueError(
                f"d_model {self.d_model} does not divide by n_heads {self.n_heads + self.pruned_heads}"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head dimension, not {self.head_dim}")
        if not self.first_norm and (self.norm_position == "post" or self.n_layers < 2):
            raise ValueError("first_norm=False needs norm_position 'pre' and at least 2 layers")

    @property
    def head_dim(self) -> int:
        """Dimensions of an attention head."""
        return self.d_model // (self.n_heads + self.pruned_heads)


class View(NamedTuple):
    """What a block's attention knows of places: the `mask` of `attention_mask`, and the cosines and sines of `rotary_tables`."""

    mask: jax.Array | None
    rotary: tuple[jax.Array, jax.Array] | None


class Source(NamedTuple):
    """What a block attends to that is not its own input: `hidden` [batch, kv_length, embed], and the angles of its keys."""

    hidden: jax.Array
    rotary: tuple[jax.Array, jax.Array] | None


def _views(
    cfg: EncoderConfig, length: int, positions: jax.Array | None, mask: jax.Array | None
) -> tuple[View] | tuple[View, View]:
    """The view of a block that sees everything, and where there are such the view of one that sees its neighbourhood."""

    def rotary(base):
        return (
            rotary_tables(length, cfg.head_dim, base, positions)
            if cfg.positions == "rotary"
            else None
        )

    everything = View(mask, rotary(cfg.rotary_base))
    if not cfg.local_window:
        return (everything,)
    at = jnp.arange(length)[None] if positions is None else positions
    near = (jnp.abs(at[:, :, None] - at[:, None, :]) <= cfg.local_window // 2)[
        :, None
    ]  # [1 or batch, 1, length, length]
    all_of_it = jnp.ones_like(near) if mask is None else mask
    return everything._replace(mask=all_of_it), View(
        near & all_of_it, rotary(cfg.local_rotary_base)
    )


def _view(views: tuple[View, ...], sees_all: jax.Array | None) -> View:
    """The view of a block; `sees_all` bool scalar chooses between two."""
    if len(views) == 1:
        return views[0]
    return jax.tree.map(lambda everything, near: jnp.where(sees_all, everything, near), *views)


class Block(nnx.Module):
    """Attention and feed-forward with their residuals: x + f(norm(x)) (pre) or norm(x + f(x)) (post)."""

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
        self.attention_norm = norm() if attention_norm else None
        self.attention = Attention(cfg, precision, rngs)
        self.mlp_norm = norm()
        normal = jax.nn.initializers.normal(cfg.init_std)
        self.mlp = FeedForward(cfg, precision, rngs, init_in=normal, init_out=normal)

    def __call__(
        self, x: jax.Array, view: View, key: jax.Array | None, source: Source | None = None
    ) -> jax.Array:
        """x [batch, length, embed] → the same; it attends to `source` instead of itself if given."""
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        if (
            source is not None
            and self.cfg.norm_position == "pre"
            and self.attention_norm is not None
        ):
            source = source._replace(hidden=self.attention_norm(source.hidden))

        def attend(y):
            return dropout(
                self.attention(y, view.mask, view.rotary, keys[0], source),
                self.cfg.dropout,
                keys[1],
            )

        def feed(y):
            return dropout(self.mlp(y), self.cfg.dropout, keys[2])

        if self.cfg.norm_position == "post":
            x = self.attention_norm(x + attend(x))
            return self.mlp_norm(x + feed(x))
        x = x + attend(x if self.attention_norm is None else self.attention_norm(x))
        return x + feed(self.mlp_norm(x))


class Encoder(nnx.Module):
    """Embeddings, `n_layers` blocks stacked on a leading axis, final norm."""

    def __init__(self, cfg: EncoderConfig, precision: Precision, rngs: nnx.Rngs):
        self.cfg, self.precision = cfg, precision
        self.embeddings = Embeddings(cfg, precision, rngs)
        self.layers = module.stack(lambda rngs: Block(cfg, precision, rngs), cfg.n_layers, rngs)
        if not cfg.first_norm:
            # ModernBERT's first block has none, and parameter counts are exact: this stack is one shorter.
            norm = functools.partial(Norm, cfg, precision, bias=cfg.norm_bias)
            self.layers.attention_norm = module.stack(
                lambda rngs: norm(rngs=rngs), cfg.n_layers - 1, rngs
            )
        self.final_norm = (
            Norm(cfg, precision, bias=cfg.norm_bias, rngs=rngs) if cfg.final_norm else None
        )

    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array | None,
        positions: jax.Array | None,
        mask: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        keys = None if key is None else jax.random.split(key, self.cfg.n_layers + 1)
        x = self.embeddings(tokens, token_types, positions, None if keys is None else keys[-1])
        x = self._run_layers(
            x,
            _views(self.cfg, tokens.shape[1], positions, mask),
            None if keys is None else keys[:-1],
        )
        return x if self.final_norm is None else self.final_norm(x)

    def pooled(
        self, tokens: jax.Array, targets: jax.Array, size: int, key: jax.Array | None
    ) -> jax.Array:
        """As `encode_pooled`."""
        length = tokens.shape[1]
        keys = None if key is None else jax.random.split(key, self.cfg.n_layers + 1)
        x = self.embeddings(tokens, None, None, None if keys is None else keys[-1])
        source = Source(x, _views(self.cfg, length, None, None)[0].rotary)
        x, places = pooling.pool(x, targets, size)
        views = _views(self.cfg, length, places, None)
        x = self._run_layers(x, views, None if keys is None else keys[:-1], source)[
            :, -targets.shape[1] :
        ]
        return x if self.final_norm is None else self.final_norm(x)

    def _run_layers(self, x, views, keys, source=None):
        """`x` after all blocks, of which the first attends to `source`, if there is one."""
        cfg = self.cfg
        params = module.params_of(self.layers)

        @stack.rematerialize(cfg.remat)
        def block(x, params, rest, source=None):
            key, sees_all = rest
            build = functools.partial(
                Block, cfg, self.precision, attention_norm="attention_norm" in params
            )
            # The first block, which alone has a source, sees everything.
            view = _view(views, sees_all) if source is None else views[0]._replace(mask=None)
            return module.bind(build, params)(x, view, key, source)

        sees_all = np.arange(cfg.n_layers) % cfg.global_every == 0 if len(views) == 2 else None
        rest = keys, sees_all
        norms = None if cfg.first_norm else params.pop("attention_norm")
        if source is not None or norms is not None:  # the first block is not like the others
            first, (params, rest) = (
                jax.tree.map(lambda leaf, part=part: leaf[part], (params, rest))
                for part in (0, slice(1, None))
            )
            x = block(x, *first, source)
            params = params if norms is None else params | {"attention_norm": norms}
        n_layers = jax.tree.leaves(params)[0].shape[0]
        return (
            stack.run(block, x, params, rest, n_layers=n_layers, unroll=cfg.unroll)
            if n_layers
            else x
        )


class Head(nnx.Module):
    """From hidden states to logits: dense, GELU and norm if `head_transform`; then the transposed token embedding, a bias if any."""

    def __init__(self, cfg: EncoderConfig, precision: Precision, rngs: nnx.Rngs):
        self.precision = precision
        shape, axes = (cfg.d_model, cfg.d_model), (ax.EMBED, ax.EMBED_OUT)
        normal = jax.nn.initializers.normal(cfg.init_std)
        common = {"bias": cfg.head_bias, "init": normal, "precision": precision, "rngs": rngs}
        self.dense = Linear("te,ef->tf", shape, axes, **common) if cfg.head_transform else None
        self.norm = (
            Norm(cfg, precision, bias=cfg.head_bias, rngs=rngs) if cfg.head_transform else None
        )
        self.bias = (
            param(jax.nn.initializers.zeros, rngs, (cfg.vocab_size,), (ax.VOCAB,))
            if cfg.decoder_bias
            else None
        )

    def __call__(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        """hidden [tokens, embed], embedding [vocab, embed] → float32 [tokens, vocab]."""
        if self.dense is not None:
            hidden = self.norm(gelu(self.dense(hidden)))
        logits = product(
            "te,ve->tv", hidden, embedding, self.precision.matmul_dtype, jnp.dtype(jnp.float32)
        )
        logits = by_rows(logits, self.precision)
        return logits if self.bias is None else logits + self.bias[...][None]


class MaskedLM(nnx.Module):
    """Encoder and head: the whole tree of parameters."""

    def __init__(self, cfg: EncoderConfig, precision: Precision, rngs: nnx.Rngs):
        self.encoder = Encoder(cfg, precision, rngs)
        self.head = Head(cfg, precision, rngs)


def _build(cfg: EncoderConfig, precision: Precision = FLOAT32):
    return functools.partial(MaskedLM, cfg, precision)


def init_params(cfg: EncoderConfig, key: jax.Array) -> Params:
    """Fresh float32 parameters, a pure function of `key`: normal with `init_std`, biases 0, scales 1, padding row 0."""
    return module.params_of(_build(cfg)(nnx.Rngs(params=key)))


def abstract_params(cfg: EncoderConfig) -> Params:
    """The tree of `init_params` with a ShapeDtypeStruct at each leaf."""
    return module.params_of(module.abstract(_build(cfg)))


def param_axes(cfg: EncoderConfig) -> Params:
    """The same tree with a tuple of logical axis names (`axes.py`) at each leaf."""
    return module.axes_of(module.abstract(_build(cfg)))


def count_params(cfg: EncoderConfig) -> int:
    """Number of parameters; the tied decoder counts once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(cfg)))


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
    key: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the final norm: [batch, length, embed] in the activation dtype.

    Args:
        cfg: the network. precision: its number formats.
        params: as from `init_params`.
        tokens: int [batch, length].
        segment_ids: int [batch, length]: documents of a pack that do not see each other.
        padding_mask: bool [batch, length]: False where nobody should look.
        token_types: int [batch, length]; all 0 if not given.
        positions: int [batch, length]: place of each token in its own sequence, where several stand in a row; 0, 1, 2, … if not given.
        key: dropout is on if given.

    Raises:
        ValueError: for sequences longer than a learned table of positions.
    """
    if cfg.positions == "learned" and positions is None and tokens.shape[1] > cfg.max_positions:
        raise ValueError(
            f"{tokens.shape[1]} tokens a sequence, but only {cfg.max_positions} learned positions"
        )
    model = module.bind(_build(cfg, precision), params)
    return model.encoder(
        tokens, token_types, positions, attention_mask(segment_ids, padding_mask), key
    )


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
    """Hidden states of the targets, with the other tokens in means: [batch, predicted, embed] in the activation dtype.

    The queries of the first block are the first embedding, means of every `size` of the others, and those of the targets; its keys and
    values are all embeddings. From there on the sequence is as short as those queries (CompoundGrow, arXiv 2010.12562, on its
    pooling operator). The parameters are those of `encode`.

    Args:
        tokens: int [batch, length]. targets: int [batch, predicted], the positions to be predicted. size: tokens a mean.
        key: dropout is on if given.
    """
    return module.bind(_build(cfg, precision), params).encoder.pooled(tokens, targets, size, key)


def head(cfg: EncoderConfig, precision: Precision, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits of `hidden` [..., embed]: float32 [..., vocab]. `params`: all, or those of `head_params` alone."""
    model = module.bind(functools.partial(Head, cfg, precision), params.get("head", {}))
    logits = model(hidden.reshape((-1, cfg.d_model)), params["encoder"]["embeddings"]["tokens"])
    return logits.reshape(hidden.shape[:-1] + (cfg.vocab_size,))


def head_params(params: Params) -> Params:
    """The part of `params` that `head` reads."""
    tokens = params["encoder"]["embeddings"]["tokens"]
    return {"head": params.get("head", {}), "encoder": {"embeddings": {"tokens": tokens}}}
