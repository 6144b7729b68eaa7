"""The train step: accumulate gradients over a run-time number of microbatches, clip, update; pure, one compilation for all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from cramjax.optim.scale import next_loss_scale
from cramjax.parallel.mesh import DATA, is_of_copies
from cramjax.training.state import TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Any, jax.Array, jax.Array], tuple[TrainState, Metrics]]


class Objective(Protocol):
    """What a step needs to know of a `Task`, or of what is finetuned: the loss, and positions of a row that reach it."""

    n_predicted: int

    def loss(
        self, params: Any, key: jax.Array, batch: Any, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(sum in nats, weight) of a microbatch whose rows have the numbers `rows` int32 [rows] in the batch."""


def make_train_step(
    task: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int | jax.Array,
    clip_norm: float | None,
    dynamic_scale: bool,
    mesh: Mesh | None = None,
    grad_shardings: Any = None,
    noise_scale: bool = False,
) -> TrainStep:
    """The function (state, batch, lr, n_micro) → (state, metrics), to be jitted with the state donated.

    batch: uint16/uint32 [microbatches, rows, seq_len], of which the first `n_micro` (int32) are used, or a tree of arrays with a leading
    microbatch axis and the rows in the second axis of "tokens"; lr: float32.
    The gradient is that of the mean loss over all predicted positions of the batch, however it is cut into microbatches.
    A non-finite gradient leaves parameters and moments as they are and is counted. On a `mesh` of nothing but copies of the network these
    exchange gradients once a step, not once a microbatch (but with `noise_scale`, which compares microbatches). `grad_shardings`: of sums.

    metrics: float32 scalars `loss` (mean, nats), `grad_norm` (before clipping), int32 `skipped`, `skipped_in_row`; with `noise_scale`
    also `noise` and `signal` (`_noise_and_signal`).
    """

    accumulate = functools.partial(_accumulate, task, grad_shardings, noise_scale)
    if mesh is not None and mesh.size > 1 and is_of_copies(mesh) and not noise_scale:
        accumulate = _apart(functools.partial(_accumulate, task, None, False), mesh)

    def step(state, batch, lr, n_micro):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        # Scaled to the mean over a microbatch: in float16 the sum over its positions would overflow.
        unit = state.loss_scale.scale / (_tokens(batch).shape[1] * task.n_predicted)
        loss_sum, weight, gradients, squares = accumulate(state.params, key, batch, n_micro, unit)
        # Scaled once, with the clipping, where the optimizer reads them: a copy in memory is a tenth of a small model's step.
        per_weight = 1.0 / (weight * unit)
        grad_norm = optax.tree.norm(gradients) * per_weight
        finite = jnp.isfinite(grad_norm)
        factor = (
            1.0
            if clip_norm is None
            else jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-12))
        )
        gradients = jax.tree.map(lambda g: g * (factor * per_weight), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p + lr * u, state.params, updates)

        def keep_if_finite(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new_state = TrainState(
            step=state.step + 1,
            params=keep_if_finite(params, state.params),
            opt_state=keep_if_finite(opt_state, state.opt_state),
            loss_scale=next_loss_scale(state.loss_scale, finite, dynamic_scale),
        )
        metrics = {
            "loss": loss_sum / weight,
            "grad_norm": grad_norm,
            "skipped": new_state.loss_scale.skipped,
            "skipped_in_row": new_state.loss_scale.skipped_in_row,
        }
        if noise_scale:
            small = squares * jnp.square(per_weight) * n_micro.astype(jnp.float32)
            rows = jnp.float32(_tokens(batch).shape[1])
            metrics |= _noise_and_signal(
                small, jnp.square(grad_norm), rows, n_micro.astype(jnp.float32)
            )
        return new_state, metrics

    return step


def _noise_and_signal(
    small: jax.Array, big: jax.Array, rows: jax.Array, n_micro: jax.Array
) -> Metrics:
    """Unbiased estimates of the trace of a sequence's gradient covariance and of the true gradient's square norm.

    From the mean square norm `small` of gradients of `rows` sequences and that of their mean, `big` (arXiv 1812.06162, appendix A.1).
    Means of many of these, divided by each other, are the gradient noise scale in sequences; a single pair says little. 0 and 0 where there
    is one microbatch alone.
    """
    apart = jnp.where(n_micro > 1.0, 1.0 / jnp.maximum(n_micro - 1.0, 1.0), 0.0)
    return {
        "noise": (small - big) * rows * n_micro * apart,
        "signal": (n_micro * big - small) * apart,
    }


def _apart(accumulate: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`accumulate` with each copy of the network summing over its own rows, and one exchange of the sums at the end.

    Left to the partitioner, every microbatch's gradients are exchanged, for a BERT-large 1.3 GB each time. Where a mesh shards the network
    as well, it stays with the partitioner: what is apart on one axis alone crashes it (jax 0.10.2).
    """
    by_rows, whole = PartitionSpec(None, DATA), PartitionSpec()
    n_copies = mesh.shape[DATA]

    def local(*arguments):
        sums = accumulate(*arguments, part=(jax.lax.axis_index(DATA), n_copies))
        return jax.lax.psum(sums, DATA)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole, whole, by_rows, whole, whole),
        out_specs=whole,
        check_vma=False,  # gradients are summed by hand
    )


def _accumulate(task, grad_shardings, noise_scale, params, key, batch, n_micro, unit, part=(0, 1)):
    """Sums over the first `n_micro` microbatches: loss in nats, weight, `unit` times the gradient of the loss sum, and its square norms.

    `part`: number of this share of the rows, and how many there are.
    """
    n_micro_max, n_rows = _tokens(batch).shape[:2]
    number, n_parts = part

    def one(index):
        first = (index * n_parts + number) * n_rows
        rows = first + jnp.arange(n_rows, dtype=jnp.int32)

        def scaled_loss(params):
            loss, weight = task.loss(
                params, key, jax.tree.map(lambda leaf: leaf[index], batch), rows
            )
            return loss * unit, (loss, weight)

        (_, (loss, weight)), gradients = jax.value_and_grad(scaled_loss, has_aux=True)(params)
        if (
            grad_shardings is not None
        ):  # under fsdp: reduce-scatter each microbatch instead of keeping whole gradients
            gradients = jax.lax.with_sharding_constraint(gradients, grad_shardings)
        squares = (
            jnp.square(optax.tree.norm(gradients)) if noise_scale else jnp.zeros((), jnp.float32)
        )
        return loss, weight, gradients, squares

    if n_micro_max == 1:
        return one(jnp.zeros((), jnp.int32))
    # A loop with a run-time bound: the batch ramp changes n_micro without a recompilation.
    zero = jnp.zeros((), jnp.float32)
    zeros = (zero, zero, jax.tree.map(jnp.zeros_like, params), zero)
    return jax.lax.fori_loop(0, n_micro, lambda i, sums: jax.tree.map(jnp.add, sums, one(i)), zeros)


def _tokens(batch: Any) -> jax.Array:
    return batch["tokens"] if isinstance(batch, dict) else batch
