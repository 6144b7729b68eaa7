"""Finetuning an encoder with a head, as pure functions of (params, batch, key).

A task of scores is data, so that one compilation serves every task: the batch masks the outputs
that a task does not have, and a flag of the batch says that it is a regression.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.models import classifier, encoder, network
from cramjax.models.layers import Precision

N_OUTPUTS = 3
"""Outputs of the head at least: as many as GLUE's largest task has classes. COPA's choices need one
each."""

Batch = dict[str, jax.Array]
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EncoderObjective:
    """The functions over an encoder with a head; equal networks are equal objects, as jit wants.

    A subclass has `scores` and `losses` of a kind of head, over a batch with these arrays:
        tokens, positions, segments, types: int32 [rows, length], as `packing.pack` makes them.
        first: int32 [examples * choices], likewise.
        weights: float32 [examples]; 0 means no example.
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
        """Returns the scores of the head, float32; dropout if there is a key."""
        raise NotImplementedError

    def losses(self, scores: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns (sum, weight) of the losses that `scores` have."""
        raise NotImplementedError

    def loss(
        self, params: Params, key: jax.Array, batch: Batch, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum, weight), as `losses` says."""
        # Microbatches of a batch share a key.
        scores = self.scores(params, batch, jax.random.fold_in(key, rows[0]))
        return self.losses(scores, batch)

    def evaluate(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns `loss` without dropout."""
        return self.losses(self.scores(params, batch, None), batch)

    def predict(self, params: Params, batch: Batch) -> jax.Array:
        """Returns `scores` without dropout."""
        return self.scores(params, batch, None)

    def token_scores(self, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Returns scores of every token, float32 [rows, length, outputs]."""
        return classifier.score_tokens(
            self.config, self.precision, params, batch["tokens"], key=key, **self._inputs(batch)
        )

    def _inputs(self, batch: Batch) -> dict[str, jax.Array | None]:
        """Returns the arrays that the network reads beside tokens."""
        token_types = batch["types"] if self.config.encoder.token_types > 1 else None
        return {
            "segment_ids": batch["segments"],
            "positions": batch["positions"],
            "token_types": token_types,
        }


@dataclasses.dataclass(frozen=True)
class Classification(EncoderObjective):
    """Scores of texts: classes, choices, or one number.

    Further arrays of a batch:
        labels: int32 [examples], classes.
        targets: float32 [examples], scores of a regression.
        classes: bool [outputs], the outputs that the task has.
        regression: float32, 0 or 1.
    """

    def scores(self, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Returns scores of classes or choices, float32 [examples, outputs].

        Outputs that the task does not have are -1e9.
        """
        logits = classifier.classify(
            self.config,
            self.precision,
            params,
            batch["tokens"],
            batch["first"],
            key=key,
            **self._inputs(batch),
        )

        n_examples = batch["weights"].shape[0]
        n_choices = batch["first"].shape[0] // n_examples
        if n_choices > 1:
            # Each choice has one score: [examples * choices, 1] → [examples, outputs].
            logits = logits[:, 0].reshape(n_examples, n_choices)
            logits = jnp.pad(logits, ((0, 0), (0, self.config.n_outputs - n_choices)))
        return jnp.where(batch["classes"][None], logits, -1e9)

    def losses(self, scores: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns (sum over examples, weight): cross-entropy in nats, or squared errors."""
        log_probabilities = jax.nn.log_softmax(scores, axis=-1)
        nats = -jnp.take_along_axis(log_probabilities, batch["labels"][:, None], axis=1)[:, 0]

        errors = jnp.square(scores[:, 0] - batch["targets"])
        losses = jnp.where(batch["regression"] > 0, errors, nats)
        return jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"])


@dataclasses.dataclass(frozen=True)
class Tagging(EncoderObjective):
    """A tag for each word, read at its first token.

    A further array of a batch is "labels", int32 [rows, length]: the tag of a word at its first
    token, -1 elsewhere.
    """

    # A sentence has some twenty words.
    n_predicted = 20

    def scores(self, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Returns scores of tags, float32 [rows, length, outputs]."""
        return self.token_scores(params, batch, key)

    def losses(self, scores: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns (sum over words, words): cross-entropy in nats."""
        labels = batch["labels"]
        log_probabilities = jax.nn.log_softmax(scores, axis=-1)
        chosen = jnp.maximum(labels, 0)[..., None]
        nats = -jnp.take_along_axis(log_probabilities, chosen, axis=-1)[..., 0]

        weights = (labels >= 0).astype(jnp.float32)
        return jnp.sum(nats * weights), jnp.sum(weights)


@dataclasses.dataclass(frozen=True)
class SpanAnswers(EncoderObjective):
    """The first and the last token of an answer; both are the first token where there is none.

    Further arrays of a batch are "starts" and "ends", int32 [examples], places in the flattened
    rows.
    """

    def scores(self, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Returns scores of a start and of an end, float32 [rows, length, 2]."""
        return self.token_scores(params, batch, key)

    def losses(self, scores: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns (sum over examples, weight): the mean of both cross-entropies in nats.

        Each is over the tokens of the example (arXiv 1810.04805, section 4.2).
        """
        n_examples = batch["weights"].shape[0]
        segments = batch["segments"].reshape(-1)  # [tokens]
        flat = scores.reshape(-1, 2)  # [tokens, 2]

        # Sums over segments stand in for a softmax over rows: several examples share a row.
        largest = jax.ops.segment_max(flat, segments, num_segments=n_examples + 1)
        largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0.0))
        shifted = jnp.exp(flat - largest[segments])
        total = jax.ops.segment_sum(shifted, segments, num_segments=n_examples + 1)
        # No example has no tokens; its logarithm must be a number all the same.
        total = jnp.where(batch["weights"][:, None] > 0, total[1:], 1.0)
        normalizers = jnp.log(total) + largest[1:]  # [examples, 2]

        places = jnp.stack([batch["starts"], batch["ends"]], axis=1)
        right = jnp.take_along_axis(flat, places, axis=0)  # [examples, 2]
        nats = jnp.mean(normalizers - right, axis=1)
        return jnp.sum(nats * batch["weights"]), jnp.sum(batch["weights"])


@dataclasses.dataclass(frozen=True)
class Embedding(EncoderObjective):
    """Embeddings of texts, learned by telling the right text of a batch from the others.

    Further arrays of a batch:
        texts: int32 [examples, 2 or 3], numbers of an example's anchor, positive and perhaps hard
            negative; equal numbers are equal texts. [texts, 1] for texts that nothing is learned
            from.
        scale: float32, what a cosine is multiplied by.

    Its sequences are the texts of the first example, of the second and so on.
    """

    def scores(self, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Returns embeddings, float32 [texts, embed]."""
        return classifier.embed(
            self.config,
            self.precision,
            params,
            batch["tokens"],
            batch["first"],
            key=key,
            **self._inputs(batch),
        )

    def losses(self, scores: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns (sum over examples, weight): cross-entropy in nats over the batch's answers.

        Each anchor is to find its positive among the positives and the hard negatives of all
        examples, by cosine times `scale`: the loss of sentence-transformers'
        MultipleNegativesRankingLoss (arXiv 1705.00652, section 4.4).

        What is certainly no wrong answer is none of the candidates: a text that equals the anchor
        or its positive, and the positive of another example with the same anchor.
        """
        texts = batch["texts"]
        n_examples, n_columns = texts.shape
        if n_columns == 1:
            return jnp.zeros(()), jnp.zeros(())
        lengths = jnp.maximum(jnp.sum(jnp.square(scores), axis=1, keepdims=True), 1e-24)
        units = (scores * jax.lax.rsqrt(lengths)).reshape(n_examples, n_columns, -1)
        anchors = units[:, 0]  # [examples, embed]
        # All positives, then all negatives.
        candidates = jnp.swapaxes(units[:, 1:], 0, 1).reshape(-1, anchors.shape[1])

        cosines = jnp.matmul(anchors, candidates.T, precision="highest")
        logits = jnp.where(_is_candidate(texts, batch["weights"]), batch["scale"] * cosines, -1e9)
        nats = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
        return jnp.sum(nats * batch["weights"]), jnp.sum(batch["weights"])


def _is_candidate(texts: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns which texts an anchor's positive is told from, and itself: bool [examples, texts].

    Args:
        texts, weights: as in a batch of `Embedding`.
    """
    n_examples, n_columns = texts.shape
    anchors, positives = texts[:, :1], texts[:, 1:2]  # [examples, 1]
    others = texts[:, 1:].T.reshape(1, -1)
    is_right = (others == anchors) | (others == positives)
    # The positives of the same anchor; its hard negatives stay.
    same_anchor = anchors == anchors.T
    n_negatives = n_examples * (n_columns - 2)
    is_right |= jnp.pad(same_anchor, ((0, 0), (0, n_negatives)))

    is_there = jnp.tile(weights > 0, n_columns - 1)[None]
    is_own = jnp.eye(n_examples, texts[:, 1:].size, dtype=bool)
    return (~is_right & is_there) | is_own


def dropping(
    config: encoder.EncoderConfig, dropout: float, attention_dropout: float
) -> encoder.EncoderConfig:
    """Returns the encoder with other dropout rates, for sequences that are no documents."""
    return dataclasses.replace(
        config, dropout=dropout, attention_dropout=attention_dropout, document_attention=False
    )
