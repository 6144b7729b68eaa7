"""The only file that touches the mechanics of Flax NNX: declare parameters, stack blocks, move between modules and plain dicts.

Used of NNX: `Module`, `Param`, `Rngs` in constructors, `eval_shape`, `split`, `merge`, `state` and the pure-dict functions. What
transforms a model is plain JAX on the dicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cramjax.models.axes import LAYER, Axes

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
Tree = dict[str, Any]


def param(
    initializer: Initializer, rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes
) -> nnx.Param:
    """A float32 parameter with its logical axis names; they are our own metadata, which NNX carries and ignores.

    Raises:
        ValueError: if `axes` does not name every axis of `shape`.
    """
    if len(shape) != len(axes):
        raise ValueError(f"axes {axes} do not fit shape {shape}")
    return nnx.Param(initializer(rngs.params(), shape, jnp.float32), axes=axes)


def stack(build: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> nnx.Module:
    """`n` modules of one kind as one module whose parameters have a leading `layer` axis, each layer with its own key."""
    keys = jax.random.split(rngs.params(), n)
    return jax.vmap(lambda key: build(nnx.Rngs(params=key)))(keys)


def params_of(module: nnx.Module) -> Tree:
    """The parameters of `module` as a nested dict of arrays (or of ShapeDtypeStructs where the module is abstract)."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def abstract(build: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """The module `build` makes with shapes in place of arrays; costs no memory."""
    return nnx.eval_shape(lambda: build(nnx.Rngs(params=0)))


def axes_of(module: nnx.Module) -> Tree:
    """The tree of `params_of(module)` with a tuple of logical axis names at each leaf."""

    def names(variable):
        # `stack` adds an axis in front, and vmap carries metadata through unchanged.
        return (LAYER,) * (len(variable.shape) - len(variable.axes)) + variable.axes

    return nnx.to_pure_dict(nnx.state(module, nnx.Param), extract_fn=names)


def bind(build: Callable[[nnx.Rngs], nnx.Module], params: Tree) -> nnx.Module:
    """The module `build` makes, holding the arrays of `params`; inside a trace this costs nothing at run time."""
    graphdef, state = nnx.split(abstract(build))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)
