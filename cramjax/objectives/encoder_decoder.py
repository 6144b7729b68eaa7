"""The common part of the objectives that train a T5: its network, its loss and its scores."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cramjax.budget import flops
from cramjax.models import t5
from cramjax.models.layers import Precision
from cramjax.models.network import describe
from cramjax.objectives import losses
from cramjax.objectives.objective import Params, padded_vocab_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """A T5 that predicts targets from inputs; a subclass says what both are.

    Attributes:
        described: the network as the configuration and checkpoints have it.
        network: the same with its `unroll` decided.
        precision: the number formats.
        z_loss: coefficient of `losses.cross_entropy`.
    """

    network_class: ClassVar[type[t5.T5Config]] = t5.T5Config

    described: t5.T5Config
    network: t5.T5Config
    precision: Precision
    z_loss: float

    @property
    def description(self) -> dict[str, Any]:
        """The network's numbers by name, as checkpoints store them."""
        return describe(self.described)

    def _dropout_key(self, key: jax.Array, rows: jax.Array) -> jax.Array | None:
        """Returns the key of a microbatch; None without dropout."""
        if self.network.dropout > 0 or self.network.attention_dropout > 0:
            # Rows of a microbatch share one key: fold in the first, so that microbatches differ.
            return jax.random.fold_in(key, rows[0])
        return None

    def _loss(
        self,
        params: Params,
        hidden: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        smoothing: float = 0.0,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum in nats, weight) of hidden states [rows, targets, embed]."""
        head_params = t5.head_params(self.network, params)
        total: Any = losses.predicted_cross_entropy(
            self._logits, head_params, hidden, targets, weights, self.z_loss, smoothing
        )
        return total, jnp.sum(weights)

    def _scores(
        self, params: Params, hidden: jax.Array, targets: jax.Array, weights: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """Returns the sums of `PretrainingObjective.evaluate`, and the guesses [rows, targets]."""
        logits = self._logits(params, hidden)  # float32 [rows, targets, vocab]
        guesses = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        sums = {
            "loss": losses.cross_entropy(logits, targets, weights, 0.0),
            "weight": jnp.sum(weights),
            "correct": jnp.sum(jnp.where(guesses == targets, weights, 0.0)),
        }
        return sums, guesses

    def _logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """[rows, targets, embed] → float32 [rows, targets, vocab]."""
        return t5.head(self.network, self.precision, params, hidden)


def t5_config(model: Any, vocab_size: int) -> t5.T5Config:
    """Returns the T5 that `config.model` describes.

    Its embedding has `vocab_size` rows, padded to a multiple of `vocab_multiple`.
    """
    derived = {
        "vocab_size": padded_vocab_size(vocab_size, model.vocab_multiple),
        "n_decoder_layers": model.n_decoder_layers or model.n_layers,
        "head_dim": model.head_dim or model.d_model // model.n_heads,
    }
    names = {field.name for field in dataclasses.fields(t5.T5Config)} - set(derived)
    return t5.T5Config(**derived, **{name: model[name] for name in names})


def t5_precision(precision: Precision) -> Precision:
    """Returns the number formats of a T5.

    In float16 the residual stream stays float32: a T5's is too large for it
    (huggingface/transformers#4586).
    """
    if precision.matmul_dtype != jnp.float16:
        return precision
    return dataclasses.replace(precision, activation_dtype=jnp.dtype(jnp.float32))


def t5_flops(network: t5.T5Config, n_inputs: int, n_targets: int) -> int:
    """Returns the FLOPs of one row, forward and backward; see `flops.t5_forward_flops`."""
    return flops.t5_training_flops(
        n_layers=network.n_layers,
        n_decoder_layers=network.n_decoder_layers,
        d_model=network.d_model,
        n_heads=network.n_heads,
        head_dim=network.head_dim,
        d_ff=network.d_ff,
        gated=network.ffn in ("geglu", "geglu_tanh"),
        ffn_rank=network.ffn_rank,
        vocab_size=network.vocab_size,
        n_inputs=n_inputs,
        n_targets=n_targets,
    )
