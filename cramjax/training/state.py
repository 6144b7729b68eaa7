"""The state of training: plain nested dicts of arrays, born sharded; nothing of a model class is in it or on disk."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from cramjax.objectives.objective import Task
from cramjax.optim.scale import LossScale, initial_loss_scale
from cramjax.parallel import mesh as meshes
from cramjax.parallel import rules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """`step` int32 scalar; `params` float32; `opt_state` of the optimizer; `loss_scale` with the count of skipped updates."""

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    loss_scale: LossScale


def initial(
    task: Task, optimizer: optax.GradientTransformation, dynamic_scale: bool, key: jax.Array
) -> TrainState:
    """The state at step 0, a pure function of `key`."""
    params = task.init(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        loss_scale=initial_loss_scale(dynamic_scale),
    )


def abstract_state(
    task: Task, optimizer: optax.GradientTransformation, dynamic_scale: bool, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, as ShapeDtypeStructs: what init makes and a checkpoint is restored into."""
    shapes = jax.eval_shape(
        lambda key: initial(task, optimizer, dynamic_scale, key), jax.random.key(0)
    )
    whole = meshes.replicated(mesh)
    params = rules.param_shardings(task.axes, shapes.params, mesh)
    shardings = TrainState(
        step=whole,
        params=params,
        opt_state=rules.optimizer_shardings(optimizer, shapes.params, params, mesh),
        loss_scale=jax.tree.map(lambda _: whole, shapes.loss_scale),
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def initial_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    dynamic_scale: bool,
    abstract: TrainState,
    seed: int,
) -> TrainState:
    """The state at step 0, a function of `seed` alone; each device makes only its own shards."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    make = jax.jit(
        lambda: initial(task, optimizer, dynamic_scale, jax.random.key(seed)),
        out_shardings=shardings,
    )
    return make()
