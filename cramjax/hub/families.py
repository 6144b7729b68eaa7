"""Translates config.json to our configuration and back, for the families that our networks cover.

`StockFamily.fixed` holds what all models of a family share, `StockFamily.keys` what differs; both
directions follow from these. A configuration that asks for something our networks cannot do is
refused here, so that nothing is read wrongly in silence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict

from cramjax.errors import UserError
from cramjax.models.classifier import EMBEDDING, SEQUENCE, SPAN, TOKEN, ClassifierConfig
from cramjax.models.detector import DetectorConfig
from cramjax.models.encoder import EncoderConfig
from cramjax.models.network import abstract_params
from cramjax.models.t5 import T5Config

MAX_NUMBER = 2**31 - 1
"""The largest number in a config.json."""

ENDINGS = {
    SEQUENCE: "ForSequenceClassification",
    TOKEN: "ForTokenClassification",
    SPAN: "ForQuestionAnswering",
    EMBEDDING: "Model",
}
"""Head of a classifier → the end of its class's name."""

Network = EncoderConfig | T5Config
Config = Network | ClassifierConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StockFamily:
    """The configuration of one `model_type`.

    Attributes:
        architecture: the class with the head that predicts tokens. Classes with another head have
            its ending of `ENDINGS` instead.
        config: our class.
        keys: our field → (key of config.json, value if the key is missing). None as the value
            means that the key is required.
        fixed: our fields that are the same in the whole family.
        only: key → the values that our networks support. The first is that of files without the
            key.
        pad_id: the padding token of files that do not name it.
        offset_positions: rows 0 to pad_id of the table of positions are no positions, as in
            fairseq.
        transform: `ClassifierConfig.transform` of the family's classifiers of sequences.
    """

    architecture: str
    config: type
    keys: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    only: Mapping[str, tuple]
    pad_id: int = 0
    offset_positions: bool = False
    transform: str = "pooler"

    def transform_of(self, head: str) -> str:
        """Returns `ClassifierConfig.transform` of the family's class with `head`."""
        if head == EMBEDDING:
            return "none"
        if head == SEQUENCE or self.transform == "prediction":
            return self.transform
        return "none"


# Our field → (key of config.json, value if the key is missing).
_SIZES: dict[str, tuple[str, Any]] = {
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
_MODERNBERT_KEYS = _SIZES | {
    "max_positions": ("max_position_embeddings", 8192),
    "norm_eps": ("norm_eps", 1e-5),
    "norm_bias": ("norm_bias", False),
    "linear_bias": ("attention_bias", False),
    "head_bias": ("classifier_bias", False),
    "decoder_bias": ("decoder_bias", True),
}
_T5_KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", None),
    "n_layers": ("num_layers", None),
    "d_model": ("d_model", None),
    "n_heads": ("num_heads", None),
    "head_dim": ("d_kv", None),
    "d_ff": ("d_ff", None),
    "relative_buckets": ("relative_attention_num_buckets", 32),
    "relative_max_distance": ("relative_attention_max_distance", 128),
    "norm_eps": ("layer_norm_epsilon", 1e-6),
}

# Our field → the value in all models of a family.
_ENCODER: dict[str, Any] = {"norm": "layernorm", "head_transform": True}
_BERT = _ENCODER | {
    "ffn": "gelu",
    "positions": "learned",
    "first_norm": True,
    "norm_bias": True,
    "linear_bias": True,
    "head_bias": True,
    "decoder_bias": True,
}
_POST_NORM = _BERT | {"norm_position": "post", "embedding_norm": True, "final_norm": False}
_PRE_NORM = _BERT | {"norm_position": "pre", "final_norm": True}
_MODERNBERT = _ENCODER | {
    "ffn": "geglu",
    "norm_position": "pre",
    "first_norm": False,
    "embedding_norm": True,
    "final_norm": True,
    "positions": "rotary",
    "token_types": 0,
}

# Key of config.json → the values that our networks support.
_BERT_ONLY: dict[str, tuple] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
}
_MODERNBERT_ONLY = {"hidden_activation": ("gelu",), "classifier_activation": ("gelu",)}
_T5_ONLY = {"feed_forward_proj": ("relu", "gated-gelu", "gelu", "gated-gelu_python")}

FAMILIES: dict[str, StockFamily] = {
    "bert": StockFamily(
        architecture="BertForMaskedLM",
        config=EncoderConfig,
        keys=_BERT_KEYS,
        fixed=_POST_NORM,
        only=_BERT_ONLY,
    ),
    "megatron-bert": StockFamily(
        architecture="MegatronBertForMaskedLM",
        config=EncoderConfig,
        keys=_BERT_KEYS,
        fixed=_PRE_NORM | {"embedding_norm": False},
        only=_BERT_ONLY,
    ),
    "roberta": StockFamily(
        architecture="RobertaForMaskedLM",
        config=EncoderConfig,
        keys=_BERT_KEYS,
        fixed=_POST_NORM,
        only=_BERT_ONLY,
        pad_id=1,
        offset_positions=True,
    ),
    "roberta-prelayernorm": StockFamily(
        architecture="RobertaPreLayerNormForMaskedLM",
        config=EncoderConfig,
        keys=_BERT_KEYS,
        fixed=_PRE_NORM | {"embedding_norm": True},
        only=_BERT_ONLY,
        pad_id=1,
        offset_positions=True,
    ),
    "modernbert": StockFamily(
        architecture="ModernBertForMaskedLM",
        config=EncoderConfig,
        keys=_MODERNBERT_KEYS,
        fixed=_MODERNBERT,
        only=_MODERNBERT_ONLY,
        transform="prediction",
    ),
    "electra": StockFamily(
        architecture="ElectraForPreTraining",
        config=DetectorConfig,
        keys=_BERT_KEYS,
        fixed=_POST_NORM,
        only=_BERT_ONLY,
    ),
    "t5": StockFamily(
        architecture="T5ForConditionalGeneration",
        config=T5Config,
        keys=_T5_KEYS,
        fixed={},
        only=_T5_ONLY,
    ),
}

_T5_FFN = {"relu": "relu", "gated-gelu": "geglu_tanh", "gelu": "gelu", "gated-gelu_python": "geglu"}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def from_json(raw: Mapping[str, Any], where: str = "config.json") -> tuple[str, Network]:
    """Returns the family and our configuration of a model; dropout is 0.

    Args:
        raw: the content of config.json.
        where: the file, for messages.

    Raises:
        UserError: if our networks do not cover the model. It names `where` and the key.
    """
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"{where}: model_type={name!r:.200} is not supported; known: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    for key, values in family.only.items():
        if _get(raw, key, values[0]) not in values:
            known = " or ".join(map(str, values))
            raise UserError(
                f"{where}: {key}={raw[key]!r:.80} is not supported for {name}; it has to be {known}"
            )

    fields = {
        field: _number(raw, key, default, where) for field, (key, default) in family.keys.items()
    }
    if family.offset_positions:
        fields["max_positions"] -= pad_id(name, raw, where) + 1
    if name == "modernbert":
        fields |= _modernbert_fields(raw, fields["n_layers"], where)
    if name == "t5":
        fields |= _t5_fields(raw, fields["n_layers"], where)
    if name == "electra":
        _check_projection(raw, fields["d_model"], where)

    try:
        return name, family.config(**family.fixed, **fields)
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"{where}: no network has these numbers: {error}; correct them") from error


def _check_projection(raw: Mapping[str, Any], d_model: int, where: str) -> None:
    """Raises UserError for an ELECTRA whose embeddings are not as wide as its blocks."""
    width = _number(raw, "embedding_size", 128, where)
    if width != d_model:
        raise UserError(
            f"{where}: embedding_size={width} is not supported for electra; it has to be the "
            f"hidden_size, {d_model}"
        )


def to_json(
    name: str,
    cfg: Config,
    *,
    special: Mapping[str, int] | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Returns the config.json with which `transformers` builds `cfg`.

    For an encoder this is the inverse of `from_json`.

    Args:
        name: of the family, a key of `FAMILIES`.
        cfg: the network.
        special: role → id, for the roles "pad", "cls" and "sep". Without "pad" the padding token
            is the family's usual one.
        labels: the name of each output of a classifier.

    Raises:
        UserError: if no model of the family is such a network.
    """
    check(name, cfg)
    family = FAMILIES[name]
    special = dict(special or {})
    pad = special.get("pad", family.pad_id)
    raw: dict[str, Any] = {
        "model_type": name,
        "architectures": [architecture(name, cfg)],
        "pad_token_id": pad,
    }
    if isinstance(cfg, ClassifierConfig):
        raw |= _classifier_keys(name, cfg, labels)

    cfg = network(cfg)
    raw |= {key: getattr(cfg, field) for field, (key, _) in family.keys.items()}
    raw |= {key: values[0] for key, values in family.only.items()}
    if family.offset_positions:
        raw["max_position_embeddings"] += pad + 1
    if isinstance(cfg, T5Config):
        return raw | _t5_keys(cfg, pad, special)

    # Without these the class has its own defaults, which may lie outside a small vocabulary.
    raw |= {"bos_token_id": special.get("cls"), "eos_token_id": special.get("sep")}
    if name == "modernbert":
        raw |= {"cls_token_id": special.get("cls"), "sep_token_id": special.get("sep")}
        return raw | _modernbert_keys(cfg)
    if name == "electra":
        raw |= {"embedding_size": cfg.d_model}
    return raw | {
        "hidden_dropout_prob": cfg.dropout,
        "attention_probs_dropout_prob": cfg.attention_dropout,
    }


def _classifier_keys(
    name: str, cfg: ClassifierConfig, labels: Sequence[str] | None
) -> dict[str, Any]:
    # The class without a head.
    if cfg.head == EMBEDDING:
        return {}
    names = dict(enumerate(labels or [f"LABEL_{i}" for i in range(cfg.n_outputs)]))
    keys: dict[str, Any] = {}
    if cfg.head == SEQUENCE:
        is_score = cfg.n_outputs == 1
        keys["problem_type"] = "regression" if is_score else "single_label_classification"
        if name == "modernbert":
            keys["classifier_pooling"] = "cls" if cfg.pooling == "first" else "mean"
    return keys | {
        "id2label": {str(number): label for number, label in names.items()},
        "label2id": {label: number for number, label in names.items()},
        "classifier_dropout": cfg.dropout,
    }


def architecture(name: str, cfg: Config) -> str:
    """Returns the class of `transformers` for `cfg` in the family `name`."""
    predicting = FAMILIES[name].architecture
    if is_headless(name, cfg):
        return predicting.replace("ForMaskedLM", "Model")
    if isinstance(cfg, ClassifierConfig):
        return predicting.replace("ForMaskedLM", ENDINGS[cfg.head])
    return predicting


def is_headless(name: str, cfg: Config) -> bool:
    """Returns whether `cfg` is in the family `name` without its head: a discriminator's is not."""
    return isinstance(cfg, DetectorConfig) and FAMILIES[name].config is not DetectorConfig


def network(cfg: Config) -> Network:
    """Returns `cfg` without a classifier."""
    return cfg.encoder if isinstance(cfg, ClassifierConfig) else cfg


@functools.lru_cache(maxsize=16)
def shapes(cfg: Config) -> Mapping[str, tuple[int, ...]]:
    """Returns path, joined by "/", → shape for all parameters of `cfg`."""
    leaves: dict[str, Any] = dict(flatten_dict(abstract_params(cfg), sep="/"))
    return {path: leaf.shape for path, leaf in leaves.items()}


def check(name: str, cfg: Config) -> None:
    """Raises UserError if no model of the family `name` is a network of `cfg`."""
    family = FAMILIES[name]
    if not isinstance(network(cfg), family.config):
        raise UserError(f"model: a {type(cfg).__name__} is no {name}; choose another family")
    for field in differences(name, cfg):
        raise UserError(
            f"model.{field}={getattr(network(cfg), field)!r}: no {name} has this; "
            "choose another family"
        )
    if isinstance(cfg, ClassifierConfig):
        _check_classifier(name, cfg)


def differences(name: str, cfg: Config) -> dict[str, Any]:
    """Returns field → value in the family `name`, for the fields in which `cfg` differs from it.

    `cfg` is of the family's class of networks.
    """
    cfg = network(cfg)
    wanted = dict(FAMILIES[name].fixed)
    if isinstance(cfg, EncoderConfig):
        if name != "modernbert":
            wanted["local_window"] = 0
        # In ModernBERT the norm of the head has a bias if all norms have one.
        wanted.setdefault("head_bias", cfg.norm_bias)
    elif cfg.ffn not in _T5_FFN.values():
        wanted["ffn"] = "geglu_tanh"
    return {field: value for field, value in wanted.items() if getattr(cfg, field) != value}


def _check_classifier(name: str, cfg: ClassifierConfig) -> None:
    family = FAMILIES[name]
    if name == "electra":
        raise UserError(
            f"head: a classifier of {name} is not supported; take one of bert, or finetune its "
            "encoder here"
        )
    theirs = architecture(name, cfg)
    if cfg.transform != family.transform_of(cfg.head) or cfg.width != cfg.encoder.d_model:
        raise UserError(
            f"head: {theirs} has another one than this {cfg.transform} of width {cfg.width}; "
            "finetune with --set head=stock to export it"
        )
    if cfg.head == SEQUENCE and cfg.pooling != "first" and name != "modernbert":
        raise UserError(
            f"pooling={cfg.pooling}: {theirs} reads the first token; "
            "finetune with --set pooling=first to export it"
        )


def pad_id(name: str, raw: Mapping[str, Any], where: str = "config.json") -> int:
    """Returns the id of the padding token in a config.json of the family `name`.

    Raises:
        UserError: if it is no number.
    """
    return _number(raw, "pad_token_id", FAMILIES[name].pad_id, where)


def _get(raw: Mapping[str, Any], key: str, default: Any) -> Any:
    """Returns the value of a key; null means the same as a missing key."""
    value = raw.get(key)
    return default if value is None else value


def _number(raw: Mapping[str, Any], key: str, default: Any, where: str) -> Any:
    """Returns the number of a key, of the type of `default`; a required one (None) is an int."""
    value = _get(raw, key, default)
    if value is None:
        raise UserError(f"{where}: has no {key}; take the file that save_pretrained writes")

    # Compare types exactly: a float or a bool in the place of an int is a mistake.
    wanted = int if default is None or type(default) is int else type(default)
    fits = type(value) is wanted or (wanted is float and type(value) is int)
    least = 1 if default is None else 0
    if not fits or (wanted is int and value < least):
        raise UserError(
            f"{where}: {key}={value!r:.80} has to be of type {wanted.__name__} and at least {least}"
        )
    # JSON's numbers have no end, sizes on devices are int32; NaN is not below a limit either.
    if type(value) is not bool and not abs(value) <= MAX_NUMBER:
        raise UserError(f"{where}: {key}={value!r:.50} is no number that a network has; correct it")
    return wanted(value)


def _object(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = _get(raw, key, {})
    if not isinstance(value, Mapping):
        raise UserError(
            f"{where}: {key}={value!r} has to be a JSON object; "
            "write the file again with save_pretrained"
        )
    return value


def _modernbert_fields(raw: Mapping[str, Any], n_layers: int, where: str) -> dict[str, Any]:
    """Returns the fields of a ModernBERT that are no single key of config.json."""
    for key, other in (("mlp_bias", "attention_bias"), ("norm_bias", "classifier_bias")):
        if _get(raw, key, False) != _get(raw, other, False):
            raise UserError(
                f"{where}: {key} and {other} differ, which is not supported; they have to be equal"
            )

    rotary_base = _rotary_base(raw, _FULL, "global_rope_theta", 160_000.0, where)
    local_rotary_base = _rotary_base(raw, _SLIDING, "local_rope_theta", 10_000.0, where)
    every = _global_every(raw, n_layers, where)
    if every == 1:
        return {"rotary_base": rotary_base}

    # In theirs a window of 0 means 1, a position that sees itself; in ours it means no window.
    window = max(1, _number(raw, "local_attention", 128, where))
    return {
        "rotary_base": rotary_base,
        "local_window": window,
        "global_every": every,
        "local_rotary_base": local_rotary_base,
    }


def _rotary_base(
    raw: Mapping[str, Any], kind: str, old_key: str, default: float, where: str
) -> float:
    """Returns the base of the rotary positions in one kind of layers.

    transformers 5 has it in `rope_parameters`, transformers 4 under a key of its own (`old_key`).
    """
    rope = _object(_object(raw, "rope_parameters", where), kind, where)
    if _get(rope, "rope_type", "default") != "default" or raw.get("rope_scaling"):
        raise UserError(
            f"{where}: scaled rotary positions ({kind}) are not supported; "
            "rope_type has to be default"
        )
    if "rope_theta" not in rope:
        rope = {"rope_theta": _get(raw, old_key, default)}
    return _number(rope, "rope_theta", default, f"{where}: {kind}")


def _global_every(raw: Mapping[str, Any], n_layers: int, where: str) -> int:
    """Returns n if every n-th layer, from the first on, sees the whole sequence."""
    types = raw.get("layer_types")
    if types is None:
        return max(1, _number(raw, "global_attn_every_n_layers", 3, where))

    if not isinstance(types, list) or len(types) != n_layers:
        raise UserError(f"{where}: layer_types has to name {n_layers} layers; correct it")

    # If the first layer alone is global, any n beyond the other layers will do.
    for every in range(1, max(n_layers, 2) + 1):
        if types == _layer_types(n_layers, every):
            return every
    raise UserError(
        f"{where}: layer_types is not supported; "
        f"it has to be {_FULL} in every n-th layer from the first on"
    )


def _layer_types(n_layers: int, every: int) -> list[str]:
    return [_SLIDING if i % every else _FULL for i in range(n_layers)]


def _modernbert_keys(cfg: EncoderConfig) -> dict[str, Any]:
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


def _t5_fields(raw: Mapping[str, Any], n_layers: int, where: str) -> dict[str, Any]:
    """Returns the fields of a T5 that are no single key of config.json."""
    # transformers up to 4 unties the head by tie_word_embeddings. In transformers 5 that key is
    # always true, and scale_decoder_outputs tells the two forms apart.
    tied = _get(raw, "scale_decoder_outputs", _get(raw, "tie_word_embeddings", True))
    return {
        "n_decoder_layers": _number(raw, "num_decoder_layers", n_layers, where),
        "ffn": _T5_FFN[_get(raw, "feed_forward_proj", "relu")],
        "tie_embeddings": bool(tied),
    }


def _t5_keys(cfg: T5Config, pad: int, special: Mapping[str, int]) -> dict[str, Any]:
    return {
        "num_decoder_layers": cfg.n_decoder_layers,
        "feed_forward_proj": {ours: theirs for theirs, ours in _T5_FFN.items()}[cfg.ffn],
        # transformers 5 replaced the first by the second.
        "tie_word_embeddings": cfg.tie_embeddings,
        "scale_decoder_outputs": cfg.tie_embeddings,
        "dropout_rate": cfg.dropout,
        "decoder_start_token_id": pad,
        "eos_token_id": special.get("sep", 1),
    }
