"""Trained models put to use: load a workdir, fill masks, and the demonstration a run ends with."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from cramjax.config.errors import UserError
from cramjax.data.dataset import TokenDataset
from cramjax.models import encoder
from cramjax.training import devices
from cramjax.training.checkpoint import Checkpoints

# Share of the words of a demonstration sentence that is masked: enough context is left to judge the guesses.
DEMO_MASK_SHARE = 0.15
DEMO_WINDOW = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained encoder: its shape, number format, parameters (float32) and tokenizer."""

    config: encoder.EncoderConfig
    precision: encoder.Precision
    params: dict
    tokenizer: tokenizers.Tokenizer
    mask_token: str


def load(workdir: str | os.PathLike) -> LoadedModel:
    """The newest checkpoint of a run. Raises UserError where `workdir` holds none."""
    path = pathlib.Path(workdir)
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path}: no checkpoint of a run there; train one with python -m cramjax.main --workdir {path}")
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    params, sidecar = checkpoints.restore_params()
    checkpoints.close()
    device = jax.devices()[0]
    precision = devices.resolve_precision(json.loads((path / "config.json").read_text())["precision"], device)
    return LoadedModel(
        config=encoder.EncoderConfig(**sidecar["model"]),
        precision=devices.make_precision(precision, device),
        params=params,
        tokenizer=tokenizers.Tokenizer.from_file(str(path / "tokenizer" / "tokenizer.json")),
        mask_token=json.loads((path / "tokenizer" / "special_tokens_map.json").read_text())["mask_token"],
    )


def fill_mask(model: LoadedModel, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
    """For every mask token in `text`, the `top_k` most likely tokens with their probabilities, best first.

    Raises:
        UserError: if `text` has no mask token.
    """
    ids = model.tokenizer.encode(text).ids
    mask_id = model.tokenizer.token_to_id(model.mask_token)
    positions = [index for index, token in enumerate(ids) if token == mask_id]
    if not positions:
        raise UserError(f"{text!r}: holds no {model.mask_token} to fill")
    return _fill(model, np.asarray(ids, np.int32), positions, top_k)


def demonstrate(workdir: str | os.PathLike, n_sentences: int) -> list[str]:
    """`n_sentences` held-out sentences with some words masked, each as [truth → guess] or [truth ✓], by the run in `workdir`.

    Fewer where the held-out text has no more sentences of a readable length.
    """
    model = load(workdir)
    environment = json.loads((pathlib.Path(workdir) / "environment.json").read_text())
    dataset = TokenDataset.open(environment["dataset"])
    lines: list[str] = []
    n_sequences = dataset.n_sequences("heldout", DEMO_WINDOW)[0]
    # The stride is prime and large: neighbouring picks come from different documents.
    for pick in range(min(n_sequences, 50 * n_sentences)):
        window = dataset.read("heldout", 0, np.asarray([pick * 7919 % n_sequences]), DEMO_WINDOW)[0]
        sentence = _first_sentence(model, window.astype(np.int32), set(dataset.special_tokens.values()))
        if sentence is not None:
            lines.append(_with_guesses(model, *sentence))
        if len(lines) == n_sentences:
            break
    return lines


def _first_sentence(model: LoadedModel, ids: np.ndarray, special: set[int]) -> tuple[np.ndarray, list[int]] | None:
    """The first whole sentence in `ids` and the positions to mask in it; None where there is none that reads as prose."""
    stops = np.flatnonzero(ids == model.tokenizer.token_to_id("."))
    for start, end in zip(stops[:-1] + 1, stops[1:] + 1, strict=True):
        sentence = ids[start:end]
        words = [index for index, token in enumerate(sentence) if _is_word(model, int(token))]
        if 10 <= len(sentence) <= 40 and not special & set(sentence.tolist()) and len(words) > 0.6 * len(sentence):
            return sentence, words[2 :: round(1 / DEMO_MASK_SHARE)]
    return None


def _is_word(model: LoadedModel, token: int) -> bool:
    text = model.tokenizer.id_to_token(token)
    return text.isalpha() and len(text) > 2


def _with_guesses(model: LoadedModel, ids: np.ndarray, chosen: Sequence[int]) -> str:
    masked = ids.copy()
    masked[list(chosen)] = model.tokenizer.token_to_id(model.mask_token)
    guesses = dict(zip(chosen, _fill(model, masked, chosen, 1), strict=True))
    pieces = []
    for index, token in enumerate(ids):
        text = model.tokenizer.id_to_token(int(token))
        if index in guesses:
            guess = guesses[index][0][0]
            text = f"[{text} ✓]" if guess == text else f"[{text} → {guess}]"
        pieces.append(text)
    return " ".join(pieces).replace(" ##", "")


def _fill(model: LoadedModel, ids: np.ndarray, positions: Sequence[int], top_k: int) -> list[list[tuple[str, float]]]:
    hidden = encoder.encode(model.config, model.precision, model.params, jnp.asarray(ids)[None])
    logits = encoder.head(model.config, model.precision, model.params, hidden[0, jnp.asarray(list(positions))])
    logits = logits[:, : model.tokenizer.get_vocab_size()]  # entries of padding have no token
    probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), top_k)
    return [
        [(model.tokenizer.id_to_token(int(token)), float(share)) for token, share in zip(*row, strict=True)]
        for row in zip(np.asarray(tokens), np.asarray(probabilities), strict=True)
    ]
