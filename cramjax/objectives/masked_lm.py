"""Masked language modelling with an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.budget import flops
from cramjax.config.views import Config, ObjectiveConfig
from cramjax.errors import UserError
from cramjax.models import encoder, pooling
from cramjax.models.layers import Precision
from cramjax.models.network import describe
from cramjax.objectives import losses, masking
from cramjax.objectives.objective import (
    SHOWN_ROWS,
    Params,
    Vocabulary,
    eval_key,
    padded_vocab_size,
    unrolled,
)

# Evaluation is the same for every recipe, whatever rate training uses: 15% of the positions, all of
# them masked.
EVAL_MASK_RATE = 0.15


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Predicts masked tokens with an encoder (`PretrainingObjective`).

    Attributes:
        described: the network as the configuration and checkpoints have it.
        network: the same with its `unroll` decided.
        precision: the number formats.
        corruption: how training rows are masked.
        eval_corruption: how held-out rows are masked.
        seq_len: tokens of a row.
        sep_id: the token that ends a document of a packed row.
        pool: tokens of a mean of embeddings (`encoder.encode_pooled`); 1 for none.
        causal: training predicts tokens from earlier ones alone, and masks nothing.
        z_loss: coefficient of `losses.cross_entropy`.
    """

    network_class: ClassVar[type[encoder.EncoderConfig]] = encoder.EncoderConfig

    described: encoder.EncoderConfig
    network: encoder.EncoderConfig
    precision: Precision
    corruption: masking.Masking
    eval_corruption: masking.Masking
    seq_len: int
    sep_id: int
    pool: int
    causal: bool
    z_loss: float

    @classmethod
    def from_config(cls, config: Config, vocabulary: Vocabulary, precision: Precision) -> MaskedLM:
        """Returns the objective of `config` over a vocabulary.

        Raises:
            UserError: for a vocabulary without a mask token, or documents without ends where
                tokens see their own document alone.
        """
        special_tokens = vocabulary.special_tokens
        if "mask" not in special_tokens:
            raise UserError(
                "the prepared data has sentinels and no mask token, as span corruption needs it: "
                "prepare data with data.extra_ids=0, or train a T5 on it"
            )

        described = encoder_config(config.model, vocabulary.vocab_size)
        if described.document_attention and not vocabulary.document_end:
            raise UserError(
                "model.document_attention=True: tells documents by their ends, and the dataset was "
                "prepared with data.document_end=False: take one with ends, or "
                "set model.document_attention=False"
            )
        objective = config.objective
        corruption, eval_corruption = _maskings(objective, special_tokens, vocabulary.vocab_size)
        return cls(
            described=described,
            network=unrolled(described, config.budget.hours),
            precision=precision,
            corruption=corruption,
            eval_corruption=eval_corruption,
            seq_len=config.data.seq_len,
            sep_id=special_tokens["sep"],
            pool=objective.pool,
            causal=objective.causal,
            z_loss=float(objective.z_loss),
        )

    @property
    def n_predicted(self) -> int:
        """Positions of a training row that reach the loss."""
        return self.corruption.n_predicted(self.seq_len)

    @property
    def row_tokens(self) -> int:
        """Tokens of a training row."""
        return self.seq_len

    @property
    def eval_row_tokens(self) -> int:
        """Tokens of a held-out row."""
        return self.seq_len

    @property
    def row_shape(self) -> int:
        """The form of a training row: its tokens."""
        return self.seq_len

    @property
    def eval_row_shape(self) -> int:
        """The form of a held-out row."""
        return self.seq_len

    @property
    def flops(self) -> int:
        """FLOPs of one training row, forward and backward."""
        return flops.encoder_training_flops(**self.flops_shape)

    @property
    def flops_shape(self) -> dict[str, Any]:
        """The arguments of `encoder_training_flops` for a training row."""
        n_pooled = None
        if self.pool > 1:
            n_pooled = pooling.n_pooled(self.seq_len, self.n_predicted, self.pool)
        return {
            "n_layers": self.network.n_layers,
            "d_model": self.network.d_model,
            "d_ff": self.network.d_ff,
            "gated": self.network.ffn in ("geglu", "geglu_tanh"),
            "ffn_rank": self.network.ffn_rank,
            "n_pooled": n_pooled,
            "vocab_size": self.network.vocab_size,
            "seq_len": self.seq_len,
            "n_predicted": self.n_predicted,
            "head_transform": self.network.head_transform,
        }

    @property
    def description(self) -> dict[str, Any]:
        """The network's numbers by name, as checkpoints store them."""
        return describe(self.described)

    def loss(
        self, params: Params, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum in nats, weight); see `Objective.loss`. tokens int [rows, seq_len]."""
        batch, hidden, _ = self.masked(params, key, tokens.astype(jnp.int32), rows)
        head_params = encoder.head_params(params)
        predicted = hidden, batch.labels, batch.weights
        total: Any = losses.predicted_cross_entropy(
            self._logits, head_params, *predicted, self.z_loss
        )
        return total, jnp.sum(batch.weights)

    def masked(
        self,
        params: Params,
        key: jax.Array,
        tokens: jax.Array,
        rows: jax.Array,
        odds: jax.Array | None = None,
    ) -> tuple[masking.MaskedBatch, jax.Array, jax.Array | None]:
        """Returns the masked batch, hidden states of its predicted positions, and a dropout key.

        Arguments are those of `loss`, with tokens int32, and the odds of `masking.mask_tokens`. The
        states are [rows, predicted, embed]; the key is None without dropout.
        """
        mask_key, dropout_key = jax.random.split(key)
        batch = masking.mask_tokens(self.corruption, mask_key, tokens, rows, odds)
        if self.causal:
            batch = _read_before(batch)
        if self.network.dropout > 0 or self.network.attention_dropout > 0:
            # Rows of a microbatch share one key: fold in the first, so that microbatches differ.
            dropout_key = jax.random.fold_in(dropout_key, rows[0])
        else:
            dropout_key = None

        hidden = self._states(
            self.precision,
            params,
            batch,
            tokens,
            dropout_key,
            pool=self.pool,
            causal=self.causal,
        )
        return batch, hidden, dropout_key

    def sampled(
        self, head: Params, key: jax.Array, hidden: jax.Array, rows: jax.Array
    ) -> jax.Array:
        """Returns a token drawn for each predicted position: int32 [rows, predicted].

        Row i depends on (key, rows[i], its states) alone. Nothing is differentiated.
        """
        head, hidden = jax.lax.stop_gradient((head, hidden))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)

        def sample(row: tuple[jax.Array, jax.Array]) -> jax.Array:
            row_key, states = row  # [predicted, embed]
            return jax.random.categorical(row_key, self._logits(head, states))

        logits_a_row = self.n_predicted * self.network.vocab_size
        n_rows = max(1, losses.MOST_LOGITS // logits_a_row)
        return jax.lax.map(sample, (keys, hidden), batch_size=n_rows).astype(jnp.int32)

    def evaluate(
        self, params: Params, tokens: jax.Array, rows: jax.Array, row_weights: jax.Array
    ) -> dict[str, Any]:
        """Returns the sums "loss", "weight" and "correct"; see `PretrainingObjective.evaluate`."""
        tokens = tokens.astype(jnp.int32)
        batch = masking.mask_tokens(self.eval_corruption, eval_key(), tokens, rows)
        hidden = self._states(self._dividable, params, batch, tokens, None)
        return self._scored(params, batch, hidden, row_weights)

    @property
    def _dividable(self) -> Precision:
        # XLA divides evaluation among devices, and it cannot divide kernels of ours.
        return dataclasses.replace(self.precision, owns_rows=False, kernels=())

    def _scored(
        self,
        params: Params,
        batch: masking.MaskedBatch,
        hidden: jax.Array,
        row_weights: jax.Array,
    ) -> dict[str, Any]:
        """Returns the sums of `evaluate`, from the hidden states of the predicted positions."""
        logits = self._logits(params, hidden)  # float32 [rows, predicted, vocab]
        weights = batch.weights * row_weights[:, None]
        guesses = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        hits = guesses == batch.labels
        shown = {
            "inputs": batch.inputs,
            "positions": batch.positions,
            "labels": batch.labels,
            "weights": batch.weights,
            "guesses": guesses,
        }

        return {
            "loss": losses.cross_entropy(logits, batch.labels, weights, 0.0),
            "weight": jnp.sum(weights),
            "correct": jnp.sum(jnp.where(hits, weights, 0.0)),
            "shown": {name: array[:SHOWN_ROWS] for name, array in shown.items()},
        }

    def predicted(self, tokens: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the labels and weights [rows, predicted] of the positions `evaluate` scores."""
        tokens = tokens.astype(jnp.int32)
        batch = masking.mask_tokens(self.eval_corruption, eval_key(), tokens, rows)
        return batch.labels, batch.weights

    def frequencies(self, counts: np.ndarray) -> np.ndarray:
        """Returns the distribution of held-out labels: words in their shares of the corpus.

        Special tokens are never predicted there.
        """
        smoothed = counts.astype(np.float64) + 1.0
        smoothed[list(self.eval_corruption.special_ids)] = 0.0
        return smoothed / smoothed.sum()

    def preview(
        self, key: jax.Array, tokens: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the masked rows, and the tokens behind the masks in their order."""
        return self._preview(key, tokens, rows, None)

    def _preview(
        self, key: jax.Array, tokens: jax.Array, rows: jax.Array, odds: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        mask_key = jax.random.split(key)[0]
        tokens = tokens.astype(jnp.int32)
        batch = masking.mask_tokens(self.corruption, mask_key, tokens, rows, odds)
        in_order = jnp.argsort(batch.positions, axis=1)
        return batch.inputs, jnp.take_along_axis(batch.labels, in_order, axis=1)

    def _states(
        self,
        precision: Precision,
        params: Params,
        batch: masking.MaskedBatch,
        tokens: jax.Array,
        key: jax.Array | None,
        *,
        pool: int = 1,
        causal: bool = False,
    ) -> jax.Array:
        """Returns hidden states of the positions to be predicted: [rows, predicted, embed]."""
        if pool > 1:
            common = (self.network, precision, params, batch.inputs)
            return encoder.encode_pooled(*common, batch.positions, size=pool, key=key)
        hidden = self._all_states(precision, params, batch.inputs, tokens, key, causal=causal)
        return jnp.take_along_axis(hidden, batch.positions[..., None], axis=1)

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
        """Returns hidden states of `inputs`, made of `tokens`: [rows, seq_len, embed]."""
        return encoder.encode(
            self.network,
            precision,
            params,
            inputs,
            segment_ids=self._segments(tokens),
            causal=causal,
            key=key,
        )

    def _segments(self, tokens: jax.Array) -> jax.Array | None:
        """Returns the documents of `tokens`, if they do not see each other."""
        if not self.network.document_attention:
            return None
        return _documents(tokens, self.sep_id)

    def _logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """[rows, predicted, embed] → float32 [rows, predicted, vocab]."""
        return encoder.head(self.network, self.precision, params, hidden)


def encoder_config(model: Any, vocab_size: int) -> encoder.EncoderConfig:
    """Returns the encoder that `config.model` describes.

    Its embedding has `vocab_size` rows, padded to a multiple of `vocab_multiple`.
    """
    names = {field.name for field in dataclasses.fields(encoder.EncoderConfig)}
    names -= {"vocab_size", "pruned_heads"}
    return encoder.EncoderConfig(
        vocab_size=padded_vocab_size(vocab_size, model.vocab_multiple),
        **{name: model[name] for name in names},
    )


def _maskings(
    objective: ObjectiveConfig, special_tokens: Mapping[str, int], vocab_size: int
) -> tuple[masking.Masking, masking.Masking]:
    """Returns the corruption of training rows and that of held-out rows."""
    common = {"mask_id": special_tokens["mask"], "vocab_size": vocab_size}
    special_ids = tuple(sorted(set(special_tokens.values())))
    # Left to right nothing is hidden but what comes later.
    shares = (0.0, 0.0) if objective.causal else (objective.mask_share, objective.random_share)
    unmasked_ids = () if objective.mask_special else special_ids
    training = masking.Masking(
        mask_rate=objective.mask_rate,
        mask_share=shares[0],
        random_share=shares[1],
        special_ids=unmasked_ids,
        **common,
    )

    # One measure for all recipes: held-out special tokens are never predicted.
    held_out = masking.Masking(
        mask_rate=EVAL_MASK_RATE,
        mask_share=1.0,
        random_share=0.0,
        special_ids=special_ids,
        **common,
    )
    return training, held_out


def _read_before(batch: masking.MaskedBatch) -> masking.MaskedBatch:
    """Returns `batch` with each token predicted where the one before it is read.

    Nothing is read before the first token of a row, which gets weight 0.
    """
    is_first = batch.positions == 0
    return dataclasses.replace(
        batch,
        positions=jnp.maximum(batch.positions - 1, 0),
        weights=jnp.where(is_first, 0.0, batch.weights),
    )


def _documents(tokens: jax.Array, sep_id: int) -> jax.Array:
    """Returns the number of the document each token belongs to: int32 [rows, seq_len].

    [SEP] ends a document and is a part of it.
    """
    ends = (tokens == sep_id).astype(jnp.int32)
    return jnp.cumsum(ends, axis=1) - ends
