"""Span corruption with an encoder-decoder, as a `Task`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.budget import flops
from cramjax.config.span_lengths import span_lengths
from cramjax.errors import UserError
from cramjax.models import t5
from cramjax.models.layers import Precision
from cramjax.objectives import losses, spans
from cramjax.objectives.objective import Task, Vocabulary, unrolled

# Evaluation is the same for every recipe, whatever corruption training uses: T5's own.
EVAL_NOISE_DENSITY, EVAL_MEAN_SPAN = 0.15, 3.0


def span_corruption(config: Any, vocabulary: Vocabulary, precision: Precision) -> Task:
    """The task of `config` over a vocabulary.

    In float16 the residual stream stays float32: a T5's is too large for it (huggingface/transformers#4586).

    Raises:
        UserError: for a vocabulary with fewer sentinels than an example has spans.
    """
    described, objective = t5_config(config.model, vocabulary.vocab_size), config.objective
    model = unrolled(
        described, described.n_layers + described.n_decoder_layers, config.budget.hours
    )
    corruption = _corruption(config, vocabulary, objective.noise_density, objective.mean_span)
    eval_corruption = _corruption(config, vocabulary, EVAL_NOISE_DENSITY, EVAL_MEAN_SPAN)
    eval_key = jax.random.key(0, impl="threefry2x32")
    uses_dropout = config.model.dropout > 0 or config.model.attention_dropout > 0
    start_id = vocabulary.special_tokens["pad"]
    if precision.matmul_dtype == jnp.float16:
        precision = dataclasses.replace(precision, activation_dtype=jnp.dtype(jnp.float32))

    logits_of = functools.partial(t5.head, model, precision)

    def states(params, batch, key):
        keys = (None, None) if key is None else jax.random.split(key)
        encoded = t5.encode(model, precision, params, batch.inputs, key=keys[0])
        shifted = t5.shift_right(batch.targets, start_id)
        return t5.decode(model, precision, params, encoded, shifted, key=keys[1])

    def corrupt(key, tokens, rows):
        corruption_key, dropout_key = jax.random.split(key)
        return spans.corrupt_spans(
            corruption, corruption_key, tokens.astype(jnp.int32), rows
        ), dropout_key

    def loss(params, key, tokens, rows):
        batch, dropout_key = corrupt(key, tokens, rows)
        # Rows of a microbatch share one key: fold in the first, so that microbatches differ.
        dropout_key = jax.random.fold_in(dropout_key, rows[0]) if uses_dropout else None
        weights = jnp.ones(batch.targets.shape, jnp.float32)
        predicted = states(params, batch, dropout_key), batch.targets, weights
        z_loss = float(objective.z_loss)
        total = losses.predicted_cross_entropy(
            logits_of, t5.head_params(model, params), *predicted, z_loss
        )
        return total, jnp.sum(weights)

    def preview(key, tokens, rows):
        batch, _ = corrupt(key, tokens, rows)
        return batch.inputs, batch.targets

    def predicted(tokens, rows):
        batch = spans.corrupt_spans(eval_corruption, eval_key, tokens.astype(jnp.int32), rows)
        return batch.targets, jnp.ones(batch.targets.shape, jnp.float32)

    def evaluate(params, tokens, rows, row_weights):
        batch = spans.corrupt_spans(eval_corruption, eval_key, tokens.astype(jnp.int32), rows)
        logits = logits_of(params, states(params, batch, None))
        weights = jnp.broadcast_to(row_weights[:, None], batch.targets.shape)
        hits = jnp.argmax(logits, axis=-1).astype(jnp.int32) == batch.targets
        return {
            "loss": losses.cross_entropy(logits, batch.targets, weights, 0.0),
            "weight": jnp.sum(weights),
            "correct": jnp.sum(jnp.where(hits, weights, 0.0)),
        }

    return Task(
        init=lambda key: t5.init_params(model, key),
        abstract=t5.abstract_params(model),
        axes=t5.param_axes(model),
        loss=loss,
        evaluate=evaluate,
        predicted=predicted,
        frequencies=lambda counts: _target_frequencies(counts, eval_corruption),
        preview=preview,
        n_params=t5.count_params(model),
        n_predicted=corruption.n_targets,
        row_tokens=corruption.n_raw,
        eval_row_tokens=eval_corruption.n_raw,
        flops=training_flops(model, corruption.n_inputs, corruption.n_targets),
        description={"family": "t5"} | dataclasses.asdict(described),
    )


def t5_config(model: Any, vocab_size: int) -> t5.T5Config:
    """The network a `config.model` describes, its embedding padded to `vocab_multiple`."""
    padded = -(-vocab_size // model.vocab_multiple) * model.vocab_multiple
    derived = {
        "vocab_size": padded,
        "n_decoder_layers": model.n_decoder_layers or model.n_layers,
        "head_dim": model.head_dim or model.d_model // model.n_heads,
    }
    names = {field.name for field in dataclasses.fields(t5.T5Config)} - set(derived)
    return t5.T5Config(**derived, **{name: model[name] for name in names})


def training_flops(model: t5.T5Config, n_inputs: int, n_targets: int) -> int:
    """FLOPs of one example, forward and backward (`budget/flops.py`)."""
    return flops.t5_training_flops(
        n_layers=model.n_layers,
        n_decoder_layers=model.n_decoder_layers,
        d_model=model.d_model,
        n_heads=model.n_heads,
        head_dim=model.head_dim,
        d_ff=model.d_ff,
        gated=model.ffn in ("geglu", "geglu_tanh"),
        ffn_rank=model.ffn_rank,
        vocab_size=model.vocab_size,
        n_inputs=n_inputs,
        n_targets=n_targets,
    )


def _corruption(
    config: Any, vocabulary: Vocabulary, noise_density: float, mean_span: float
) -> spans.SpanCorruption:
    lengths = span_lengths(config.data.seq_len, noise_density, mean_span)
    if lengths.n_spans > vocabulary.extra_ids:
        raise UserError(
            f"the prepared data has {vocabulary.extra_ids} sentinels and {config.data.seq_len} input tokens take {lengths.n_spans}: "
            "prepare it with data.extra_ids=100, or lower data.seq_len"
        )
    return spans.SpanCorruption(
        n_raw=lengths.n_raw,
        n_noise=lengths.n_noise,
        n_spans=lengths.n_spans,
        eos_id=vocabulary.special_tokens["sep"],
        first_sentinel_id=vocabulary.vocab_size - 1,
    )


def _target_frequencies(counts: np.ndarray, corruption: spans.SpanCorruption) -> np.ndarray:
    """Words in their shares of the corpus, each sentinel and the end once in an example's targets."""
    smoothed = counts.astype(np.float64) + 1.0
    sentinels = np.arange(corruption.n_spans) * -1 + corruption.first_sentinel_id
    smoothed[sentinels] = 0.0
    shares = smoothed / smoothed.sum() * corruption.n_noise
    shares[sentinels] = 1.0
    shares[corruption.eos_id] += 1.0
    return shares / corruption.n_targets
