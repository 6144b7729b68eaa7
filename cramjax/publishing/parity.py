"""An export beside the class it is for: loaded by torch and `transformers`, which need to be there for this alone."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from cramjax.errors import RunFailed, UserError
from cramjax.hub import families
from cramjax.models import classifier, encoder, t5
from cramjax.models.layers import FLOAT32

TOLERANCE = 1e-4
_ROWS, _LENGTH, _N_TARGETS = 3, 24, 9
_TEXTS = ("The quick brown fox, and 12 more.", "  An  “odd”\ttext: naïve café №5 ", "", "a " * 40)


def compare(
    directory: pathlib.Path,
    cfg: families.Config,
    params: dict[str, Any],
    tokenizer: tokenizers.Tokenizer,
) -> float:
    """The largest difference of a logit, with and without padding, relative to the largest logit where that is over 1.

    `directory`: the export of `params`, a network of `cfg`, whose weights are as written there.

    Raises:
        UserError: where torch or transformers is missing. RunFailed: where `transformers` finds tensors missing or unknown, gives other
        token ids, or logits that differ by more than `TOLERANCE`.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"--verify: {error.name} is not installed; pip install torch transformers, or leave --verify out"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for text in _TEXTS:
        if theirs(text)["input_ids"] != tokenizer.encode(text).ids:
            raise RunFailed(
                f"{directory}: AutoTokenizer gives other ids for {text!r}; this is a mistake of cramjax, please report it"
            )
    (name,) = json.loads((directory / "config.json").read_text())["architectures"]
    model, found = getattr(transformers, name).from_pretrained(
        directory, output_loading_info=True, dtype=torch.float32
    )
    wrong = {key: sorted(map(str, value)) for key, value in found.items() if value}
    if wrong:
        raise RunFailed(
            f"{directory}: {name} reports {wrong}; this is a mistake of cramjax, please report it"
        )
    worst, compiled = 0.0, _in_a_loop(cfg)
    for padded in (False, True):
        tokens, mask = _batch(families.network(cfg), model.config.pad_token_id, padded)
        inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
        if isinstance(cfg, t5.T5Config):
            inputs["decoder_input_ids"] = inputs["input_ids"][:, :_N_TARGETS]
        with torch.no_grad():
            expected = model.eval()(**inputs).logits.numpy()
        logits = np.asarray(
            _logits(compiled, params, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask == 1))
        )
        if not isinstance(cfg, t5.T5Config | classifier.ClassifierConfig):
            logits, expected = logits[mask == 1], expected[mask == 1]
        worst = max(
            worst, float(np.abs(logits - expected).max() / max(1.0, np.abs(expected).max()))
        )
    if not worst <= TOLERANCE:
        raise RunFailed(
            f"{directory}: logits of {name} differ by {worst:.2g}; this is a mistake of cramjax, please report it"
        )
    return worst


def _in_a_loop(cfg: families.Config) -> families.Config:
    """`cfg` with layers that compile once for all; here they run twice."""
    if isinstance(cfg, classifier.ClassifierConfig):
        return dataclasses.replace(cfg, encoder=_in_a_loop(cfg.encoder))
    return dataclasses.replace(cfg, unroll=1)


def _batch(
    network: encoder.EncoderConfig | t5.T5Config, pad_id: int, padded: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask int [rows, length]."""
    limited = getattr(network, "positions", None) == "learned"
    length = min(_LENGTH, network.max_positions) if limited else _LENGTH
    tokens = np.random.default_rng(0).integers(0, network.vocab_size, (_ROWS, length))
    # The padding token elsewhere than at the end moves RoBERTa's positions.
    tokens[tokens == pad_id] = (pad_id + 1) % network.vocab_size
    mask = np.ones_like(tokens)
    if padded:
        mask[0, length * 2 // 3 :] = mask[2, length // 4 :] = 0
        tokens[mask == 0] = pad_id
    return tokens, mask


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    cfg: families.Config, params: dict[str, Any], tokens: jax.Array, mask: jax.Array
) -> jax.Array:
    if isinstance(cfg, t5.T5Config):
        encoded = t5.encode(cfg, FLOAT32, params, tokens, padding_mask=mask)
        hidden = t5.decode(cfg, FLOAT32, params, encoded, tokens[:, :_N_TARGETS], padding_mask=mask)
        return t5.head(cfg, FLOAT32, params, hidden)
    if isinstance(cfg, classifier.ClassifierConfig):
        rows = jnp.arange(_ROWS, dtype=jnp.int32)
        segments = jnp.where(mask, rows[:, None] + 1, 0)
        return classifier.classify(
            cfg, FLOAT32, params, tokens, rows * tokens.shape[1], segment_ids=segments
        )
    hidden = encoder.encode(cfg, FLOAT32, params, tokens, padding_mask=mask)
    return encoder.head(cfg, FLOAT32, params, hidden)
