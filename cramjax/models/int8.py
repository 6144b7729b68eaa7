"""Matrices of 8-bit integers, multiplied as integers: inference with a quantised model.

The inputs of a product are rounded to integers as well, each row by the scale of its own largest
element, and the sum is exact in int32. That is dynamic quantisation as in LLM.int8() (arXiv
2208.07339), without a part for outliers. Nothing here has a gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.models.kernels import Device

_LARGEST = 127

LEAST_NUMBERS = 1 << 16
"""The smallest size of a matrix that is worth the rounding of its inputs."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=("codes", "scale"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Int8:
    """A parameter of value codes * scale, in place of its array in a tree of parameters.

    Attributes:
        codes: int8 of the parameter's shape.
        scale: float32 of the same rank, of size 1 along the axes that products sum over.
    """

    codes: jax.Array | np.ndarray
    scale: jax.Array | np.ndarray

    @property
    def ndim(self) -> int:
        """Number of axes of the parameter."""
        return self.codes.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self.codes.shape

    def __getitem__(self, index: Any) -> Int8:
        """Returns a part; along axes of size 1 in `scale` only the whole can be taken."""
        return Int8(self.codes[index], self.scale[index])

    def astype(self, dtype: Any) -> Any:
        """Returns the values."""
        return self.codes.astype(dtype) * self.scale.astype(dtype)


def is_faster(device: Device, matmul_dtype: jnp.dtype) -> bool:
    """Returns whether int8 products are known to be faster on `device` than `matmul_dtype`.

    On CPUs they are faster than float32. They are faster than bfloat16 only for a few dozen tokens
    (docs/benchmarks.md), so with bfloat16 instructions they are not used. GPUs and TPUs have not
    been measured.
    """
    return device.platform == "cpu" and matmul_dtype == jnp.float32


def product(axes: tuple[str, str], lhs: jax.Array, rhs: Int8, out_dtype: jnp.dtype) -> jax.Array:
    """Returns the product of `lhs` and `rhs`, summed over the axes that both have.

    Args:
        axes: one letter for each axis of `lhs`, and of `rhs`. The result has the axes that are not
            shared, in this order.
        lhs: floating-point.
        rhs: the matrix.
        out_dtype: dtype of the result.
    """
    left, right = axes
    shared = [axis for axis in left if axis in right]
    at = tuple(left.index(axis) for axis in shared)
    kernel_at = tuple(right.index(axis) for axis in shared)

    # Each row of `lhs` has its own scale: its largest element becomes 127.
    wide = lhs.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=at, keepdims=True)
    step = jnp.where(largest > 0, largest / _LARGEST, jnp.ones_like(largest))
    rounded = jnp.round(wide / step).astype(jnp.int8)
    total = jax.lax.dot_general(
        rounded, rhs.codes, ((at, kernel_at), ((), ())), preferred_element_type=jnp.int32
    )

    # The axes of `lhs` come first in the result, those of `rhs` last.
    step = jnp.squeeze(step, at)
    step = step.reshape(step.shape + (1,) * (total.ndim - step.ndim))
    scale = jnp.squeeze(rhs.scale, kernel_at)
    n_outer = total.ndim - scale.ndim
    scale = jnp.broadcast_to(scale, total.shape[n_outer:])[(None,) * n_outer]
    return (total.astype(jnp.float32) * step * scale).astype(out_dtype)
