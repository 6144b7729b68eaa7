"""A trailing mean of the parameters, which is evaluated and saved in place of the last ones.

It smooths what the last steps of a high learning rate leave noisy (arXiv 1803.05407; tail averages
in arXiv 2306.03241).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageState(NamedTuple):
    """The mean so far.

    Attributes:
        n_averaged: int32, the parameters that it has seen.
        average: float32, a tree like the parameters.
    """

    n_averaged: jax.Array
    average: Any


def trailing_average(horizon: int) -> optax.GradientTransformation:
    """Returns a transformation that changes no update and keeps a mean of the parameters.

    The mean has equal weights over the first `horizon` steps. From then on it is exponential, and
    each step has the share 1 / horizon in it. It is of the parameters before each update.
    """

    def init(params: Any) -> Any:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AverageState]:
        n_averaged = jnp.asarray(optax.safe_increment(state.n_averaged))
        share = 1.0 / jnp.minimum(n_averaged, horizon).astype(jnp.float32)
        average = jax.tree.map(lambda old, new: old + share * (new - old), state.average, params)
        return updates, AverageState(n_averaged, average)

    return optax.GradientTransformation(init, update)


def average_of(opt_state: Any) -> Any | None:
    """Returns the mean in an optimizer's state, a tree like the parameters; None if it has none."""
    return optax.tree.get(opt_state, "average", None)
