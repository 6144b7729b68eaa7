"""Finetuning an encoder with a head, as pure functions of (params, batch, key); one program for every task.

Scores of tasks with fewer classes than the head has outputs are masked, a regression is a flag of the batch: the task is data, so that
one compilation serves them all.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.models import classifier, encoder, network
from cramjax.models.layers import Precision

# The most any task has; COPA's two choices are scored one by one.
N_OUTPUTS = 3

Batch = dict[str, jax.Array]
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Classification:
    """The functions over a network; equal networks are equal objects, which jit recognises.

    A batch: `tokens`, `positions`, `segments`, `types` int32 [rows, length] and `first` int32 [examples * choices] of `packing.pack`;
    `labels` int32 and `targets` float32 [examples] (classes, scores of a regression), `weights` float32 [examples] (0: no example);
    `classes` bool [N_OUTPUTS] that the task has, `regression` float32 (0 or 1).
    """

    config: classifier.ClassifierConfig
    precision: Precision

    # What the train step divides the loss by in float16; here a batch's own weight is near 1 a row.
    n_predicted = 1

    def init(self, key: jax.Array, trained: Params) -> Params:
        """Parameters to start from: the encoder of `trained` and a fresh head."""
        return classifier.init_from(self.config, key, trained)

    @property
    def axes(self) -> Params:
        """Logical axes of the parameters."""
        return network.param_axes(self.config)

    def scores(self, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        """float32 [examples, N_OUTPUTS]: of classes, or of choices, impossible ones at -1e9."""
        logits = classifier.classify(
            self.config,
            self.precision,
            params,
            batch["tokens"],
            batch["first"],
            segment_ids=batch["segments"],
            positions=batch["positions"],
            token_types=batch["types"] if self.config.encoder.token_types > 1 else None,
            key=key,
        )
        n_examples = batch["weights"].shape[0]
        n_choices = batch["first"].shape[0] // n_examples
        if n_choices > 1:
            logits = jnp.pad(
                logits[:, 0].reshape(n_examples, n_choices), ((0, 0), (0, N_OUTPUTS - n_choices))
            )
        return jnp.where(batch["classes"][None], logits, -1e9)

    def loss(
        self, params: Params, key: jax.Array, batch: Batch, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(sum over examples, weight): cross-entropy in nats, or the squared error of a regression."""
        # Microbatches of a batch share a key.
        scores = self.scores(params, batch, jax.random.fold_in(key, rows[0]))
        log_probabilities = jax.nn.log_softmax(scores, axis=-1)
        nats = -jnp.take_along_axis(log_probabilities, batch["labels"][:, None], axis=1)[:, 0]
        errors = jnp.square(scores[:, 0] - batch["targets"])
        losses = jnp.where(batch["regression"] > 0, errors, nats)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])

    def predict(self, params: Params, batch: Batch) -> jax.Array:
        """Scores without dropout, float32 [examples, N_OUTPUTS]."""
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
    """The functions for an encoder with dropout rates of its own; `width` of the head None: that of the encoder."""
    own = {"dropout": dropout, "attention_dropout": attention_dropout, "document_attention": False}
    head = classifier.ClassifierConfig(
        encoder=dataclasses.replace(config, **own),
        width=width or config.d_model,
        n_outputs=N_OUTPUTS,
        dropout=dropout,
        pooling=pooling,
        transform=transform,
    )
    return Classification(head, precision)
