"""What a step, an evaluation and the accounting need to know of a model with its objective.

The rest of `training` sees a `Task` and neither encoder nor masking; another family of models is another function that returns one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.budget import flops
from cramjax.models import encoder
from cramjax.objectives import losses, mlm

# Evaluation is the same for every recipe, whatever rate training uses: 15% of the positions, all of them masked.
EVAL_MASK_RATE = 0.15

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Pure functions of a model and its objective.

    init(key) → params float32. abstract, axes: its tree of shapes and of logical axis names.
    loss(params, key, tokens, rows) → (sum in nats, weight): tokens int [rows, seq_len]; rows int32 [rows], numbers in the batch.
    evaluate(params, tokens, rows, row_weights) → {"loss", "weight", "correct"} sums.
    predicted(tokens, rows) → (labels, weights) of the positions `evaluate` scores.
    n_predicted: positions of a training sequence that reach the loss; flops: of one training sequence, forward and backward.
    """

    init: Callable[[jax.Array], Params]
    abstract: Params
    axes: Params
    loss: Callable[..., tuple[jax.Array, jax.Array]]
    evaluate: Callable[..., dict[str, jax.Array]]
    predicted: Callable[..., tuple[jax.Array, jax.Array]]
    n_params: int
    n_predicted: int
    flops: float
    description: dict[str, Any]


def masked_lm(config: Any, vocab_size: int, special_tokens: dict[str, int], precision: encoder.Precision) -> Task:
    """The masked-language-modelling task of `config` over a vocabulary of `vocab_size` entries."""
    model = encoder_config(config.model, vocab_size)
    seq_len = config.data.seq_len
    special_ids = tuple(sorted(set(special_tokens.values())))
    common = {"mask_id": special_tokens["mask"], "special_ids": special_ids, "vocab_size": vocab_size}
    objective = config.objective
    masking = mlm.Masking(
        mask_rate=objective.mask_rate,
        mask_share=objective.mask_share,
        random_share=objective.random_share,
        **common,
    )
    eval_masking = mlm.Masking(mask_rate=EVAL_MASK_RATE, mask_share=1.0, random_share=0.0, **common)
    eval_key = jax.random.key(0, impl="threefry2x32")
    uses_dropout = config.model.dropout > 0 or config.model.attention_dropout > 0

    def logits_at(params, batch, tokens, key):
        segments = _documents(tokens, special_tokens["sep"]) if config.model.document_attention else None
        hidden = encoder.encode(model, precision, params, batch.inputs, segment_ids=segments, key=key)
        picked = jnp.take_along_axis(hidden, batch.positions[..., None], axis=1)  # [rows, predicted, embed]
        return encoder.head(model, precision, params, picked)

    def loss(params, key, tokens, rows):
        tokens = tokens.astype(jnp.int32)
        mask_key, dropout_key = jax.random.split(key)
        batch = mlm.mask_tokens(masking, mask_key, tokens, rows)
        if uses_dropout:
            # Rows of a microbatch share one key: fold in the first, so that microbatches differ.
            dropout_key = jax.random.fold_in(dropout_key, rows[0])
        logits = logits_at(params, batch, tokens, dropout_key if uses_dropout else None)
        total = losses.cross_entropy(logits, batch.labels, batch.weights, float(objective.z_loss))
        return total, jnp.sum(batch.weights)

    def predicted(tokens, rows):
        batch = mlm.mask_tokens(eval_masking, eval_key, tokens.astype(jnp.int32), rows)
        return batch.labels, batch.weights

    def evaluate(params, tokens, rows, row_weights):
        tokens = tokens.astype(jnp.int32)
        batch = mlm.mask_tokens(eval_masking, eval_key, tokens, rows)
        logits = logits_at(params, batch, tokens, None)
        weights = batch.weights * row_weights[:, None]
        hits = jnp.argmax(logits, axis=-1).astype(jnp.int32) == batch.labels
        return {
            "loss": losses.cross_entropy(logits, batch.labels, weights, 0.0),
            "weight": jnp.sum(weights),
            "correct": jnp.sum(jnp.where(hits, weights, 0.0)),
        }

    return Task(
        init=lambda key: encoder.init_params(model, key),
        abstract=encoder.abstract_params(model),
        axes=encoder.param_axes(model),
        loss=loss,
        evaluate=evaluate,
        predicted=predicted,
        n_params=encoder.count_params(model),
        n_predicted=masking.n_predicted(seq_len),
        flops=flops.encoder_training_flops(
            n_layers=model.n_layers,
            d_model=model.d_model,
            d_ff=model.d_ff,
            gated=model.ffn == "geglu",
            vocab_size=model.vocab_size,
            seq_len=seq_len,
            n_predicted=masking.n_predicted(seq_len),
            head_transform=model.head_transform,
        ),
        description=dataclasses.asdict(model),
    )


def encoder_config(model: Any, vocab_size: int) -> encoder.EncoderConfig:
    """The encoder a `config.model` describes, its embedding padded to `vocab_multiple`."""
    padded = -(-vocab_size // model.vocab_multiple) * model.vocab_multiple
    names = {field.name for field in dataclasses.fields(encoder.EncoderConfig)} - {"vocab_size"}
    return encoder.EncoderConfig(vocab_size=padded, **{name: model[name] for name in names})


def _documents(tokens: jax.Array, sep_id: int) -> jax.Array:
    """Number of the document each token of a packed sequence belongs to: int32 [rows, seq_len]; [SEP] ends its own."""
    ends = (tokens == sep_id).astype(jnp.int32)
    return jnp.cumsum(ends, axis=1) - ends
