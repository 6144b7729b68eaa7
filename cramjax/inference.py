"""Trained models put to use: load a run or a Hugging Face model, fill masks with an encoder, fill spans and generate text with a T5."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from cramjax import start
from cramjax.checkpoints import pretrained
from cramjax.data.tokenizers import special_ids
from cramjax.errors import UserError
from cramjax.models import encoder, network, t5
from cramjax.models.generation import generate as generate_tokens
from cramjax.models.int8 import is_faster
from cramjax.models.layers import Precision
from cramjax.tuning import devices

# Inputs are padded to a multiple of this many tokens, so that few lengths are compiled.
LENGTH_MULTIPLE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained model: its shape, number format, parameters (float32), tokenizer and the ids of special tokens by role.

    `extra`: what a model of `transformers` has beside these (`hub.tables.from_hf`); {} for a run.
    It unpacks: `model, params, tokenizer = cramjax.load(path)`, where `model` is the object itself.
    `step`: of a run's checkpoint. `finetuned`: of a finetuned model, what `tools.finetune --save` notes: task, labels, settings, seed; the
    parameters of an encoder are then those of `models.classifier`.
    """

    config: encoder.EncoderConfig | t5.T5Config
    precision: Precision
    params: dict
    tokenizer: tokenizers.Tokenizer
    special: dict[str, int]
    extra: dict = dataclasses.field(default_factory=dict)
    step: int | None = None
    finetuned: dict | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self, self.params, self.tokenizer))

    @property
    def is_t5(self) -> bool:
        """Whether it is an encoder-decoder."""
        return isinstance(self.config, t5.T5Config)

    def description(self) -> dict[str, Any]:
        """The network as a checkpoint has it."""
        return dataclasses.asdict(self.config) | {"family": self.config.family}


def load(
    path: str | os.PathLike, step: int | None = None, *, dequantize: bool = False
) -> LoadedModel:
    """The newest checkpoint of the run whose workdir is `path`, or that of a `step`; a compressed model; or one of `transformers`.

    The latter is a directory that `save_pretrained` wrote, or where there is none of this name the id of a model on the Hugging Face Hub,
    as "answerdotai/ModernBERT-base", which is downloaded. Matrices that a compression has stored in 8 bits stay so (`models.int8.Int8`)
    where the device is faster with them, unless `dequantize` is set, which training and exporting need.

    Raises:
        UserError: where `path` is none of these, or holds a model that ours cannot be.
    """
    start.start()
    device = jax.devices()[0]
    automatic = devices.make_precision(devices.resolve_precision("auto", device), device)
    found = pretrained.read(
        path, step, whole=is_faster(device, automatic.matmul_dtype) and not dequantize
    )
    precision = (
        "auto"
        if not found.is_run
        else json.loads((found.path / "config.json").read_text())["precision"]
    )
    special = special_ids(found.tokenizer)
    return LoadedModel(
        config=found.config,
        precision=devices.make_precision(devices.resolve_precision(precision, device), device),
        params=jax.tree.map(jnp.asarray, found.params),
        tokenizer=found.tokenizer,
        special={role: number for role, number in special.items() if number is not None},
        extra=found.extra,
        step=found.step,
        finetuned=found.finetuned,
    )


def untrained(model: LoadedModel) -> LoadedModel:
    """The same network with fresh parameters, of key 0: the control of whatever is said of `model`."""
    params = network.init_params(model.config, jax.random.key(0))
    return dataclasses.replace(model, params=params, extra={})


def fill_mask(model: LoadedModel, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
    """For every mask token in `text`, the `top_k` most likely tokens with their probabilities, best first.

    Raises:
        UserError: if `text` has no mask token, or the model is no masked language model.
    """
    if model.is_t5:
        raise UserError(
            "fill_mask: this model is a T5; use fill_spans with <extra_id_0>, <extra_id_1>, … in the text"
        )
    if model.finetuned:
        raise UserError(
            f"fill_mask: this model is finetuned for {model.finetuned['task']} and predicts no words; load the run before that"
        )
    ids = model.tokenizer.encode(text).ids
    positions = [index for index, token in enumerate(ids) if token == model.special["mask"]]
    if not positions:
        raise UserError(
            f"{text!r}: holds no {model.tokenizer.id_to_token(model.special['mask'])} to fill"
        )
    return fill_positions(model, np.asarray(ids, np.int32), positions, top_k)


def fill_positions(
    model: LoadedModel, ids: np.ndarray, positions: Sequence[int], top_k: int
) -> list[list[tuple[str, float]]]:
    """For each of `positions` in `ids` int32 [length], the `top_k` most likely tokens with their probabilities."""
    hidden = encoder.encode(model.config, model.precision, model.params, jnp.asarray(ids)[None])
    logits = encoder.head(
        model.config, model.precision, model.params, hidden[0, jnp.asarray(list(positions))]
    )
    logits = logits[:, : model.tokenizer.get_vocab_size()]  # entries of padding have no token
    probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), top_k)
    return [
        [
            (model.tokenizer.id_to_token(int(token)), float(share))
            for token, share in zip(*row, strict=True)
        ]
        for row in zip(np.asarray(tokens), np.asarray(probabilities), strict=True)
    ]


def generate(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    max_len: int = 64,
    n_beams: int = 1,
    length_penalty: float = 1.0,
) -> list[str]:
    """What a T5 answers to each of `texts`, without special tokens, by greedy (`n_beams` 1) or beam search.

    Raises:
        UserError: if the model is no T5.
    """
    inputs = [encoding.ids for encoding in model.tokenizer.encode_batch(list(texts))]
    options = {"max_len": max_len, "n_beams": n_beams, "length_penalty": length_penalty}
    return [model.tokenizer.decode(ids) for ids in generate_ids(model, inputs, **options)]


def fill_spans(model: LoadedModel, text: str, *, max_len: int = 64, n_beams: int = 1) -> list[str]:
    """What a T5 puts in the place of <extra_id_0>, <extra_id_1>, … in `text`, in this order.

    Raises:
        UserError: if `text` has no sentinel, or the model is no T5.
    """
    ids = model.tokenizer.encode(text).ids
    sentinels = [
        token
        for token in ids
        if (model.tokenizer.id_to_token(token) or "").startswith("<extra_id_")
    ]
    if not sentinels:
        raise UserError(f"{text!r}: holds no <extra_id_0> to fill")
    (answer,) = generate_ids(model, [ids], max_len=max_len, n_beams=n_beams)
    return [model.tokenizer.decode(span) for span in split_spans(answer, sentinels)]


def split_spans(answer: Sequence[int], sentinels: Sequence[int]) -> list[list[int]]:
    """What stands after each of `sentinels` in a T5's `answer`, up to the next one; empty where it left one out."""
    spans: dict[int, list[int]] = {sentinel: [] for sentinel in sentinels}
    current: list[int] = []
    for token in answer:
        if token in spans:
            current = spans[token]
        else:
            current.append(token)
    return [spans[sentinel] for sentinel in sentinels]


def generate_ids(
    model: LoadedModel,
    inputs: Sequence[Sequence[int]],
    *,
    max_len: int,
    n_beams: int = 1,
    length_penalty: float = 1.0,
) -> list[list[int]]:
    """Token ids generated for each of `inputs`, up to the end of the sequence, which is left out; all are one batch.

    Raises:
        UserError: if the model is no T5.
    """
    if not model.is_t5:
        raise UserError("this model is an encoder, which generates no text: use fill_mask")
    length = -(-max(map(len, inputs)) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    tokens = np.full((len(inputs), length), model.special["pad"], np.int32)
    mask = np.zeros((len(inputs), length), bool)
    for row, ids in enumerate(inputs):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    search = _compiled(
        model.config, model.precision, max_len, n_beams, length_penalty, *_ends(model)
    )
    decoded = np.asarray(search(model.params, tokens, mask).tokens)
    ends = np.where(decoded == model.special["sep"], np.arange(max_len), max_len).min(axis=1)
    return [row[:end].tolist() for row, end in zip(decoded, ends, strict=True)]


def _ends(model: LoadedModel) -> tuple[int, int, int]:
    return model.special["pad"], model.special["sep"], model.tokenizer.get_vocab_size()


@functools.lru_cache(maxsize=32)
def _compiled(cfg, precision, max_len, n_beams, length_penalty, pad, sep, vocab_size):
    """The search with all that is static, kept so that jit knows it again."""

    @jax.jit
    def search(params, tokens, mask):
        return generate_tokens(
            cfg,
            precision,
            params,
            tokens,
            max_len=max_len,
            special={"pad": pad, "sep": sep},
            vocab_size=vocab_size,
            padding_mask=mask,
            n_beams=n_beams,
            length_penalty=length_penalty,
        )

    return search
