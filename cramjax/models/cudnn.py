"""cuDNN's attention, by JAX's public function and, for masks in older versions, below it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The first version whose backward pass writes no gradient of a mask (jax-ml/jax#39512).
_MASKS_ARE_FREE = (0, 11, 2)


def attention(
    query: jax.Array,
    key_: jax.Array,
    value: jax.Array,
    *,
    bias: jax.Array | None,
    mask: jax.Array | None,
    causal: bool,
    scale: float,
) -> jax.Array:
    """Returns attention of 16-bit arrays [batch, length, heads, head_dim], in this shape and dtype.

    Args:
        query: [batch, length, heads, head_dim].
        key_: [batch, kv_length, heads, head_dim].
        value: [batch, kv_length, heads, head_dim].
        bias: [1, heads, length, kv_length], added to the scores; cuDNN reads it, and writes its
            gradient, in 16 bits.
        mask: bool [batch, 1 or heads, length, kv_length]; not together with a bias.
        causal: a position sees no later one.
        scale: the scores are multiplied by it.
    """
    n_rows, length, kv_length = query.shape[0], query.shape[1], key_.shape[1]
    # Its backward pass takes only even lengths; the added position is hidden.
    query, key_, value = (_even(x, 1) for x in (query, key_, value))
    if bias is not None:
        bias = _even(_even(bias.astype(query.dtype), 2), 3, _lowest(query.dtype))
    if mask is not None:
        mask = _even(_even(mask, 2), 3, False)
    options = {"bias": bias, "mask": mask, "scale": scale, "is_causal": causal}
    if kv_length % 2 and bias is None and mask is None and not causal:
        options["key_value_seq_lengths"] = jnp.full((n_rows,), kv_length, jnp.int32)

    if mask is not None and not causal and jax.__version_info__ < _MASKS_ARE_FREE:
        mixed = _masked(query, key_, value, mask, scale)
    else:
        mixed = jax.nn.dot_product_attention(query, key_, value, implementation="cudnn", **options)
    return mixed[:, :length]


def _even(x: jax.Array, axis: int, fill: float = 0.0) -> jax.Array:
    """Returns `x` with one more entry of `fill` along `axis` if that has an odd length above 1."""
    size = x.shape[axis]
    if size == 1 or size % 2 == 0:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, 1)
    return jnp.pad(x, widths, constant_values=fill)


def _lowest(dtype: jnp.dtype) -> float:
    """Returns a score so low that no probability is left; cuDNN fails at the dtype's lowest."""
    return -float(2 << 40) if dtype == jnp.bfloat16 else -float(2 << 14)


def _masked(
    query: jax.Array, key_: jax.Array, value: jax.Array, mask: jax.Array, scale: float
) -> jax.Array:
    """Returns `attention` with a mask, without the mask's gradient, which nobody reads.

    Before JAX 0.11.2 the public function cannot leave it out, so this calls the private function
    below it.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as below

        unused = jnp.zeros(0, query.dtype)
        zero = jnp.zeros((), query.dtype)
        bias = jnp.where(mask, zero, jnp.asarray(_lowest(query.dtype), query.dtype))
        has_bias, has_bias_gradient = True, False
        return below._dot_product_attention(
            query,
            key_,
            value,
            bias,
            *(unused,) * 6,
            scale,
            0,  # the seed of a dropout
            0.0,  # its rate
            (has_bias, has_bias_gradient),
            below.MaskType.NO_MASK,
            below.AttentionLayout.BTNH.value,
            None,  # no sliding window
            below.check_cudnn_version(),
            False,  # no residual
        )
    except (ImportError, AttributeError, TypeError):
        return jax.nn.dot_product_attention(
            query, key_, value, mask=mask, scale=scale, implementation="cudnn"
        )
