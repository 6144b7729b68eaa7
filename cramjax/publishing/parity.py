"""Compares an export with torch: loaded by `transformers`, it gives the same ids and logits.

Only this check needs torch and transformers.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from cramjax.errors import RunFailed, UserError
from cramjax.files import read_json
from cramjax.hub import families
from cramjax.models import classifier, detector, encoder, t5
from cramjax.models.layers import FLOAT32

TOLERANCE = 1e-4
"""The largest difference of a logit, relative to the largest logit if that is over 1."""

_ROWS, _LENGTH, _N_TARGETS = 3, 24, 9
_TEXTS = ("The quick brown fox, and 12 more.", "  An  “odd”\ttext: naïve café №5 ", "", "a " * 40)
_REPORT = "this is a mistake of cramjax, please report it"


def compare(
    directory: pathlib.Path,
    cfg: families.Config,
    params: dict[str, Any],
    tokenizer: tokenizers.Tokenizer,
) -> float:
    """Returns the largest difference of a logit, with and without padding, as `TOLERANCE` has it.

    Embeddings are the logits of a class that has none.

    Args:
        directory: the export of `params`, whose weights are as written there.
        cfg: the network.
        params: of the network.
        tokenizer: of the export.

    Raises:
        UserError: if torch or transformers is missing.
        RunFailed: if `transformers` finds tensors missing or unknown, gives other token ids, or
            logits that differ by more than `TOLERANCE`.
    """
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise UserError(
            f"--verify: {error.name} is not installed; "
            "pip install torch transformers, or leave --verify out"
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    _compare_ids(directory, tokenizer)
    model = _load_in_torch(directory)

    compiled = _in_a_loop(cfg)
    worst = 0.0
    for is_padded in (False, True):
        tokens, mask = _batch(families.network(cfg), model.config.pad_token_id, is_padded)
        expected = _torch_logits(model, cfg, tokens, mask)
        logits = np.asarray(
            _logits(compiled, params, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask == 1))
        )
        if _scores_tokens(cfg):
            # Logits at padding are of no use, and differ.
            logits, expected = logits[mask == 1], expected[mask == 1]
        scale = max(1.0, np.abs(expected).max())
        worst = max(worst, float(np.abs(logits - expected).max() / scale))

    # Written so that NaN fails.
    if not worst <= TOLERANCE:
        name = type(model).__name__
        raise RunFailed(f"{directory}: logits of {name} differ by {worst:.2g}; {_REPORT}")
    return worst


def _compare_ids(directory: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises RunFailed if AutoTokenizer gives other ids than `tokenizer`."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for text in _TEXTS:
        if theirs(text)["input_ids"] != tokenizer.encode(text).ids:
            raise RunFailed(f"{directory}: AutoTokenizer gives other ids for {text!r}; {_REPORT}")


def _load_in_torch(directory: pathlib.Path) -> Any:
    """Returns the model in float32. Raises RunFailed if the class reports missing tensors."""
    import torch
    import transformers

    (name,) = read_json(directory / "config.json", "export again")["architectures"]
    model, report = getattr(transformers, name).from_pretrained(
        directory, output_loading_info=True, dtype=torch.float32
    )
    problems = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if problems:
        raise RunFailed(f"{directory}: {name} reports {problems}; {_REPORT}")
    return model.eval()


def _torch_logits(
    model: Any, cfg: families.Config, tokens: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    import torch

    inputs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    if isinstance(cfg, t5.T5Config):
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :_N_TARGETS]
    with torch.no_grad():
        outputs = model(**inputs)
    if isinstance(cfg, classifier.ClassifierConfig) and cfg.head == classifier.EMBEDDING:
        hidden = outputs.last_hidden_state.numpy()
        if cfg.pooling == "first":
            return hidden[:, 0]
        weights = mask[..., None].astype(np.float32)
        return (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    if isinstance(cfg, classifier.ClassifierConfig) and cfg.head == classifier.SPAN:
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).numpy()
    if not hasattr(outputs, "logits"):
        return outputs.last_hidden_state.numpy()  # a class without a head
    return outputs.logits.numpy()


def _scores_tokens(cfg: families.Config) -> bool:
    """Returns whether a network has logits at the places of its input, padding included."""
    if isinstance(cfg, classifier.ClassifierConfig):
        return cfg.head in (classifier.TOKEN, classifier.SPAN)
    return isinstance(cfg, encoder.EncoderConfig)


def _in_a_loop(cfg: families.Config) -> families.Config:
    """Returns `cfg` with layers in a loop: they compile once, and this check runs them twice."""
    if isinstance(cfg, classifier.ClassifierConfig):
        return dataclasses.replace(cfg, encoder=dataclasses.replace(cfg.encoder, unroll=1))
    return dataclasses.replace(cfg, unroll=1)


def _batch(
    network: encoder.EncoderConfig | t5.T5Config, pad_id: int, is_padded: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and padding mask, both int64 [rows, length]."""
    length = _LENGTH
    if isinstance(network, encoder.EncoderConfig) and network.positions == "learned":
        length = min(_LENGTH, network.max_positions)
    tokens = np.random.default_rng(0).integers(0, network.vocab_size, (_ROWS, length))
    # A padding token inside the text would move RoBERTa's positions.
    tokens[tokens == pad_id] = (pad_id + 1) % network.vocab_size

    mask = np.ones_like(tokens)
    if is_padded:
        mask[0, length * 2 // 3 :] = 0
        mask[2, length // 4 :] = 0
        tokens[mask == 0] = pad_id
    return tokens, mask


@functools.partial(jax.jit, static_argnums=0)
def _logits(
    cfg: families.Config, params: dict[str, Any], tokens: jax.Array, mask: jax.Array
) -> jax.Array:
    """Returns our logits, as the class of `transformers` has them.

    They are [rows, targets, vocab] for a T5, [rows, outputs] for a classifier of sequences,
    [rows, embed] for embeddings, [rows, length, outputs] for a classifier of tokens,
    [rows, length, vocab] for an encoder and [rows, length] for a discriminator; without a head
    they are the hidden states.
    """
    if isinstance(cfg, t5.T5Config):
        encoded = t5.encode(cfg, FLOAT32, params, tokens, padding_mask=mask)
        hidden = t5.decode(cfg, FLOAT32, params, encoded, tokens[:, :_N_TARGETS], padding_mask=mask)
        return t5.head(cfg, FLOAT32, params, hidden)

    if isinstance(cfg, classifier.ClassifierConfig):
        # Each row is one text, so that its first token is that of the row.
        rows = jnp.arange(_ROWS, dtype=jnp.int32)
        segments = jnp.where(mask, rows[:, None] + 1, 0)
        if _scores_tokens(cfg):
            return classifier.score_tokens(cfg, FLOAT32, params, tokens, segment_ids=segments)
        pooling = classifier.embed if cfg.head == classifier.EMBEDDING else classifier.classify
        return pooling(cfg, FLOAT32, params, tokens, rows * tokens.shape[1], segment_ids=segments)

    hidden = encoder.encode(cfg, FLOAT32, params, tokens, padding_mask=mask)
    if isinstance(cfg, detector.DetectorConfig):
        return detector.detect(cfg, FLOAT32, params, hidden)
    if "head" not in params:
        return hidden
    return encoder.head(cfg, FLOAT32, params, hidden)
