"""Self-attention: the projections, the choice of a kernel and its name, and which positions see which.

Kernels are `jax.nn.dot_product_attention` (cuDNN's fused one, or XLA's) and one of our own in einsums, for what that function cannot do.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models.layers import Linear, Precision, dropout, pin_on_cpu, rotate

# Finite, so that a row with nothing to see gives numbers instead of NaN.
MASKED_SCORE = -1e30


def attention_backend(
    requested: str,
    device: jax.Device,
    dtype: jnp.dtype,
    *,
    head_dim: int = 64,
    dropout_rate: float = 0.0,
    position_bias: bool = False,
) -> str:
    """The kernel behind `requested` ("auto", "xla" or "cudnn") on `device`: "cudnn", "xla" or "einsum".

    cuDNN's fused attention needs an NVIDIA GPU of compute capability 8.0, operands of 16 bits, heads of at most 128 dimensions in
    multiples of 8, no dropout on the probabilities and no position bias on the scores. "einsum" is what XLA compiles on CPU, and
    wherever there is such dropout.

    Raises:
        ValueError: if "cudnn" is requested where it cannot run.
    """
    lacking = _lacking_for_cudnn(device, jnp.dtype(dtype), head_dim, dropout_rate, position_bias)
    if requested == "cudnn" and lacking:
        raise ValueError(f"attention 'cudnn' needs {lacking}; use 'auto' or 'xla'")
    if requested in ("auto", "cudnn") and not lacking:
        return "cudnn"
    return "einsum" if device.platform == "cpu" or dropout_rate > 0 else "xla"


def _lacking_for_cudnn(device, dtype, head_dim, dropout_rate, position_bias):
    if device.platform not in ("gpu", "cuda"):
        return "an NVIDIA GPU"
    if float(getattr(device, "compute_capability", "0") or 0) < 8.0:
        return "a GPU of compute capability 8.0"
    if dtype.itemsize != 2:
        return "bfloat16 or float16"
    if head_dim % 8 or head_dim > 128:
        return "heads of a multiple of 8 dimensions, 128 at most"
    if position_bias:
        return "positions that are not a bias on the scores"
    return "attention_dropout 0" if dropout_rate > 0 else ""


def attention_mask(segment_ids: jax.Array | None, padding_mask: jax.Array | None) -> jax.Array | None:
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
        mask = visible & mask if mask is not None else jnp.broadcast_to(visible, visible.shape[:2] + (length, length))
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
            query, key_, value = split_heads(self.qkv(x))
        else:
            (query,) = split_heads(self.qkv(x, slice(0, 1)))
            key_, value = split_heads(self.qkv(source.hidden, slice(1, 3)))
        if rotary is not None:
            query, key_ = rotate(query, *rotary), rotate(key_, *(rotary if source is None else source.rotary))
        return self.out(attend(self.cfg, self.precision, query, key_, value, mask=mask, dropout_key=key))


def split_heads(fused: jax.Array) -> list[jax.Array]:
    """[batch, length, n, heads, head_dim], as of a fused projection → n arrays [batch, length, heads, head_dim]."""
    # Not by indexing, whose transpose is a sum of n zero-padded arrays: that of a split is a concatenation.
    return [jnp.squeeze(part, 2) for part in jnp.split(fused, fused.shape[2], axis=2)]


def attend(
    cfg,
    precision: Precision,
    query: jax.Array,
    key_: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attention by the kernel that `cfg.attention` means here: [batch, length, heads, head_dim] in the activation dtype.

    Args:
        cfg: a network's numbers; `attention` and `attention_dropout` are read.
        query: [batch, length, heads, head_dim]. key_, value: [batch, kv_length, heads, head_dim].
        mask: bool [batch, 1 or heads, length, kv_length]: what sees what.
        bias: float32 [1 or batch, 1 or heads, 1 or length, kv_length], added to the scores.
        scale: of the scores; None: head_dim^-0.5.
        dropout_key: dropout on the probabilities if given.
    """
    dtype = precision.matmul_dtype
    rate = cfg.attention_dropout if dropout_key is not None else 0.0
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    backend = attention_backend(
        cfg.attention,
        precision.device or jax.devices()[0],
        dtype,
        head_dim=query.shape[-1],
        dropout_rate=rate,
        position_bias=bias is not None,
    )
    if backend == "einsum":
        return einsum_attention(query, key_, value, mask, precision, rate, dropout_key, bias=bias, scale=scale)
    query, key_, value = (x.astype(dtype) for x in (query, key_, value))
    mixed = jax.nn.dot_product_attention(query, key_, value, bias=bias, mask=mask, scale=scale, implementation=backend)
    return mixed.astype(precision.activation_dtype)


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
    mixed = _attend(query, key_, value, mask, bias, kept, precision.matmul_dtype)  # [batch, heads, length, head_dim]
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
    probabilities = jax.nn.softmax(scores, axis=-1).astype(dtype)  # [batch, heads, length, kv_length]
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
    return *(x.astype(witness.dtype) for x in (query_gradient, key_gradient, value_gradient)), None, bias_gradient, None


_attend.defvjp(_attend_forward, _attend_backward)
