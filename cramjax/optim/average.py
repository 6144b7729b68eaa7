"""A trailing mean of the parameters, which is evaluated and loaded in their place.

It smooths what the last steps of a high learning rate leave noisy (arXiv 1803.05407; tail averages
in arXiv 2306.03241).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AveragedState(NamedTuple):
    """The state of an optimizer, and the mean so far.

    Attributes:
        inner: of the optimizer.
        n_averaged: int32, the parameters that the mean has seen.
        average: float32, a tree like the parameters. Checkpoints are read by this name.
    """

    inner: Any
    n_averaged: jax.Array
    average: Any


def with_trailing_average(
    optimizer: optax.GradientTransformation, horizon: int
) -> optax.GradientTransformation:
    """Returns `optimizer`, with a mean of the parameters in its state.

    The mean has equal weights over the first `horizon` steps. From then on it is exponential, and
    each step has the share 1 / horizon in it. It is of the parameters before each update.
    """

    def init(params: Any) -> Any:
        zero = jnp.zeros((), jnp.int32)
        return AveragedState(optimizer.init(params), zero, jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AveragedState]:
        updates, inner = optimizer.update(updates, state.inner, params)
        n_averaged = jnp.asarray(optax.safe_increment(state.n_averaged))
        share = 1.0 / jnp.minimum(n_averaged, horizon).astype(jnp.float32)
        average = jax.tree.map(lambda old, new: old + share * (new - old), state.average, params)
        return updates, AveragedState(inner, n_averaged, average)

    return optax.GradientTransformation(init, update)


def average_of(opt_state: Any) -> Any | None:
    """Returns the mean in an optimizer's state, a tree like the parameters; None if it has none."""
    return opt_state.average if isinstance(opt_state, AveragedState) else None
