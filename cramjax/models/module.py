"""The only file that touches the mechanics of Flax NNX: declare parameters, stack blocks, go between modules and plain dicts.

Modules are written in NNX, held as nested dicts of arrays and transformed by plain JAX: dispatching a jitted step over a dict costs 60 µs where
`nnx.jit` over the module costs 20,000 (docs/benchmarks.md), and nothing of a module class ends up on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cramjax.models.axes import LAYER, Axes

Tree = dict[str, Any]
# Builds a module from a PRNG key; hashable, so that its structure is traced once.
Constructor = Callable[[jax.Array], nnx.Module]


def normal(key: jax.Array, shape: tuple[int, ...], axes: Axes, std: float) -> nnx.Param:
    """A parameter drawn from N(0, std²), float32, with its axis names attached."""
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32), logical_axes=axes)


def constant(value: float, shape: tuple[int, ...], axes: Axes) -> nnx.Param:
    """A parameter that starts at `value`, float32, with its axis names attached."""
    return nnx.Param(jnp.full(shape, value, jnp.float32), logical_axes=axes)


def stack(constructor: Constructor, key: jax.Array, n: int) -> nnx.Module:
    """`n` modules with keys split from `key` as one, every parameter with a leading `layer` axis."""
    return jax.vmap(constructor)(jax.random.split(key, n))


def init(constructor: Constructor, key: jax.Array) -> Tree:
    """The parameters of a new module as a nested dict."""
    return nnx.to_pure_dict(nnx.state(constructor(key), nnx.Param))


@functools.lru_cache(maxsize=32)
def _abstract_module(constructor: Constructor) -> nnx.Module:
    return nnx.eval_shape(lambda: constructor(jax.random.key(0)))


def abstract(constructor: Constructor) -> Tree:
    """The same dict with a ShapeDtypeStruct for each parameter; nothing is allocated."""
    state = nnx.to_pure_dict(nnx.state(_abstract_module(constructor), nnx.Param))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def axes(constructor: Constructor) -> Tree:
    """The same dict with the tuple of axis names of each parameter; stacked ones start with `layer`."""

    def names(variable: nnx.Variable) -> Axes:
        declared = variable.get_metadata()["logical_axes"]
        return (LAYER,) * (len(variable.get_value().shape) - len(declared)) + declared

    state = nnx.state(_abstract_module(constructor), nnx.Param)
    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(names, state, is_leaf=is_variable), extract_fn=lambda leaf: leaf)


def bind(constructor: Constructor, params: Tree) -> Any:
    """The module with `params` as its parameters, for the length of a trace."""
    graph, state = nnx.split(_abstract_module(constructor))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
