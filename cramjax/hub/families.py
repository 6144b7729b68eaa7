"""Families of `transformers` models that our networks are: config.json ↔ our configuration.

What all of a family share is `fixed`, what differs is `keys`; both directions follow from these. A configuration that says something our
networks cannot do is refused here, so that nothing is read wrongly in silence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from cramjax.errors import UserError
from cramjax.models.classifier import ClassifierConfig
from cramjax.models.encoder import EncoderConfig
from cramjax.models.network import abstract_params
from cramjax.models.t5 import T5Config

Config = EncoderConfig | T5Config | ClassifierConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What config.json says of one `model_type`.

    Attributes:
        architecture: the class with the head that predicts tokens; that with a classifier ends in ForSequenceClassification instead.
        config: our class. transform: of `ClassifierConfig`, what the family's classifiers have.
        keys: our field → (key of config.json, what it means to leave it out; None: it has to be there).
        fixed: our fields that are the same in all of the family.
        only: key → the values our networks know, the first being the one of files without the key.
        pad_id: the padding token where a file does not say. offset_positions: rows 0 to pad_id of the table of positions are not
        positions, as fairseq has it.
    """

    architecture: str
    config: type
    keys: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    only: Mapping[str, tuple]
    pad_id: int = 0
    offset_positions: bool = False
    transform: str = "pooler"


_SIZES = {
    "vocab_size": ("vocab_size", None),
    "n_layers": ("num_hidden_layers", None),
    "d_model": ("hidden_size", None),
    "n_heads": ("num_attention_heads", None),
    "d_ff": ("intermediate_size", None),
    "init_std": ("initializer_range", 0.02),
}
_BERT_KEYS = _SIZES | {
    "max_positions": ("max_position_embeddings", 512),
    "token_types": ("type_vocab_size", 2),
    "norm_eps": ("layer_norm_eps", 1e-12),
}
_SHARED = {"norm": "layernorm", "head_transform": True}
_BERT = _SHARED | {
    "ffn": "gelu",
    "positions": "learned",
    "first_norm": True,
    **dict.fromkeys(("norm_bias", "linear_bias", "head_bias", "decoder_bias"), True),
}
_POST = _BERT | {"norm_position": "post", "embedding_norm": True, "final_norm": False}
_PRE = _BERT | {"norm_position": "pre", "final_norm": True}
_BERT_ONLY = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
}
_ENCODER = {"config": EncoderConfig, "keys": _BERT_KEYS, "only": _BERT_ONLY}

FAMILIES: dict[str, Family] = {
    "bert": Family(architecture="BertForMaskedLM", fixed=_POST, **_ENCODER),
    "megatron-bert": Family(
        architecture="MegatronBertForMaskedLM", fixed=_PRE | {"embedding_norm": False}, **_ENCODER
    ),
    "roberta": Family(
        architecture="RobertaForMaskedLM", fixed=_POST, pad_id=1, offset_positions=True, **_ENCODER
    ),
    "roberta-prelayernorm": Family(
        architecture="RobertaPreLayerNormForMaskedLM",
        fixed=_PRE | {"embedding_norm": True},
        pad_id=1,
        offset_positions=True,
        **_ENCODER,
    ),
    "modernbert": Family(
        architecture="ModernBertForMaskedLM",
        config=EncoderConfig,
        keys=_SIZES
        | {
            "max_positions": ("max_position_embeddings", 8192),
            "norm_eps": ("norm_eps", 1e-5),
            "norm_bias": ("norm_bias", False),
            "linear_bias": ("attention_bias", False),
            "head_bias": ("classifier_bias", False),
            "decoder_bias": ("decoder_bias", True),
        },
        fixed=_SHARED
        | {
            "ffn": "geglu",
            "norm_position": "pre",
            "first_norm": False,
            "embedding_norm": True,
            "final_norm": True,
            "positions": "rotary",
            "token_types": 0,
        },
        only={"hidden_activation": ("gelu",), "classifier_activation": ("gelu",)},
        transform="prediction",
    ),
    "t5": Family(
        architecture="T5ForConditionalGeneration",
        config=T5Config,
        keys={
            "vocab_size": ("vocab_size", None),
            "n_layers": ("num_layers", None),
            "d_model": ("d_model", None),
            "n_heads": ("num_heads", None),
            "head_dim": ("d_kv", None),
            "d_ff": ("d_ff", None),
            "relative_buckets": ("relative_attention_num_buckets", 32),
            "relative_max_distance": ("relative_attention_max_distance", 128),
            "norm_eps": ("layer_norm_epsilon", 1e-6),
        },
        fixed={},
        only={"feed_forward_proj": ("relu", "gated-gelu", "gelu", "gated-gelu_python")},
    ),
}

_T5_FFN = {"relu": "relu", "gated-gelu": "geglu_tanh", "gelu": "gelu", "gated-gelu_python": "geglu"}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def from_json(raw: Mapping[str, Any], where: str = "config.json") -> tuple[str, Config]:
    """The family and our configuration of the content `raw` of a config.json; dropout is 0.

    Raises:
        UserError: for a model that is none of ours; it names `where` and the key.
    """
    name = raw.get("model_type")
    if name not in FAMILIES:
        raise UserError(
            f"{where}: model_type={name!r} is not supported; known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    for key, values in family.only.items():
        if _get(raw, key, values[0]) not in values:
            known = " or ".join(map(str, values))
            raise UserError(
                f"{where}: {key}={raw[key]!r} is not supported for {name}; it has to be {known}"
            )
    numbers = {
        field: _number(raw, key, default, where) for field, (key, default) in family.keys.items()
    }
    if family.offset_positions:
        numbers["max_positions"] -= pad_id(name, raw, where) + 1
    if name == "modernbert":
        numbers |= _modernbert_fields(raw, numbers, where)
    if name == "t5":
        numbers |= _t5_fields(raw, numbers, where)
    try:
        return name, family.config(**family.fixed, **numbers)
    except ValueError as error:
        raise UserError(f"{where}: no network has these numbers: {error}; correct them") from error


def to_json(
    name: str,
    cfg: Config,
    *,
    special: Mapping[str, int] | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The config.json with which `transformers` builds `cfg` as a model of the family `name`; of an encoder the inverse of `from_json`.

    Args:
        special: ids of "pad", "cls", "sep" by role; without "pad" the family's usual one. labels: of a classifier, one for each output.

    Raises:
        UserError: where no model of the family is such a network.
    """
    check(name, cfg)
    family, special = FAMILIES[name], dict(special or {})
    pad_id = special.get("pad", family.pad_id)
    raw: dict[str, Any] = {
        "model_type": name,
        "architectures": [architecture(name, cfg)],
        "pad_token_id": pad_id,
    }
    if isinstance(cfg, ClassifierConfig):
        raw |= _classifier_keys(name, cfg, labels)
    cfg = network(cfg)
    raw |= {key: getattr(cfg, field) for field, (key, _) in family.keys.items()}
    raw |= {key: values[0] for key, values in family.only.items()}
    if family.offset_positions:
        raw["max_position_embeddings"] += pad_id + 1
    if name == "t5":
        return raw | {
            "num_decoder_layers": cfg.n_decoder_layers,
            "feed_forward_proj": {ours: theirs for theirs, ours in _T5_FFN.items()}[cfg.ffn],
            # transformers 5 replaced the first by the second.
            "tie_word_embeddings": cfg.tie_embeddings,
            "scale_decoder_outputs": cfg.tie_embeddings,
            "dropout_rate": cfg.dropout,
            "decoder_start_token_id": pad_id,
            "eos_token_id": special.get("sep", 1),
        }
    # The classes' own defaults may be beyond a small vocabulary.
    ends = {
        key: special.get(role) for role, key in (("cls", "bos_token_id"), ("sep", "eos_token_id"))
    }
    if name == "modernbert":
        return (
            raw
            | ends
            | {"cls_token_id": special.get("cls"), "sep_token_id": special.get("sep")}
            | _modernbert_keys(cfg)
        )
    return (
        raw
        | ends
        | {
            "hidden_dropout_prob": cfg.dropout,
            "attention_probs_dropout_prob": cfg.attention_dropout,
        }
    )


def _classifier_keys(name, cfg, labels):
    names = dict(enumerate(labels or [f"LABEL_{i}" for i in range(cfg.n_outputs)]))
    pooling = (
        {"classifier_pooling": "cls" if cfg.pooling == "first" else "mean"}
        if name == "modernbert"
        else {}
    )
    return pooling | {
        "id2label": {str(number): label for number, label in names.items()},
        "label2id": {label: number for number, label in names.items()},
        "problem_type": "regression" if cfg.n_outputs == 1 else "single_label_classification",
        "classifier_dropout": cfg.dropout,
    }


def architecture(name: str, cfg: Config) -> str:
    """The class of `transformers` for `cfg` in the family `name`."""
    predicting = FAMILIES[name].architecture
    if isinstance(cfg, ClassifierConfig):
        return predicting.replace("ForMaskedLM", "ForSequenceClassification")
    return predicting


def network(cfg: Config) -> EncoderConfig | T5Config:
    """`cfg` without a classifier."""
    return cfg.encoder if isinstance(cfg, ClassifierConfig) else cfg


@functools.lru_cache(maxsize=16)
def shapes(cfg: Config) -> Mapping[str, tuple[int, ...]]:
    """Path joined by "/" → shape of all parameters of `cfg`."""
    leaves = flatten_dict(abstract_params(cfg), sep="/")
    return {path: leaf.shape for path, leaf in leaves.items()}


def check(name: str, cfg: Config) -> None:
    """Raises UserError where no model of the family `name` is a network of `cfg`."""
    family = FAMILIES[name]
    if not isinstance(network(cfg), family.config):
        raise UserError(f"model: a {type(cfg).__name__} is no {name}; choose another family")
    for field in differences(name, cfg):
        raise UserError(
            f"model.{field}={getattr(network(cfg), field)!r}: no {name} has this; choose another family"
        )
    if isinstance(cfg, ClassifierConfig):
        _check_classifier(name, cfg)


def differences(name: str, cfg: Config) -> dict[str, Any]:
    """Fields in which the network of `cfg`, of the family's kind, is none of the family `name`, and what they are there."""
    cfg, wanted = network(cfg), dict(FAMILIES[name].fixed)
    if isinstance(cfg, EncoderConfig):
        if name != "modernbert":
            wanted["local_window"] = 0
        # The norm of ModernBERT's head has a bias if all norms have.
        wanted.setdefault("head_bias", cfg.norm_bias)
    elif cfg.ffn not in _T5_FFN.values():
        wanted["ffn"] = "geglu_tanh"
    return {field: value for field, value in wanted.items() if getattr(cfg, field) != value}


def _check_classifier(name, cfg):
    family = FAMILIES[name]
    theirs = architecture(name, cfg)
    if cfg.transform != family.transform or cfg.width != cfg.encoder.d_model:
        raise UserError(
            f"head: {theirs} has another than this {cfg.transform} {cfg.width} wide; finetune with --set head=stock to export it"
        )
    if cfg.pooling != "first" and name != "modernbert":
        raise UserError(
            f"pooling={cfg.pooling}: {theirs} reads the first token; finetune with --set pooling=first to export it"
        )


def pad_id(name: str, raw: Mapping[str, Any], where: str = "config.json") -> int:
    """The id of the padding token of a config.json of the family `name`. Raises UserError if it is no number."""
    return _number(raw, "pad_token_id", FAMILIES[name].pad_id, where)


def _get(raw, key, default):
    """null and absence are one."""
    value = raw.get(key)
    return default if value is None else value


def _number(raw, key, default, where):
    value = _get(raw, key, default)
    if value is None:
        raise UserError(f"{where}: has no {key}; take the file that save_pretrained writes")
    # An exact type: a float or a bool in the place of an int is a mistake.
    wanted = int if default is None or type(default) is int else type(default)
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    least = 1 if default is None else 0
    if not fits or (wanted is int and value < least):
        raise UserError(
            f"{where}: {key}={value!r} has to be of type {wanted.__name__} and at least {least}"
        )
    return wanted(value)


def _object(raw, key, where):
    value = _get(raw, key, {})
    if not isinstance(value, Mapping):
        raise UserError(
            f"{where}: {key}={value!r} has to be a JSON object; write the file anew with save_pretrained"
        )
    return value


def _modernbert_fields(raw, numbers, where):
    for key, other in (("mlp_bias", "attention_bias"), ("norm_bias", "classifier_bias")):
        if _get(raw, key, False) != _get(raw, other, False):
            raise UserError(
                f"{where}: {key} and {other} differ, which is not supported; they have to be equal"
            )
    ropes = _object(raw, "rope_parameters", where)
    bases = {}
    for kind, key, default in (
        (_FULL, "global_rope_theta", 160_000.0),
        (_SLIDING, "local_rope_theta", 10_000.0),
    ):
        rope = _object(ropes, kind, where)
        if _get(rope, "rope_type", "default") != "default" or raw.get("rope_scaling"):
            raise UserError(
                f"{where}: scaled rotary positions ({kind}) are not supported; rope_type has to be default"
            )
        source = rope if "rope_theta" in rope else {"rope_theta": _get(raw, key, default)}
        bases[kind] = _number(source, "rope_theta", default, f"{where}: {kind}")
    every = _global_every(raw, numbers["n_layers"], where)
    fields = {"rotary_base": bases[_FULL]}
    if every == 1:
        return fields
    # A window of 0 is one of 1: a position sees itself; ours has 0 for none at all.
    window = max(1, _number(raw, "local_attention", 128, where))
    return fields | {
        "local_window": window,
        "global_every": every,
        "local_rotary_base": bases[_SLIDING],
    }


def _global_every(raw, n_layers, where):
    """Every so many layers, from the first on, one sees the whole sequence."""
    types = raw.get("layer_types")
    if types is None:
        return max(1, _number(raw, "global_attn_every_n_layers", 3, where))
    # With one global layer alone, any number beyond the others will do.
    candidates = range(1, max(n_layers, 2) + 1)
    every = next((every for every in candidates if types == _layer_types(n_layers, every)), None)
    if every is None:
        raise UserError(
            f"{where}: layer_types is not supported; it has to be {_FULL} in every n-th layer from the first on"
        )
    return every


def _layer_types(n_layers, every):
    return [_SLIDING if i % every else _FULL for i in range(n_layers)]


def _modernbert_keys(cfg):
    every = cfg.global_every if cfg.local_window else 1
    bases = {_FULL: cfg.rotary_base, _SLIDING: cfg.local_rotary_base}
    return {
        "mlp_bias": cfg.linear_bias,
        "local_attention": cfg.local_window or 128,
        "layer_types": _layer_types(cfg.n_layers, every),
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()
        },
        # The same for transformers 4.
        "global_attn_every_n_layers": every,
        "global_rope_theta": cfg.rotary_base,
        "local_rope_theta": cfg.local_rotary_base,
        "embedding_dropout": cfg.dropout,
        "mlp_dropout": cfg.dropout,
        "attention_dropout": cfg.attention_dropout,
    }


def _t5_fields(raw, numbers, where):
    # transformers up to 4 unties by the one key, 5 calls what follows from it by the other and has the first always true.
    tied = _get(raw, "scale_decoder_outputs", _get(raw, "tie_word_embeddings", True))
    return {
        "n_decoder_layers": _number(raw, "num_decoder_layers", numbers["n_layers"], where),
        "ffn": _T5_FFN[_get(raw, "feed_forward_proj", "relu")],
        "tie_embeddings": bool(tied),
    }
