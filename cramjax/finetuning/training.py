"""Trains a task for one or several seeds at once: batches, steps, predictions.

Several seeds are one program, under `vmap` over parameters, batches and keys. A small model does
not fill a GPU, which then trains them in the time of one. Programs are kept for the life of the
process, so tasks and seeds with the same shapes compile once.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.finetuning import order
from cramjax.finetuning.classification import EncoderObjective
from cramjax.finetuning.feed import Arrays, Feed
from cramjax.finetuning.protocols import Settings
from cramjax.objectives.objective import FinetuningObjective
from cramjax.optim.build import make_optimizer
from cramjax.optim.scale import initial_loss_scale
from cramjax.training.state import TrainState
from cramjax.training.step import make_train_step

MAX_SKIPPED = 20
"""Updates in a row that may be skipped because gradients are not finite. In float16 the first
updates are skipped until the loss scale fits."""

READ_EVERY = 50
"""Steps whose losses stay on the device before they are read."""

Report = Callable[[int, int, float], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """Jitted functions of an objective, for one seed or for several along a leading axis.

    Attributes:
        init: (key, pretrained parameters) → state.
        step: (state, batch, seed, lr, n_micro) → (state, metrics).
        shapes: shapes of the batches that `step` has met.
    """

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    shapes: set[tuple] = dataclasses.field(default_factory=set)

    def is_new(self, batch: Arrays) -> bool:
        """Returns whether `step` compiles for this batch, because its shape is new."""
        shape = tuple(leaf.shape for leaf in batch.values())
        known = shape in self.shapes
        self.shapes.add(shape)
        return not known


@functools.lru_cache(maxsize=16)
def programs(
    objective: FinetuningObjective,
    optimizer: str,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float | None,
    dynamic_scale: bool,
    together: bool,
) -> Programs:
    """Returns the programs of a `Classification` or a `TextToText` under an optimizer.

    Equal arguments share programs.
    """
    transform = make_optimizer(
        optimizer, objective.axes, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay
    )

    def init(key: jax.Array, trained: Any) -> TrainState:
        params = objective.init(key, trained)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=transform.init(params),
            loss_scale=initial_loss_scale(dynamic_scale),
        )

    def step(
        state: TrainState, batch: Any, seed: jax.Array, lr: jax.Array, n_micro: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        update = make_train_step(
            objective, transform, clip_norm=clip_norm, dynamic_scale=dynamic_scale
        )
        return update(state, batch, seed, lr, n_micro)

    if not together:
        return Programs(init=jax.jit(init), step=jax.jit(step, donate_argnums=0))
    return Programs(
        init=jax.jit(jax.vmap(init, in_axes=(0, None))),
        step=jax.jit(jax.vmap(step, in_axes=(0, 0, 0, None, None)), donate_argnums=0),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of training several seeds; each list has one entry for each seed.

    Attributes:
        params: parameters, with a leading axis of seeds if there are several.
        diverged: whether training ended early, or in a loss that is not finite.
        losses: mean training loss over the last tenth of the steps.
        epoch: the epoch after which the parameters were taken.
        n_steps: optimizer steps.
    """

    params: Any
    diverged: list[bool]
    losses: list[float]
    epoch: list[int]
    n_steps: int


def train(
    feed: Feed,
    objective: FinetuningObjective,
    settings: Settings,
    trained: Any,
    seeds: Sequence[int],
    *,
    dynamic_scale: bool,
    headline: Callable[[int, Any], float] | None = None,
    report: Report = lambda step, n_steps, loss: None,
    compiling: Callable[[], None] = lambda: None,
) -> Trained:
    """Finetune parameters for each of `seeds`. The result is a pure function of the arguments.

    Args:
        trained: the pretrained parameters.
        dynamic_scale: scales the loss, which float16 needs.
        headline: (index of a seed, its parameters) → score, for settings.select "best".
        report: receives (step, total steps, mean loss of the seeds) now and then.
        compiling: is called before the first step with batches of a new shape.
    """
    program = programs_of(objective, settings, dynamic_scale, together=len(seeds) > 1)
    state, seed_array = _initial(program, trained, seeds)
    per_epoch = math.ceil(feed.n_train / settings.batch_size)
    n_steps = min(settings.epochs * per_epoch, settings.max_steps or settings.epochs * per_epoch)
    n_micro = np.int32(settings.batch_size // (settings.microbatch_size or settings.batch_size))

    best = _Best(len(seeds)) if settings.select == "best" and headline else None
    losses = _Losses()
    for step, batch in enumerate(_batches(feed, settings, seeds, n_steps), start=1):
        if program.is_new(batch):
            compiling()
        # The learning rate is that of the share done when the step ends, as in pretraining.
        lr = np.float32(settings.learning_rate(step, n_steps))
        state, metrics = program.step(state, batch, seed_array, lr, n_micro)

        losses.add(metrics)
        if step % READ_EVERY == 0 or step == n_steps:
            loss, is_stuck = losses.read_earlier()
            report(step, n_steps, loss)
            if is_stuck:
                break
        if best and headline and (step % per_epoch == 0 or step == n_steps):
            best.offer(step // per_epoch, state.params, headline)

    final_losses, n_skipped = losses.final()
    diverged = [
        not math.isfinite(loss) or n >= MAX_SKIPPED
        for loss, n in zip(final_losses, n_skipped, strict=True)
    ]
    if best:
        params, epochs = best.params, best.epochs
    else:
        params, epochs = state.params, [settings.epochs] * len(seeds)
    return Trained(
        params=params, diverged=diverged, losses=final_losses, epoch=epochs, n_steps=n_steps
    )


def _initial(program: Programs, trained: Any, seeds: Sequence[int]) -> tuple[TrainState, jax.Array]:
    """Returns the state before the first step, and the seeds as an array, a scalar for one seed."""
    keys = [jax.random.key(seed) for seed in seeds]
    seed_array = jnp.asarray(seeds, jnp.int32)
    if len(seeds) > 1:
        return program.init(jnp.stack(keys), trained), seed_array
    return program.init(keys[0], trained), seed_array[0]


def programs_of(
    objective: FinetuningObjective, settings: Settings, dynamic_scale: bool, together: bool
) -> Programs:
    """Returns the programs of `objective` under the optimizer of `settings`."""
    return programs(
        objective,
        settings.optimizer,
        settings.b1,
        settings.b2,
        settings.eps,
        settings.weight_decay,
        settings.clip_norm,
        dynamic_scale,
        together,
    )


class _Losses:
    """Losses of the steps, and how many updates in a row were skipped, by seed.

    They stay on the device for a period of `READ_EVERY` steps: values read then are ready, and the
    device does not wait for the host.
    """

    def __init__(self) -> None:
        self._steps: list[Any] = []  # (losses, skipped in a row) of each step

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._steps.append((metrics["loss"], metrics["skipped_in_row"]))

    def read_earlier(self) -> tuple[float, bool]:
        """Read the losses of the period before.

        Returns:
            The mean loss over the seeds a period ago, and whether every seed is stuck: it skips
            its updates because its gradients are not finite.
        """
        end = max(0, len(self._steps) - READ_EVERY)
        self._fetch(slice(max(0, end - READ_EVERY), end))
        loss, skipped = self._steps[max(0, end - 1)]
        return float(np.mean(loss)), bool(np.all(np.asarray(skipped) >= MAX_SKIPPED))

    def final(self) -> tuple[list[float], np.ndarray]:
        """Returns the mean loss over the last tenth and the last count of skips, by seed."""
        self._fetch(slice(0, len(self._steps)))
        table = np.stack([np.atleast_1d(loss) for loss, _ in self._steps])  # [steps, seeds]
        n_last = max(1, len(table) // 10)
        means = table[-n_last:].mean(axis=0)
        return [float(mean) for mean in means], np.atleast_1d(self._steps[-1][1])

    def _fetch(self, part: slice) -> None:
        self._steps[part] = jax.device_get(self._steps[part])


class _Best:
    """The parameters with the best score so far, for each seed."""

    def __init__(self, n_seeds: int):
        self.params: Any = None
        self.epochs = [0] * n_seeds
        self._scores = [-math.inf] * n_seeds

    def offer(self, epoch: int, params: Any, headline: Callable[[int, Any], float]) -> None:
        """Score `params` and keep those of the seeds that got better."""
        n_seeds = len(self.epochs)
        better = np.zeros(n_seeds, bool)
        for index in range(n_seeds):
            score = headline(index, of_seed(params, index, n_seeds))
            # A score that is not a number counts as the worst.
            if self.params is None or score > self._scores[index]:
                better[index] = True
                self._scores[index] = score
                self.epochs[index] = epoch

        if self.params is None or better.all():
            # The next step donates the arrays themselves, so copies are kept.
            self.params = jax.tree.map(jnp.copy, params)
        elif better.any():

            def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
                # [seeds] → [seeds, 1, 1, …], to choose along the leading axis.
                is_better = better.reshape((-1,) + (1,) * (new.ndim - 1))
                return jnp.where(is_better, new, old)

            self.params = jax.tree.map(chosen, params, self.params)


def of_seed(params: Any, index: int, n_seeds: int) -> Any:
    """Returns the parameters of one of `n_seeds` seeds that were trained together."""
    if n_seeds == 1:
        return params
    return jax.tree.map(lambda leaf: leaf[index], params)


@functools.lru_cache(maxsize=16)
def predictor(objective: FinetuningObjective) -> Callable[..., jax.Array]:
    """Returns the jitted `predict` of an objective; equal objectives share it."""
    return jax.jit(objective.predict)


@functools.lru_cache(maxsize=16)
def evaluator(objective: EncoderObjective) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the jitted `evaluate` of an objective; equal objectives share it."""
    return jax.jit(objective.evaluate)


def predict(
    objective: FinetuningObjective, params: Any, batches: Sequence[Arrays]
) -> list[np.ndarray]:
    """Returns the outputs for each batch, with the parameters of one seed."""
    function = predictor(objective)
    # All batches are dispatched before the first output is read.
    outputs = [function(params, batch) for batch in batches]
    return [np.asarray(output) for output in outputs]


def _batches(
    feed: Feed, settings: Settings, seeds: Sequence[int], n_steps: int
) -> Iterator[Arrays]:
    """Yields the batch of each step, shaped [microbatches, …], or [seeds, microbatches, …].

    All microbatches have one shape: the smallest that fits every microbatch of every seed.
    """
    orders = [order.batches(feed, settings, seed) for seed in seeds]
    size = settings.microbatch_size or settings.batch_size
    n_micro = settings.batch_size // size
    for _ in range(n_steps):
        plans = []  # [seeds][microbatches]
        for batches_of_seed in orders:
            examples = next(batches_of_seed).tolist()
            # Neighbours are of like length, so each microbatch gets one of them.
            parts = [examples[number::n_micro] for number in range(n_micro)]
            plans.append([feed.plan(part, fitted=settings.group_by_length) for part in parts])

        needs = np.asarray([plan.need for plan in itertools.chain(*plans)])
        need = tuple(needs.max(axis=0).tolist())
        batches = []
        for seed_plans in plans:
            microbatches = [feed.arrays(plan, need, size) for plan in seed_plans]
            batches.append(_stacked(microbatches))
        yield batches[0] if len(batches) == 1 else _stacked(batches)


def _stacked(batches: Sequence[Arrays]) -> Arrays:
    """Returns the arrays of several batches along a new leading axis."""
    stacked = {}
    for name in batches[0]:
        stacked[name] = np.stack([batch[name] for batch in batches])
    return stacked
