"""Text to text with an encoder-decoder: the target of each source, several pairs in a row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.config.pairs import PairShape, shape_of
from cramjax.config.views import Config
from cramjax.models import t5
from cramjax.models.layers import Precision
from cramjax.objectives.encoder_decoder import (
    EncoderDecoder,
    t5_config,
    t5_flops,
    t5_precision,
)
from cramjax.objectives.objective import Params, Vocabulary, unrolled


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Rows of pairs, taken apart.

    Attributes:
        inputs: int32 [rows, n_inputs], sources one after the other, then padding.
        targets: int32 [rows, n_targets], targets in the same order, then padding.
        input_segments: int32 [rows, n_inputs], the number of the pair a token belongs to.
        target_segments: int32 [rows, n_targets].
        weights: float32 [rows, n_targets], 0 at padding.
    """

    inputs: jax.Array
    targets: jax.Array
    input_segments: jax.Array
    target_segments: jax.Array
    weights: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToText(EncoderDecoder):
    """Predicts the target of each source, with a T5 (`PretrainingObjective`).

    Pairs of a row do not see each other, so the loss is that of each pair alone. It counts every
    token of the targets and their ends.

    Attributes:
        row_shape: the form of a row.
        eos_id: the token that ends every source and target.
        pad_id: padding, which is also the token that the decoder reads first.
        label_smoothing: of `losses.cross_entropy`, in training alone.
    """

    row_shape: PairShape
    eos_id: int
    pad_id: int
    label_smoothing: float

    @classmethod
    def from_config(
        cls, config: Config, vocabulary: Vocabulary, precision: Precision
    ) -> TextToText:
        """Returns the objective of `config` over a vocabulary."""
        described = t5_config(config.model, vocabulary.vocab_size)
        return cls(
            described=described,
            network=unrolled(described, config.budget.hours),
            precision=t5_precision(precision),
            row_shape=shape_of(config.data),
            eos_id=vocabulary.special_tokens["sep"],
            pad_id=vocabulary.special_tokens["pad"],
            z_loss=float(config.objective.z_loss),
            label_smoothing=float(config.objective.label_smoothing),
        )

    @property
    def n_predicted(self) -> int:
        """Target positions of a row, padding included."""
        return self.row_shape.n_targets

    @property
    def row_tokens(self) -> int:
        """Tokens of a row."""
        return self.row_shape.row_tokens

    @property
    def eval_row_tokens(self) -> int:
        """Tokens of a held-out row."""
        return self.row_shape.row_tokens

    @property
    def eval_row_shape(self) -> PairShape:
        """The form of a held-out row."""
        return self.row_shape

    @property
    def flops(self) -> int:
        """FLOPs of one training row, forward and backward."""
        return t5_flops(self.network, self.row_shape.n_inputs, self.row_shape.n_targets)

    def loss(
        self, params: Params, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum in nats, weight); see `Objective.loss`. tokens int [rows, row_tokens]."""
        batch = self._apart(tokens)
        hidden = self._states(params, batch, self._dropout_key(key, rows))
        return self._loss(params, hidden, batch.targets, batch.weights, self.label_smoothing)

    def evaluate(
        self, params: Params, tokens: jax.Array, rows: jax.Array, row_weights: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the sums "loss", "weight" and "correct"; see `PretrainingObjective.evaluate`."""
        del rows
        batch = self._apart(tokens)
        weights = batch.weights * row_weights[:, None]
        sums, _ = self._scores(params, self._states(params, batch, None), batch.targets, weights)
        return sums

    def predicted(self, tokens: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the targets of `evaluate` and their weights, [rows, targets] each."""
        del rows
        batch = self._apart(tokens)
        return batch.targets, batch.weights

    def frequencies(self, counts: np.ndarray) -> np.ndarray:
        """Returns the distribution of labels: ids in their shares of the training targets."""
        smoothed = counts.astype(np.float64) + 1.0
        smoothed[self.pad_id] = 0.0
        return smoothed / smoothed.sum()

    def preview(
        self, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns inputs and targets."""
        del key, rows
        batch = self._apart(tokens)
        return batch.inputs, batch.targets

    def _apart(self, tokens: jax.Array) -> PairBatch:
        """Takes rows int [rows, row_tokens] apart."""
        tokens = tokens.astype(jnp.int32)
        inputs = tokens[:, : self.row_shape.n_inputs]
        targets = tokens[:, self.row_shape.n_inputs :]
        return PairBatch(
            inputs=inputs,
            targets=targets,
            input_segments=_segments(inputs, self.eos_id),
            target_segments=_segments(targets, self.eos_id),
            weights=(targets != self.pad_id).astype(jnp.float32),
        )

    def _states(self, params: Params, batch: PairBatch, key: jax.Array | None) -> jax.Array:
        """Returns the decoder's hidden states: [rows, targets, embed]."""
        keys = (None, None) if key is None else jax.random.split(key)
        common = (self.network, self.precision, params)
        segments = batch.input_segments, batch.target_segments
        # [rows, inputs, embed]
        encoded = t5.encode(*common, batch.inputs, segment_ids=segments[0], key=keys[0])
        shifted = t5.shift_right(batch.targets, self.pad_id)
        # Behind the end of one target the next one starts.
        read = jnp.where(shifted == self.eos_id, self.pad_id, shifted)
        return t5.decode(*common, encoded, read, segment_ids=segments, key=keys[1])


def _segments(tokens: jax.Array, eos_id: int) -> jax.Array:
    """Returns the number of the pair that each token belongs to: int32 [rows, length].

    The end of a text is a part of it.
    """
    ends = (tokens == eos_id).astype(jnp.int32)
    return jnp.cumsum(ends, axis=1) - ends
