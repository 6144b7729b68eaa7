"""Span corruption with an encoder-decoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.config.span_lengths import span_lengths
from cramjax.config.views import Config
from cramjax.errors import UserError
from cramjax.models import t5
from cramjax.models.layers import Precision
from cramjax.objectives import spans
from cramjax.objectives.encoder_decoder import (
    EncoderDecoder,
    t5_config,
    t5_flops,
    t5_precision,
)
from cramjax.objectives.objective import (
    SHOWN_ROWS,
    Params,
    Vocabulary,
    eval_key,
    unrolled,
)

# Evaluation is the same for every recipe, whatever corruption training uses: T5's own.
EVAL_NOISE_DENSITY = 0.15
EVAL_MEAN_SPAN = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(EncoderDecoder):
    """Predicts the spans that sentinels hide, with a T5 (`PretrainingObjective`).

    Attributes:
        corruption: how training rows are corrupted.
        eval_corruption: how held-out rows are corrupted.
        start_id: the token that the decoder reads first.
    """

    corruption: spans.Corruption
    eval_corruption: spans.Corruption
    start_id: int

    @classmethod
    def from_config(
        cls, config: Config, vocabulary: Vocabulary, precision: Precision
    ) -> SpanCorruption:
        """Returns the objective of `config` over a vocabulary.

        Raises:
            UserError: for a vocabulary with fewer sentinels than an example has spans.
        """
        described = t5_config(config.model, vocabulary.vocab_size)
        objective, seq_len = config.objective, config.data.seq_len
        rates = objective.noise_density, objective.mean_span
        return cls(
            described=described,
            network=unrolled(described, config.budget.hours),
            precision=t5_precision(precision),
            corruption=_corruption(seq_len, vocabulary, *rates),
            eval_corruption=_corruption(seq_len, vocabulary, EVAL_NOISE_DENSITY, EVAL_MEAN_SPAN),
            start_id=vocabulary.special_tokens["pad"],
            z_loss=float(objective.z_loss),
        )

    @property
    def n_predicted(self) -> int:
        """Target tokens of a training row."""
        return self.corruption.n_targets

    @property
    def row_tokens(self) -> int:
        """Tokens of a training row."""
        return self.corruption.n_raw

    @property
    def eval_row_tokens(self) -> int:
        """Tokens of a held-out row."""
        return self.eval_corruption.n_raw

    @property
    def row_shape(self) -> int:
        """The form of a training row: its tokens."""
        return self.corruption.n_raw

    @property
    def eval_row_shape(self) -> int:
        """The form of a held-out row."""
        return self.eval_corruption.n_raw

    @property
    def flops(self) -> int:
        """FLOPs of one training row, forward and backward."""
        return t5_flops(self.network, self.corruption.n_inputs, self.corruption.n_targets)

    def loss(
        self, params: Params, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum in nats, weight); see `Objective.loss`. tokens int [rows, row_tokens]."""
        batch, dropout_key = self._corrupt(key, tokens, rows)
        hidden = self._states(params, batch, self._dropout_key(dropout_key, rows))
        weights = jnp.ones(batch.targets.shape, jnp.float32)
        return self._loss(params, hidden, batch.targets, weights)

    def evaluate(
        self, params: Params, tokens: jax.Array, rows: jax.Array, row_weights: jax.Array
    ) -> dict[str, Any]:
        """Returns the sums "loss", "weight" and "correct"; see `PretrainingObjective.evaluate`."""
        batch = self._corrupt_for_evaluation(tokens, rows)
        hidden = self._states(params, batch, None)
        weights = jnp.broadcast_to(row_weights[:, None], batch.targets.shape)
        sums, guesses = self._scores(params, hidden, batch.targets, weights)
        shown = {"inputs": batch.inputs, "labels": batch.targets, "guesses": guesses}
        return sums | {"shown": {name: array[:SHOWN_ROWS] for name, array in shown.items()}}

    def predicted(self, tokens: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the targets of `evaluate` and their weights, [rows, targets] each."""
        batch = self._corrupt_for_evaluation(tokens, rows)
        return batch.targets, jnp.ones(batch.targets.shape, jnp.float32)

    def frequencies(self, counts: np.ndarray) -> np.ndarray:
        """Returns the distribution of labels: words in their shares of the corpus.

        Each sentinel and the end stand once in an example's targets.
        """
        corruption = self.eval_corruption
        smoothed = counts.astype(np.float64) + 1.0
        sentinels = np.arange(corruption.n_spans) * -1 + corruption.first_sentinel_id
        smoothed[sentinels] = 0.0
        shares = smoothed / smoothed.sum() * corruption.n_noise
        shares[sentinels] = 1.0
        shares[corruption.eos_id] += 1.0
        return shares / corruption.n_targets

    def preview(
        self, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns inputs and targets."""
        batch, _ = self._corrupt(key, tokens, rows)
        return batch.inputs, batch.targets

    def _corrupt(
        self, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[spans.SpanBatch, jax.Array]:
        """Returns training rows corrupted, and the key of dropout."""
        corruption_key, dropout_key = jax.random.split(key)
        tokens = tokens.astype(jnp.int32)
        batch = spans.corrupt_spans(self.corruption, corruption_key, tokens, rows)
        return batch, dropout_key

    def _corrupt_for_evaluation(self, tokens: jax.Array, rows: jax.Array) -> spans.SpanBatch:
        tokens = tokens.astype(jnp.int32)
        return spans.corrupt_spans(self.eval_corruption, eval_key(), tokens, rows)

    def _states(self, params: Params, batch: spans.SpanBatch, key: jax.Array | None) -> jax.Array:
        """Returns the decoder's hidden states: [rows, targets, embed]."""
        keys = (None, None) if key is None else jax.random.split(key)
        common = (self.network, self.precision, params)
        encoded = t5.encode(*common, batch.inputs, key=keys[0])  # [rows, inputs, embed]
        shifted = t5.shift_right(batch.targets, self.start_id)
        return t5.decode(*common, encoded, shifted, key=keys[1])


def _corruption(
    seq_len: int, vocabulary: Vocabulary, noise_density: float, mean_span: float
) -> spans.Corruption:
    lengths = span_lengths(seq_len, noise_density, mean_span)
    if lengths.n_spans > vocabulary.extra_ids:
        raise UserError(
            f"the prepared data has {vocabulary.extra_ids} sentinels and {seq_len} input tokens "
            f"take {lengths.n_spans}: prepare it with data.extra_ids=100, or lower data.seq_len"
        )
    return spans.Corruption(
        n_raw=lengths.n_raw,
        n_noise=lengths.n_noise,
        n_spans=lengths.n_spans,
        eos_id=vocabulary.special_tokens["sep"],
        first_sentinel_id=vocabulary.vocab_size - 1,
    )
