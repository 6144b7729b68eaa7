"""The state of training: plain nested dicts of arrays, born sharded.

Neither the state nor a checkpoint holds anything of a model class.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from cramjax.models import network
from cramjax.objectives.objective import PretrainingObjective, TallyingObjective
from cramjax.optim.average import average_of
from cramjax.optim.scale import LossScale, initial_loss_scale
from cramjax.parallel import mesh as meshes
from cramjax.parallel import rules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: int32 scalar, the steps done.
        params: float32.
        opt_state: the optimizer's.
        loss_scale: also counts skipped updates.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    loss_scale: LossScale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TalliedState(TrainState):
    """The state of a `TallyingObjective`; checkpoints of the others have no such entry.

    Attributes:
        tally: what the objective has seen.
    """

    tally: Any


def tally_of(state: TrainState) -> Any | None:
    """Returns the tally of a state, or None if its objective keeps none."""
    return state.tally if isinstance(state, TalliedState) else None


def averaged(state: TrainState) -> TrainState:
    """Returns the state with the trailing mean of its parameters in their place, if it has one."""
    average = average_of(state.opt_state)
    return state if average is None else dataclasses.replace(state, params=average)


def initial(
    objective: PretrainingObjective,
    optimizer: optax.GradientTransformation,
    dynamic_scale: bool,
    key: jax.Array,
) -> TrainState:
    """Returns the state at step 0, a pure function of `key`."""
    params = network.init_params(objective.network, key)
    fields = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": optimizer.init(params),
        "loss_scale": initial_loss_scale(dynamic_scale),
    }
    if isinstance(objective, TallyingObjective):
        return TalliedState(**fields, tally=objective.initial_tally())
    return TrainState(**fields)


def abstract_state(
    objective: PretrainingObjective,
    optimizer: optax.GradientTransformation,
    dynamic_scale: bool,
    mesh: Mesh,
) -> TrainState:
    """Returns shapes, dtypes and shardings of the state, as ShapeDtypeStructs.

    A checkpoint is restored into it.
    """
    shapes = jax.eval_shape(
        lambda key: initial(objective, optimizer, dynamic_scale, key), jax.random.key(0)
    )

    # Shardings stand in the places of arrays.
    replicated: Any = meshes.replicated(mesh)
    axes = network.param_axes(objective.network)
    params = rules.param_shardings(axes, shapes.params, mesh)
    shardings = dataclasses.replace(
        jax.tree.map(lambda _: replicated, shapes),
        params=params,
        opt_state=rules.optimizer_shardings(optimizer, shapes.params, params, mesh),
    )

    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def initial_state(
    objective: PretrainingObjective,
    optimizer: optax.GradientTransformation,
    dynamic_scale: bool,
    abstract: TrainState,
    seed: int,
) -> TrainState:
    """Returns the state at step 0, a function of `seed` alone; each device makes only its shards.

    `abstract` is as from `abstract_state`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # The seed is an argument, so that other seeds find the compiled program.
    make = jax.jit(
        lambda seed: initial(objective, optimizer, dynamic_scale, jax.random.key(seed)),
        out_shardings=shardings,
    )
    return make(np.uint32(seed))
