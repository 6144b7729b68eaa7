"""Training a task for one or several seeds at once: batches, steps, evaluation.

Several seeds are one program, `vmap`ped over parameters, batches and keys: a GPU that a small model does not fill does them in the time
of one. Programs are kept for the process, so tasks and seeds of like shapes compile once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.budget.schedules import multiplier
from cramjax.finetuning.feed import Arrays, Feed
from cramjax.finetuning.protocols import Settings
from cramjax.optim.build import make_optimizer
from cramjax.optim.scale import initial_loss_scale
from cramjax.training.state import TrainState
from cramjax.training.step import make_train_step

# Updates in a row that may be skipped for gradients that are not finite; in float16 the first ones find the loss scale.
MAX_SKIPPED = 20
# Steps whose losses wait on the device before they are read, so that none waits for the next.
READ_EVERY = 50

Report = Callable[[int, int, float], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """Jitted functions of a learner, for one seed or `together` over a leading axis of seeds.

    init(keys, trained) → state. step(state, batch, seeds, lr, n_micro) → (state, metrics).
    """

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    shapes: set[tuple] = dataclasses.field(default_factory=set)

    def is_new(self, batch: Arrays) -> bool:
        """Whether `step` meets a batch of this shape for the first time, and compiles for it."""
        shape = tuple(leaf.shape for leaf in batch.values())
        known = shape in self.shapes
        self.shapes.add(shape)
        return not known


@functools.lru_cache(maxsize=16)
def programs(
    learner: Any,
    optimizer: str,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float | None,
    dynamic_scale: bool,
    together: bool,
) -> Programs:
    """The programs of `learner` (a `Classification` or a `TextToText`) under an optimizer; the same ones for the same arguments."""
    transform = make_optimizer(
        optimizer, learner.axes, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay
    )

    def init(key, trained):
        params = learner.init(key, trained)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=transform.init(params),
            loss_scale=initial_loss_scale(dynamic_scale),
        )

    def step(state, batch, seed, lr, n_micro):
        update = make_train_step(
            learner, transform, seed=seed, clip_norm=clip_norm, dynamic_scale=dynamic_scale
        )
        return update(state, batch, lr, n_micro)

    if not together:
        return Programs(init=jax.jit(init), step=jax.jit(step, donate_argnums=0))
    return Programs(
        init=jax.jit(jax.vmap(init, in_axes=(0, None))),
        step=jax.jit(jax.vmap(step, in_axes=(0, 0, 0, None, None)), donate_argnums=0),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of the seeds, each list one entry a seed.

    params: of the leading seed axis, if there are several seeds, else of the one. diverged: training ended early or in something that is
    no number. losses: mean training loss over the last tenth of the steps. epoch: whose parameters these are.
    """

    params: Any
    diverged: list[bool]
    losses: list[float]
    epoch: list[int]
    n_steps: int


def train(
    feed: Feed,
    learner: Any,
    settings: Settings,
    trained: Any,
    seeds: Sequence[int],
    *,
    dynamic_scale: bool,
    headline: Callable[[int, Any], float] | None = None,
    report: Report = lambda step, n_steps, loss: None,
    compiling: Callable[[], None] = lambda: None,
) -> Trained:
    """Finetune `trained` for each of `seeds`, a pure function of what is given.

    Args:
        headline: (index of a seed, its params) → score, for settings.select "best".
        report: told (step, steps in all, mean loss of the seeds) now and then. compiling: called before a shape's first step.
    """
    together = len(seeds) > 1
    program = programs_of(learner, settings, dynamic_scale, together)
    keys = [jax.random.key(seed) for seed in seeds]
    seed_array = jnp.asarray(seeds, jnp.int32)
    state = program.init(jnp.stack(keys) if together else keys[0], trained)
    numbers = seed_array if together else seed_array[0]
    n_micro = np.int32(settings.batch_size // (settings.microbatch_size or settings.batch_size))
    per_epoch = math.ceil(feed.n_train / settings.batch_size)
    n_steps = min(settings.epochs * per_epoch, settings.max_steps or settings.epochs * per_epoch)
    best = _Best(len(seeds)) if settings.select == "best" and headline else None
    losses: list[Any] = []
    for index, batch in enumerate(_batches(feed, settings, seeds, n_steps)):
        # The learning rate is that of the share done when the step ends, as in pretraining.
        fraction = (index + 1) / n_steps
        share = multiplier(
            settings.schedule, fraction, warmup=settings.warmup, final=settings.final
        )
        if program.is_new(batch):
            compiling()
        state, metrics = program.step(
            state, batch, numbers, np.float32(settings.lr * share), n_micro
        )
        losses.append((metrics["loss"], metrics["skipped_in_row"]))
        if len(losses) % READ_EVERY == 0 or index + 1 == n_steps:
            # One period behind: what is read is done already.
            _read(losses, slice(max(0, len(losses) - 2 * READ_EVERY), len(losses) - READ_EVERY))
            read = losses[max(0, len(losses) - READ_EVERY - 1)]
            report(index + 1, n_steps, float(np.mean(read[0])))
            if np.all(np.asarray(read[1]) >= MAX_SKIPPED):
                break
        if best and ((index + 1) % per_epoch == 0 or index + 1 == n_steps):
            best.offer((index + 1) // per_epoch, state.params, headline)
    _read(losses, slice(0, len(losses)))
    loss_table = np.stack([np.atleast_1d(loss) for loss, _ in losses])  # [steps, seeds]
    skipped = np.atleast_1d(losses[-1][1])
    tail = loss_table[-max(1, len(loss_table) // 10) :].mean(axis=0)
    return Trained(
        params=best.params if best else state.params,
        diverged=[
            not math.isfinite(loss) or n >= MAX_SKIPPED
            for loss, n in zip(tail, skipped, strict=True)
        ],
        losses=[float(loss) for loss in tail],
        epoch=best.epochs if best else [settings.epochs] * len(seeds),
        n_steps=n_steps,
    )


def programs_of(learner: Any, settings: Settings, dynamic_scale: bool, together: bool) -> Programs:
    """The programs of `learner` under the optimizer of `settings`."""
    return programs(
        learner,
        settings.optimizer,
        settings.b1,
        settings.b2,
        settings.eps,
        settings.weight_decay,
        settings.clip_norm,
        dynamic_scale,
        together,
    )


class _Best:
    """The parameters with the best score so far, for each seed."""

    def __init__(self, n_seeds: int):
        self.params: Any = None
        self.epochs, self._scores = [0] * n_seeds, [-math.inf] * n_seeds

    def offer(self, epoch: int, params: Any, headline: Callable[[int, Any], float]) -> None:
        n_seeds = len(self.epochs)
        better = np.zeros(n_seeds, bool)
        for index in range(n_seeds):
            score = headline(index, of_seed(params, index, n_seeds))
            # A score that is no number is the worst.
            if self.params is None or score > self._scores[index]:
                better[index], self._scores[index], self.epochs[index] = True, score, epoch
        if self.params is None or better.all():
            self.params = jax.tree.map(
                jnp.copy, params
            )  # the step takes the arrays themselves away
        elif better.any():
            self.params = jax.tree.map(
                lambda new, old: jnp.where(better.reshape((-1,) + (1,) * (new.ndim - 1)), new, old),
                params,
                self.params,
            )


def of_seed(params: Any, index: int, n_seeds: int) -> Any:
    """The parameters of one seed of several, or of the only one."""
    return params if n_seeds == 1 else jax.tree.map(lambda leaf: leaf[index], params)


@functools.lru_cache(maxsize=16)
def predictor(learner: Any) -> Callable[..., jax.Array]:
    """The jitted `predict` of a learner; the same one for equal learners."""
    return jax.jit(learner.predict)


def predict(learner: Any, params: Any, batches: Sequence[Arrays]) -> list[np.ndarray]:
    """What the model makes of each batch, with the parameters of one seed; the device is not waited for in between."""
    function = predictor(learner)
    outputs = [function(params, batch) for batch in batches]
    return [np.asarray(output) for output in outputs]


def _read(losses: list[Any], part: slice) -> None:
    losses[part] = jax.device_get(losses[part])


def _batches(
    feed: Feed, settings: Settings, seeds: Sequence[int], n_steps: int
) -> Iterator[Arrays]:
    """The batch of each step, with a leading seed axis where there are several seeds; shapes are the largest any seed needs."""
    orders = [_order(feed.n_train, settings, seed) for seed in seeds]
    size = settings.microbatch_size or settings.batch_size
    for _ in range(n_steps):
        plans = [
            [feed.plan(part) for part in _cut(next(order), size, settings.batch_size)]
            for order in orders
        ]
        need = tuple(
            max(sizes) for sizes in zip(*(plan.need for row in plans for plan in row), strict=True)
        )
        rows = [_stacked([feed.arrays(plan, need, size) for plan in row]) for row in plans]
        yield rows[0] if len(rows) == 1 else _stacked(rows)


def _order(n_train: int, settings: Settings, seed: int) -> Iterator[np.ndarray]:
    """The examples of each step, a function of (seed, epoch); the last batch of an epoch is what is left."""
    for epoch in range(settings.epochs):
        order = np.random.default_rng((seed, epoch)).permutation(n_train)
        for start in range(0, n_train, settings.batch_size):
            yield order[start : start + settings.batch_size]


def _cut(examples: np.ndarray, size: int, batch_size: int) -> list[np.ndarray]:
    """Microbatches: always as many as a full batch has, the last ones of a short batch without examples."""
    parts = [examples[start : start + size] for start in range(0, batch_size, size)]
    return [part for part in parts if len(part)] + [examples[:0]] * sum(
        not len(part) for part in parts
    )


def _stacked(batches: Sequence[Arrays]) -> Arrays:
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
