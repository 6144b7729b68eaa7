"""The train step: accumulate gradients over microbatches, clip, update.

It is a pure function, compiled once: the seed and the number of microbatches are arguments at run
time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from cramjax.objectives.objective import Objective, TallyingObjective
from cramjax.optim.scale import next_loss_scale
from cramjax.parallel.mesh import DATA, is_of_copies
from cramjax.training.state import TalliedState, TrainState, tally_of

Metrics = dict[str, jax.Array]
# Loss in nats, weight, gradients, their square norm, and the counts of a `TallyingObjective`.
Sums = tuple[jax.Array, jax.Array, Any, jax.Array, Any]

TrainStep = Callable[[TrainState, Any, jax.Array, jax.Array, jax.Array], tuple[TrainState, Metrics]]
"""(state, batch, seed, lr, n_micro) → (state, metrics), to be jitted with the state donated.

batch: uint16 or uint32 [microbatches, rows, tokens], or a tree of arrays with a leading microbatch
axis and the rows in the second axis of "tokens"; its first `n_micro` (int32) microbatches are used.
seed: uint32; the key of a step is a function of it and the step's number. As an argument it leaves
one program for all seeds. lr: float32.

Metrics are scalars: float32 `loss` (mean, nats) and `grad_norm` (before clipping), int32 `skipped`
and `skipped_in_row`; with `noise_scale` also float32 `noise` and `signal` (`_noise_and_signal`).
"""


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    clip_norm: float | None,
    dynamic_scale: bool,
    mesh: Mesh | None = None,
    grad_shardings: Any = None,
    noise_scale: bool = False,
) -> TrainStep:
    """Returns the train step.

    The gradient is that of the mean loss over all predicted positions of the batch, however it is
    cut into microbatches. A gradient that is not finite leaves parameters and moments as they are,
    and is counted.

    Args:
        objective: gives the loss.
        optimizer: gives the updates, which the learning rate multiplies.
        clip_norm: the largest norm of the gradient; None for no limit.
        dynamic_scale: whether the loss is scaled, for float16.
        mesh: the devices. If they hold nothing but copies of the network, they exchange gradients
            once a step, not once a microbatch, except with `noise_scale`.
        grad_shardings: of summed gradients, a tree like the parameters.
        noise_scale: whether microbatches are compared.
    """
    accumulate = functools.partial(_accumulate, objective, grad_shardings, noise_scale)
    if mesh is not None and mesh.size > 1 and is_of_copies(mesh) and not noise_scale:
        accumulate = _apart(functools.partial(_accumulate, objective, None, False), mesh)

    def step(state, batch, seed, lr, n_micro):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        # Scaled to the mean over a microbatch: in float16 the sum over its positions would
        # overflow.
        n_rows = _tokens(batch).shape[1]
        unit = state.loss_scale.scale / (n_rows * objective.n_predicted)
        sums = accumulate(state.params, key, batch, n_micro, unit, tally_of(state))
        loss_sum, weight, gradients, squares, counts = sums

        per_weight = 1.0 / (weight * unit)
        grad_norm = optax.tree.norm(gradients) * per_weight
        finite = jnp.isfinite(grad_norm)
        gradients = _scaled(gradients, per_weight, grad_norm, clip_norm)
        new_state = _updated(state, optimizer, gradients, lr, finite, dynamic_scale)
        new_state = _tallied(new_state, objective, counts, finite)

        metrics = {
            "loss": loss_sum / weight,
            "grad_norm": grad_norm,
            "skipped": new_state.loss_scale.skipped,
            "skipped_in_row": new_state.loss_scale.skipped_in_row,
        }
        if noise_scale:
            small = squares * jnp.square(per_weight) * n_micro.astype(jnp.float32)
            metrics |= _noise_and_signal(small, jnp.square(grad_norm), n_rows, n_micro)
        return new_state, metrics

    return step


def _scaled(
    gradients: Any, per_weight: jax.Array, grad_norm: jax.Array, clip_norm: float | None
) -> Any:
    """Returns the sums `gradients` as means, with a norm of at most `clip_norm`.

    They are multiplied once, where the optimizer reads them: a copy in memory is a tenth of a small
    model's step.
    """
    factor = 1.0
    if clip_norm is not None:
        factor = jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-12))
    return jax.tree.map(lambda g: g * (factor * per_weight), gradients)


def _updated(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    gradients: Any,
    lr: jax.Array,
    finite: jax.Array,
    dynamic_scale: bool,
) -> TrainState:
    """Returns the next state; without `finite` gradients, parameters and moments stay."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + lr * u, state.params, updates)

    def keep_if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=keep_if_finite(params, state.params),
        opt_state=keep_if_finite(opt_state, state.opt_state),
        loss_scale=next_loss_scale(state.loss_scale, finite, dynamic_scale),
    )


def _tallied(state: TrainState, objective: Objective, counts: Any, finite: jax.Array) -> TrainState:
    """Returns `state` with the counts of a step in its tally, if it has one."""
    if not isinstance(state, TalliedState):
        return state
    assert isinstance(objective, TallyingObjective)
    tally = objective.next_tally(state.tally, counts)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), tally, state.tally)
    return dataclasses.replace(state, tally=kept)


def _noise_and_signal(small: jax.Array, big: jax.Array, n_rows: int, n_micro: jax.Array) -> Metrics:
    """Returns unbiased estimates of the gradient's noise and signal.

    See arXiv 1812.06162, appendix A.1. "noise" is the trace of the covariance of a sequence's
    gradient, "signal" the square norm of the true gradient. Means of many of these, divided by each
    other, are the gradient noise scale in sequences; a single pair says little. With one microbatch
    both are 0.

    Args:
        small: mean square norm of the gradients of microbatches.
        big: square norm of their mean.
        n_rows: sequences of a microbatch.
        n_micro: int32 scalar, the number of microbatches.
    """
    n_micro = n_micro.astype(jnp.float32)
    apart = jnp.where(n_micro > 1.0, 1.0 / jnp.maximum(n_micro - 1.0, 1.0), 0.0)
    return {
        "noise": (small - big) * jnp.float32(n_rows) * n_micro * apart,
        "signal": (n_micro * big - small) * apart,
    }


def _apart(accumulate: Callable[..., Sums], mesh: Mesh) -> Callable[..., Sums]:
    """Returns `accumulate` with each copy of the network summing over its own rows.

    The sums are exchanged once, at the end. Left to the partitioner, every microbatch's gradients
    are exchanged, for a BERT-large 1.3 GB each time. Where a mesh shards the network as well, it
    stays with the partitioner: a program that is apart on one axis alone crashes it (jax 0.10.2).
    """
    by_rows, replicated = PartitionSpec(None, DATA), PartitionSpec()
    n_copies = mesh.shape[DATA]

    def local(*arguments):
        sums = accumulate(*arguments, part=(jax.lax.axis_index(DATA), n_copies))
        return jax.lax.psum(sums, DATA)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(replicated, replicated, by_rows, replicated, replicated, replicated),
        out_specs=replicated,
        check_vma=False,  # gradients are summed by hand
    )


def _accumulate(
    objective: Objective,
    grad_shardings: Any,
    noise_scale: bool,
    params: Any,
    key: jax.Array,
    batch: Any,
    n_micro: jax.Array,
    unit: jax.Array,
    tally: Any,
    part: tuple[Any, int] = (0, 1),
) -> Sums:
    """Returns sums over the first `n_micro` microbatches.

    They are: loss in nats, weight, `unit` times the gradient of the loss sum, its square norms, and
    the counts of an objective with a `tally`.
    `part` is the number of this share of the rows, and how many shares there are.
    """
    n_micro_max, n_rows = _tokens(batch).shape[:2]
    number, n_parts = part

    def one(index: jax.Array) -> Sums:
        first = (index * n_parts + number) * n_rows
        rows = first + jnp.arange(n_rows, dtype=jnp.int32)

        def scaled_loss(params):
            microbatch = jax.tree.map(lambda leaf: leaf[index], batch)
            counts = None
            if tally is None:
                loss, weight = objective.loss(params, key, microbatch, rows)
            else:
                assert isinstance(objective, TallyingObjective)
                loss, weight, counts = objective.tallied_loss(params, key, microbatch, rows, tally)
            return loss * unit, (loss, weight, counts)

        (_, (loss, weight, counts)), gradients = jax.value_and_grad(scaled_loss, has_aux=True)(
            params
        )
        if grad_shardings is not None:
            # Under fsdp: reduce-scatter each microbatch instead of keeping whole gradients.
            gradients = jax.lax.with_sharding_constraint(gradients, grad_shardings)
        if noise_scale:
            squares = jnp.square(optax.tree.norm(gradients))
        else:
            squares = jnp.zeros((), jnp.float32)
        return loss, weight, gradients, squares, counts

    if n_micro_max == 1:
        return one(jnp.zeros((), jnp.int32))
    # A loop with a run-time bound: the batch ramp changes n_micro without a recompilation.
    zero = jnp.zeros((), jnp.float32)
    no_counts = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.int32), tally)
    zeros = (zero, zero, jax.tree.map(jnp.zeros_like, params), zero, no_counts)
    return jax.lax.fori_loop(0, n_micro, lambda i, sums: jax.tree.map(jnp.add, sums, one(i)), zeros)


def _tokens(batch: Any) -> jax.Array:
    return batch["tokens"] if isinstance(batch, dict) else batch
