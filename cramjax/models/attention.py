"""Bidirectional attention, one function for every kernel, and the choice of the kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from cramjax.models.layers import dropout
from cramjax.models.products import Precision, batched_matmul


def attention_backend(requested: str, device: jax.Device, dtype: jnp.dtype, dropout_rate: float = 0.0) -> str:
    """The kernel for `requested` (auto, xla or cudnn) on `device`: "cudnn", "xla" or "products".

    cuDNN's fused attention needs compute capability 8.0, 16-bit operands and no dropout. On CPU, and wherever dropout falls on the
    probabilities, our own products are taken: their float32 accumulation runs in the backward pass as well, which makes a step of the 4 × 256
    model 1.2 times as fast as with `jax.nn.dot_product_attention` (docs/benchmarks.md).
    """
    if dropout_rate > 0:
        return "products"
    if requested == "auto":
        capability = float(getattr(device, "compute_capability", "0") or 0) if device.platform in ("gpu", "cuda") else 0.0
        if capability >= 8.0 and jnp.dtype(dtype).itemsize == 2:
            return "cudnn"
        return "products" if device.platform == "cpu" else "xla"
    return requested


def attend(
    precision: Precision,
    backend: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    *,
    dropout_key: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """softmax(query·keyᵀ/√head_dim)·value, the softmax in float32.

    query, key, value: [batch, length, heads, head_dim]; mask: bool [batch, 1, length, kv_length] or None, True where attended.

    Returns:
        [batch, length, heads, head_dim] in the activation dtype.
    """
    if backend != "products":
        out = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=backend)
        return out.astype(precision.activation_dtype)
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))  # [batch, heads, length, head_dim]
    scores = batched_matmul(precision, query, key, True) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probabilities = dropout(dropout_key, dropout_rate, jax.nn.softmax(scores, axis=-1))
    out = batched_matmul(precision, probabilities, value, False)  # [batch, heads, length, head_dim]
    return jnp.swapaxes(out, 1, 2).astype(precision.activation_dtype)


def attention_mask(segment_ids: jax.Array | None, padding_mask: jax.Array | None) -> jax.Array | None:
    """bool [batch, 1, length, kv_length]: within the same segment (int [batch, length]) and to real tokens (bool) only."""
    mask = None
    if segment_ids is not None:
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    if padding_mask is not None:
        real = padding_mask[:, None, None, :]
        mask = jnp.broadcast_to(real, (*real.shape[:2], real.shape[-1], real.shape[-1])) if mask is None else mask & real
    return mask
