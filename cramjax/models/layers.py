"""Norms, dense layers, positions, dropout and the activation: what every network here is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cramjax.models import module
from cramjax.models.axes import EMBED, Axes
from cramjax.models.products import Precision, linear


class Norm(nnx.Module):
    """LayerNorm, or RMSNorm for kind="rmsnorm", over the last axis, in float32; the bias is optional."""

    def __init__(self, width: int, *, kind: str, bias: bool, eps: float):
        self.scale = module.constant(1.0, (width,), (EMBED,))
        self.bias = module.constant(0.0, (width,), (EMBED,)) if bias else None
        self.kind, self.eps = kind, eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., embed] → [..., embed] in the dtype of x."""
        wide = x.astype(jnp.float32)
        if self.kind == "layernorm":
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        normed = normed * _as_row(self.scale.get_value(), x)
        if self.bias is not None:
            normed = normed + _as_row(self.bias.get_value(), x)
        return normed.astype(x.dtype)


class Dense(nnx.Module):
    """x [..., in] → [..., *out]: a kernel [in, *out] and, if `bias`, one entry for each output."""

    def __init__(self, key: jax.Array, shape: tuple[int, ...], axes: Axes, *, n_in: int, bias: bool, std: float):
        """`n_in`: how many leading axes of `shape` are contracted."""
        self.kernel = module.normal(key, shape, axes, std)
        self.bias = module.constant(0.0, shape[n_in:], axes[n_in:]) if bias else None
        self.n_in = n_in

    def __call__(self, precision: Precision, x: jax.Array) -> jax.Array:
        """[..., *in] → [..., *out] in the activation dtype."""
        kernel = self.kernel.get_value()
        lead = x.shape[: x.ndim - self.n_in]
        y = linear(precision, x.reshape(*lead, -1), kernel.reshape(-1, *kernel.shape[self.n_in :]))
        if self.bias is not None:
            y = y + _as_row(self.bias.get_value(), y).astype(y.dtype)
        return y


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its exact form, x·Φ(x), computed in float32. `jax.nn.gelu` takes erfc, which costs twice as much on CPU."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


def dropout(key: jax.Array | None, rate: float, x: jax.Array) -> jax.Array:
    """Zero a share `rate` of x and scale up the rest; x itself where there is no key or no rate."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def sinusoids(length: int, width: int) -> np.ndarray:
    """Fixed position table float32 [length, width]: sines on even, cosines on odd columns, base 10,000 (arXiv 1706.03762, 3.5)."""
    angles = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    table = np.empty((length, width), np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles[:, : width // 2])
    return table


def rotate(x: jax.Array, base: float) -> jax.Array:
    """Rotary positions (arXiv 2104.09864): x [batch, length, heads, head_dim], pairs are (i, i + head_dim/2)."""
    length, half = x.shape[1], x.shape[-1] // 2
    angles = np.arange(length)[:, None] * base ** (-np.arange(half) / half)
    cosine = np.cos(angles).astype(np.float32)[None, :, None, :]  # [1, length, 1, head_dim/2]
    sine = np.sin(angles).astype(np.float32)[None, :, None, :]
    wide = x.astype(jnp.float32)
    first, second = wide[..., :half], wide[..., half:]
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(x.dtype)


def _as_row(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape((1,) * (like.ndim - values.ndim) + values.shape)
