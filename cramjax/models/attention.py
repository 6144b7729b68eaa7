"""Attention: the projections, which positions see which, and the kernels that mix them.

Kernels are `jax.nn.dot_product_attention` (cuDNN's fused one, or XLA's) and two of our own for what
that function cannot do: one in einsums, one for short sequences (`short_attention.py`).
`kernels.py` chooses.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models import cudnn, kernels, short_attention
from cramjax.models.dropout import dropout
from cramjax.models.layers import Linear, Precision, pin_on_cpu, rotate

# Finite, so that a row with nothing to see gives numbers instead of NaN.
MASKED_SCORE = -1e30


def attention_mask(
    segment_ids: jax.Array | None, padding_mask: jax.Array | None
) -> jax.Array | None:
    """Which position sees which: bool [batch, 1, length, kv_length], or None if all see all.

    Args:
        segment_ids: int [batch, length]; positions see only their own segment (block-diagonal attention over a pack).
        padding_mask: bool [batch, length]; nobody sees a position where it is False.
    """
    mask = None
    if segment_ids is not None:
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    if padding_mask is not None:
        visible = padding_mask.astype(bool)[:, None, None, :]
        length = padding_mask.shape[1]
        mask = (
            visible & mask
            if mask is not None
            else jnp.broadcast_to(visible, visible.shape[:2] + (length, length))
        )
    return mask


class Attention(nnx.Module):
    """Multi-head self-attention (arXiv 1706.03762, section 3.2) with a fused projection; optional rotary positions."""

    def __init__(self, cfg, precision: Precision, rngs: nnx.Rngs):
        self.cfg, self.precision = cfg, precision
        n_heads, head_dim = cfg.n_heads, cfg.head_dim
        init = jax.nn.initializers.normal(cfg.init_std)
        common = {"bias": cfg.linear_bias, "init": init, "precision": precision, "rngs": rngs}
        shape, axes = (cfg.d_model, 3, n_heads, head_dim), (ax.EMBED, None, ax.HEADS, ax.HEAD_DIM)
        self.qkv = Linear("bte,esnh->btsnh", shape, axes, **common)
        shape, axes = (n_heads, head_dim, cfg.d_model), (ax.HEADS, ax.HEAD_DIM, ax.EMBED)
        self.out = Linear("btnh,nhe->bte", shape, axes, **common)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        rotary: tuple[jax.Array, jax.Array] | None,
        key: jax.Array | None,
        source=None,
    ) -> jax.Array:
        """x [batch, length, embed] → the same; mask as of `attention_mask`, `rotary` of `rotary_tables`; dropout if there is a key.

        With a `source` (`hidden` and `rotary`), keys and values are of that.
        """
        if source is None:
            return self.out(self._within(x, mask, rotary, key))
        (query,) = projections(self.qkv, x, slice(0, 1))
        key_, value = projections(self.qkv, source.hidden, slice(1, 3))
        if rotary is not None:
            query, key_ = rotate(query, *rotary), rotate(key_, *source.rotary)
        return self.out(
            attend(self.cfg, self.precision, query, key_, value, mask=mask, dropout_key=key)
        )

    def _within(self, x, mask, rotary, key):
        """The mixture of the values of `x` itself: [batch, length, heads, head_dim]."""
        facts = {"is_fused": True, "is_rotary": rotary is not None, "has_mask": mask is not None}
        kernel = _kernel(
            self.cfg, self.precision, x.shape[1], x.shape[1], self.cfg.head_dim, key, **facts
        )
        if kernel in short_attention.TILES:
            return self._in_one_kernel(x, mask, rotary, key, short_attention.TILES[kernel])
        query, key_, value = projections(self.qkv, x)
        if rotary is not None:
            query, key_ = rotate(query, *rotary), rotate(key_, *rotary)
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

    def _in_one_kernel(self, x, mask, rotary, key, tile):
        rate = 0.0 if key is None else self.cfg.attention_dropout
        seeds = jax.random.bits(key, (x.shape[0], self.cfg.n_heads), jnp.uint32) if rate else None
        mixed = short_attention.attention(
            self.qkv(x).astype(self.precision.matmul_dtype),
            None if rotary is None else tuple(map(jnp.asarray, rotary)),
            None if mask is None else mask.astype(jnp.int8),
            seeds,
            self.cfg.head_dim**-0.5,
            rate,
            tile,
        )
        return mixed.astype(self.precision.activation_dtype)


def projections(linear: Linear, x: jax.Array, part: slice = slice(None)) -> list[jax.Array]:
    """Queries, keys and values, or the `part` of them that is asked for.

    Args:
        linear: a fused projection "bte,esnh->btsnh".
        x: [batch, length, embed].

    Returns:
        For each index of `s` an array [batch, length, heads, head_dim].
    """
    numbers = range(linear.kernel.shape[1])[part]
    if linear.precision.on_gpu:
        # A kernel of attention wants each of them whole in memory. One product for all would be copied apart here, and
        # the gradients be copied together: 6% of a step of BERT-base.
        return [jnp.squeeze(linear(x, slice(n, n + 1)), 2) for n in numbers]

    # Not by indexing, whose transpose is a sum of zero-padded arrays: that of a split is a concatenation.
    fused = linear(x, part)
    return [jnp.squeeze(one, 2) for one in jnp.split(fused, len(numbers), axis=2)]


def _kernel(cfg, precision: Precision, length, kv_length, head_dim, dropout_key, **facts) -> str:
    """The kernel of a call, `facts` of which are fields of `AttentionCall`."""
    call = kernels.AttentionCall(
        length=length,
        kv_length=kv_length,
        n_heads=cfg.n_heads,
        head_dim=head_dim,
        dtype=jnp.dtype(precision.matmul_dtype).name,
        dropout_rate=0.0 if dropout_key is None else cfg.attention_dropout,
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
    """Attention by the kernel that `cfg.attention` means here: [batch, length, heads, head_dim] in the activation dtype.

    Args:
        cfg: a network's numbers; `n_heads`, `attention` and `attention_dropout` are read.
        query: [batch, length, heads, head_dim]. key_, value: [batch, kv_length, heads, head_dim].
        mask, bias, causal, scale: as of `mix`.
        dropout_key: dropout on the probabilities if given.
    """
    facts = {"has_bias": bias is not None, "has_mask": mask is not None, "is_causal": causal}
    sizes = query.shape[1], key_.shape[1], query.shape[3]
    kernel = _kernel(cfg, precision, *sizes, dropout_key, **facts)
    options = {"mask": mask, "bias": bias, "causal": causal, "scale": scale}
    return mix(
        kernel,
        precision,
        query,
        key_,
        value,
        rate=cfg.attention_dropout,
        key=dropout_key,
        **options,
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
    """Attention by `kernel`, "cudnn", "xla" or "einsum": [batch, length, heads, head_dim] in the activation dtype.

    Args:
        query: [batch, length, heads, head_dim]. key_, value: [batch, kv_length, heads, head_dim].
        mask: bool [1 or batch, 1 or heads, length, kv_length]: what sees what.
        bias: float32 [1, heads, length, kv_length], added to the scores.
        causal: a position sees none behind it.
        scale: of the scores; None: head_dim^-0.5.
        rate: of dropout on the probabilities, if there is a `key`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if kernel == kernels.EINSUM:
        if causal:
            mask, bias = _with_causal(mask, bias, query.shape[1], key_.shape[1])
        return einsum_attention(
            query, key_, value, mask, precision, rate, key, bias=bias, scale=scale
        )

    query, key_, value = (x.astype(precision.matmul_dtype) for x in (query, key_, value))
    if kernel == kernels.CUDNN:
        mixed = cudnn.attention(
            query, key_, value, bias=bias, mask=mask, causal=causal, scale=scale
        )
    else:
        options = {"bias": bias, "mask": mask, "scale": scale, "is_causal": causal}
        mixed = jax.nn.dot_product_attention(query, key_, value, implementation="xla", **options)
    return mixed.astype(precision.activation_dtype)


def _with_causal(mask, bias, length, kv_length):
    """`mask` and `bias` with what is behind a position hidden, by the bias if there is one: it is the smaller."""
    visible = jnp.tri(length, kv_length, dtype=bool)[None, None]
    if bias is not None:
        return mask, jnp.where(visible, bias, MASKED_SCORE)
    return (visible if mask is None else mask & visible), None


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
    """Attention of [batch, length, heads, head_dim] arrays in two products and a float32 softmax; the result in the activation dtype.

    It has what `jax.nn.dot_product_attention` lacks: dropout on the probabilities, and narrow products that accumulate in float32 in the
    backward pass as well (on CPU a training step of a small model takes a tenth less time so). Arguments as of `attend`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query = query if scale == 1.0 else query * scale
    query, key_, value = (jnp.swapaxes(x, 1, 2) for x in (query, key_, value))
    kept = None
    if dropout_key is not None and dropout_rate > 0:
        shape = query.shape[:3] + (key_.shape[2],)
        kept = dropout(jnp.ones(shape, precision.matmul_dtype), dropout_rate, dropout_key)
    mixed = _attend(
        query, key_, value, mask, bias, kept, precision.matmul_dtype
    )  # [batch, heads, length, head_dim]
    return jnp.swapaxes(mixed, 1, 2).astype(precision.activation_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(query, key_, value, mask, bias, kept, dtype):
    """softmax(query key^T + bias) value over [batch, heads, length, head_dim] in float32; `kept` multiplies the probabilities.

    The casts to `dtype` are in here, so that gradients leave wide: on CPU they are transposed next, which is slow in 16 bits.
    """
    return _attend_forward(query, key_, value, mask, bias, kept, dtype)[0]


def _attend_forward(query, key_, value, mask, bias, kept, dtype):
    witness = jnp.zeros((0,), query.dtype)
    query, key_, value = (pin_on_cpu(x.astype(dtype)) for x in (query, key_, value))
    scores = _wide_einsum("bnth,bnsh->bnts", query, key_)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED_SCORE)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(
        dtype
    )  # [batch, heads, length, kv_length]
    used = probabilities if kept is None else probabilities * kept
    mixed = _wide_einsum("bnts,bnsh->bnth", used, value)
    return mixed, (query, key_, value, mask, bias, kept, probabilities, mixed, witness)


def _wide_einsum(spec, lhs, rhs):
    return jnp.einsum(spec, lhs, rhs, preferred_element_type=jnp.float32)


def _attend_backward(dtype, saved, cotangent):
    query, key_, value, mask, bias, kept, probabilities, mixed, witness = saved
    # The softmax's row sums of gradient times probability are those of gradient times output, over fewer numbers.
    row_sums = jnp.sum(cotangent * mixed, axis=-1, keepdims=True)
    cotangent = pin_on_cpu(cotangent.astype(dtype))
    gradient = _wide_einsum("bnth,bnsh->bnts", cotangent, value)
    used = probabilities
    if kept is not None:
        gradient, used = gradient * kept.astype(jnp.float32), probabilities * kept
    gradient = probabilities.astype(jnp.float32) * (gradient - row_sums)
    if mask is not None:
        gradient = jnp.where(mask, gradient, 0.0)
    bias_gradient = None
    if bias is not None:
        shared = tuple(axis for axis, size in enumerate(bias.shape) if size == 1)
        bias_gradient = jnp.sum(gradient, axis=shared, keepdims=True)
    gradient = gradient.astype(dtype)
    # For keys and values the small operand is the one that is transposed.
    query, cotangent = (
        pin_on_cpu(jnp.swapaxes(x, 2, 3)) for x in (query, cotangent)
    )  # [batch, heads, head_dim, length]
    query_gradient = _wide_einsum("bnts,bnsh->bnth", gradient, key_)
    key_gradient = pin_on_cpu(_wide_einsum("bnht,bnts->bnhs", query, gradient)).swapaxes(2, 3)
    value_gradient = pin_on_cpu(_wide_einsum("bnht,bnts->bnhs", cotangent, used)).swapaxes(2, 3)
    return (
        *(x.astype(witness.dtype) for x in (query_gradient, key_gradient, value_gradient)),
        None,
        bias_gradient,
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)
