"""SCRIPT: masked language modelling, and the same network as a critic of its own guesses.

The objective of Nijkamp et al. (2021) as Cramming's code has it (`ScriptableLMForSCRIPTTraining`
in cramming/architectures/crammed_bert.py). The network predicts the masked tokens, and its
predictions are sampled. Then it reads the sequence with the samples in place, and says for every
position if the token there was put in: the log-odds of "yes" are the logarithm of the sum of the
exponentials of all its logits. There are no more parameters than in masked language modelling.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.budget import flops
from cramjax.models import encoder
from cramjax.objectives import losses, masking
from cramjax.objectives.masked_lm import MaskedLM
from cramjax.objectives.objective import Params

CRITIC_WEIGHT = 1.0
"""Weight of the critic's mean loss beside that of the masked tokens (ALPHA in the code)."""

_SAMPLES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script(MaskedLM):
    """Predicts masked tokens and finds the predictions (`PretrainingObjective`).

    Evaluation is that of `MaskedLM`, so runs of both compare.
    """

    @property
    def flops(self) -> int:
        """FLOPs of one training row: two passes, and the head over all positions in the second."""
        critic = dict(self.flops_shape)
        critic["n_predicted"] = self.seq_len
        return super().flops + flops.encoder_training_flops(**critic)

    def loss(
        self, params: Params, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum in nats, weight); see `Objective.loss`. tokens int [rows, seq_len].

        The sum over the weight is the mean loss of the predicted tokens plus that of the critic
        over all positions.
        """
        tokens = tokens.astype(jnp.int32)
        batch, hidden, dropout_key = self.masked(params, key, tokens, rows)
        head = encoder.head_params(params)
        predicted = hidden, batch.labels, batch.weights
        total: Any = losses.predicted_cross_entropy(self._logits, head, *predicted, self.z_loss)

        sampled = self.sampled(head, jax.random.fold_in(key, _SAMPLES), hidden, rows)
        filled, replaced = with_samples(batch, sampled)
        if dropout_key is not None:
            dropout_key = jax.random.fold_in(dropout_key, _SAMPLES)
        states = self._all_states(self.precision, params, filled, tokens, dropout_key)
        found = losses.presence_cross_entropy(self._logits, head, states, replaced)

        # A mean over all positions, in units of the predicted ones that the sum is divided by.
        per_position = CRITIC_WEIGHT * self.n_predicted / self.seq_len
        return total + per_position * found, jnp.sum(batch.weights)


def with_samples(batch: masking.MaskedBatch, sampled: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a batch with samples at its predicted positions, and where they changed it.

    As in Cramming's code a position counts as replaced if it differs from the *masked* input. So a
    right guess behind a mask counts too; in ELECTRA it would not.

    Args:
        batch: the masked batch.
        sampled: int32 [rows, predicted].

    Returns:
        tokens int32 [rows, length] and bool [rows, length].
    """
    # A special token that only fills up the count stays.
    tokens = jnp.where(batch.weights > 0, sampled, batch.labels)
    filled = jax.vmap(lambda row, at, new: row.at[at].set(new, unique_indices=True))(
        batch.inputs, batch.positions, tokens
    )
    return filled, filled != batch.inputs
