"""Matrix products and the number formats they run in: narrow operands, float32 accumulation, forward and backward.

The backward pass is written out. Autodiff would multiply a bfloat16 operand with a float32 cotangent, which XLA:CPU runs at half the
speed; and it would contract the leading axes of both operands for a weight's gradient, which XLA:CPU runs at 40% of the speed of the
same product with the left operand transposed in memory first (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """`activation_dtype` of what is kept between operations, `matmul_dtype` of the operands of products.

    Parameters, norms, softmax and logits are float32 whatever this says. On CPU bfloat16 means float32 activations with bfloat16
    operands: element-wise work in bfloat16 is emulated there.
    """

    activation_dtype: jnp.dtype
    matmul_dtype: jnp.dtype


def linear(precision: Precision, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] · kernel [in, *out] → [..., *out] in the activation dtype."""
    flat = x.reshape(-1, x.shape[-1])
    product = _matmul(precision, precision.activation_dtype, flat, kernel.reshape(kernel.shape[0], -1))
    return product.reshape(*x.shape[:-1], *kernel.shape[1:])


def project(precision: Precision, x: jax.Array, table: jax.Array) -> jax.Array:
    """x [..., in] · tableᵀ, table [out, in] → float32 [..., out]: the decoder tied to the embedding."""
    return _matmul_transposed(precision, x.reshape(-1, x.shape[-1]), table).reshape(*x.shape[:-1], table.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matmul(precision: Precision, out_dtype: jnp.dtype, x: jax.Array, w: jax.Array) -> jax.Array:
    return _matmul_forward(precision, out_dtype, x, w)[0]


def _matmul_forward(precision, out_dtype, x, w):
    narrow_x, narrow_w = x.astype(precision.matmul_dtype), w.astype(precision.matmul_dtype)
    # The empty arrays carry the dtypes the gradients must have.
    saved = narrow_x, narrow_w, jnp.zeros((), x.dtype), jnp.zeros((), w.dtype)
    return _contract(narrow_x, narrow_w, 1, 0, out_dtype), saved


def _matmul_backward(precision, out_dtype, saved, cotangent):
    x, w, like_x, like_w = saved
    cotangent = cotangent.astype(precision.matmul_dtype)
    dx = _contract(cotangent, w, 1, 1, like_x.dtype)
    dw = _contract(transposed(precision, x), cotangent, 1, 0, like_w.dtype)
    return dx, dw


_matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul_transposed(precision: Precision, x: jax.Array, table: jax.Array) -> jax.Array:
    return _matmul_transposed_forward(precision, x, table)[0]


def _matmul_transposed_forward(precision, x, table):
    narrow_x, narrow_table = x.astype(precision.matmul_dtype), table.astype(precision.matmul_dtype)
    saved = narrow_x, narrow_table, jnp.zeros((), x.dtype), jnp.zeros((), table.dtype)
    return _contract(narrow_x, narrow_table, 1, 1, jnp.float32), saved


def _matmul_transposed_backward(precision, saved, cotangent):
    x, table, like_x, like_table = saved
    cotangent = cotangent.astype(precision.matmul_dtype)
    dx = _contract(cotangent, table, 1, 0, like_x.dtype)
    return dx, _contract(transposed(precision, cotangent), x, 1, 0, like_table.dtype)


_matmul_transposed.defvjp(_matmul_transposed_forward, _matmul_transposed_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def batched_matmul(precision: Precision, a: jax.Array, b: jax.Array, transpose_b: bool) -> jax.Array:
    """a [batch, heads, m, k] · b [batch, heads, k, n] (or [batch, heads, n, k]ᵀ) → float32 [batch, heads, m, n]."""
    return _batched_forward(precision, a, b, transpose_b)[0]


def _batched_forward(precision, a, b, transpose_b):
    narrow_a, narrow_b = a.astype(precision.matmul_dtype), b.astype(precision.matmul_dtype)
    saved = narrow_a, narrow_b, jnp.zeros((), a.dtype), jnp.zeros((), b.dtype)
    return _contract_batched(narrow_a, narrow_b, 3, 3 if transpose_b else 2, jnp.float32), saved


def _batched_backward(precision, transpose_b, saved, cotangent):
    a, b, like_a, like_b = saved
    cotangent = cotangent.astype(precision.matmul_dtype)
    da = _contract_batched(cotangent, b, 3, 2 if transpose_b else 3, like_a.dtype)
    if transpose_b:
        db = _contract_batched(transposed(precision, cotangent), a, 3, 2, like_b.dtype)
    else:
        db = _contract_batched(transposed(precision, a), cotangent, 3, 2, like_b.dtype)
    return da, db


batched_matmul.defvjp(_batched_forward, _batched_backward)


def transposed(precision: Precision, x: jax.Array) -> jax.Array:
    """x with its last two axes swapped; where activations are float32 (on CPU) swapped in memory, not in name only."""
    x = jnp.swapaxes(x, -1, -2)
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if precision.activation_dtype == jnp.float32 else x


def _contract(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, out_dtype: jnp.dtype) -> jax.Array:
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=out_dtype)


def _contract_batched(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, out_dtype: jnp.dtype) -> jax.Array:
    dimensions = (((axis_a,), (axis_b,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=out_dtype)
