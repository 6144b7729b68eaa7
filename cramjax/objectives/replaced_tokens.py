"""Replaced-token detection: a generator fills masks, and the network finds what it put in.

ELECTRA (arXiv 2003.10555, sections 2 and 3.2). The loss is that of the generator, a masked language
model, plus 50 times the mean binary cross-entropy of the discriminator over all tokens. A sample
that is the original token counts as original. Nothing is differentiated through a sample.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cramjax.budget import flops
from cramjax.config.replaced_tokens import generator_sizes
from cramjax.config.views import Config
from cramjax.models import detector, encoder
from cramjax.models.layers import Precision
from cramjax.objectives import losses, masking
from cramjax.objectives.masked_lm import MaskedLM
from cramjax.objectives.objective import Params, Vocabulary, eval_key, unrolled

DETECTION_WEIGHT = 50.0
"""Weight of the discriminator's mean loss beside the generator's (lambda, section 2)."""

_SAMPLES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedTokens(MaskedLM):
    """Trains a discriminator with its generator (`PretrainingObjective`).

    `evaluate` scores the generator as a masked language model, at the positions of `MaskedLM`; and
    the discriminator in "also".
    """

    network_class: ClassVar[type[encoder.EncoderConfig]] = detector.ElectraConfig

    network: detector.ElectraConfig

    @classmethod
    def from_config(
        cls, config: Config, vocabulary: Vocabulary, precision: Precision
    ) -> ReplacedTokens:
        """Returns the objective of `config` over a vocabulary; raises as `MaskedLM` does."""
        plain = MaskedLM.from_config(config, vocabulary, precision)
        fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        sizes = generator_sizes(config)
        numbers = vars(plain.described)
        described = detector.ElectraConfig(
            **numbers,
            generator_layers=sizes.n_layers,
            generator_heads=sizes.n_heads,
            generator_d_ff=sizes.d_ff,
        )
        fields |= {"described": described, "network": unrolled(described, config.budget.hours)}
        return cls(**fields)

    @property
    def flops(self) -> int:
        """FLOPs of one training row: both networks, forward and backward."""
        small = self.network.generator
        wide, narrow = self.network.d_model, small.d_model
        discriminator = self.flops_shape | {"n_predicted": 0, "head_transform": False}
        blocks = discriminator | {
            "n_layers": small.n_layers,
            "d_model": narrow,
            "d_ff": small.d_ff,
        }
        # The transform of a detection head, the projection, and the generator's head.
        others = self.seq_len * (wide * wide + wide + wide * narrow)
        others += self.n_predicted * (narrow * wide + wide * self.network.vocab_size)
        return (
            flops.encoder_training_flops(**discriminator)
            + flops.encoder_training_flops(**blocks)
            + (1 + flops.BACKWARD_PER_FORWARD) * 2 * others
        )

    def loss(
        self, params: Params, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum in nats, weight); see `Objective.loss`. tokens int [rows, seq_len].

        The sum over the weight is the generator's mean loss of the predicted tokens plus
        `DETECTION_WEIGHT` times the discriminator's over all tokens.
        """
        tokens = tokens.astype(jnp.int32)
        batch, hidden, dropout_key = self.masked(params, key, tokens, rows)
        head = detector.generator_head_params(params)
        predicted = hidden, batch.labels, batch.weights
        total: Any = losses.predicted_cross_entropy(self._logits, head, *predicted, self.z_loss)

        sampled = self.sampled(head, jax.random.fold_in(key, _SAMPLES), hidden, rows)
        filled, replaced = with_samples(batch, tokens, sampled)
        if dropout_key is not None:
            dropout_key = jax.random.fold_in(dropout_key, _SAMPLES)
        odds = self._odds(self.precision, params, filled, tokens, dropout_key)
        found = jnp.sum(_binary_cross_entropy(odds, replaced))

        # A mean over all positions, in units of the predicted ones that the sum is divided by.
        per_position = DETECTION_WEIGHT * self.n_predicted / self.seq_len
        return total + per_position * found, jnp.sum(batch.weights)

    def evaluate(
        self, params: Params, tokens: jax.Array, rows: jax.Array, row_weights: jax.Array
    ) -> dict[str, Any]:
        """Returns the sums of `MaskedLM.evaluate`, of the generator.

        "also" has those of the discriminator over all tokens: "detection_loss" in nats,
        "detection_accuracy" (tokens judged right), "original" (tokens that are the original) and
        their "weight".
        """
        tokens = tokens.astype(jnp.int32)
        batch = masking.mask_tokens(self.eval_corruption, eval_key(), tokens, rows)
        hidden = self._states(self._dividable, params, batch, tokens, None)
        sums = self._scored(params, batch, hidden, row_weights)

        head = detector.generator_head_params(params)
        sampled = self.sampled(head, jax.random.fold_in(eval_key(), _SAMPLES), hidden, rows)
        filled, replaced = with_samples(batch, tokens, sampled)
        odds = self._odds(self._dividable, params, filled, tokens, None)

        weights = jnp.broadcast_to(row_weights[:, None], odds.shape)
        sums["also"] = {
            "detection_loss": jnp.sum(weights * _binary_cross_entropy(odds, replaced)),
            "detection_accuracy": jnp.sum(jnp.where((odds > 0) == replaced, weights, 0.0)),
            "original": jnp.sum(jnp.where(replaced, 0.0, weights)),
            "weight": jnp.sum(weights),
        }
        return sums

    def _odds(
        self,
        precision: Precision,
        params: Params,
        filled: jax.Array,
        tokens: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        """Returns the discriminator's log-odds for `filled`, made of `tokens`: [rows, seq_len]."""
        states = super()._all_states(precision, params, filled, tokens, key)
        return detector.detect(self.network, precision, params, states)

    def _all_states(
        self,
        precision: Precision,
        params: Params,
        inputs: jax.Array,
        tokens: jax.Array,
        key: jax.Array | None,
        *,
        causal: bool = False,
    ) -> jax.Array:
        """Returns the generator's hidden states: [rows, seq_len, generator's embed]."""
        del causal
        segments = self._segments(tokens)
        return detector.generator_states(
            self.network, precision, params, inputs, segment_ids=segments, key=key
        )

    def _logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """[rows, predicted, generator's embed] → float32 [rows, predicted, vocab]."""
        return detector.generator_logits(self.network, self.precision, params, hidden)


def with_samples(
    batch: masking.MaskedBatch, tokens: jax.Array, sampled: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns `tokens` with samples at the predicted positions, and where they changed them.

    A sample that is the token itself has changed nothing (section 2).

    Args:
        batch: the masked batch of the tokens.
        tokens: int32 [rows, length].
        sampled: int32 [rows, predicted].

    Returns:
        tokens int32 [rows, length] and bool [rows, length].
    """
    # A special token that only fills up the count stays.
    put_in = jnp.where(batch.weights > 0, sampled, batch.labels)
    filled = jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))(
        tokens, batch.positions, put_in
    )
    return filled, filled != tokens


def _binary_cross_entropy(odds: jax.Array, replaced: jax.Array) -> jax.Array:
    """Returns the nats of each answer: float32, of the shape of the log-odds."""
    return jax.nn.softplus(odds) - jnp.where(replaced, odds, 0.0)
