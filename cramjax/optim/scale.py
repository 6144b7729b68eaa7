"""Dynamic loss scaling for float16, and the count of steps with non-finite gradients.

float16 has no gradients below 6e-8, so the loss is multiplied by a power of two, which doubles
after a run of good steps and halves on an overflow (arXiv 1710.03740). In other precisions the
scale stays 1, and steps are skipped in the same way.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

# Good steps in a row after which the scale doubles.
GROWTH_INTERVAL = 1000
INITIAL_SCALE = 2.0**15
MAX_SCALE = 2.0**24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossScale:
    """The scale and its history.

    Attributes:
        scale: float32, multiplies the loss.
        good_steps: int32, steps since its last change.
        skipped: int32, updates left out.
        skipped_in_row: int32, updates left out since the last good step.
    """

    scale: jax.Array
    good_steps: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array


def initial_loss_scale(dynamic: bool) -> LossScale:
    """Returns the state at step 0; `dynamic` for float16."""
    zero = jnp.zeros((), jnp.int32)
    scale = INITIAL_SCALE if dynamic else 1.0
    return LossScale(jnp.asarray(scale, jnp.float32), zero, zero, zero)


def next_loss_scale(state: LossScale, finite: jax.Array, dynamic: bool) -> LossScale:
    """Returns the state after a step whose gradients were `finite` (bool scalar)."""
    skipped = state.skipped + jnp.where(finite, 0, 1)
    skipped_in_row = jnp.where(finite, 0, state.skipped_in_row + 1)
    if not dynamic:
        return LossScale(state.scale, state.good_steps, skipped, skipped_in_row)

    good_steps = jnp.where(finite, state.good_steps + 1, 0)
    grow = good_steps >= GROWTH_INTERVAL
    grown = jnp.where(grow, jnp.minimum(state.scale * 2, MAX_SCALE), state.scale)
    scale = jnp.where(finite, grown, jnp.maximum(state.scale / 2, 1.0))
    return LossScale(scale, jnp.where(grow, 0, good_steps), skipped, skipped_in_row)
