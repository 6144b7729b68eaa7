"""The objective of finetuning between compressions.

Zeros stay zeros, and the loss may see the weights as they will be stored.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.compress import matrices
from cramjax.compress.prune import keep_zeros
from cramjax.compress.quantize import Quantizer
from cramjax.objectives.objective import FinetuningObjective


@dataclasses.dataclass(frozen=True)
class Compressed:
    """An objective that goes on from the parameters it is given, with their head.

    A weight that is zero never moves, whatever an elementwise optimizer (all but Muon) makes of a
    gradient of zero.

    Attributes:
        objective: a `Classification` or a `TextToText`.
        quantizer: if given, the loss is that of the quantised weights (quantisation-aware
            finetuning).
    """

    objective: FinetuningObjective
    quantizer: Quantizer | None = None

    @property
    def n_predicted(self) -> int:
        """The weight of a row, as in the objective."""
        return self.objective.n_predicted

    @property
    def axes(self) -> Any:
        """Logical axis names of the parameters."""
        return self.objective.axes

    def init(self, key: jax.Array, trained: Any) -> Any:
        """Returns `trained` itself: nothing is fresh."""
        del key
        return trained

    def loss(
        self, params: Any, key: jax.Array, batch: Any, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the objective's (sum, weight), through the weights as they will be stored."""
        return self.objective.loss(self._seen(params), key, batch, rows)

    def predict(self, params: Any, batch: Any) -> jax.Array:
        """Returns the objective's predictions, through the weights as they will be stored."""
        return self.objective.predict(self._seen(params), batch)

    def _seen(self, params: Any) -> Any:
        """Returns the parameters as the loss sees them: zeros without gradient, then quantised."""
        paths = matrices.find(self.axes)
        params = keep_zeros(params, paths)
        if self.quantizer is None:
            return params

        flat: dict[str, Any] = flatten_dict(params, sep="/")
        for path, matrix in paths.items():
            if path in flat:
                flat[path] = self.quantizer.simulate(flat[path], matrix)
        return unflatten_dict(flat, sep="/")
