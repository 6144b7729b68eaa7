"""Activations of the feed-forward, computed in float32 and stored in the dtype of their input."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """Returns the exact GELU, x * Phi(x) with the error function (arXiv 1606.08415)."""
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _normal_cdf_slope(x: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(x)) * (1.0 / math.sqrt(2.0 * math.pi))


# The approximation of Phi with a hyperbolic tangent (arXiv 1606.08415, section 2), which T5 v1.1
# was trained with.
_TANH_SCALE = math.sqrt(2.0 / math.pi)
_TANH_CUBE = 0.044715


def _tanh_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jnp.tanh(_TANH_SCALE * (x + _TANH_CUBE * x * x * x))


def _tanh_cdf_slope(x: jax.Array) -> jax.Array:
    inner = jnp.tanh(_TANH_SCALE * (x + _TANH_CUBE * x * x * x))
    return 0.5 * (1.0 - jnp.square(inner)) * _TANH_SCALE * (1.0 + 3.0 * _TANH_CUBE * jnp.square(x))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gated_gelu(halves: jax.Array, tanh: bool = False) -> jax.Array:
    """Returns gelu(halves[..., 0, :]) * halves[..., 1, :]: [..., 2, mlp] → [..., mlp].

    With `tanh`, GELU is approximated by a hyperbolic tangent. The backward pass is written out: it
    keeps the input alone and computes Phi again, in one sweep over memory.
    """
    x = halves[..., 0, :].astype(jnp.float32)
    cdf = _tanh_cdf(x) if tanh else _normal_cdf(x)
    activated = (x * cdf).astype(halves.dtype)
    return activated * halves[..., 1, :]


def _gated_gelu_forward(halves, tanh):
    return gated_gelu(halves, tanh), halves


def _gated_gelu_backward(tanh, halves, cotangent):
    x = halves[..., 0, :].astype(jnp.float32)
    linear = halves[..., 1, :].astype(jnp.float32)
    wide = cotangent.astype(jnp.float32)
    if tanh:
        cdf, slope = _tanh_cdf(x), _tanh_cdf_slope(x)
    else:
        cdf, slope = _normal_cdf(x), _normal_cdf_slope(x)

    # d gelu(x) / dx = Phi(x) + x * Phi'(x)
    gradient = jnp.stack([wide * linear * (cdf + x * slope), wide * x * cdf], axis=-2)
    return (gradient.astype(halves.dtype),)


gated_gelu.defvjp(_gated_gelu_forward, _gated_gelu_backward)
