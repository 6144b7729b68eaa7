"""What a step, an evaluation and the accounting need to know of a model with its objective.

The rest of `training` sees a `Task` and neither a network nor a corruption; another family of models is another function that returns
one (`masked_lm.py`, `span_corruption.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from cramjax.budget import compilation

Params = dict[str, Any]


class Vocabulary(Protocol):
    """What is read of a dataset: entries, ids of its special tokens by role, sentinels at the top, and the dtype of its tokens."""

    vocab_size: int
    special_tokens: dict[str, int]
    extra_ids: int
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Pure functions of a model and its objective.

    init(key) → params float32. abstract, axes: its tree of shapes and of logical axis names.
    loss(params, key, tokens, rows) → (sum in nats, weight): tokens int [rows, row_tokens]; rows int32 [rows], numbers in the batch.
    evaluate(params, tokens, rows, row_weights) → {"loss", "weight", "correct"} sums; tokens int [rows, eval_row_tokens].
    predicted(tokens, rows) → (labels, weights) of the positions `evaluate` scores.
    frequencies(counts int64 [vocab]) → float64 [vocab], the distribution over labels of a model that knows only the corpus's counts.
    preview(key, tokens, rows) → (what the model reads, what it is to predict), int32 [rows, …] each, as `loss` would make them.
    n_predicted: positions of a training row that reach the loss; flops: of one training row, forward and backward.
    """

    init: Callable[[jax.Array], Params]
    abstract: Params
    axes: Params
    loss: Callable[..., tuple[jax.Array, jax.Array]]
    evaluate: Callable[..., dict[str, jax.Array]]
    predicted: Callable[..., tuple[jax.Array, jax.Array]]
    frequencies: Callable[[np.ndarray], np.ndarray]
    preview: Callable[..., tuple[jax.Array, jax.Array]]
    n_params: int
    n_predicted: int
    row_tokens: int
    eval_row_tokens: int
    flops: float
    description: dict[str, Any]


def unrolled(model: Any, n_layers: int, hours: float | None) -> Any:
    """Returns the network's config with its blocks compiled one by one, if the budget affords it and `unroll` is "auto".

    A loop over blocks copies what each block leaves for the backward pass: 14% of a step of BERT-large on an H100.
    """
    if model.unroll == "auto" and compilation.affords_unrolling(n_layers, hours):
        return dataclasses.replace(model, unroll=True)
    return model
