"""GELU and its parts, computed in float32."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """Returns the exact GELU, x * Phi(x) with the error function (arXiv 1606.08415).

    It is computed in float32 and has the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    return (wide * normal_cdf(wide)).astype(x.dtype)


def normal_cdf(x: jax.Array) -> jax.Array:
    """Returns Phi(x), the share of the normal distribution below x."""
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def normal_cdf_slope(x: jax.Array) -> jax.Array:
    """Returns Phi'(x)."""
    return jnp.exp(-0.5 * jnp.square(x)) * (1.0 / math.sqrt(2.0 * math.pi))


# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
_TAIL_SCALE = 0.3275911 * math.sqrt(0.5)
_TAIL_POLYNOMIAL = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def normal_tail(x: jax.Array) -> jax.Array:
    """Returns Phi(-|x|) to within 3e-7, without the error function."""
    inverse = 1.0 / (1.0 + _TAIL_SCALE * jnp.abs(x))
    series = jnp.zeros_like(x)
    for coefficient in _TAIL_POLYNOMIAL:
        series = (series + 0.5 * coefficient) * inverse
    return series * jnp.exp(-0.5 * jnp.square(x))


# The approximation of Phi with a hyperbolic tangent (arXiv 1606.08415, section 2), which T5 v1.1
# was trained with.
_TANH_SCALE = math.sqrt(2.0 / math.pi)
_TANH_CUBE = 0.044715


def tanh_cdf(x: jax.Array) -> jax.Array:
    """Returns the approximation of Phi(x)."""
    # (1 + tanh(u)) / 2 is sigmoid(2u), which does not cancel where tanh is near -1.
    return jax.nn.sigmoid(2.0 * _TANH_SCALE * (x + _TANH_CUBE * x * x * x))


def tanh_cdf_slope(x: jax.Array) -> jax.Array:
    """Returns the derivative of `tanh_cdf`."""
    cdf = tanh_cdf(x)
    return cdf * (1.0 - cdf) * 2.0 * _TANH_SCALE * (1.0 + 3.0 * _TANH_CUBE * jnp.square(x))
