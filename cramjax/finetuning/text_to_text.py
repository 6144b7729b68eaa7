"""Finetuning a T5 on text to text, as pure functions of (params, batch, key).

The form is T5's (arXiv 1910.10683, section 2.4).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.models import generation, network, t5
from cramjax.models.layers import Precision
from cramjax.objectives import losses

Batch = dict[str, jax.Array]
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TextToText:
    """The functions over a network; equal networks are equal objects, which jit recognises.

    Arrays of a batch:
        tokens: int32 [examples, length].
        mask: bool [examples, length], False at padding.
        targets: int32 [examples, target_length], for training.
        weights: float32 [examples, target_length], for training.

    Attributes:
        pad_id, sep_id, vocab_size: of the tokenizer.
        max_target: upper limit on generated tokens.
    """

    config: t5.T5Config
    precision: Precision
    pad_id: int
    sep_id: int
    vocab_size: int
    unused: tuple[int, ...]
    max_target: int

    # What the train step divides the loss by in float16: about the tokens of a label.
    n_predicted = 2

    def init(self, key: jax.Array, trained: Params) -> Params:
        """Returns the parameters to start from: all are `trained`."""
        del key
        return trained

    @property
    def axes(self) -> Params:
        """Logical axis names of the parameters."""
        return network.param_axes(self.config)

    def loss(
        self, params: Params, key: jax.Array, batch: Batch, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (sum over target tokens in nats, their number)."""
        encoder_key, decoder_key = jax.random.split(jax.random.fold_in(key, rows[0]))
        common = (self.config, self.precision, params)

        encoded = t5.encode(*common, batch["tokens"], padding_mask=batch["mask"], key=encoder_key)
        read = t5.shift_right(batch["targets"], self.pad_id)
        hidden = t5.decode(*common, encoded, read, padding_mask=batch["mask"], key=decoder_key)
        logits = t5.head(*common, hidden)
        total: Any = losses.cross_entropy(logits, batch["targets"], batch["weights"], 0.0)
        return total, jnp.sum(batch["weights"])

    def predict(self, params: Params, batch: Batch) -> jax.Array:
        """Returns greedily generated tokens, int32 [examples, max_target]."""
        return generation.generate(
            self.config,
            self.precision,
            params,
            batch["tokens"],
            max_len=self.max_target,
            special={"pad": self.pad_id, "sep": self.sep_id},
            vocab_size=self.vocab_size,
            unused=self.unused,
            padding_mask=batch["mask"],
        ).tokens


def text_to_text(
    config: t5.T5Config,
    precision: Precision,
    *,
    special: dict[str, int],
    vocab_size: int,
    unused: tuple[int, ...] = (),
    max_target: int,
    dropout: float,
    attention_dropout: float,
) -> TextToText:
    """Returns the objective of a T5 with the given dropout rates."""
    changed = dataclasses.replace(config, dropout=dropout, attention_dropout=attention_dropout)
    return TextToText(
        changed, precision, special["pad"], special["sep"], vocab_size, unused, max_target
    )
