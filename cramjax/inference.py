"""Uses trained models from Python.

Load a run or a Hugging Face model, fill masks with an encoder, fill spans and generate text with a
T5.
"""

from __future__ import annotations

import dataclasses
import functools
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
from cramjax.files import read_json
from cramjax.models import encoder, network, t5
from cramjax.models.decoding import Scoring
from cramjax.models.detector import DetectorConfig
from cramjax.models.int8 import is_faster
from cramjax.models.layers import Precision
from cramjax.tuning import devices
from cramjax.writing.writer import NO_NUMBERS, Search, Writer

_PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained model.

    It unpacks: `model, params, tokenizer = cramjax.load(path)`, where `model` is the object itself.

    Attributes:
        config: the network.
        precision: the number formats to compute in.
        params: float32, or `models.int8.Int8` where `load` says so. The parameters of a finetuned
            encoder are those of `models.classifier`.
        tokenizer: of the model.
        special: role → id of a special token.
        extra: parts that our networks lack, see `hub.tables.from_hf`; {} for a run.
        step: of a run's checkpoint; None for other models.
        finetuned: the notes of `tools.finetune --save` about a finetuned model: task, labels,
            settings, seed; None for others.
    """

    config: encoder.EncoderConfig | t5.T5Config
    precision: Precision
    params: dict[str, Any]
    tokenizer: tokenizers.Tokenizer
    special: dict[str, int]
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int | None = None
    finetuned: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self, self.params, self.tokenizer))

    @functools.cached_property
    def has_token(self) -> np.ndarray:
        """bool [vocab_size]: True at the rows of the vocabulary that have a token."""
        known = np.zeros(self.config.vocab_size, bool)
        known[list(self.tokenizer.get_vocab().values())] = True
        return known

    @property
    def n_token_rows(self) -> int:
        """The rows up to the last one with a token; ids may have gaps."""
        return int(np.flatnonzero(self.has_token)[-1]) + 1

    @property
    def unused_ids(self) -> tuple[int, ...]:
        """The ids below `n_token_rows` that have no token."""
        return tuple(np.flatnonzero(~self.has_token[: self.n_token_rows]).tolist())

    @property
    def is_t5(self) -> bool:
        """True for an encoder-decoder."""
        return isinstance(self.config, t5.T5Config)

    @property
    def is_detector(self) -> bool:
        """True for an encoder that finds replaced tokens, and predicts none."""
        return isinstance(self.config, DetectorConfig)

    def description(self) -> dict[str, Any]:
        """Returns the network as a checkpoint describes it."""
        return dataclasses.asdict(self.config) | {"family": self.config.family}


def load(
    path: str | os.PathLike, step: int | None = None, *, dequantize: bool = False
) -> LoadedModel:
    """Returns a trained model, ready for use on the first device.

    Args:
        path: the workdir of a run, the folder of a compressed model, a directory that
            `save_pretrained` wrote, or the id of a model on the Hugging Face Hub, for example
            "answerdotai/ModernBERT-base". A model on the Hub is downloaded.
        step: of a run's checkpoint; None for the newest.
        dequantize: turn all matrices of a compressed model into float32, which training and
            exporting need. By default matrices that are stored in 8 bits stay so
            (`models.int8.Int8`) if the device is faster with them.

    Raises:
        UserError: if there is no model at `path`, or our networks do not cover it.
    """
    start.start()
    device = jax.devices()[0]
    automatic = devices.make_precision(devices.resolve_precision("auto", device), device)
    keep_int8 = is_faster(device, automatic.matmul_dtype) and not dequantize
    model = pretrained.read(os.path.expanduser(path), step, whole=keep_int8)

    # A run computes in the formats it was trained with, other models in the best of the device.
    setting = _precision_of(model) if model.is_run else "auto"
    ready = on_device(model.config, model.params, model.tokenizer, setting)
    return dataclasses.replace(ready, extra=model.extra, step=model.step, finetuned=model.finetuned)


def on_device(
    config: encoder.EncoderConfig | t5.T5Config,
    params: Any,
    tokenizer: tokenizers.Tokenizer,
    precision: str = "auto",
) -> LoadedModel:
    """Returns a model that was read otherwise than by `load`, ready for use on the first device.

    Args:
        config: the network.
        params: its parameters, of NumPy or on a device.
        tokenizer: of the model.
        precision: as in `config/schema.py`.
    """
    start.start()
    device = jax.devices()[0]
    special = special_ids(tokenizer)
    return LoadedModel(
        config=config,
        precision=devices.make_precision(devices.resolve_precision(precision, device), device),
        params=jax.tree.map(jnp.asarray, params),
        tokenizer=tokenizer,
        special={role: number for role, number in special.items() if number is not None},
    )


def _precision_of(model: pretrained.Pretrained) -> str:
    """Returns the precision that a run was trained with; raises UserError if it is not known."""
    where = model.path / "config.json"
    cure = "copy the config.json of the run there"
    setting = read_json(where, cure).get("precision")
    if setting not in _PRECISIONS:
        raise UserError(f"{where}: precision={setting!r:.80} is none of ours; {cure}")
    return setting


def untrained(model: LoadedModel) -> LoadedModel:
    """Returns the same network with fresh parameters, a function of key 0, as a control."""
    params = network.init_params(model.config, jax.random.key(0))
    return dataclasses.replace(model, params=params, extra={})


def fill_mask(model: LoadedModel, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
    """Returns the likely tokens at every mask token in `text`.

    Args:
        model: an encoder that predicts tokens.
        text: with at least one mask token.
        top_k: tokens to return for each mask.

    Returns:
        For each mask, `top_k` pairs (token, probability), best first.

    Raises:
        UserError: if `text` has no mask token, or the model is no masked language model.
    """
    check_head(model)
    if model.is_t5:
        raise UserError(
            "fill_mask: this model is a T5; "
            "use fill_spans with <extra_id_0>, <extra_id_1>, … in the text"
        )
    if model.finetuned:
        raise UserError(
            f"fill_mask: this model is finetuned for {model.finetuned['task']} "
            "and predicts no words; load the run before that"
        )

    ids = model.tokenizer.encode(text).ids
    mask = model.special["mask"]
    positions = [index for index, token in enumerate(ids) if token == mask]
    if not positions:
        raise UserError(f"{text!r}: holds no {model.tokenizer.id_to_token(mask)} to fill")
    return fill_positions(model, np.asarray(ids, np.int32), positions, top_k)


def fill_positions(
    model: LoadedModel, ids: np.ndarray, positions: Sequence[int], top_k: int
) -> list[list[tuple[str, float]]]:
    """Returns the likely tokens at `positions`, each as `top_k` pairs (token, probability).

    Args:
        model: an encoder that predicts tokens.
        ids: int32 [length], with mask tokens at `positions`.
        positions: indices into `ids`.
        top_k: tokens to return for each position, best first; all if there are fewer.

    Raises:
        UserError: if the weights give no numbers.
    """
    assert isinstance(model.config, encoder.EncoderConfig)
    hidden = encoder.encode(model.config, model.precision, model.params, jnp.asarray(ids)[None])
    at_positions = hidden[0, jnp.asarray(list(positions))]  # [positions, d_model]
    logits = encoder.head(model.config, model.precision, model.params, at_positions)
    # Rows that pad the vocabulary have no token.
    logits = jnp.where(jnp.asarray(model.has_token)[None], logits.astype(jnp.float32), -jnp.inf)
    top_k = min(top_k, int(model.has_token.sum()))
    probabilities, tokens = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), top_k)
    if np.isnan(probabilities).any():
        raise UserError(NO_NUMBERS)

    guesses = []
    for row, shares in zip(np.asarray(tokens), np.asarray(probabilities), strict=True):
        words = [_shown(model.tokenizer, int(token)) for token in row]
        guesses.append(list(zip(words, map(float, shares), strict=True)))
    return guesses


def check_head(model: LoadedModel) -> None:
    """Raises UserError for a model without trained weights that predict tokens."""
    if model.is_detector:
        raise UserError(
            "this model finds replaced tokens and predicts no words, because its generator is not "
            "loaded; finetune it, or load a run of objective.name=mlm"
        )
    if model.extra.get("head_missing"):
        raise UserError(
            "this model has no head that predicts words, as a BertModel has none; "
            "save it with its head (AutoModelForMaskedLM)"
        )


def _shown(tokenizer: tokenizers.Tokenizer, token: int) -> str:
    """Returns a token as text; one byte of a longer character keeps its name, <0xC3>."""
    name = tokenizer.id_to_token(token) or ""
    text = tokenizer.decode([token], skip_special_tokens=False)
    return name if not text or "\ufffd" in text else text


def generate(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    max_len: int | None = 64,
    n_beams: int = 1,
    length_penalty: float = 1.0,
    length_offset: float = 0.0,
) -> list[str]:
    """Returns the answer of a T5 to each of `texts`, without special tokens.

    Args:
        model: a T5.
        texts: the inputs, any number of them; they are put into batches by their length.
        max_len: tokens of an answer at most; None for 50 more than its input has.
        n_beams: 1 for greedy search, more for beam search.
        length_penalty: see `models.decoding.Scoring`.
        length_offset: likewise (`offset`); 5 for the score of Google's translation.

    Raises:
        UserError: if the model is no T5.
    """
    inputs = [encoding.ids for encoding in model.tokenizer.encode_batch(list(texts))]

    answers = generate_ids(
        model,
        inputs,
        max_len=max_len,
        n_beams=n_beams,
        length_penalty=length_penalty,
        length_offset=length_offset,
    )
    return [model.tokenizer.decode(ids) for ids in answers]


def fill_spans(model: LoadedModel, text: str, *, max_len: int = 64, n_beams: int = 1) -> list[str]:
    """Returns the texts that a T5 puts in place of <extra_id_0>, <extra_id_1>, … in `text`.

    Raises:
        UserError: if `text` has no sentinel, or the model is no T5.
    """
    ids = model.tokenizer.encode(text).ids
    sentinels = []
    for token in ids:
        if (model.tokenizer.id_to_token(token) or "").startswith("<extra_id_"):
            sentinels.append(token)
    if not sentinels:
        raise UserError(f"{text!r}: holds no <extra_id_0> to fill")
    (answer,) = generate_ids(model, [ids], max_len=max_len, n_beams=n_beams)
    return [model.tokenizer.decode(span) for span in split_spans(answer, sentinels)]


def split_spans(answer: Sequence[int], sentinels: Sequence[int]) -> list[list[int]]:
    """Returns the tokens after each of `sentinels` in a T5's `answer`, up to the next sentinel.

    The span of a sentinel that the answer lacks is empty.
    """
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
    max_len: int | None,
    n_beams: int = 1,
    length_penalty: float = 1.0,
    length_offset: float = 0.0,
) -> list[list[int]]:
    """Returns the token ids generated for each of `inputs`, without the end of the sequence.

    Args:
        model: a T5.
        inputs: token ids, any number of them.
        max_len: tokens generated at most; None for 50 more than an input has.
        n_beams: 1 for greedy search, more for beam search.
        length_penalty: see `models.decoding.Scoring`.
        length_offset: likewise (`offset`); 5 for the score of Google's translation.

    Raises:
        UserError: if the model is no T5, or its weights give no numbers.
    """
    if not isinstance(model.config, t5.T5Config):
        raise UserError("this model is an encoder, which generates no text: use fill_mask")
    scoring = Scoring(penalty=length_penalty, offset=length_offset)
    search = Search(n_beams=n_beams, scoring=scoring, max_len=max_len)

    writer = Writer(
        config=model.config,
        precision=model.precision,
        pad_id=model.special["pad"],
        sep_id=model.special["sep"],
        vocab_size=model.n_token_rows,
        unused=model.unused_ids,
        search=search,
    )
    return writer.write(model.params, inputs) or []
