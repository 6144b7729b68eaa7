"""The one file that touches the mechanics of Flax NNX.

It declares parameters, stacks blocks, and moves between modules and plain dicts. NNX is used for
`Module`, `Param`, `Rngs` in constructors, `eval_shape`, `split`, `merge`, `state` and the functions
on pure dicts. All transformations of a model are plain JAX on the dicts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from cramjax.models.axes import LAYER, Axes

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]
Tree = dict[str, Any]
M = TypeVar("M", bound=nnx.Module)


def param(
    initializer: Initializer, rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes
) -> nnx.Param:
    """Returns a float32 parameter with its logical axis names.

    The names are metadata of ours, which NNX carries and ignores.

    Raises:
        ValueError: if `axes` does not name every axis of `shape`.
    """
    if len(shape) != len(axes):
        raise ValueError(f"axes {axes} do not fit shape {shape}")
    return nnx.Param(initializer(rngs.params(), shape, jnp.float32), axes=axes)


def stack(build: Callable[[nnx.Rngs], M], n: int, rngs: nnx.Rngs) -> M:
    """Returns `n` modules of one kind as one, whose parameters have a leading `layer` axis.

    Each layer has its own key.
    """
    keys = jax.random.split(rngs.params(), n)
    return jax.vmap(lambda key: build(nnx.Rngs(params=key)))(keys)


def params_of(module: nnx.Module) -> Tree:
    """Returns the parameters as a nested dict of arrays; of an abstract module, of shapes."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def abstract(build: Callable[[nnx.Rngs], M]) -> M:
    """Returns the module that `build` makes, with shapes in place of arrays; costs no memory.

    The module of a `functools.partial` is remembered and shared: it must not be changed.
    """
    if isinstance(build, functools.partial):
        return _remembered(build.func, build.args, tuple(sorted(build.keywords.items())))
    return nnx.eval_shape(lambda: build(nnx.Rngs(params=0)))


# A train step is built from the same few modules a dozen times, which takes a good part of the time
# that tracing it takes. A partial is equal to no other one; what it is made of is.
@functools.lru_cache(maxsize=64)
def _remembered(kind: Callable[..., M], args: tuple[Any, ...], named: tuple[Any, ...]) -> M:
    return nnx.eval_shape(lambda: kind(*args, nnx.Rngs(params=0), **dict(named)))


def axes_of(module: nnx.Module) -> Tree:
    """Returns the tree of `params_of(module)` with logical axis names at each leaf."""

    def names(variable: nnx.Variable) -> Axes:
        # `stack` adds an axis in front, and vmap carries metadata through unchanged.
        return (LAYER,) * (len(variable.shape) - len(variable.axes)) + variable.axes

    return nnx.to_pure_dict(nnx.state(module, nnx.Param), extract_fn=names)


def bind(build: Callable[[nnx.Rngs], M], params: Tree) -> M:
    """Returns the module that `build` makes, holding the arrays of `params`.

    Inside a trace this costs nothing at run time.
    """
    graphdef, state = nnx.split(abstract(build))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)
