"""Held-out evaluation: the same positions every time, exact means over ragged batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cramjax.errors import UserError
from cramjax.objectives.objective import PretrainingObjective
from cramjax.parallel import mesh as meshes

Batch = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Means per predicted token: `loss` in nats, `accuracy` of the most likely token.

    `shown` are the first rows with their guesses, as `PretrainingObjective.evaluate` has them; {}
    if it has none. `also` are further means, by name.
    """

    loss: float
    accuracy: float
    also: Mapping[str, float] = dataclasses.field(default_factory=dict)
    shown: Mapping[str, np.ndarray] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )


class Evaluator:
    """Scores parameters on fixed held-out batches.

    The program compiles at the first call, or before by `compile` or `compile_by`.
    """

    def __init__(self, objective: PretrainingObjective, mesh: Mesh, batches: Sequence[Batch]):
        """Places the batches on the devices.

        Args:
            objective: scores a batch.
            mesh: the devices.
            batches: (tokens [rows, eval_row_tokens], row weights float32 [rows]) of one shape.
        """
        by_rows = meshes.batch_sharding(mesh, 1, 0)
        self._objective = objective
        self._batches = []
        for number, (tokens, weights) in enumerate(batches):
            rows = np.arange(len(tokens), dtype=np.int32) + number * len(tokens)
            batch = (
                meshes.place(tokens, meshes.batch_sharding(mesh, 2, 0)),
                meshes.place(rows, by_rows),
                meshes.place(weights, by_rows),
            )
            self._batches.append(batch)

        # Every process holds the result, and can read it.
        self._replicated = meshes.replicated(mesh)
        self._evaluate: Any = jax.jit(objective.evaluate, out_shardings=self._replicated)
        self._compiling: Future[None] | None = None

    def compile(self, params: dict[str, Any]) -> None:
        """Compiles the program for `params`, ShapeDtypeStructs with shardings."""
        self._evaluate = self._evaluate.lower(params, *self._batches[0]).compile()

    def compile_by(self, executor: Executor, params: dict[str, Any]) -> None:
        """Compiles in a thread of `executor`; the first call waits for it."""
        self._compiling = executor.submit(self.compile, params)

    def __call__(self, params: dict[str, Any]) -> EvalResult:
        """Returns mean loss and accuracy of `params` over all batches; waits for the device."""
        if self._compiling is not None:
            self._compiling.result()
        sums = [self._evaluate(params, *batch) for batch in self._batches]
        loss = sum(float(jax.device_get(part["loss"])) for part in sums)
        correct = sum(float(jax.device_get(part["correct"])) for part in sums)
        weight = sum(float(jax.device_get(part["weight"])) for part in sums)
        shown = jax.device_get(sums[0].get("shown", {}))
        return EvalResult(loss / weight, correct / weight, _means(sums), shown)

    def unigram_loss(self, counts: np.ndarray) -> float:
        """Returns the mean loss in nats of a model that knows only the counts of training tokens.

        It is taken at the same positions. `counts` int64 [vocab].

        Raises:
            UserError: if there are no such positions.
        """
        with np.errstate(divide="ignore"):
            log_probability = np.log(self._objective.frequencies(counts))
        predicted = jax.jit(
            lambda tokens, rows, of_rows: (*self._objective.predicted(tokens, rows), of_rows),
            out_shardings=self._replicated,
        )

        loss = weight = 0.0
        for batch in self._batches:
            labels, weights, of_rows = jax.device_get(predicted(*batch))
            weights = weights * of_rows[:, None]
            # Minus infinity for what is never predicted.
            known = np.where(weights > 0, log_probability[labels], 0.0)
            nats = known * weights
            loss -= float(np.sum(nats))
            weight += float(np.sum(weights))
        if not weight:
            raise UserError(
                "the held-out text has no token to predict: the tokenizer knows no word of it, or "
                "it is too short; take another data.tokenizer, or raise data.heldout_fraction"
            )
        return loss / weight


def _means(sums: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the means of what objectives return as "also", by name."""
    parts = jax.device_get([part["also"] for part in sums if "also" in part])
    if not parts:
        return {}
    totals = dict.fromkeys(parts[0], 0.0)
    for part in parts:
        for name, value in part.items():
            totals[name] += float(value)
    weight = totals.pop("weight")
    return {name: total / weight for name, total in totals.items()}
