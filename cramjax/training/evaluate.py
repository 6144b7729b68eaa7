"""Held-out evaluation: the same sequences and positions every time, exact means over ragged batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor, Future

import jax
import numpy as np
from jax.sharding import Mesh

from cramjax.objectives.objective import Task
from cramjax.parallel import mesh as meshes

Batch = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Means per predicted token: `loss` in nats, `accuracy` of the most likely token."""

    loss: float
    accuracy: float


class Evaluator:
    """Scores parameters on fixed held-out batches; compiles on its first use, where that is not done before.

    Args:
        batches: (tokens [rows, seq_len], row weights float32 [rows]) pairs of one shape.
    """

    def __init__(self, task: Task, mesh: Mesh, batches: Sequence[Batch]):
        tokens_sharding = meshes.batch_sharding(mesh, 2, 0)
        rows_sharding = meshes.batch_sharding(mesh, 1, 0)
        self._task = task
        self._batches = []
        for number, (tokens, weights) in enumerate(batches):
            rows = np.arange(len(tokens), dtype=np.int32) + number * len(tokens)
            shardings = tokens_sharding, rows_sharding, rows_sharding
            self._batches.append(tuple(map(meshes.place, (tokens, rows, weights), shardings)))
        # Whole in every process, which each of them can read.
        self._whole = meshes.replicated(mesh)
        self._evaluate = jax.jit(task.evaluate, out_shardings=self._whole)
        self._compiling: Future[None] | None = None

    def compile(self, params: dict) -> None:
        """Compile now what the first use would, for `params` as ShapeDtypeStructs with shardings."""
        self._evaluate = self._evaluate.lower(params, *self._batches[0]).compile()

    def compile_by(self, executor: Executor, params: dict) -> None:
        """`compile` in a thread of `executor`; the first use waits for it."""
        self._compiling = executor.submit(self.compile, params)

    def __call__(self, params: dict) -> EvalResult:
        """Mean loss and accuracy of `params` over all batches; waits for the device."""
        if self._compiling is not None:
            self._compiling.result()
        sums = [self._evaluate(params, *batch) for batch in self._batches]
        total = {name: sum(float(jax.device_get(part[name])) for part in sums) for name in sums[0]}
        return EvalResult(total["loss"] / total["weight"], total["correct"] / total["weight"])

    def unigram_loss(self, counts: np.ndarray) -> float:
        """Mean loss in nats at the same positions of a model that knows only `counts` int64 [vocab] of the training tokens."""
        with np.errstate(divide="ignore"):
            log_probability = np.log(self._task.frequencies(counts))
        loss = weight = 0.0
        predicted = jax.jit(
            lambda tokens, rows, of_rows: (*self._task.predicted(tokens, rows), of_rows),
            out_shardings=self._whole,
        )
        for batch in self._batches:
            labels, weights, of_rows = jax.device_get(predicted(*batch))
            weights = weights * of_rows[:, None]
            loss -= float(np.sum(np.where(weights > 0, log_probability[labels] * weights, 0.0)))
            weight += float(np.sum(weights))
        return loss / weight
