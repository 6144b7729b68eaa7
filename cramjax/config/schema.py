"""Every configuration key, once: default, type, unit, choices and a line of help.

Recipes (`configs/*.py`) start from `defaults()` and set the keys they are about. `mistakes.py`
refuses every key that is not here. The keys of `model` depend on its family and stand in
`families.py`. Nothing here imports JAX or TensorFlow: a wrong key is reported before either starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import ml_collections

from cramjax.config import keep
from cramjax.config.families import model_keys
from cramjax.config.fields import (
    AUTO,
    LARGEST_SEED,
    Field,
    NoneType,
    auto_flag,
    count,
    flag,
    is_finite,
    number,
    optional_count,
    optional_number,
    optional_text,
    share,
    text,
    within,
)
from cramjax.config.languages import problem_of
from cramjax.config.pairs import LONG_PAIRS
from cramjax.config.views import Config


def _check_max_mb(value: Any) -> str | None:
    if isinstance(value, str):
        return None if value == "budget" else "must be a number, None or 'budget'"
    if value is not None and not is_finite(value):
        return "must be a finite number; None takes everything"
    return "must be over 0" if value is not None and value <= 0 else None


def _check_compressibility(value: Any) -> str | None:
    if isinstance(value, str):
        return None if value == AUTO else "must be a number, None or 'auto'"
    return within(0.0, None)(value)


def _check_hours(value: Any) -> str | None:
    for hours in value or ():
        is_number = isinstance(hours, int | float) and not isinstance(hours, bool)
        if not is_number or not is_finite(hours) or hours <= 0:
            return "must be a list of numbers of hours over 0, as [6, 12.5]"
    return None


def _check_plateau(value: Any) -> str | None:
    if not is_finite(value) or value <= 0:
        return "must be over 0: a share of the budget below 1, or a number of steps"
    return None


BUDGET = {
    "hours": optional_number(
        None,
        "wall-clock hours of training, from the first step of the first start; compile time counts",
    ),
    "steps": optional_count(None, "optimizer steps"),
    "tokens": optional_number(
        None, "tokens the model reads; an encoder-decoder counts its encoder's", 1
    ),
    "flops": optional_number(None, "model FLOPs (analytic, forward and backward)", 1),
}

DATA = {
    "source": Field(
        default="installed-docs",
        kinds=(str, list, tuple),
        help="installed-docs, text:GLOB, hf:OWNER/NAME:GLOB, tfds:NAME/CONFIG, prepared:DIR, "
        "pairs:SOURCE_FILE,TARGET_FILE, glue:DIR, superglue:DIR, or [[source, weight], …], by "
        "size with the weight 'auto'",
    ),
    "heldout": optional_text(
        None,
        "source of the held-out text, in the form of data.source; None: "
        "data.heldout_fraction of the text",
    ),
    "mixture_limit": optional_count(
        None, "examples of a source that count at most for its share, where weights are 'auto'"
    ),
    "mixture_temperature": number(
        1.0, "shares by size are raised to its inverse: 1: in proportion; large: equal", 1.0
    ),
    "cache_dir": text("data", "folder of prepared datasets, one subfolder each"),
    "seq_len": count(
        128, "tokens a sequence; chosen at read time, one prepared dataset serves every length", 8
    ),
    "target_len": optional_count(
        None, "text to text: target tokens a row; None: as many as seq_len", 8
    ),
    "vocab_size": count(32768, "entries of the tokenizer, special tokens included", 64),
    "language": Field(
        default=None,
        kinds=(str, NoneType),
        help="ISO 639-1 code, code, dna, or cramming (the paper's ASCII chain): decides the keys "
        "at auto; None: no particular language",
        check=problem_of,
    ),
    "tokenizer": text(
        "auto",
        "wordpiece, unigram, bpe, auto, or a tokenizer.json or .model: a path, or "
        "hf:OWNER/NAME:FILE",
    ),
    "tokenizer_sample_mb": number(
        64.0, "MB (10^6 bytes of text) a tokenizer is trained on at most", 0.01
    ),
    "lowercase": auto_flag("lowercase in a newly trained tokenizer"),
    "ascii_only": auto_flag(
        "drop accents and non-ASCII characters in a newly trained tokenizer (Cramming's chain)"
    ),
    "text_field": text(
        "text",
        "field with the text in .jsonl, .parquet, Hub and TFDS records; lists of whole numbers in "
        "parquet are the ids of data.tokenizer",
    ),
    "source_field": optional_text(
        None, "pairs: field with the source in records; dots reach into them (translation.de)"
    ),
    "target_field": optional_text(None, "pairs: field with the target in records"),
    "source_prefix": text(
        "", "pairs: text before every source (T5: 'translate English to German: ')"
    ),
    "long_pairs": text(
        "cut",
        "pairs with a side of more tokens than a row has: cut (as T5 does) or drop",
        LONG_PAIRS,
    ),
    "keep": Field(
        default=None,
        kinds=(str, NoneType),
        help="keep the records of which this is true, as \"score >= 3 and lang in ['en', 'de']\"; "
        "None: all of them",
        check=keep.problem,
    ),
    "max_mb": Field(
        default=None,
        kinds=(int, float, str, NoneType),
        help="MB (10^6 bytes) of text to take in all; None: everything; "
        "budget: as much as the budget can read once on the devices of the run",
        check=_check_max_mb,
    ),
    "normalize": auto_flag("normalise unicode (NFC) and white space, and drop control characters"),
    "min_chars": count(0, "shorter documents are dropped, in characters", 0),
    "max_chars": optional_count(
        None, "longer documents are cut into pieces of this many characters", 16
    ),
    "compressibility": Field(
        default=AUTO,
        kinds=(int, float, str, NoneType),
        help="keep a document if tokens < this share of its characters (Cramming: 0.25); None: all",
        check=_check_compressibility,
    ),
    "dedup_exact": flag(True, "drop documents whose normalised text came before"),
    "dedup_near": optional_number(
        None, "drop documents with a MinHash Jaccard similarity over this to an earlier one", 0.1, 1
    ),
    "heldout_fraction": number(
        0.01, "share of documents held out for evaluation, chosen by document hash", 0.0, 0.5
    ),
    "order": text(
        "shuffled",
        "shuffled (a permutation of (seed, epoch)), or one of Cramming's: sentence_length (short "
        "ones first), word_length (short words), fragment (short documents), unigram (rare words), "
        "reverse_unigram (frequent words)",
        (
            "shuffled",
            "sentence_length",
            "word_length",
            "fragment",
            "unigram",
            "reverse_unigram",
        ),
    ),
    "cls_token": flag(
        False, "every sequence starts with the [CLS] token (Cramming: not needed in pretraining)"
    ),
    "document_end": flag(
        True,
        "the separator ([SEP], or a T5's end token) follows every document; False: nothing "
        "does, as in T5's own data",
    ),
    "loader": text(
        "auto",
        "tfdata; numpy (needs no TensorFlow); auto: tfdata if it is installed; same batches",
        ("auto", "tfdata", "numpy"),
    ),
    "verify": text(
        "background",
        "compare the prepared files with their SHA-256: background (beside the first minutes of "
        "training) or at_once (before it)",
        ("background", "at_once"),
    ),
    "extra_ids": count(
        0,
        "sentinels <extra_id_0>, … at the top of the vocabulary, counted in vocab_size "
        "(span corruption: 100)",
        0,
    ),
    "allow_build": flag(
        False, "let TensorFlow Datasets download and build a dataset that is not on disk yet"
    ),
    "allow_loss": flag(
        False, "prepare text although over a fifth of it is lost: [UNK], deleted or dropped"
    ),
    "allow_change": flag(
        False, "let a run that goes on take another dataset than the one it was made with"
    ),
    "max_shard_tokens": count(1 << 27, "tokens in a shard file at most", 1024),
}

OPTIMIZER = {
    "name": text("adamw", "update rule", ("adamw", "adafactor", "lamb", "lion", "muon")),
    "lr": number(1e-3, "peak learning rate"),
    "b1": share(0.9, "decay of the first moment; Adafactor has none"),
    "b2": share(0.98, "decay of the second moment; Adafactor's is 1 - step^-0.8"),
    "eps": number(1e-12, "epsilon of Adam and LAMB"),
    "weight_decay": number(0.01, "decoupled weight decay; biases and norms are excluded"),
    "parameter_scale": text(
        "auto",
        "multiply each matrix's update by max(1e-3, RMS of the matrix); "
        "auto: Adafactor does, the others do not",
        ("auto", "on", "off"),
    ),
    "relative_step": flag(
        False, "Adafactor's own learning rate min(0.01, step^-0.5), which `lr` then multiplies"
    ),
    "momentum": share(0.95, "Muon's momentum"),
    "momentum_warmup": count(
        0, "optimizer steps over which Muon's momentum rises to it from 0.85", 0
    ),
    "embedding_lr": number(1.0, "factor of the learning rate for embeddings"),
    "scalar_lr": number(1.0, "factor of the learning rate for norms, biases and single numbers"),
    "cautious": flag(False, "decay a weight only where the update moves it towards 0 as well"),
    "average": count(
        0,
        "steps of the trailing mean of the parameters, which evaluations score and with which a "
        "model is loaded; 0: the parameters themselves",
        0,
    ),
    "clip_norm": optional_number(0.5, "global gradient norm clip; None: no clipping"),
    "max_skipped": count(
        20, "non-finite gradients in a row (their updates are skipped) that end the run"
    ),
}

SCHEDULE = {
    "name": text(
        "triangle2",
        "shape of the learning rate over the share of the budget spent",
        ("triangle2", "one_cycle", "linear", "cosine", "constant", "inverse_sqrt"),
    ),
    "span_steps": optional_count(
        None,
        "optimizer steps over which the learning rate takes its shape, whatever the budget: an "
        "original recipe's 10^6; its shares are then of these steps. None: the budget",
    ),
    "warmup": share(
        0.0, "share of the budget with linear warm-up (linear, cosine, constant, inverse_sqrt)"
    ),
    "warmup_from": share(0.0, "learning rate at which a warm-up starts, as a share of the peak"),
    "plateau": Field(
        default=0.01,
        kinds=(int, float),
        help="when an inverse_sqrt starts to decay: a share of the budget below 1, or optimizer "
        "steps (T5: 10000)",
        check=_check_plateau,
    ),
    "cooldown": share(
        0.0,
        "share of the budget with linear cool-down to `final` at the end (constant, inverse_sqrt)",
    ),
    "final": share(
        0.0,
        "learning rate at the end, as a share of the peak (linear, cosine, constant, inverse_sqrt)",
    ),
    "batch_ramp": share(
        0.0, "share of the budget over which the batch grows from ramp_start to batch_size"
    ),
    "ramp_start": optional_count(
        None,
        "sequences of the first batch under batch_ramp, and of each stair; None: one microbatch, "
        "so that it depends on the device",
    ),
    "stop_loss": optional_number(
        None, "end the run at an evaluation whose held-out loss is above this, or no number …"
    ),
    "stop_after": share(
        1.0, "… once this share of the budget is spent; an evaluation is made there"
    ),
}

OBJECTIVE = {
    "name": text(
        "mlm",
        "training objective; script: mlm, and the network finds its own samples (Cramming); "
        "replaced_tokens: it finds those of a small generator (ELECTRA)",
        ("mlm", "script", "replaced_tokens", "span_corruption", "text_to_text"),
    ),
    "noise_density": number(
        0.15, "span corruption: share of the tokens that sentinels replace", 0.01, 0.9
    ),
    "mean_span": number(
        3.0, "span corruption: mean length of a replaced span, in tokens", 1.0, 100.0
    ),
    "mask_rate": number(
        0.25, "share of positions predicted, an exact count in every sequence", 0.01, 0.9
    ),
    "mask_share": share(0.8, "share of the predicted positions that show the mask token"),
    "random_share": share(
        0.1, "share of the predicted positions that show a random token; the rest stays"
    ),
    "hard_masks": share(
        0.0,
        "share of the right guesses of a token's kind in the last steps that lowers its odds to be "
        "masked: 1: in proportion to the wrong guesses; 0: all kinds alike",
    ),
    "mask_special": flag(
        False, "special tokens ([SEP], [CLS], …) may be predicted in training, as other tokens are"
    ),
    "causal": flag(
        False,
        "in training, a token sees earlier ones alone, nothing is masked, and mask_rate of the "
        "positions are predicted from what is before them; evaluation is of masked tokens still",
    ),
    "generator_width": number(
        0.25, "replaced tokens: width of the generator, as a share of the model's", 0.01, 1.0
    ),
    "generator_layers": optional_count(
        None, "replaced tokens: blocks of the generator; None: as many as n_layers"
    ),
    "label_smoothing": number(
        0.0, "text to text: share of a target's weight that is spread over all entries", 0.0, 0.9
    ),
    "z_loss": number(0.0, "weight of log(Z)^2"),
    "pool": count(
        1,
        "in training, the encoder reads means of this many embeddings, except at predicted "
        "positions; 1: no means",
    ),
}

MESH = {
    "data": count(-1, "devices along the batch; -1: the rest", -1),
    "fsdp": count(
        1, "devices along the batch over which parameters are sharded as well; -1: the rest", -1
    ),
    "tensor": count(1, "devices along heads and feed-forward width; -1: the rest", -1),
}

# The sections in the order of a configuration; `sections` fills in `model`.
SCHEMA: dict[str, Any] = {
    "name": text("run", "name of the recipe"),
    "seed": Field(
        default=0,
        kinds=(int,),
        help="batches, masks and initial parameters are functions of it",
        # JAX keeps the low 32 bits: a larger seed would be another one.
        check=within(0, LARGEST_SEED),
    ),
    "init_from": optional_text(
        None,
        "run, Hugging Face directory or Hub id whose parameters and tokenizer training starts "
        "from; None: fresh ones",
    ),
    "init_embeddings": text(
        "random",
        "fresh embeddings: random, or cooccurrence (from counts of which tokens of the training "
        "text stand near each other)",
        ("random", "cooccurrence"),
    ),
    "budget": BUDGET,
    "data": DATA,
    "batch_size": count(256, "sequences an optimizer step, on all devices"),
    "microbatch_size": optional_count(
        None, "sequences a forward pass, on all devices; None: the largest that fits"
    ),
    "model": {},
    "optimizer": OPTIMIZER,
    "schedule": SCHEDULE,
    "objective": OBJECTIVE,
    "precision": text(
        "auto",
        "matrix products; auto: bfloat16 if the device has it, float16 on older GPUs",
        ("auto", "float32", "bfloat16", "float16"),
    ),
    "mesh": MESH,
    "checkpoint": {
        "every_minutes": number(30.0, "minutes between checkpoints", 0.0),
        "every_steps": optional_count(
            None, "optimizer steps between checkpoints, on top of every_minutes"
        ),
        "keep": count(2, "checkpoints kept, the newest"),
        "at_hours": Field(
            default=None,
            kinds=(list, tuple, NoneType),
            help="hours of the run's clock, [6, 12]: the first checkpoint at or after each is "
            "saved then and kept for good",
            check=_check_hours,
        ),
    },
    "eval": {
        "every_fraction": share(
            0.05, "share of the budget between evaluations; 0: only at the end"
        ),
        "batches": count(16, "held-out batches an evaluation"),
        "batch_size": count(64, "held-out sequences a batch"),
        "bleu": flag(
            False,
            "text to text: at the end, write the answers to pairs and score them (BLEU and chrF)",
        ),
        "bleu_source": optional_text(
            None,
            "pairs that are scored, in the form of data.source; None: data.heldout, or else the "
            "held-out pairs",
        ),
        "bleu_every_fraction": share(
            0.0, "share of the budget between two scorings; 0: only at the end"
        ),
        "bleu_pairs": count(5000, "pairs that are scored at most, the first ones"),
        "beams": count(4, "hypotheses of an answer that is scored; 1: greedy search"),
        "length_penalty": number(
            0.6, "power of (5 + length) / 6 that divides the score of a hypothesis (Google, T5)"
        ),
    },
    "log": {
        "every_steps": count(10, "optimizer steps between metrics lines"),
        "noise_scale": flag(
            False,
            "estimate the gradient noise scale: the batch in sequences from which more pays less",
        ),
        "tensorboard": flag(True, "write TensorBoard files"),
        "wandb": optional_text(None, "Weights & Biases project; None: off"),
        "trackio": optional_text(None, "trackio project, which needs no account; None: off"),
        "samples": count(
            3,
            "held-out texts whose guesses are kept at every evaluation, in samples.jsonl; sources "
            "of pairs have none",
            0,
        ),
        "fill_masks": count(
            3,
            "held-out sentences whose masks are filled at the end of the run; sources of pairs, "
            "whose targets are written",
            0,
        ),
    },
    "growth": {
        "stages": Field(
            default=None,
            kinds=(list, tuple, NoneType),
            help="smaller networks to begin with, "
            '[{"until": 0.3, "depth": 0.5, "width": 0.5, "length": 0.5}, …]; '
            "config/stages.py lists the keys",
        ),
        "until": text(
            "budget",
            "what `until` of a stage, and `rewarm`, are shares of: the budget, or the optimizer "
            "steps (CompoundGrow)",
            ("budget", "steps"),
        ),
        "depth": text(
            "stack",
            "new layers: copies of the stack on top, of each layer, means of neighbours, "
            "or copies that change nothing yet",
            ("stack", "repeat", "interpolate", "identity"),
        ),
        "noise": number(
            0.1, "copies of a wider feed-forward are set apart by this share of their deviation"
        ),
        "moments": text(
            "grow", "the optimizer's moments grow with the network or start anew", ("grow", "reset")
        ),
        "rewarm": share(
            0.0,
            "share of what growth.until names over which the learning rate comes up again after "
            "each growth",
        ),
        "control": optional_text(
            None,
            "workdir of the run that does not grow: summary.json gets the time and the FLOPs to "
            "its final held-out loss",
        ),
    },
}


def sections(family: str) -> dict[str, Any]:
    """Returns the schema of a configuration whose `model.family` is `family`."""
    return SCHEMA | {"model": model_keys(family)}


def walk(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Yields ("dotted.key", Field) for every leaf of a schema, in order."""
    for key, entry in entries.items():
        if isinstance(entry, Field):
            yield prefix + key, entry
        else:
            yield from walk(entry, f"{prefix}{key}.")


def defaults(family: str = "encoder") -> Config:
    """Returns the whole configuration at its defaults, for recipes to change.

    It stores a recipe's and the command line's values as they come. `mistakes.find` judges them
    afterwards, so that all mistakes are reported at once.
    """
    values = default_values(sections(family))
    return cast(Config, ml_collections.ConfigDict(values, type_safe=False))


def default_values(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the defaults of a schema or of a section, as a nested dict."""
    values = {}
    for key, entry in entries.items():
        values[key] = entry.default if isinstance(entry, Field) else default_values(entry)
    return values
