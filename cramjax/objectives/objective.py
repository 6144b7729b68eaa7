"""The protocols of an objective: for the train step, for pretraining and for finetuning.

An objective is a frozen dataclass: a network, its number formats, and the corruption or task that
it learns. Its methods are pure functions. The training loop sees an objective and neither a network
nor a corruption, so another family of models is another class (`families.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from cramjax.budget import compilation
from cramjax.config.pairs import RowShape
from cramjax.models.network import Network, Stacked

SHOWN_ROWS = 8
"""Held-out rows whose guesses an evaluation returns, for people to read."""

Params = dict[str, Any]
S = TypeVar("S", bound=Stacked)


class Vocabulary(Protocol):
    """The part of a dataset that an objective reads."""

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer."""
        ...

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of special tokens by role, such as "pad", "mask" and "sep"."""
        ...

    @property
    def extra_ids(self) -> int:
        """Sentinels, which are the last entries."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Dtype of tokens."""
        ...

    @property
    def document_end(self) -> bool:
        """True if [SEP] follows every document."""
        ...


class Objective(Protocol):
    """The interface of the train step."""

    @property
    def n_predicted(self) -> int:
        """Positions of a training row that reach the loss."""
        ...

    def loss(
        self, params: Params, key: jax.Array, batch: Any, rows: jax.Array, /
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum in nats, weight) of a microbatch; the loss is their quotient.

        Args:
            params: float32 parameters of the network.
            key: of the step; dropout and corruption are functions of it and `rows`.
            batch: int tokens [rows, row_tokens], or a tree of arrays that has them as "tokens".
            rows: int32 [rows], numbers of the rows in the whole batch.
        """
        ...


class PretrainingObjective(Objective, Protocol):
    """The interface of pretraining, with evaluation and accounting."""

    @property
    def network(self) -> Network:
        """The numbers of the network; its parameters follow from them (`models.network`)."""
        ...

    @property
    def row_tokens(self) -> int:
        """Tokens of a training row."""
        ...

    @property
    def eval_row_tokens(self) -> int:
        """Tokens of a held-out row."""
        ...

    @property
    def row_shape(self) -> RowShape:
        """The form in which the dataset gives training rows."""
        ...

    @property
    def eval_row_shape(self) -> RowShape:
        """The form of held-out rows."""
        ...

    @property
    def flops(self) -> float:
        """FLOPs of one training row, forward and backward (`budget/flops.py`)."""
        ...

    @property
    def description(self) -> dict[str, Any]:
        """The network's numbers by name, as checkpoints store them."""
        ...

    def evaluate(
        self, params: Params, tokens: jax.Array, rows: jax.Array, row_weights: jax.Array
    ) -> dict[str, Any]:
        """Returns the sums "loss" (nats), "weight" and "correct" over held-out rows.

        An objective may add "shown", a dict of the first `SHOWN_ROWS` rows: "inputs" int32
        [rows, tokens], "labels" and "guesses" int32 [rows, predicted] and, where each label has a
        place in the inputs, "positions" and "weights" of the same shape. It may add "also", a dict
        of further sums by name, and their "weight".

        Args:
            params: float32 parameters of the network.
            tokens: int [rows, eval_row_tokens].
            rows: int32 [rows], numbers of the rows in the held-out set.
            row_weights: float32 [rows]; 0 leaves a row out.
        """
        ...

    def predicted(self, tokens: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the labels and weights [rows, predicted] of the positions `evaluate` scores."""
        ...

    def frequencies(self, counts: np.ndarray) -> np.ndarray:
        """Returns the distribution of labels that follows from the corpus alone, float64 [vocab].

        `counts` int64 [vocab] are the tokens of the corpus, of pairs those of the targets.
        """
        ...

    def preview(
        self, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns what the model reads and what it is to predict, int32 [rows, …] each.

        Arguments and corruption are those of `loss`.
        """
        ...


@runtime_checkable
class TallyingObjective(Objective, Protocol):
    """The interface of an objective whose corruption follows what the model has learned.

    What it has seen is a tally, a tree of small arrays that every device holds. The state of
    training keeps it, and each step changes it.
    """

    def initial_tally(self) -> Any:
        """Returns the tally before the first step."""
        ...

    def tallied_loss(
        self, params: Params, key: jax.Array, batch: Any, rows: jax.Array, tally: Any, /
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Returns (sum in nats, weight, counts) of a microbatch; see `Objective.loss`.

        `counts` are a tree like the tally, of int32 arrays. They add up over microbatches and
        devices. All microbatches of a step have the same tally.
        """
        ...

    def next_tally(self, tally: Any, counts: Any) -> Any:
        """Returns the tally after a step with the sums `counts`."""
        ...


class FinetuningObjective(Objective, Protocol):
    """The interface of finetuning, with parameters to start from and predictions.

    Equal objectives are equal objects, which `jax.jit` recognises.
    """

    @property
    def axes(self) -> Params:
        """Logical axis names of the parameters."""
        ...

    def init(self, key: jax.Array, trained: Params) -> Params:
        """Returns the parameters to start from: `trained` ones, and fresh ones made from `key`."""
        ...

    def predict(self, params: Params, batch: Any) -> jax.Array:
        """Returns scores float32 [examples, outputs], or generated tokens int32 [examples, …]."""
        ...


def unrolled(network: S, hours: float | None) -> S:
    """Returns the network with its blocks compiled one by one, if a budget of `hours` affords it.

    This applies where `unroll` is "auto". A loop over blocks copies the activations that each block
    keeps for the backward pass: 14% of a step of BERT-large on an H100.
    """
    if network.unroll == "auto" and compilation.affords_unrolling(network.n_blocks, hours):
        return dataclasses.replace(network, unroll=True)
    return network


def eval_key() -> jax.Array:
    """Returns the key that corrupts held-out rows, a constant also inside of a trace."""
    with jax.ensure_compile_time_eval():
        return jax.random.key(0, impl="threefry2x32")


def padded_vocab_size(vocab_size: int, multiple: int) -> int:
    """Returns the rows of an embedding for `vocab_size` entries: the next multiple."""
    return -(-vocab_size // multiple) * multiple
