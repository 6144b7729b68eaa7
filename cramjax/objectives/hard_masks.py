"""Masked language modelling that masks more of the tokens that the model guesses wrong.

This is adaptive masked language modelling (AMLM, arXiv 2510.20475, the metric "hard" of its code).
It counts right guesses by entry of the vocabulary, and masks an entry in proportion to its wrong
ones.

Ours are: counts fade a little with every step, where the code replaces most of its weights every
200 steps; every sequence has the same number of predicted positions, as in `masking`; and
`strength` leads from uniform masks to the published ones.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from cramjax.config.views import Config
from cramjax.models import encoder
from cramjax.models.layers import Precision
from cramjax.objectives import losses, masking
from cramjax.objectives.masked_lm import MaskedLM
from cramjax.objectives.objective import Params, Vocabulary

HORIZON_STEPS = 200
"""Steps after which counts have faded to 1/e; the code's distance between two updates."""

LEAST_ODDS = 1 / 30
"""Odds of a token that is always guessed right; the code's 0.005 beside a mask rate of 0.15."""

Tally = dict[str, jax.Array]
"""Faded counts by entry: "seen", how often it was predicted, and "right", with success; float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardMasks(MaskedLM):
    """Predicts masked tokens, hard ones more often (`TallyingObjective`).

    Evaluation is that of `MaskedLM`, with uniform masks, so runs of both compare.

    Attributes:
        strength: share of the right guesses that lowers the odds to be masked.
    """

    strength: float

    @classmethod
    def from_config(cls, config: Config, vocabulary: Vocabulary, precision: Precision) -> HardMasks:
        """Returns the objective of `config` over a vocabulary; raises as `MaskedLM` does."""
        plain = MaskedLM.from_config(config, vocabulary, precision)
        fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        return cls(**fields, strength=float(config.objective.hard_masks))

    def initial_tally(self) -> Tally:
        """Returns counts of zero, by which all tokens have the same odds."""
        zeros = jnp.zeros((self.network.vocab_size,), jnp.float32)
        return {"seen": zeros, "right": zeros}

    def next_tally(self, tally: Tally, counts: Tally) -> Tally:
        """Returns the tally after a step with `counts`, int32."""
        kept = jnp.float32(1.0 - 1.0 / HORIZON_STEPS)
        return jax.tree.map(lambda old, new: kept * old + new.astype(jnp.float32), tally, counts)

    def odds(self, tally: Tally) -> jax.Array:
        """Returns the odds of each entry to be masked: float32 [vocab], from `LEAST_ODDS` to 1.

        An entry that was never predicted counts as one that is right half of the time.
        """
        share_right = (tally["right"] + 0.5) / (tally["seen"] + 1.0)
        return jnp.maximum(1.0 - self.strength * share_right, LEAST_ODDS)

    def tallied_loss(
        self, params: Params, key: jax.Array, tokens: jax.Array, rows: jax.Array, tally: Tally
    ) -> tuple[jax.Array, jax.Array, Tally]:
        """Returns (sum in nats, weight, counts); see `TallyingObjective`."""
        tokens = tokens.astype(jnp.int32)
        odds = self.odds(tally)[tokens]
        batch, hidden, _ = self.masked(params, key, tokens, rows, odds)
        predicted = hidden, batch.labels, batch.weights
        total, hits = losses.predicted_with_hits(
            self._logits, encoder.head_params(params), *predicted, self.z_loss
        )
        return total, jnp.sum(batch.weights), self._counts(batch, hits)

    def loss(
        self, params: Params, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum in nats, weight) under the tally before the first step."""
        return self.tallied_loss(params, key, tokens, rows, self.initial_tally())[:2]

    def preview(
        self, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the masked rows of the first step, and the tokens behind the masks in order."""
        odds = self.odds(self.initial_tally())[tokens]
        return self._preview(key, tokens, rows, odds)

    def _counts(self, batch: masking.MaskedBatch, hits: jax.Array) -> Tally:
        """Returns how often each entry was predicted, and with success: int32 [vocab] each."""
        # Whole numbers: their sums are the same in every order.
        zeros = jnp.zeros((self.network.vocab_size,), jnp.int32)
        seen = batch.weights.astype(jnp.int32)
        right = jnp.where(hits, seen, 0)
        return {
            "seen": zeros.at[batch.labels].add(seen),
            "right": zeros.at[batch.labels].add(right),
        }
