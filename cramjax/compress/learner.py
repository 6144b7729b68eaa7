"""A learner whose zeros stay zeros and whose weights are seen as they will be stored: what finetuning between compressions trains."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.compress import matrices
from cramjax.compress.prune import keep_zeros
from cramjax.compress.quantize import Quantizer


@dataclasses.dataclass(frozen=True)
class Compressed:
    """`learner` (a `Classification` or a `TextToText`) going on from the parameters it is given, its head among them.

    A weight that is zero is never moved, whatever the optimizer makes of a zero gradient entry by entry (all but Muon). With a
    `quantizer` the loss is that of the quantised weights (quantisation-aware finetuning), else of the weights themselves.
    """

    learner: Any
    quantizer: Quantizer | None = None

    @property
    def n_predicted(self) -> int:
        """As of the learner."""
        return self.learner.n_predicted

    @property
    def axes(self) -> Any:
        """As of the learner."""
        return self.learner.axes

    def init(self, key: jax.Array, trained: Any) -> Any:
        """`trained` itself: nothing is fresh."""
        del key
        return trained

    def loss(
        self, params: Any, key: jax.Array, batch: Any, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """As of the learner, through the weights as they will be."""
        return self.learner.loss(self._seen(params), key, batch, rows)

    def predict(self, params: Any, batch: Any) -> jax.Array:
        """As of the learner, through the weights as they will be."""
        return self.learner.predict(self._seen(params), batch)

    def _seen(self, params: Any) -> Any:
        paths = matrices.find(self.axes)
        params = keep_zeros(params, paths)
        if self.quantizer is None:
            return params
        flat = {
            path: self.quantizer.simulate(leaf, paths[path]) if path in paths else leaf
            for path, leaf in flatten_dict(params, sep="/").items()
        }
        return unflatten_dict(flat, sep="/")
