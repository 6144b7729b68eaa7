"""Masked language modelling with an encoder, as a `Task`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.budget import flops
from cramjax.errors import UserError
from cramjax.models import encoder, pooling
from cramjax.objectives import losses, masking
from cramjax.objectives.objective import Task, Vocabulary, unrolled

# Evaluation is the same for every recipe, whatever rate training uses: 15% of the positions, all of them masked.
EVAL_MASK_RATE = 0.15


def masked_lm(config: Any, vocabulary: Vocabulary, precision: encoder.Precision) -> Task:
    """The task of `config` over a vocabulary.

    Raises:
        UserError: for a vocabulary without a mask token.
    """
    special_tokens = vocabulary.special_tokens
    if "mask" not in special_tokens:
        raise UserError(
            "the prepared data has sentinels and no mask token, as span corruption needs it: prepare data with data.extra_ids=0, or "
            "train a T5 on it"
        )
    described = encoder_config(config.model, vocabulary.vocab_size)
    model = unrolled(described, described.n_layers, config.budget.hours)
    special_ids = tuple(sorted(set(special_tokens.values())))
    trained, evaluated = _maskings(
        config.objective, special_tokens["mask"], special_ids, vocabulary.vocab_size
    )
    eval_key = jax.random.key(0, impl="threefry2x32")
    uses_dropout = config.model.dropout > 0 or config.model.attention_dropout > 0

    logits_of = functools.partial(encoder.head, model, precision)
    # An evaluation's program is divided among devices by XLA, which cannot divide kernels of ours.
    dividable = dataclasses.replace(precision, kernels=())

    def states(precision, params, batch, tokens, key, pool=1):
        segments = (
            _documents(tokens, special_tokens["sep"]) if config.model.document_attention else None
        )
        return _states(model, precision, params, batch, segments, key, pool)

    def loss(params, key, tokens, rows):
        tokens = tokens.astype(jnp.int32)
        mask_key, dropout_key = jax.random.split(key)
        batch = masking.mask_tokens(trained, mask_key, tokens, rows)
        if uses_dropout:
            # Rows of a microbatch share one key: fold in the first, so that microbatches differ.
            dropout_key = jax.random.fold_in(dropout_key, rows[0])
        dropout_key = dropout_key if uses_dropout else None
        hidden = states(precision, params, batch, tokens, dropout_key, config.objective.pool)
        predicted = hidden, batch.labels, batch.weights
        z_loss = float(config.objective.z_loss)
        total = losses.predicted_cross_entropy(
            logits_of, encoder.head_params(params), *predicted, z_loss
        )
        return total, jnp.sum(batch.weights)

    def predicted(tokens, rows):
        batch = masking.mask_tokens(evaluated, eval_key, tokens.astype(jnp.int32), rows)
        return batch.labels, batch.weights

    def evaluate(params, tokens, rows, row_weights):
        tokens = tokens.astype(jnp.int32)
        batch = masking.mask_tokens(evaluated, eval_key, tokens, rows)
        logits = logits_of(params, states(dividable, params, batch, tokens, None))
        weights = batch.weights * row_weights[:, None]
        hits = jnp.argmax(logits, axis=-1).astype(jnp.int32) == batch.labels
        return {
            "loss": losses.cross_entropy(logits, batch.labels, weights, 0.0),
            "weight": jnp.sum(weights),
            "correct": jnp.sum(jnp.where(hits, weights, 0.0)),
        }

    def preview(key, tokens, rows):
        batch = masking.mask_tokens(
            trained, jax.random.split(key)[0], tokens.astype(jnp.int32), rows
        )
        in_order = jnp.argsort(batch.positions, axis=1)
        return batch.inputs, jnp.take_along_axis(batch.labels, in_order, axis=1)

    return Task(
        init=lambda key: encoder.init_params(model, key),
        abstract=encoder.abstract_params(model),
        axes=encoder.param_axes(model),
        loss=loss,
        evaluate=evaluate,
        predicted=predicted,
        frequencies=lambda counts: _frequencies(counts, special_ids),
        preview=preview,
        n_params=encoder.count_params(model),
        n_predicted=trained.n_predicted(config.data.seq_len),
        row_tokens=config.data.seq_len,
        eval_row_tokens=config.data.seq_len,
        flops=training_flops(
            model,
            config.data.seq_len,
            trained.n_predicted(config.data.seq_len),
            config.objective.pool,
        ),
        description=dataclasses.asdict(described),
    )


def _frequencies(counts: np.ndarray, special_ids: tuple[int, ...]) -> np.ndarray:
    """The distribution of labels: words in their shares of the corpus; special ones are never predicted."""
    smoothed = counts.astype(np.float64) + 1.0
    smoothed[list(special_ids)] = 0.0
    return smoothed / smoothed.sum()


def _states(model, precision, params, batch, segments, key, pool):
    """Hidden states of the positions to be predicted: [rows, predicted, embed]."""
    if pool > 1:
        return encoder.encode_pooled(
            model, precision, params, batch.inputs, batch.positions, size=pool, key=key
        )
    hidden = encoder.encode(model, precision, params, batch.inputs, segment_ids=segments, key=key)
    return jnp.take_along_axis(hidden, batch.positions[..., None], axis=1)


def training_flops(
    model: encoder.EncoderConfig, seq_len: int, n_predicted: int, pool: int = 1
) -> int:
    """FLOPs of one sequence, forward and backward (`budget/flops.py`); `pool`: tokens of a mean, as of `objective.pool`."""
    return flops.encoder_training_flops(
        n_layers=model.n_layers,
        d_model=model.d_model,
        d_ff=model.d_ff,
        gated=model.ffn in ("geglu", "geglu_tanh"),
        ffn_rank=model.ffn_rank,
        n_pooled=pooling.n_pooled(seq_len, n_predicted, pool) if pool > 1 else None,
        vocab_size=model.vocab_size,
        seq_len=seq_len,
        n_predicted=n_predicted,
        head_transform=model.head_transform,
    )


def _maskings(
    objective: Any, mask_id: int, special_ids: tuple[int, ...], vocab_size: int
) -> tuple[masking.Masking, masking.Masking]:
    """How sequences are masked in training and in evaluation."""
    common = {"mask_id": mask_id, "special_ids": special_ids, "vocab_size": vocab_size}
    trained = masking.Masking(
        mask_rate=objective.mask_rate,
        mask_share=objective.mask_share,
        random_share=objective.random_share,
        **common,
    )
    return trained, masking.Masking(
        mask_rate=EVAL_MASK_RATE, mask_share=1.0, random_share=0.0, **common
    )


def encoder_config(model: Any, vocab_size: int) -> encoder.EncoderConfig:
    """The encoder a `config.model` describes, its embedding padded to `vocab_multiple`."""
    padded = -(-vocab_size // model.vocab_multiple) * model.vocab_multiple
    names = {field.name for field in dataclasses.fields(encoder.EncoderConfig)} - {
        "vocab_size",
        "pruned_heads",
    }
    return encoder.EncoderConfig(vocab_size=padded, **{name: model[name] for name in names})


def _documents(tokens: jax.Array, sep_id: int) -> jax.Array:
    """Number of the document each token of a packed sequence belongs to: int32 [rows, seq_len]; [SEP] ends its own."""
    ends = (tokens == sep_id).astype(jnp.int32)
    return jnp.cumsum(ends, axis=1) - ends
