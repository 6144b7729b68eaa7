"""Building blocks: matrix products, norms, positions and embeddings.

Attention is in `attention.py`, the feed-forward in `feedforward.py`, dropout in `dropout.py`.
Products take narrow operands and accumulate in float32, in the backward pass too. Norms compute in
float32 and return the dtype of the activations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from cramjax.models import axes as ax
from cramjax.models import int8
from cramjax.models.dropout import dropout
from cramjax.models.int8 import Int8
from cramjax.models.kernels import AttentionCall, Device, capability
from cramjax.models.module import Initializer, param


@dataclasses.dataclass(frozen=True)
class Precision:
    """Number formats, and the facts about devices that programs depend on.

    Products accumulate in float32; norms, softmax and logits are float32; parameters are float32.

    Attributes:
        activation_dtype: of arrays between operations.
        matmul_dtype: of the operands of matrix products.
        device: the program is compiled for it; None for the first one at hand.
        rows: how sequences, the first axis of activations, lie on several devices; None to leave
            that to XLA.
        owns_rows: the program sees the sequences of one device alone. Only then may kernels of ours
            stand in it, which XLA's partitioner cannot divide.
        kernels: pairs of a call of attention and the kernel measured to be fastest.
    """

    activation_dtype: jnp.dtype
    matmul_dtype: jnp.dtype
    device: Device | None = None
    rows: NamedSharding | None = None
    owns_rows: bool = False
    kernels: tuple[tuple[AttentionCall, str], ...] = ()

    @property
    def on_gpu(self) -> bool:
        """True if the program is compiled for a GPU."""
        return (self.device or jax.devices()[0]).platform in ("gpu", "cuda", "rocm")

    @property
    def capability(self) -> tuple[int, int]:
        """The GPU's compute capability, (0, 0) if the program is for anything but NVIDIA's."""
        return capability(self.device or jax.devices()[0])


def by_rows(x: jax.Array, precision: Precision) -> jax.Array:
    """Returns `x` with its first axis sharded as `precision.rows` says, the others as they are.

    Where parameters are sharded too, XLA's partitioner would otherwise exchange activations instead
    of gathering a matrix.
    """
    if precision.rows is None:
        return x
    spec = PartitionSpec(*precision.rows.spec, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(precision.rows.mesh, spec))


FLOAT32 = Precision(jnp.dtype("float32"), jnp.dtype("float32"))


def product(
    spec: str, lhs: jax.Array, rhs: jax.Array | Int8, matmul_dtype: jnp.dtype, out_dtype: jnp.dtype
) -> jax.Array:
    """Returns `einsum(spec, lhs, rhs)`, accumulated in float32.

    The backward pass casts the cotangent to `matmul_dtype`: autodiff alone would multiply narrow
    operands by a float32 cotangent, which no backend is fast at.

    Args:
        spec: that of a dense layer, as in "bte,ef->btf". The result has the left operand's own axes
            and then the right one's.
        lhs: the activations.
        rhs: the matrix; an `Int8` is multiplied as integers.
        matmul_dtype: the operands are cast to it.
        out_dtype: dtype of the result.

    Raises:
        ValueError: for another kind of `spec`.
    """
    if isinstance(rhs, Int8):
        return int8.product(_split(spec)[:2], lhs, rhs, out_dtype)
    return _float_product(spec, lhs, rhs, matmul_dtype, out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _float_product(spec, lhs, rhs, matmul_dtype, out_dtype):
    return _product_forward(spec, lhs, rhs, matmul_dtype, out_dtype)[0]


def _contract(left: str, lhs: jax.Array, right: str, rhs: jax.Array) -> tuple[str, jax.Array]:
    """Returns the names of the result's axes, and the float32 sum over the axes that both have.

    It is not `einsum`, which may order the summed axes backwards: on CPU that costs a transposed
    copy of the operands.
    """
    shared = [axis for axis in left if axis in right]
    summed = [left.index(axis) for axis in shared], [right.index(axis) for axis in shared]
    result = jax.lax.dot_general(lhs, rhs, (summed, ([], [])), preferred_element_type=jnp.float32)
    return "".join(axis for axis in left + right if axis not in shared), result


def _product_forward(spec, lhs, rhs, matmul_dtype, out_dtype):
    left, right, out = _split(spec)
    # The cast operands are saved: half the memory, and no second cast.
    saved = lhs.astype(matmul_dtype), rhs.astype(matmul_dtype)
    # Empty arrays tell the backward pass the dtypes of the operands; a dtype is no JAX value.
    witnesses = jnp.zeros((0,), lhs.dtype), jnp.zeros((0,), rhs.dtype)

    names, result = _contract(left, saved[0], right, saved[1])
    if names != out:
        raise ValueError(f"{spec!r} is not the product of a dense layer, whose result is {names!r}")
    return result.astype(out_dtype), (saved, witnesses)


def _split(spec: str) -> tuple[str, str, str]:
    """Returns the axes of the left operand, of the right one, and of the result."""
    operands, out = spec.split("->")
    left, right = operands.split(",")
    return left, right, out


def _product_backward(spec, matmul_dtype, out_dtype, residual, cotangent):
    (lhs, rhs), (lhs_witness, rhs_witness) = residual
    left, right, out = _split(spec)
    cotangent = cotangent.astype(matmul_dtype)

    # d lhs = cotangent rhs^T
    names, lhs_gradient = _contract(out, cotangent, right, rhs)
    lhs_gradient = jnp.transpose(lhs_gradient, tuple(names.index(axis) for axis in left))

    # d rhs = lhs^T cotangent
    kept = "".join(axis for axis in left if axis in right)
    summed = "".join(axis for axis in left if axis not in right)
    lhs = pin_on_cpu(jnp.transpose(lhs, tuple(left.index(axis) for axis in kept + summed)))
    names, rhs_gradient = _contract(kept + summed, lhs, out, cotangent)
    rhs_gradient = jnp.transpose(
        pin_on_cpu(rhs_gradient), tuple(names.index(axis) for axis in right)
    )
    return lhs_gradient.astype(lhs_witness.dtype), rhs_gradient.astype(rhs_witness.dtype)


def pin_on_cpu(x: jax.Array) -> jax.Array:
    """Returns `x`, which on CPU lies in memory with its axes in this order.

    XLA folds a transposition into the product before or after it, which is free on GPU and TPU. On
    CPU there is no bfloat16 kernel for the folded product: it runs in float32, at half the speed or
    less. (A tensor axis that shards `x` is gathered there, but CPUs have one in tests only.)
    """

    def flat(x: jax.Array) -> jax.Array:
        # A barrier alone keeps the operands apart, but not the axes in order; one axis has one
        # order.
        return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)

    return jax.lax.platform_dependent(x, cpu=flat, default=lambda x: x)


_float_product.defvjp(_product_forward, _product_backward)


class Linear(nnx.Module):
    """A dense layer.

    `spec` is its einsum, as in "bte,ef->btf". A bias has those axes of the kernel that are in the
    result.
    """

    def __init__(
        self,
        spec: str,
        shape: tuple[int, ...],
        axes: ax.Axes,
        *,
        bias: bool,
        init: Initializer,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.spec, self.precision = spec, precision
        self.kernel = param(init, rngs, shape, axes)
        bias_param = None
        if bias:
            _, kernel_axes, out = _split(spec)
            outer = [i for i, letter in enumerate(kernel_axes) if letter in out]
            bias_shape = tuple(shape[i] for i in outer)
            bias_axes = tuple(axes[i] for i in outer)
            bias_param = param(jax.nn.initializers.zeros, rngs, bias_shape, bias_axes)
        self.bias = bias_param

    def __call__(self, x: jax.Array, part: slice = slice(None)) -> jax.Array:
        """Returns the product and bias in the activation dtype.

        `part` selects from the kernel's second axis, which holds fused projections.
        """
        dtype = self.precision.activation_dtype
        kernel = self.kernel[:, part]
        y = product(self.spec, x, kernel, self.precision.matmul_dtype, dtype)
        y = by_rows(y, self.precision)
        return y if self.bias is None else y + _broadcast(self.bias[part].astype(dtype), y.ndim)


def _broadcast(x: jax.Array, ndim: int) -> jax.Array:
    """Returns `x` with leading axes of size 1; the tests forbid to promote ranks silently."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


class Norm(nnx.Module):
    """LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467) over the last axis, in float32."""

    def __init__(self, cfg, precision: Precision, *, bias: bool, rngs: nnx.Rngs):
        self.centre = cfg.norm == "layernorm"
        self.eps, self.dtype = cfg.norm_eps, precision.activation_dtype
        shape, axes = (cfg.d_model,), (ax.NORM,)
        self.scale = param(jax.nn.initializers.ones, rngs, shape, axes)
        self.bias = param(jax.nn.initializers.zeros, rngs, shape, axes) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., embed] → the same shape, in the activation dtype."""
        bias = None if self.bias is None else self.bias[...]
        normed: Any = normalize(x, self.scale[...], bias, self.centre, self.eps)
        return normed.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, centre: bool, eps: float
) -> jax.Array:
    """Returns `x` [..., embed] divided by its root mean square, then scaled and shifted.

    With `centre` the mean is subtracted first. The backward pass is written out: from x and two
    numbers a row it needs two reductions, where autodiff needs five.
    """
    return _normalize_forward(x, scale, bias, centre, eps)[0]


def _standardize(x: jax.Array, mean: jax.Array, inverse_std: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) - mean) * inverse_std


def _normalize_forward(x, scale, bias, centre, eps):
    mean, inverse_std = _moments(x, centre, eps)
    y = _standardize(x, mean, inverse_std) * _broadcast(scale, x.ndim)
    if bias is not None:
        y = y + _broadcast(bias, x.ndim)
    return y.astype(x.dtype), (x, mean, inverse_std, scale, bias)


def _moments(x: jax.Array, centre: bool, eps: float) -> tuple[jax.Array, jax.Array]:
    """Returns mean and inverse deviation of each row of `x`: float32 [..., 1] each."""
    x32 = x.astype(jnp.float32)
    mean = jnp.zeros(x.shape[:-1] + (1,), jnp.float32)
    if x.dtype == jnp.float32:
        mean = jnp.mean(x32, axis=-1, keepdims=True) if centre else mean
        variance = jnp.mean(jnp.square(x32 - mean), axis=-1, keepdims=True)
        return mean, jax.lax.rsqrt(variance + eps)

    # Accelerators: both sums in one pass, together with the residual sum before it. The rounding of
    # `x` is coarser than the loss in the difference of squares.
    square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    if centre:
        mean = jnp.mean(x32, axis=-1, keepdims=True)
        square = jnp.maximum(square - jnp.square(mean), 0.0)
    # In memory, or XLA computes them again for each gradient, and writes float32 activations for
    # that.
    return jax.lax.optimization_barrier((mean, jax.lax.rsqrt(square + eps)))


def _normalize_backward(centre, eps, saved, cotangent):
    x, mean, inverse_std, scale, bias = saved
    standard = _standardize(x, mean, inverse_std)
    cotangent32 = cotangent.astype(jnp.float32)

    rows = tuple(range(x.ndim - 1))
    scale_gradient = jnp.sum(cotangent32 * standard, axis=rows)
    bias_gradient = None if bias is None else jnp.sum(cotangent32, axis=rows)

    # The gradient of x has no part along `standard`, nor along the mean.
    inner = cotangent32 * _broadcast(scale, x.ndim)
    slope = jnp.mean(inner * standard, axis=-1, keepdims=True)
    shift = jnp.mean(inner, axis=-1, keepdims=True) if centre else jnp.zeros_like(slope)
    x_gradient = (inner - standard * slope - shift) * inverse_std
    return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


normalize.defvjp(_normalize_forward, _normalize_backward)


class Embeddings(nnx.Module):
    """Tokens, token types and absolute positions, summed; then norm and dropout.

    `tokens` is also the decoder's matrix.
    """

    def __init__(self, cfg, precision: Precision, rngs: nnx.Rngs):
        self.cfg, self.precision = cfg, precision
        normal = jax.nn.initializers.normal(cfg.init_std)
        width = cfg.d_model
        positions = position_scale = token_types = norm = None
        tokens = param(_first_row_zero(normal), rngs, (cfg.vocab_size, width), (ax.VOCAB, ax.EMBED))
        if cfg.positions == "learned":
            shape = (cfg.max_positions, width)
            positions = param(normal, rngs, shape, (ax.POSITION, ax.EMBED))
        if cfg.positions == "scaled_sinusoidal":
            position_scale = param(jax.nn.initializers.constant(width**-0.5), rngs, (), ())
        if cfg.token_types:
            shape = (cfg.token_types, width)
            token_types = param(normal, rngs, shape, (ax.TOKEN_TYPE, ax.EMBED))
        if cfg.embedding_norm:
            norm = Norm(cfg, precision, bias=cfg.norm_bias, rngs=rngs)

        self.tokens = tokens
        self.positions = positions
        self.position_scale = position_scale
        self.token_types = token_types
        self.norm = norm

    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array | None,
        positions: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """tokens, token_types and positions int [batch, length] → [batch, length, embed].

        Dropout is on if there is a key.
        """
        length = tokens.shape[1]
        x = self.tokens[...][tokens].astype(jnp.float32)  # [batch, length, embed]

        # Tables are [length or more, embed], and what is added [1 or batch, length, embed].
        if self.positions is not None:
            table = self.positions[...]
            x = x + (table[:length][None] if positions is None else table[positions])
        elif self.position_scale is not None:
            # A row of several sequences is at least as long as each of them.
            table = sinusoidal_table(length, self.cfg.d_model)
            added = table[None] if positions is None else jnp.asarray(table)[positions]
            x = x + added * self.position_scale[...]
        if self.token_types is not None:
            # Without ids every token is of type 0, as in transformers.
            table = self.token_types[...]
            x = x + (table[:1][None] if token_types is None else table[token_types])

        x = by_rows(x.astype(self.precision.activation_dtype), self.precision)
        x = x if self.norm is None else self.norm(x)
        return dropout(x, self.cfg.dropout, key)


def _first_row_zero(initializer: Initializer) -> Initializer:
    """Returns `initializer` with row 0, the padding token's, at zero.

    The choice is ours, and has no effect on a batch without padding. Cramming's code sets the row
    to zero and draws it again with the output embedding, which is the same matrix; 24hBERT's does
    not set it.
    """

    def initialize(key, shape, dtype):
        return initializer(key, shape, dtype).at[0].set(0.0)

    return initialize


def sinusoidal_table(length: int, width: int) -> np.ndarray:
    """Returns the fixed positions of arXiv 1706.03762, section 3.5: float32 [length, width].

    Sines are on even columns, cosines on odd ones.
    """
    frequencies = np.exp(np.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = np.arange(length)[:, None] * frequencies[None]
    table = np.zeros((length, width), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : width // 2])
    return table


def rotary_tables(
    length: int, head_dim: int, base: float, positions: jax.Array | None = None
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Returns cosines and sines of the rotary angles (arXiv 2104.09864).

    Args:
        length: positions of a sequence.
        head_dim: dimensions of a head.
        base: of the angles' frequencies.
        positions: [batch, length], integers below `length`, or places between them in float32;
            0, 1, 2, … if not given.

    Returns:
        Two of float32 [1 or batch, length, head_dim / 2].
    """
    # float32 on purpose at the frequency, as `transformers` has it: at 8,192 positions a rounder
    # angle is another angle.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    frequencies = (1.0 / base**exponents).astype(np.float32)
    if positions is not None and positions.dtype == jnp.float32:
        angles = positions[..., None] * frequencies[None, None]
        return jnp.cos(angles), jnp.sin(angles)

    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None]
    cosines, sines = np.cos(angles), np.sin(angles)  # [length, head_dim / 2]
    if positions is None:
        return cosines[None], sines[None]
    return jnp.asarray(cosines)[positions], jnp.asarray(sines)[positions]


def rotate(
    x: jax.Array, cosines: jax.Array | np.ndarray, sines: jax.Array | np.ndarray
) -> jax.Array:
    """Returns `x` [batch, length, ..., head_dim] turned by the angles of `rotary_tables`.

    Dimension i is paired with i + head_dim / 2.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    shape = cosines.shape[:2] + (1,) * (x.ndim - 3) + (x.shape[-1] // 2,)
    cosines = jnp.asarray(cosines).reshape(shape)
    sines = jnp.asarray(sines).reshape(shape)
    turned = jnp.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )
    return turned.astype(x.dtype)
