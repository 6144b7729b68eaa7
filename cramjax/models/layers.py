"""Building blocks: matrix products, norms, dropout, positions and embeddings.

Attention is in `attention.py`, the feed-forward in `feedforward.py`. Products take narrow operands and accumulate in float32, in the
backward pass too; norms compute in float32 whatever the activations are stored in.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from cramjax.models import axes as ax
from cramjax.models import int8
from cramjax.models.dropout import dropout
from cramjax.models.int8 import Int8
from cramjax.models.kernels import AttentionCall
from cramjax.models.module import Initializer, param


@dataclasses.dataclass(frozen=True)
class Precision:
    """`activation_dtype`: what is stored between operations; `matmul_dtype`: the operands of matrix products.

    Products accumulate in float32; norms, softmax and logits are float32; parameters are float32 masters. `device`: what the program
    is compiled for, which kernels depend on; None: the first one at hand. `rows`: how the first axis of activations, sequences, lies on
    several devices; None: as it comes. `kernels`: pairs of a call of attention and the kernel measured to be fastest.
    """

    activation_dtype: jnp.dtype
    matmul_dtype: jnp.dtype
    device: jax.Device | None = None
    rows: NamedSharding | None = None
    kernels: tuple[tuple[AttentionCall, str], ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether the program is compiled for a GPU."""
        return (self.device or jax.devices()[0]).platform in ("gpu", "cuda", "rocm")


def by_rows(x: jax.Array, precision: Precision) -> jax.Array:
    """`x` with its first axis as `precision.rows` says and the others wherever they are.

    Where parameters are sharded too, XLA's partitioner would otherwise rather exchange activations than gather a matrix.
    """
    if precision.rows is None:
        return x
    spec = PartitionSpec(*precision.rows.spec, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(precision.rows.mesh, spec))


FLOAT32 = Precision(jnp.dtype("float32"), jnp.dtype("float32"))


def product(
    spec: str, lhs: jax.Array, rhs: jax.Array | Int8, matmul_dtype: jnp.dtype, out_dtype: jnp.dtype
) -> jax.Array:
    """`einsum(spec, lhs, rhs)` with operands in `matmul_dtype`, float32 accumulation, and a result in `out_dtype`.

    `spec` is that of a dense layer, as in "bte,ef->btf": the result has the left operand's own axes and then the right one's. The
    backward pass casts the cotangent to `matmul_dtype`: autodiff alone would multiply narrow operands by a float32 cotangent, which no
    backend is fast at. A `rhs` of whole numbers is multiplied as such.

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
    """The sum over the axes that both have, with a float32 result, and the names of its axes.

    Not `einsum`: that may order the summed axes backwards, which on CPU costs a transposed copy of the operands.
    """
    shared = [axis for axis in left if axis in right]
    dimensions = [left.index(axis) for axis in shared], [right.index(axis) for axis in shared]
    result = jax.lax.dot_general(
        lhs, rhs, (dimensions, ([], [])), preferred_element_type=jnp.float32
    )
    return "".join(axis for axis in left + right if axis not in shared), result


def _product_forward(spec, lhs, rhs, matmul_dtype, out_dtype):
    left, right, out = _split(spec)
    # The casted operands are what is kept: half the memory, and no second cast.
    saved = lhs.astype(matmul_dtype), rhs.astype(matmul_dtype)
    # Empty arrays tell the backward pass the dtypes of the operands; a dtype is no JAX value.
    witnesses = jnp.zeros((0,), lhs.dtype), jnp.zeros((0,), rhs.dtype)
    names, result = _contract(left, saved[0], right, saved[1])
    if names != out:
        raise ValueError(f"{spec!r} is not the product of a dense layer, whose result is {names!r}")
    return result.astype(out_dtype), (saved, witnesses)


def _split(spec):
    operands, out = spec.split("->")
    return *operands.split(","), out


def _product_backward(spec, matmul_dtype, out_dtype, residual, cotangent):
    (lhs, rhs), (lhs_witness, rhs_witness) = residual
    left, right, out = _split(spec)
    cotangent = cotangent.astype(matmul_dtype)
    names, lhs_gradient = _contract(out, cotangent, right, rhs)
    lhs_gradient = jnp.transpose(lhs_gradient, tuple(names.index(axis) for axis in left))
    kept = "".join(axis for axis in left if axis in right)
    summed = "".join(axis for axis in left if axis not in right)
    lhs = pin_on_cpu(jnp.transpose(lhs, tuple(left.index(axis) for axis in kept + summed)))
    names, rhs_gradient = _contract(kept + summed, lhs, out, cotangent)
    rhs_gradient = jnp.transpose(
        pin_on_cpu(rhs_gradient), tuple(names.index(axis) for axis in right)
    )
    return lhs_gradient.astype(lhs_witness.dtype), rhs_gradient.astype(rhs_witness.dtype)


def pin_on_cpu(x: jax.Array) -> jax.Array:
    """`x`, on CPU in memory with its axes in this order.

    XLA folds a transposition into the product before or after it, which is free on GPU and TPU. On CPU the folded product is one without
    a bfloat16 kernel and runs in float32, at half the speed or less. (A tensor axis that shards `x` there is gathered; CPUs have none but
    in tests.)
    """

    def flat(x):
        # A barrier alone keeps the operands apart, but not the axes in order: one axis has one order.
        return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)

    return jax.lax.platform_dependent(x, cpu=flat, default=lambda x: x)


_float_product.defvjp(_product_forward, _product_backward)


class Linear(nnx.Module):
    """A dense layer: `spec` is its einsum, as in "bte,ef->btf"; the axes of a bias are the kernel's that stand in the result."""

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
        operands, out = spec.split("->")
        outer = [i for i, letter in enumerate(operands.split(",")[1]) if letter in out]
        self.bias = (
            param(
                jax.nn.initializers.zeros,
                rngs,
                tuple(shape[i] for i in outer),
                tuple(axes[i] for i in outer),
            )
            if bias
            else None
        )

    def __call__(self, x: jax.Array, part: slice = slice(None)) -> jax.Array:
        """As `spec` says, in the activation dtype; `part` of the kernel's second axis alone, as of fused projections."""
        dtype = self.precision.activation_dtype
        y = by_rows(
            product(self.spec, x, self.kernel[:, part], self.precision.matmul_dtype, dtype),
            self.precision,
        )
        return y if self.bias is None else y + _broadcast(self.bias[part].astype(dtype), y.ndim)


def _broadcast(x: jax.Array, ndim: int) -> jax.Array:
    """`x` with leading axes of size 1: ranks are promoted by hand, since the tests forbid doing it silently."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


class Norm(nnx.Module):
    """LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467) over the last axis, in float32."""

    def __init__(self, cfg, precision: Precision, *, bias: bool, rngs: nnx.Rngs):
        self.kind, self.eps, self.dtype = cfg.norm, cfg.norm_eps, precision.activation_dtype
        self.scale = param(jax.nn.initializers.ones, rngs, (cfg.d_model,), (ax.NORM,))
        self.bias = (
            param(jax.nn.initializers.zeros, rngs, (cfg.d_model,), (ax.NORM,)) if bias else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., embed] → the same, in the activation dtype."""
        bias = None if self.bias is None else self.bias[...]
        return normalize(x, self.scale[...], bias, self.kind == "layernorm", self.eps).astype(
            self.dtype
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, centre: bool, eps: float
) -> jax.Array:
    """`x` [..., embed] divided by its root mean square (after subtracting the mean if `centre`), scaled and shifted.

    The backward pass is written out: from x and two numbers a row it needs two reductions, where autodiff needs five.
    """
    return _normalize_forward(x, scale, bias, centre, eps)[0]


def _standardize(x, mean, inverse_std):
    return (x.astype(jnp.float32) - mean) * inverse_std


def _normalize_forward(x, scale, bias, centre, eps):
    mean, inverse_std = _moments(x, centre, eps)
    y = _standardize(x, mean, inverse_std) * _broadcast(scale, x.ndim)
    if bias is not None:
        y = y + _broadcast(bias, x.ndim)
    return y.astype(x.dtype), (x, mean, inverse_std, scale, bias)


def _moments(x, centre, eps):
    """Mean and inverse deviation of each row of `x`: float32 [..., 1]."""
    wide = x.astype(jnp.float32)
    mean = jnp.zeros(x.shape[:-1] + (1,), jnp.float32)
    if x.dtype == jnp.float32:
        mean = jnp.mean(wide, axis=-1, keepdims=True) if centre else mean
        variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
        return mean, jax.lax.rsqrt(variance + eps)

    # Accelerators: both sums in one pass, together with the residual sum before it. What `x` was rounded to is
    # coarser than what the difference of squares loses.
    square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    if centre:
        mean = jnp.mean(wide, axis=-1, keepdims=True)
        square = jnp.maximum(square - jnp.square(mean), 0.0)
    # In memory, or XLA computes them again for each gradient, and writes float32 activations for it.
    return jax.lax.optimization_barrier((mean, jax.lax.rsqrt(square + eps)))


def _normalize_backward(centre, eps, saved, cotangent):
    x, mean, inverse_std, scale, bias = saved
    standard = _standardize(x, mean, inverse_std)
    wide = cotangent.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    scale_gradient = jnp.sum(wide * standard, axis=rows)
    bias_gradient = None if bias is None else jnp.sum(wide, axis=rows)
    inner = wide * _broadcast(scale, x.ndim)
    slope = jnp.mean(inner * standard, axis=-1, keepdims=True)
    shift = jnp.mean(inner, axis=-1, keepdims=True) if centre else jnp.zeros_like(slope)
    x_gradient = (inner - standard * slope - shift) * inverse_std
    return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


normalize.defvjp(_normalize_forward, _normalize_backward)


class Embeddings(nnx.Module):
    """Tokens, token types and absolute positions, summed; then norm and dropout. `tokens` is also the decoder's matrix."""

    def __init__(self, cfg, precision: Precision, rngs: nnx.Rngs):
        self.cfg, self.precision = cfg, precision
        normal = jax.nn.initializers.normal(cfg.init_std)
        self.tokens = param(
            _first_row_zero(normal), rngs, (cfg.vocab_size, cfg.d_model), (ax.VOCAB, ax.EMBED)
        )
        constant = jax.nn.initializers.constant(cfg.d_model**-0.5)
        self.positions = (
            param(normal, rngs, (cfg.max_positions, cfg.d_model), (ax.POSITION, ax.EMBED))
            if cfg.positions == "learned"
            else None
        )
        self.position_scale = (
            param(constant, rngs, (), ()) if cfg.positions == "scaled_sinusoidal" else None
        )
        self.token_types = (
            param(normal, rngs, (cfg.token_types, cfg.d_model), (ax.TOKEN_TYPE, ax.EMBED))
            if cfg.token_types
            else None
        )
        self.norm = (
            Norm(cfg, precision, bias=cfg.norm_bias, rngs=rngs) if cfg.embedding_norm else None
        )

    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array | None,
        positions: jax.Array | None,
        key: jax.Array | None,
    ) -> jax.Array:
        """tokens, token_types and positions int [batch, length] → [batch, length, embed]; dropout if there is a key."""
        length = tokens.shape[1]
        x = self.tokens[...][tokens].astype(jnp.float32)  # [batch, length, embed]
        if self.positions is not None:
            table = self.positions[...]
            x = x + (table[:length][None] if positions is None else table[positions])
        elif self.position_scale is not None:
            # A row of several sequences is at least as long as each of them.
            table = sinusoidal_table(length, self.cfg.d_model)
            x = (
                x
                + (table[None] if positions is None else jnp.asarray(table)[positions])
                * self.position_scale[...]
            )
        if self.token_types is not None:
            # Without ids every token is of type 0, as in transformers.
            x = x + (
                self.token_types[...][:1][None]
                if token_types is None
                else self.token_types[...][token_types]
            )
        x = by_rows(x.astype(self.precision.activation_dtype), self.precision)
        return dropout(x if self.norm is None else self.norm(x), self.cfg.dropout, key)


def _first_row_zero(initializer):
    """Entry 0 is the padding token, whose row both reference codes set to zero."""

    def initialize(key, shape, dtype):
        return initializer(key, shape, dtype).at[0].set(0.0)

    return initialize


def sinusoidal_table(length: int, width: int) -> np.ndarray:
    """The fixed positions of arXiv 1706.03762, section 3.5: float32 [length, width]; sines on even columns, cosines on odd ones."""
    frequencies = np.exp(np.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = np.arange(length)[:, None] * frequencies[None]
    table = np.zeros((length, width), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles[:, : width // 2])
    return table


def rotary_tables(
    length: int, head_dim: int, base: float, positions: jax.Array | None = None
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Cosines and sines of the rotary angles (arXiv 2104.09864), float32 [1, length, head_dim / 2], or [batch, …] for `positions`.

    `positions` [batch, length]: integers below `length`, or float32, places between them; 0, 1, 2, … if not given.
    """
    # float32 on purpose at the frequency, as `transformers` has it: at 8,192 positions a rounder angle is another angle.
    frequencies = (1.0 / base ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)).astype(
        np.float32
    )
    if positions is not None and positions.dtype == jnp.float32:
        angles = positions[..., None] * frequencies[None, None]
        return jnp.cos(angles), jnp.sin(angles)
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies[None]
    tables = np.cos(angles)[None], np.sin(angles)[None]
    return (
        tables if positions is None else tuple(jnp.asarray(table[0])[positions] for table in tables)
    )


def rotate(x: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """`x` [batch, length, ..., head_dim] turned by the angles of `rotary_tables`; dimension i is paired with i + head_dim / 2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    shape = cosines.shape[:2] + (1,) * (x.ndim - 3) + (x.shape[-1] // 2,)
    cosines, sines = jnp.asarray(cosines).reshape(shape), jnp.asarray(sines).reshape(shape)
    turned = jnp.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )
    return turned.astype(x.dtype)
