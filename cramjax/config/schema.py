"""Every configuration key, once: default, type, unit, choices and a line of help.

Recipes (`configs/*.py`) start from `defaults()` and change what they are about; `resolve.py` refuses everything that is
not here. No JAX and no TensorFlow: a wrong key is reported before either starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_collections


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One key. `kinds`: accepted Python types (None must be listed); `check`: value → error text or None."""

    default: Any
    kinds: tuple[type, ...]
    help: str
    choices: tuple[Any, ...] = ()
    check: Callable[[Any], str | None] = lambda value: None


NoneType = type(None)


def _text(default: str, help: str, *choices: str) -> Field:
    return Field(default=default, kinds=(str,), help=help, choices=choices)


def _flag(default: bool, help: str) -> Field:
    return Field(default=default, kinds=(bool,), help=help)


def _bounded(
    kinds: tuple[type, ...], default: Any, help: str, low: float | None, high: float | None
) -> Field:
    def check(value):
        if value is None:
            return None
        if low is not None and value < low:
            return f"must be at least {low:g}"
        if high is not None and value > high:
            return f"must be at most {high:g}"
        return None

    return Field(default=default, kinds=kinds, help=help, check=check)


def _count(default: int | None, help: str, low: int = 1) -> Field:
    kinds = (int, NoneType) if default is None else (int,)
    return _bounded(kinds, default, help, low, None)


def _optional_count(default: int | None, help: str, low: int = 1) -> Field:
    return _bounded((int, NoneType), default, help, low, None)


def _number(
    default: float | None, help: str, low: float | None = 0.0, high: float | None = None
) -> Field:
    kinds = (int, float, NoneType) if default is None else (int, float)
    return _bounded(kinds, default, help, low, high)


def _optional_number(
    default: float | None, help: str, low: float | None = 0.0, high: float | None = None
) -> Field:
    return _bounded((int, float, NoneType), default, help, low, high)


def _share(default: float, help: str) -> Field:
    return _number(default, help, 0.0, 1.0)


def _check_max_mb(value: Any) -> str | None:
    if isinstance(value, str):
        return None if value == "budget" else "must be a number, None or 'budget'"
    return "must be over 0" if value is not None and value <= 0 else None


BUDGET = {
    "hours": _number(
        None,
        "wall-clock hours of training, from the first step of the first start; compile time counts",
    ),
    "steps": _count(None, "optimizer steps"),
    "tokens": _number(None, "tokens read by the model; of a t5, by its encoder", 1),
    "flops": _number(None, "model FLOPs (analytic, forward and backward)", 1),
}

DATA = {
    "source": Field(
        default="installed-docs",
        kinds=(str, list, tuple),
        help="installed-docs, text:GLOB, hf:OWNER/NAME:GLOB, tfds:NAME/CONFIG, prepared:DIR, or [[source, weight], …]",
    ),
    "cache_dir": _text("data", "folder that holds prepared datasets, one subfolder each"),
    "seq_len": _count(
        128, "tokens a sequence; chosen at read time, one prepared dataset serves every length", 8
    ),
    "vocab_size": _count(32768, "entries of the tokenizer, special tokens included", 64),
    "tokenizer": _text(
        "wordpiece", "wordpiece, unigram, bpe, or a path to a tokenizer.json or .model"
    ),
    "tokenizer_sample_mb": _number(
        64.0, "MB (10^6 bytes of text) a tokenizer is trained on at most", 0.01
    ),
    "lowercase": _flag(True, "lowercase in a newly trained tokenizer"),
    "ascii_only": _flag(
        True,
        "drop accents and non-ASCII characters in a newly trained tokenizer (Cramming's chain)",
    ),
    "text_field": _text(
        "text", "field of .jsonl, .parquet, Hub and TFDS records that holds the text"
    ),
    "max_mb": Field(
        default=None,
        kinds=(int, float, str, NoneType),
        help="MB (10^6 bytes) of text to take in all; None: everything; budget: what the budget can read once",
        check=_check_max_mb,
    ),
    "normalize": _flag(
        True, "unicode (NFC) and white space normalisation, control characters dropped"
    ),
    "min_chars": _count(0, "shorter documents are dropped, in characters", 0),
    "max_chars": _optional_count(
        None, "longer documents are cut into pieces of this many characters", 16
    ),
    "compressibility": _optional_number(
        None, "keep a document if tokens < this share of its characters (Cramming: 0.25)"
    ),
    "dedup_exact": _flag(True, "drop documents whose normalised text came before"),
    "dedup_near": _optional_number(
        None,
        "drop documents whose MinHash Jaccard similarity to an earlier one is over this",
        0.1,
        1,
    ),
    "heldout_fraction": _number(
        0.01, "share of documents held out for evaluation, chosen by document hash", 0.0, 0.5
    ),
    "order": _text(
        "shuffled",
        "shuffled (a permutation of (seed, epoch)), or sentence_length (Cramming: short ones first)",
        "shuffled",
        "sentence_length",
    ),
    "cls_token": _flag(
        False, "every sequence starts with the [CLS] token (Cramming: not needed in pretraining)"
    ),
    "loader": _text(
        "auto",
        "tfdata, numpy (needs no TensorFlow), auto: tfdata where TensorFlow is installed; same batches",
        "auto",
        "tfdata",
        "numpy",
    ),
    "extra_ids": _count(
        0,
        "sentinels <extra_id_0>, … at the top of the vocabulary, counted in vocab_size (span corruption: 100)",
        0,
    ),
    "allow_build": _flag(
        False, "let TensorFlow Datasets download and build a dataset that is not on disk yet"
    ),
    "max_shard_tokens": _count(1 << 27, "tokens in a shard file at most", 1024),
}

MODEL = {
    "family": _text("encoder", "encoder (BERT), or the encoder-decoder t5", "encoder", "t5"),
    "n_layers": _count(12, "transformer blocks; of the encoder"),
    "n_decoder_layers": _count(None, "blocks of a t5 decoder; None: as many as n_layers"),
    "d_model": _count(768, "width"),
    "n_heads": _count(12, "attention heads; d_model must divide by it unless head_dim is given"),
    "head_dim": _count(None, "dimensions of a head, t5 only; None: d_model / n_heads"),
    "d_ff": _count(
        3072, "inner width of the feed-forward; for a GLU the width of each of its two halves"
    ),
    "ffn_rank": _count(
        0, "inner dimension of the feed-forward's matrices as products of two; 0: they are whole", 0
    ),
    "ffn": _text(
        "gelu",
        "gelu, relu: two matrices; geglu: gated, three matrices; geglu_tanh: with GELU's tanh form, as T5 v1.1",
        "gelu",
        "geglu",
        "relu",
        "geglu_tanh",
    ),
    "norm_position": _text("pre", "pre: x + f(norm(x)); post: norm(x + f(x))", "pre", "post"),
    "norm": _text("layernorm", "normalisation", "layernorm", "rmsnorm"),
    "norm_bias": _flag(True, "normalisations have a bias"),
    "norm_eps": _number(1e-12, "epsilon of the normalisations"),
    "first_norm": _flag(True, "the first block has an attention norm (ModernBERT: no)"),
    "embedding_norm": _flag(True, "norm after the embeddings"),
    "final_norm": _flag(True, "norm after the last block"),
    "linear_bias": _flag(False, "biases in attention and feed-forward"),
    "positions": _text(
        "scaled_sinusoidal",
        "position information; relative: T5's buckets",
        "learned",
        "scaled_sinusoidal",
        "rotary",
        "none",
        "relative",
    ),
    "max_positions": _count(128, "longest sequence of absolute positions"),
    "rotary_base": _number(10000.0, "base of the rotary angles", 1.0),
    "local_window": _count(
        0, "tokens that a local block sees, half before and half after; 0: all blocks see all", 0
    ),
    "global_every": _count(
        1, "with a local_window: every so many blocks, from the first on, one sees all"
    ),
    "local_rotary_base": _number(10000.0, "base of the rotary angles in local blocks", 1.0),
    "relative_buckets": _count(32, "buckets of relative positions", 4),
    "relative_max_distance": _count(128, "tokens from which on all distances share a bucket", 8),
    "tie_embeddings": _flag(
        True, "the decoder's matrix is the token embedding; t5 may have its own (v1.1)"
    ),
    "token_types": _count(0, "entries of the token type embedding; 0: none", 0),
    "head_transform": _flag(False, "dense, GELU and norm before the decoder"),
    "head_bias": _flag(False, "the head transform's dense layer and norm have biases"),
    "decoder_bias": _flag(False, "the tied decoder has a bias"),
    "dropout": _share(
        0.0, "dropout on embeddings, attention and feed-forward outputs in pretraining"
    ),
    "attention_dropout": _share(0.0, "dropout on attention probabilities in pretraining"),
    "init_std": _number(
        0.02, "standard deviation of the encoder's normal initialisation; t5 scales by fan-in"
    ),
    "vocab_multiple": _count(1, "the embedding is padded to a multiple of this many entries"),
    "document_attention": _flag(
        False, "tokens attend within their own document only (block-diagonal over the pack)"
    ),
    "attention": _text(
        "auto",
        "attention kernel: auto times those that the card can run, and takes the fastest",
        "auto",
        "xla",
        "cudnn",
    ),
    "unroll": Field(
        default="auto",
        kinds=(str, int, bool),
        help="blocks unrolled in the scan: auto, True, or a number",
    ),
    "remat": _text("none", "what the backward pass recomputes", "none", "dots", "full"),
}

OPTIMIZER = {
    "name": _text("adamw", "update rule", "adamw", "adafactor", "lamb", "lion", "muon"),
    "lr": _number(1e-3, "peak learning rate"),
    "b1": _share(0.9, "decay of the first moment; Adafactor has none"),
    "b2": _share(0.98, "decay of the second moment; Adafactor's is 1 - step^-0.8"),
    "eps": _number(1e-12, "epsilon of Adam and LAMB"),
    "weight_decay": _number(0.01, "decoupled weight decay; biases and norms are excluded"),
    "parameter_scale": _text(
        "auto",
        "multiply each matrix's update by max(1e-3, RMS of the matrix); auto: Adafactor does, the others do not",
        "auto",
        "on",
        "off",
    ),
    "relative_step": _flag(
        False, "Adafactor's own learning rate min(0.01, step^-0.5), which `lr` then multiplies"
    ),
    "clip_norm": _optional_number(0.5, "global gradient norm clip; None: none"),
    "max_skipped": _count(
        20, "non-finite gradients in a row (their updates are skipped) that end the run"
    ),
}

SCHEDULE = {
    "name": _text(
        "triangle2",
        "shape of the learning rate over the share of the budget spent",
        "triangle2",
        "one_cycle",
        "linear",
        "cosine",
        "constant",
        "inverse_sqrt",
    ),
    "warmup": _share(
        0.0, "share of the budget with linear warm-up (linear, cosine, constant, inverse_sqrt)"
    ),
    "cooldown": _share(
        0.0,
        "share of the budget with linear cool-down to `final` at the end (constant, inverse_sqrt)",
    ),
    "final": _share(
        0.0,
        "learning rate at the end, as a share of the peak (linear, cosine, constant, inverse_sqrt)",
    ),
    "batch_ramp": _share(
        0.0, "share of the budget over which the batch grows from one microbatch to batch_size"
    ),
    "stop_loss": _number(None, "end the run early if the training loss is above this …"),
    "stop_after": _share(1.0, "… once this share of the budget is spent"),
}

OBJECTIVE = {
    "name": _text("mlm", "training objective", "mlm", "span_corruption"),
    "noise_density": _number(
        0.15, "span corruption: share of the tokens that is replaced by sentinels", 0.01, 0.9
    ),
    "mean_span": _number(
        3.0, "span corruption: mean length of a replaced span, in tokens", 1.0, 100.0
    ),
    "mask_rate": _number(
        0.25, "share of positions predicted, an exact count in every sequence", 0.01, 0.9
    ),
    "mask_share": _share(0.8, "of those, replaced by the mask token"),
    "random_share": _share(0.1, "of those, replaced by a random token; the rest stays"),
    "z_loss": _number(0.0, "weight of log(Z)^2"),
    "pool": _count(
        1,
        "in training, the encoder reads means of so many embeddings, those to be predicted apart; 1: none",
    ),
}

MESH = {
    "data": _bounded((int,), -1, "devices along the batch; -1: the rest", -1, None),
    "fsdp": _bounded(
        (int,),
        1,
        "devices along the batch over which parameters are sharded as well; -1: the rest",
        -1,
        None,
    ),
    "tensor": _bounded(
        (int,), 1, "devices along heads and feed-forward width; -1: the rest", -1, None
    ),
}

SCHEMA: dict[str, Any] = {
    "name": _text("run", "name of the recipe"),
    "seed": _count(0, "batches, masks and initial parameters are functions of it", 0),
    "init_from": Field(
        default=None,
        kinds=(str, NoneType),
        help="run, Hugging Face directory or Hub id whose parameters and tokenizer training starts from; None: fresh ones",
    ),
    "budget": BUDGET,
    "data": DATA,
    "batch_size": _count(256, "sequences an optimizer step, on all devices"),
    "microbatch_size": _count(
        None, "sequences a forward pass, on all devices; None: the largest that fits"
    ),
    "model": MODEL,
    "optimizer": OPTIMIZER,
    "schedule": SCHEDULE,
    "objective": OBJECTIVE,
    "precision": _text(
        "auto",
        "matrix products; auto: bfloat16 where the device has it, float16 on older GPUs",
        "auto",
        "float32",
        "bfloat16",
        "float16",
    ),
    "mesh": MESH,
    "checkpoint": {
        "every_minutes": _number(30.0, "minutes between checkpoints", 0.0),
        "every_steps": _count(None, "optimizer steps between checkpoints, on top of every_minutes"),
        "keep": _count(2, "checkpoints kept, the newest"),
    },
    "eval": {
        "every_fraction": _share(
            0.05, "share of the budget between evaluations; 0: only at the end"
        ),
        "batches": _count(16, "held-out batches an evaluation"),
        "batch_size": _count(64, "held-out sequences a batch"),
    },
    "log": {
        "every_steps": _count(10, "optimizer steps between metrics lines"),
        "noise_scale": _flag(
            False,
            "estimate the gradient noise scale, the batch in sequences from which more pays less",
        ),
        "tensorboard": _flag(True, "write TensorBoard files"),
        "wandb": Field(
            default=None, kinds=(str, NoneType), help="Weights & Biases project; None: off"
        ),
        "fill_masks": _count(
            3, "held-out sentences whose masks are filled at the end of the run", 0
        ),
    },
    "growth": {
        "stages": Field(
            default=None,
            kinds=(list, tuple, NoneType),
            help='smaller networks to begin with, [{"until": 0.3, "depth": 0.5, "width": 0.5, "length": 0.5}, …], or hidden, rank, pool; '
            "config/stages.py",
        ),
        "depth": _text(
            "stack",
            "new layers: copies of the stack on top, of each layer, means of neighbours, or copies that change nothing yet",
            "stack",
            "repeat",
            "interpolate",
            "identity",
        ),
        "noise": _number(
            0.1, "copies of a wider feed-forward are set apart by this share of their deviation"
        ),
        "moments": _text("grow", "of the optimizer, where the network grows", "grow", "reset"),
        "rewarm": _share(
            0.0, "share of the budget over which the learning rate comes up again after each growth"
        ),
    },
}


def walk(schema: dict[str, Any] = SCHEMA, prefix: str = ""):
    """Yield ("dotted.key", Field) for every leaf of the schema, in order."""
    for key, entry in schema.items():
        if isinstance(entry, Field):
            yield prefix + key, entry
        else:
            yield from walk(entry, f"{prefix}{key}.")


def defaults() -> ml_collections.ConfigDict:
    """The whole configuration at its defaults.

    Unlocked: what a recipe or the command line sets is stored as it comes and judged by `resolve.validate`, so that all
    mistakes are reported at once.
    """

    def build(schema):
        return {
            key: entry.default if isinstance(entry, Field) else build(entry)
            for key, entry in schema.items()
        }

    return ml_collections.ConfigDict(build(SCHEMA), type_safe=False)
