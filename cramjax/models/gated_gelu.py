"""The gated GELU of arXiv 2002.05202 with its backward pass written out.

The backward pass writes the gradients of both halves side by side, for the product that follows.
XLA compiles that for a GPU as a kernel that reads and writes one number a thread. Ours, in Pallas
for Triton, takes half the time; see `short_attention` for what that needs.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from cramjax.models.activations import (
    normal_cdf,
    normal_cdf_slope,
    normal_tail,
    tanh_cdf,
    tanh_cdf_slope,
)

try:
    from jax.experimental.pallas import triton
except ImportError:
    triton = None

NAME = "gated_gelu"
"""The kernel's name in compiled programs."""

# Numbers of a row that a program takes: a power of two, with at most 16 bytes of them a thread.
_MOST_COLUMNS = 1024
_FEWEST_COLUMNS = 128
_N_WARPS = 4


def fits_kernel(width: int, dtype: jnp.dtype, capability: tuple[int, int]) -> bool:
    """Returns whether the kernel can run.

    Args:
        width: of a half.
        dtype: of the halves; the kernel's Phi is exact enough for 2 bytes, not for float32.
        capability: compute capability of the card.
    """
    is_suited = _columns(width) >= _FEWEST_COLUMNS and jnp.dtype(dtype).itemsize == 2
    return triton is not None and is_suited and capability >= (8, 0)


def _columns(width: int) -> int:
    return math.gcd(width, _MOST_COLUMNS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gated_gelu(
    halves: jax.Array, tanh: bool = False, one_kernel: bool = False, interpret: bool = False
) -> jax.Array:
    """Returns gelu(halves[..., 0, :]) * halves[..., 1, :]: [..., 2, mlp] → [..., mlp].

    The backward pass keeps the input alone and computes Phi again, in one sweep over memory.

    Args:
        halves: [..., 2, mlp].
        tanh: approximate GELU by a hyperbolic tangent, as T5 v1.1 does.
        one_kernel: run the backward pass in the kernel; see `fits_kernel`. Its Phi is exact to
            3e-7.
        interpret: run that kernel as ordinary operations, on any device.
    """
    x = halves[..., 0, :].astype(jnp.float32)
    cdf = tanh_cdf(x) if tanh else normal_cdf(x)
    activated = (x * cdf).astype(halves.dtype)
    return activated * halves[..., 1, :]


def _forward(halves, tanh, one_kernel, interpret):
    return gated_gelu(halves, tanh, one_kernel, interpret), halves


def _backward(tanh, one_kernel, interpret, halves, cotangent):
    if one_kernel:
        return (_in_one_kernel(tanh, interpret, halves, cotangent),)
    x = halves[..., 0, :].astype(jnp.float32)
    if tanh:
        cdf, slope = tanh_cdf(x), tanh_cdf_slope(x)
    else:
        cdf, slope = normal_cdf(x), normal_cdf_slope(x)
    gradients = _gradients(x, halves[..., 1, :], cotangent, cdf, slope)
    return (jnp.stack(gradients, axis=-2).astype(halves.dtype),)


gated_gelu.defvjp(_forward, _backward)


def _gradients(x, linear, cotangent, cdf, slope) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of both halves in float32."""
    linear, wide = linear.astype(jnp.float32), cotangent.astype(jnp.float32)
    # d gelu(x) / dx = Phi(x) + x * Phi'(x)
    return wide * linear * (cdf + x * slope), wide * x * cdf


def _in_one_kernel(
    tanh: bool, interpret: bool, halves: jax.Array, cotangent: jax.Array
) -> jax.Array:
    assert triton is not None  # see `fits_kernel`
    width = halves.shape[-1]
    rows = halves.reshape(-1, 2, width)
    columns = _columns(width)

    def run(halves, cotangent, result):
        x = halves[0, :].astype(jnp.float32)
        if tanh:
            cdf, slope = tanh_cdf(x), tanh_cdf_slope(x)
        else:
            # Triton has no error function.
            tail, slope = normal_tail(x), normal_cdf_slope(x)
            cdf = jnp.where(x < 0, tail, 1.0 - tail)
        gradients = _gradients(x, halves[1, :], cotangent[:], cdf, slope)
        for half, gradient in enumerate(gradients):
            result[half, :] = gradient.astype(result.dtype)

    both = pl.BlockSpec((None, 2, columns), lambda row, part: (row, 0, part))
    gradient = pl.pallas_call(
        run,
        grid=(rows.shape[0], width // columns),
        in_specs=[both, pl.BlockSpec((None, columns), lambda row, part: (row, part))],
        out_specs=both,
        out_shape=jax.ShapeDtypeStruct(rows.shape, rows.dtype),
        compiler_params=triton.CompilerParams(num_warps=_N_WARPS, num_stages=1),
        interpret=interpret,
        name=NAME,
    )(rows, cotangent.reshape(-1, width))
    return gradient.reshape(halves.shape)
