"""Finetuning an encoder with a head, as pure functions of (params, batch, key).

The task is data, so that one compilation serves every task: the batch masks the outputs that a task
does not have, and a flag of the batch says that it is a regression.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.models import classifier, encoder, network
from cramjax.models.layers import Precision

N_OUTPUTS = 3
"""Outputs of the head: as many as the largest task has classes. COPA's choices need one each."""

Batch = dict[str, jax.Array]
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Classification:
    """The functions over a network; equal networks are equal objects, which jit recognises.

    Arrays of a batch:
        tokens, positions, segments, types: int32 [rows, length], as `packing.pack` makes them.
        first: int32 [examples * choices], likewise.
        labels: int32 [examples], classes.
        targets: float32 [examples], scores of a regression.
        weights: float32 [examples]; 0 means no example.
        classes: bool [N_OUTPUTS], the outputs that the task has.
        regression: float32, 0 or 1.
    """

    config: classifier.ClassifierConfig
    precision: Precision

    # What the train step divides the loss by in float16; here a batch's own weight is near 1 a row.
    n_predicted = 1

    def init(self, key: jax.Array, trained: Params) -> Params:
        """Returns the parameters to start from: the encoder of `trained` and a fresh head."""
        return classifier.init_from(self.config, key, trained)

    @property
    def axes(self) -> Params:
        """Logical axis names of the parameters."""
        return network.param_axes(self.config)

    def scores(self, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Returns scores of classes or choices, float32 [examples, N_OUTPUTS].

        Outputs that the task does not have are -1e9.
        """
        token_types = batch["types"] if self.config.encoder.token_types > 1 else None
        logits = classifier.classify(
            self.config,
            self.precision,
            params,
            batch["tokens"],
            batch["first"],
            segment_ids=batch["segments"],
            positions=batch["positions"],
            token_types=token_types,
            key=key,
        )

        n_examples = batch["weights"].shape[0]
        n_choices = batch["first"].shape[0] // n_examples
        if n_choices > 1:
            # Each choice has one score: [examples * choices, 1] → [examples, N_OUTPUTS].
            logits = logits[:, 0].reshape(n_examples, n_choices)
            logits = jnp.pad(logits, ((0, 0), (0, N_OUTPUTS - n_choices)))
        return jnp.where(batch["classes"][None], logits, -1e9)

    def loss(
        self, params: Params, key: jax.Array, batch: Batch, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum over examples, weight): cross-entropy in nats, or squared errors."""
        # Microbatches of a batch share a key.
        scores = self.scores(params, batch, jax.random.fold_in(key, rows[0]))
        log_probabilities = jax.nn.log_softmax(scores, axis=-1)
        nats = -jnp.take_along_axis(log_probabilities, batch["labels"][:, None], axis=1)[:, 0]

        errors = jnp.square(scores[:, 0] - batch["targets"])
        losses = jnp.where(batch["regression"] > 0, errors, nats)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def predict(self, params: Params, batch: Batch) -> jax.Array:
        """Returns scores without dropout, float32 [examples, N_OUTPUTS]."""
        return self.scores(params, batch, None)


def classification(
    config: encoder.EncoderConfig,
    precision: Precision,
    *,
    width: int | None,
    pooling: str,
    dropout: float,
    attention_dropout: float,
    transform: str = "pooler",
) -> Classification:
    """Returns the objective of an encoder with a fresh head and the given dropout rates.

    Args:
        width: of the head's dense layer; None means the encoder's width.
        pooling: input of the head: the "first" token or the "mean" of all.
        transform: kind of the head (`models.classifier`).
    """
    changed = dataclasses.replace(
        config, dropout=dropout, attention_dropout=attention_dropout, document_attention=False
    )

    head = classifier.ClassifierConfig(
        encoder=changed,
        width=width or config.d_model,
        n_outputs=N_OUTPUTS,
        dropout=dropout,
        pooling=pooling,
        transform=transform,
    )
    return Classification(head, precision)
