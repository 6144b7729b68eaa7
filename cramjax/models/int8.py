"""Matrices of whole numbers of 8 bits, multiplied as such: what inference does with a quantised model where that is faster.

The inputs of a product are rounded to whole numbers as well, each row by the scale of its own largest element (dynamic quantisation, as in
LLM.int8(), arXiv 2208.07339, but without a part for outliers), and the sum is exact in int32. Nothing here has a gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LARGEST = 127
LEAST_NUMBERS = 1 << 16
"""Of a matrix that is worth the rounding of its inputs."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=("codes", "scale"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Int8:
    """A parameter of value codes * scale, in place of its array in a tree of parameters.

    codes: int8 of the parameter's shape. scale: float32 of the same rank, of size 1 along the axes that products sum over.
    """

    codes: jax.Array | np.ndarray
    scale: jax.Array | np.ndarray

    @property
    def ndim(self) -> int:
        """Axes of the parameter."""
        return self.codes.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        return self.codes.shape

    def __getitem__(self, index: Any) -> Int8:
        """A part; not along axes of size 1 in `scale`, but for the whole of them."""
        return Int8(self.codes[index], self.scale[index])

    def astype(self, dtype: Any) -> Any:
        """The values."""
        return self.codes.astype(dtype) * self.scale.astype(dtype)


def is_faster(device: jax.Device, matmul_dtype: jnp.dtype) -> bool:
    """Whether matrices of int8 are known to be faster on `device` than those whose operands are of `matmul_dtype`.

    On CPUs they are than float32, and than bfloat16 for a few dozen tokens only (docs/benchmarks.md), so with bfloat16 instructions they
    are not used. GPUs and TPUs have not been measured.
    """
    return device.platform == "cpu" and matmul_dtype == jnp.float32


def product(axes: tuple[str, str], lhs: jax.Array, rhs: Int8, out_dtype: jnp.dtype) -> jax.Array:
    """The sum over the axes that both have: `axes` names those of `lhs` and of `rhs`, the result has the others in this order."""
    left, right = axes
    shared = [axis for axis in left if axis in right]
    at, kernel_at = (
        tuple(left.index(axis) for axis in shared),
        tuple(right.index(axis) for axis in shared),
    )
    wide = lhs.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=at, keepdims=True)
    step = jnp.where(largest > 0, largest / _LARGEST, jnp.ones_like(largest))
    rounded = jnp.round(wide / step).astype(jnp.int8)
    total = jax.lax.dot_general(
        rounded, rhs.codes, ((at, kernel_at), ((), ())), preferred_element_type=jnp.int32
    )
    step, scale = jnp.squeeze(step, at), jnp.squeeze(rhs.scale, kernel_at)
    step = step.reshape(step.shape + (1,) * (total.ndim - step.ndim))
    scale = jnp.broadcast_to(scale, total.shape[total.ndim - scale.ndim :])
    return (total.astype(jnp.float32) * step * scale[(None,) * (total.ndim - scale.ndim)]).astype(
        out_dtype
    )
