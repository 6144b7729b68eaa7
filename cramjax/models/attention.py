"""Attention: the projections, which positions see which, and the kernels that mix them.

Kernels are `jax.nn.dot_product_attention` (cuDNN's fused one, or XLA's) and two of our own that do
what that function cannot: one in einsums, and one for short sequences (`short_attention.py`).
`kernels.py` chooses.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models import cudnn, kernels, short_attention
from cramjax.models.dropout import dropout
from cramjax.models.layers import Linear, Precision, pin_on_cpu, rotate

# Finite, so that a row with nothing to see gives numbers instead of NaN.
MASKED_SCORE = -1e30

Rotary = tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]
"""Cosines and sines, as from `layers.rotary_tables`."""


class Source(NamedTuple):
    """A sequence that keys and values come from.

    Attributes:
        hidden: [batch, kv_length, embed].
        rotary: the angles of its keys.
    """

    hidden: jax.Array
    rotary: Rotary | None


def attention_mask(
    segment_ids: jax.Array | None, padding_mask: jax.Array | None
) -> jax.Array | None:
    """Returns which position sees which: bool [batch, 1, length, length], or None if all see all.

    Args:
        segment_ids: int [batch, length]; positions see only their own segment (block-diagonal
            attention over a pack).
        padding_mask: bool [batch, length]; nobody sees a position where it is False.
    """
    mask = None
    if segment_ids is not None:
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    if padding_mask is None:
        return mask

    visible = padding_mask.astype(bool)[:, None, None, :]  # [batch, 1, 1, length]
    if mask is not None:
        return visible & mask
    length = padding_mask.shape[1]
    return jnp.broadcast_to(visible, visible.shape[:2] + (length, length))


class Attention(nnx.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2) with a fused projection.

    Positions may be rotary.
    """

    def __init__(self, cfg, precision: Precision, rngs: nnx.Rngs):
        self.cfg, self.precision = cfg, precision
        n_heads, head_dim = cfg.n_heads, cfg.head_dim
        init = jax.nn.initializers.normal(cfg.init_std)
        common = {"bias": cfg.linear_bias, "init": init, "precision": precision, "rngs": rngs}

        shape = (cfg.d_model, 3, n_heads, head_dim)
        axes = (ax.EMBED, None, ax.HEADS, ax.HEAD_DIM)
        self.qkv = Linear("bte,esnh->btsnh", shape, axes, **common)

        shape, axes = (n_heads, head_dim, cfg.d_model), (ax.HEADS, ax.HEAD_DIM, ax.EMBED)
        self.out = Linear("btnh,nhe->bte", shape, axes, **common)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        rotary: Rotary | None,
        key: jax.Array | None,
        source: Source | None = None,
    ) -> jax.Array:
        """x [batch, length, embed] → the same shape.

        Args:
            x: queries are projections of it; keys and values too, without a `source`.
            mask: as from `attention_mask`.
            rotary: as from `layers.rotary_tables`.
            key: dropout is on if given.
            source: keys and values are projections of its `hidden`, turned by its `rotary`.
        """
        if source is None:
            return self.out(self._mix_within(x, mask, rotary, key))

        (query,) = projections(self.qkv, x, slice(0, 1))  # [batch, length, heads, head_dim]
        key_, value = projections(self.qkv, source.hidden, slice(1, 3))
        if rotary is not None and source.rotary is not None:
            query = rotate(query, *rotary)
            key_ = rotate(key_, *source.rotary)
        mixed = attend(self.cfg, self.precision, query, key_, value, mask=mask, dropout_key=key)
        return self.out(mixed)

    def _mix_within(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        rotary: Rotary | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """Returns the mixture of the values of `x` itself: [batch, length, heads, head_dim]."""
        length, head_dim = x.shape[1], self.cfg.head_dim
        facts = {"is_fused": True, "is_rotary": rotary is not None, "has_mask": mask is not None}
        kernel = _kernel(self.cfg, self.precision, length, length, head_dim, key, **facts)
        if kernel in short_attention.TILES:
            return self._mix_in_one_kernel(x, mask, rotary, key, short_attention.TILES[kernel])

        query, key_, value = projections(self.qkv, x)  # each [batch, length, heads, head_dim]
        if rotary is not None:
            query = rotate(query, *rotary)
            key_ = rotate(key_, *rotary)
        return mix(
            kernel,
            self.precision,
            query,
            key_,
            value,
            mask=mask,
            rate=self.cfg.attention_dropout,
            key=key,
        )

    def _mix_in_one_kernel(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        rotary: Rotary | None,
        key: jax.Array | None,
        tile: short_attention.Tile,
    ) -> jax.Array:
        rate = 0.0 if key is None else self.cfg.attention_dropout
        seeds = None
        if key is not None and rate:
            seeds = jax.random.bits(key, (x.shape[0], self.cfg.n_heads), jnp.uint32)
        # [batch, length, 3, heads, head_dim]
        fused = self.qkv(x).astype(self.precision.matmul_dtype)
        if rotary is not None:
            rotary = jnp.asarray(rotary[0]), jnp.asarray(rotary[1])
        if mask is not None:
            mask = mask.astype(jnp.int8)

        scale = self.cfg.head_dim**-0.5
        mixed: Any = short_attention.attention(fused, rotary, mask, seeds, scale, rate, tile)
        return mixed.astype(self.precision.activation_dtype)


def projections(linear: Linear, x: jax.Array, part: slice = slice(None)) -> list[jax.Array]:
    """Returns queries, keys and values, or a part of them.

    Args:
        linear: a fused projection "bte,esnh->btsnh".
        x: [batch, length, embed].
        part: the wanted indices of `s`.

    Returns:
        For each index an array [batch, length, heads, head_dim].
    """
    numbers = range(linear.kernel.shape[1])[part]
    if linear.precision.on_gpu:
        # A kernel of attention wants each of them contiguous in memory. One product for all would
        # be copied apart here, and the gradients be copied together: 6% of a step of BERT-base.
        return [jnp.squeeze(linear(x, slice(n, n + 1)), 2) for n in numbers]

    # Not by indexing, whose transpose is a sum of zero-padded arrays: that of a split is a
    # concatenation.
    fused = linear(x, part)
    return [jnp.squeeze(one, 2) for one in jnp.split(fused, len(numbers), axis=2)]


def _kernel(
    cfg,
    precision: Precision,
    length: int,
    kv_length: int,
    head_dim: int,
    dropout_key: jax.Array | None,
    **facts: bool,
) -> str:
    """Returns the kernel of a call; `facts` are fields of `AttentionCall`."""
    dropout_rate = 0.0 if dropout_key is None else cfg.attention_dropout
    call = kernels.AttentionCall(
        length=length,
        kv_length=kv_length,
        n_heads=cfg.n_heads,
        head_dim=head_dim,
        dtype=jnp.dtype(precision.matmul_dtype).name,
        dropout_rate=dropout_rate,
        **facts,
    )
    device = precision.device or jax.devices()[0]
    return kernels.choose(cfg.attention, call, device, dict(precision.kernels))


def attend(
    cfg,
    precision: Precision,
    query: jax.Array,
    key_: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Returns attention by the kernel that `cfg.attention` means for this call.

    Args:
        cfg: a network's numbers; `n_heads`, `attention` and `attention_dropout` are read.
        precision: the number formats.
        query: [batch, length, heads, head_dim].
        key_: [batch, kv_length, heads, head_dim].
        value: [batch, kv_length, heads, head_dim].
        mask: as for `mix`.
        bias: as for `mix`.
        causal: as for `mix`.
        scale: as for `mix`.
        dropout_key: dropout on the probabilities if given.

    Returns:
        [batch, length, heads, head_dim] in the activation dtype.
    """
    facts = {"has_bias": bias is not None, "has_mask": mask is not None, "is_causal": causal}
    sizes = query.shape[1], key_.shape[1], query.shape[3]
    kernel = _kernel(cfg, precision, *sizes, dropout_key, **facts)

    return mix(
        kernel,
        precision,
        query,
        key_,
        value,
        mask=mask,
        bias=bias,
        causal=causal,
        scale=scale,
        rate=cfg.attention_dropout,
        key=dropout_key,
    )


def mix(
    kernel: str,
    precision: Precision,
    query: jax.Array,
    key_: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns attention by `kernel`: "cudnn", "xla" or "einsum".

    Args:
        kernel: its name.
        precision: the number formats.
        query: [batch, length, heads, head_dim].
        key_: [batch, kv_length, heads, head_dim].
        value: [batch, kv_length, heads, head_dim].
        mask: bool [1 or batch, 1 or heads, length, kv_length], which position sees which.
        bias: float32 [1, heads, length, kv_length], added to the scores.
        causal: a position sees no later one.
        scale: the scores are multiplied by it; None for head_dim^-0.5.
        rate: of dropout on the probabilities.
        key: dropout is on if given.

    Returns:
        [batch, length, heads, head_dim] in the activation dtype.
    """
    if scale is None:
        scale = float(query.shape[-1] ** -0.5)
    if kernel == kernels.EINSUM:
        if causal:
            mask, bias = _with_causal(mask, bias, query.shape[1], key_.shape[1])
        options = {"bias": bias, "scale": scale}
        return einsum_attention(query, key_, value, mask, precision, rate, key, **options)

    query = query.astype(precision.matmul_dtype)
    key_ = key_.astype(precision.matmul_dtype)
    value = value.astype(precision.matmul_dtype)
    if kernel == kernels.CUDNN:
        mixed = cudnn.attention(
            query, key_, value, bias=bias, mask=mask, causal=causal, scale=scale
        )
    else:
        options = {"bias": bias, "mask": mask, "scale": scale, "is_causal": causal}
        mixed = jax.nn.dot_product_attention(query, key_, value, implementation="xla", **options)
    return mixed.astype(precision.activation_dtype)


def _with_causal(
    mask: jax.Array | None, bias: jax.Array | None, length: int, kv_length: int
) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns `mask` and `bias` so that a position sees no later one.

    The bias hides them if there is one: it is smaller than a mask.
    """
    visible = jnp.tri(length, kv_length, dtype=bool)[None, None]  # [1, 1, length, kv_length]
    if bias is not None:
        return mask, jnp.where(visible, bias, MASKED_SCORE)
    return visible if mask is None else mask & visible, None


def einsum_attention(
    query: jax.Array,
    key_: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    precision: Precision,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Returns attention in two products and a float32 softmax; arguments and result as for `mix`.

    It has what `jax.nn.dot_product_attention` lacks: dropout on the probabilities, and narrow
    products that accumulate in float32 in the backward pass as well. On CPU that makes a training
    step of a small model a tenth shorter.
    """
    if scale is None:
        scale = float(query.shape[-1] ** -0.5)
    query = query if scale == 1.0 else query * scale
    # To [batch, heads, length, head_dim].
    query = jnp.swapaxes(query, 1, 2)
    key_ = jnp.swapaxes(key_, 1, 2)
    value = jnp.swapaxes(value, 1, 2)

    kept = None
    if dropout_key is not None and dropout_rate > 0:
        shape = query.shape[:3] + (key_.shape[2],)  # [batch, heads, length, kv_length]
        kept = dropout(jnp.ones(shape, precision.matmul_dtype), dropout_rate, dropout_key)

    mixed: Any = _attend(query, key_, value, mask, bias, kept, precision.matmul_dtype)
    return jnp.swapaxes(mixed, 1, 2).astype(precision.activation_dtype)


def attend_to_cache(
    precision: Precision,
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Returns attention of a few queries to keys that lie as the products want them.

    Softmax is in float32; the scores are not scaled. It has no gradient of its own.

    Args:
        precision: the number formats.
        query: [batch, heads, length, head_dim].
        keys: [batch, heads, kv_length, head_dim] in the dtype of products, as `values`.
        values: of the same shape.
        mask: bool [batch, 1, 1 or length, kv_length], which query sees which key.
        bias: float32 [1, heads, 1 or length, kv_length], added to the scores.

    Returns:
        [batch, length, heads, head_dim] in the activation dtype.
    """
    scores = _wide_einsum("bnth,bnsh->bnts", query.astype(keys.dtype), keys)
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(mask, scores, MASKED_SCORE)

    probabilities = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    mixed = _wide_einsum("bnts,bnsh->bnth", probabilities, values)
    return jnp.swapaxes(mixed, 1, 2).astype(precision.activation_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(query, key_, value, mask, bias, kept, dtype):
    """Returns softmax(query key^T + bias) value over [batch, heads, length, head_dim] in float32.

    `kept` multiplies the probabilities. The casts to `dtype` are in here, so that gradients leave
    as float32: on CPU they are transposed next, which is slow in 16 bits.
    """
    return _attend_forward(query, key_, value, mask, bias, kept, dtype)[0]


def _attend_forward(query, key_, value, mask, bias, kept, dtype):
    # An empty array tells the backward pass the dtype of the operands.
    witness = jnp.zeros((0,), query.dtype)
    query = pin_on_cpu(query.astype(dtype))
    key_ = pin_on_cpu(key_.astype(dtype))
    value = pin_on_cpu(value.astype(dtype))

    scores = _wide_einsum("bnth,bnsh->bnts", query, key_)  # [batch, heads, length, kv_length]
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED_SCORE)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(dtype)

    used = probabilities if kept is None else probabilities * kept
    mixed = _wide_einsum("bnts,bnsh->bnth", used, value)  # [batch, heads, length, head_dim]
    return mixed, (query, key_, value, mask, bias, kept, probabilities, mixed, witness)


def _wide_einsum(spec: str, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return jnp.einsum(spec, lhs, rhs, preferred_element_type=jnp.float32)


def _attend_backward(dtype, saved, cotangent):
    query, key_, value, mask, bias, kept, probabilities, mixed, witness = saved
    # The softmax needs row sums of gradient times probability. They are those of gradient times
    # output, over fewer numbers.
    row_sums = jnp.sum(cotangent * mixed, axis=-1, keepdims=True)  # [batch, heads, length, 1]
    cotangent = pin_on_cpu(cotangent.astype(dtype))

    # Of the probabilities, then of the scores: [batch, heads, length, kv_length].
    gradient = _wide_einsum("bnth,bnsh->bnts", cotangent, value)
    used = probabilities
    if kept is not None:
        gradient = gradient * kept.astype(jnp.float32)
        used = probabilities * kept
    gradient = probabilities.astype(jnp.float32) * (gradient - row_sums)
    if mask is not None:
        gradient = jnp.where(mask, gradient, 0.0)

    bias_gradient = None
    if bias is not None:
        shared = tuple(axis for axis, size in enumerate(bias.shape) if size == 1)
        bias_gradient = jnp.sum(gradient, axis=shared, keepdims=True)
    # For keys and values the small operand is transposed, to [batch, heads, head_dim, length].
    gradient = gradient.astype(dtype)
    query = pin_on_cpu(jnp.swapaxes(query, 2, 3))
    cotangent = pin_on_cpu(jnp.swapaxes(cotangent, 2, 3))
    query_gradient = _wide_einsum("bnts,bnsh->bnth", gradient, key_)
    key_gradient = pin_on_cpu(_wide_einsum("bnht,bnts->bnhs", query, gradient)).swapaxes(2, 3)
    value_gradient = pin_on_cpu(_wide_einsum("bnht,bnts->bnhs", cotangent, used)).swapaxes(2, 3)
    gradients = (query_gradient, key_gradient, value_gradient)
    return *(x.astype(witness.dtype) for x in gradients), None, bias_gradient, None


_attend.defvjp(_attend_forward, _attend_backward)
