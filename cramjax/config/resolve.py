"""From a recipe file and overrides to one frozen, checked configuration; every mistake reported at once, before JAX starts."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import ml_collections

from cramjax.config import schema, stages
from cramjax.config.recipes import RECIPES
from cramjax.config.span_lengths import span_lengths
from cramjax.config.views import Config
from cramjax.errors import UserError


def get_config(recipe: str, *overrides: str) -> Config:
    """The configuration of `recipe` ("bert_1day", "bert_1day:smoke" or a path) with "key.sub=value" overrides.

    Raises:
        UserError: naming every unknown key, wrong type and impossible combination.
    """
    name, _, arg = recipe.partition(":")
    path = pathlib.Path(name)
    if path.suffix != ".py":
        path = RECIPES / f"{name}.py"
    return resolve(f"{path}:{arg}" if arg else str(path), overrides)


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with other values at keys as "model.n_layers"; what they are is not checked again."""
    copy = ml_collections.ConfigDict(config.to_dict())
    with copy.ignore_type():
        copy.update_from_flattened_dict(dict(values))
    return cast(Config, ml_collections.FrozenConfigDict(copy))


def resolve(spec: str, overrides: Iterable[str] = ()) -> Config:
    """The configuration of FILE[:ARG] with "key.sub=value" overrides, checked and frozen. Raises UserError."""
    config = _load_recipe(spec)
    problems = [problem for text in overrides if (problem := _override(config, text))]
    problems += validate(config)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"{spec}: {len(problems)} mistake(s) in the configuration:\n{listed}")
    if config.data.max_mb == "budget":
        config.data.max_mb = _text_for_budget(config)
    config.growth.stages = stages.frozen(config.growth.stages)
    return cast(Config, ml_collections.FrozenConfigDict(config))


def _text_for_budget(config: ml_collections.ConfigDict) -> float | None:
    """MB of text the budget can read once; None (all there is) for a budget in steps or FLOPs alone.

    Hours count at the rate of a crammed BERT on the fastest card of the paper (an A6000, 100,000 tokens/s: pytorch/pytorch#96693), at 4.5
    bytes a token, so that a day never runs out of new text. It is a function of the configuration, not of the card at hand, so that data
    prepared on one machine is found on another.
    """
    budget, objective = config.budget, config.objective
    tokens = [budget.tokens] if budget.tokens else []
    tokens += [budget.hours * 3600 * 100_000] if budget.hours else []
    # Span corruption shortens the text before the model reads it.
    length = config.data.seq_len
    spans = objective.name == "span_corruption"
    n_raw = (
        span_lengths(length, objective.noise_density, objective.mean_span).n_raw
        if spans
        else length
    )
    return round(min(tokens) * n_raw / length * 4.5 / 1e6, 2) if tokens else None


def validate(config: ml_collections.ConfigDict) -> list[str]:
    """Every mistake in `config` as one sentence each; empty when it is sound."""
    problems = _unknown_keys(config.to_dict(), schema.SCHEMA, "")
    for key, field in schema.walk():
        problems += _check_value(key, field, _get(config, key))
    # Relations between keys are worth checking only where each value is sound.
    return problems or _check_relations(config)


def _load_recipe(spec: str) -> ml_collections.ConfigDict:
    file, _, arg = spec.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        known = sorted(p.stem for p in RECIPES.glob("*.py")) if RECIPES.is_dir() else []
        near = difflib.get_close_matches(path.stem, known, 1)
        hint = f"did you mean configs/{near[0]}.py?" if near else f"recipes: {', '.join(known)}"
        raise UserError(f"{file}: no such recipe; {hint}")
    module_spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{file}:{error.lineno}: not valid Python: {error.msg}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"{file}: a recipe defines get_config(arg=None), this file does not")
    takes_arg = bool(inspect.signature(module.get_config).parameters)
    if arg and not takes_arg:
        raise UserError(f"{file}: this recipe takes no argument after the colon, got {arg!r}")
    return module.get_config(arg or None) if takes_arg else module.get_config()


def _override(config: ml_collections.ConfigDict, text: str) -> str | None:
    """Set "key.sub=value" in place; the mistake as a sentence where it cannot be set."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"{text}: an override has the form key.sub=value"
    fields = dict(schema.walk())
    if key not in fields:
        return _unknown(key)
    node = config
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node[parent]
    node[leaf] = _parse(value, fields[key])
    return None


def _parse(text: str, field: schema.Field) -> Any:
    """The value of an override: a Python literal, else the text itself; `true`, `false` and `null` as in JSON."""
    text = {"true": "True", "false": "False", "null": "None", "none": "None"}.get(text, text)
    if field.kinds == (str,):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _unknown(key: str) -> str:
    known = [name for name, _ in schema.walk()]
    leaf = key.rsplit(".", 1)[-1]
    # A bare or misplaced leaf name ("lr") is as common as a misspelling.
    near = [name for name in known if name.rsplit(".", 1)[-1] == leaf] or difflib.get_close_matches(
        key, known, 1, 0.5
    )
    hint = f"did you mean {near[0]}?" if near else "see cramjax/config/schema.py for all keys"
    return f"{key}: unknown key; {hint}"


def _unknown_keys(values: dict, entries: dict, prefix: str) -> list[str]:
    problems = []
    for key, value in values.items():
        entry = entries.get(key)
        if entry is None or isinstance(entry, schema.Field) != (not isinstance(value, dict)):
            problems.append(_unknown(prefix + key))
        elif isinstance(value, dict):
            problems += _unknown_keys(value, entry, f"{prefix}{key}.")
    return problems


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
    node = config
    for part in key.split("."):
        node = (
            node.get(part, schema.Field)
            if isinstance(node, ml_collections.ConfigDict)
            else schema.Field
        )
    return node


def _check_value(key: str, field: schema.Field, value: Any) -> list[str]:
    if value is schema.Field:  # missing: reported as an unknown key of its parent
        return [f"{key}: missing; recipes start from cramjax.config.schema.defaults()"]
    # bool is an int to Python, never to a reader of configs.
    kinds = field.kinds
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("None" if kind is schema.NoneType else kind.__name__ for kind in kinds)
        return [f"{key}={value!r}: must be {wanted} ({field.help})"]
    if field.choices and value not in field.choices:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in field.choices], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return [f"{key}={value!r}: must be one of {', '.join(map(str, field.choices))}{hint}"]
    if problem := field.check(value):
        return [f"{key}={value!r}: {problem}"]
    return []


# What an encoder cannot have, and what every T5 has: the values of a family that are not a choice.
_FIXED = {
    "encoder": {
        "model.n_decoder_layers": None,
        "model.head_dim": None,
        "model.tie_embeddings": True,
        "objective.name": "mlm",
    },
    "t5": {
        "model.positions": "relative",
        "model.norm": "rmsnorm",
        "model.norm_position": "pre",
        "model.norm_bias": False,
        "model.first_norm": True,
        "model.embedding_norm": False,
        "model.final_norm": True,
        "model.linear_bias": False,
        "model.token_types": 0,
        "model.head_transform": False,
        "model.head_bias": False,
        "model.decoder_bias": False,
        "model.document_attention": False,
        "model.local_window": 0,
        "objective.name": "span_corruption",
        "objective.pool": 1,
        "data.cls_token": False,
        "data.order": "shuffled",
    },
}


def _check_relations(config: ml_collections.ConfigDict) -> list[str]:
    problems = []

    def require(holds: bool, problem: str):
        if not holds:
            problems.append(problem)

    limits = [config.budget[name] for name in schema.BUDGET]
    require(
        any(limit is not None for limit in limits),
        "budget: set at least one of " + ", ".join(schema.BUDGET),
    )
    family = config.model.family
    for key, wanted in _FIXED[family].items():
        value = _get(config, key)
        require(
            value == wanted, f"{key}={value!r}: must be {wanted!r} where model.family is {family}"
        )
    check_family = _check_encoder if family == "encoder" else _check_t5
    check_family(config, require)
    problems += stages.mistakes(config)
    if config.microbatch_size is not None:
        require(
            config.batch_size % config.microbatch_size == 0,
            f"microbatch_size={config.microbatch_size}: must divide batch_size={config.batch_size}",
        )
    require(
        not config.log.noise_scale or config.batch_size > (config.microbatch_size or 1),
        f"log.noise_scale=True: compares microbatches; set microbatch_size to at most half of batch_size={config.batch_size}",
    )
    optimizer = config.optimizer
    require(
        optimizer.parameter_scale != "on" or optimizer.name in ("adamw", "adafactor", "lion"),
        f"optimizer.parameter_scale='on': {optimizer.name} has a scale of its own; use it with adamw, adafactor or lion",
    )
    require(
        not optimizer.relative_step or optimizer.name == "adafactor",
        f"optimizer.relative_step=True: belongs to adafactor, not to {optimizer.name}",
    )
    schedule = config.schedule
    require(
        schedule.warmup + schedule.cooldown <= 1,
        "schedule.warmup and schedule.cooldown: together at most 1",
    )
    require(
        list(config.mesh.to_dict().values()).count(-1) <= 1, "mesh: -1 (the rest) may stand once"
    )
    require(
        0 not in config.mesh.to_dict().values(),
        "mesh: an axis has at least 1 device, or -1 for the rest",
    )
    return problems


def _check_encoder(config: ml_collections.ConfigDict, require: Callable[[bool, str], None]) -> None:
    model, data, objective = config.model, config.data, config.objective
    _check_heads(model, require)
    head_dim = model.d_model // model.n_heads
    require(
        model.positions != "relative",
        "model.positions='relative': only model.family=t5 has relative buckets",
    )
    require(
        model.positions != "rotary" or head_dim % 2 == 0,
        f"model.n_heads={model.n_heads}: rotary positions need an even head size, got {head_dim}",
    )
    require(
        model.positions in ("rotary", "none", "relative") or data.seq_len <= model.max_positions,
        f"data.seq_len={data.seq_len}: longer than model.max_positions={model.max_positions}",
    )
    require(
        model.first_norm or (model.norm_position == "pre" and model.n_layers >= 2),
        "model.first_norm=False: needs model.norm_position=pre and at least 2 layers",
    )
    n_predicted = round(objective.mask_rate * data.seq_len)
    require(
        n_predicted >= 1,
        f"objective.mask_rate={objective.mask_rate}: predicts nothing at seq_len {data.seq_len}",
    )
    require(
        objective.pool == 1 or not model.document_attention,
        f"objective.pool={objective.pool}: means of embeddings go over the ends of documents; set model.document_attention=False",
    )
    require(
        objective.mask_share + objective.random_share <= 1,
        "objective.mask_share and objective.random_share: together at most 1",
    )


def _check_t5(config: ml_collections.ConfigDict, require: Callable[[bool, str], None]) -> None:
    model, data, objective = config.model, config.data, config.objective
    if model.head_dim is None:
        _check_heads(model, require)
    require(
        model.relative_buckets % 4 == 0,
        f"model.relative_buckets={model.relative_buckets}: must be a multiple of 4",
    )
    require(
        model.relative_max_distance > model.relative_buckets // 2,
        f"model.relative_max_distance={model.relative_max_distance}: must be over half of model.relative_buckets",
    )
    try:
        lengths = span_lengths(data.seq_len, objective.noise_density, objective.mean_span)
    except ValueError as error:
        require(
            False,
            f"data.seq_len={data.seq_len}: {error} at this objective.noise_density and objective.mean_span",
        )
        return
    # A dataset that is prepared already has its own number, which is checked when it is opened.
    require(
        str(data.source).startswith("prepared:") or lengths.n_spans <= data.extra_ids,
        f"data.extra_ids={data.extra_ids}: {data.seq_len} input tokens have {lengths.n_spans} spans, each with a sentinel",
    )


def _check_heads(model: ml_collections.ConfigDict, require: Callable[[bool, str], None]) -> None:
    require(
        model.d_model % model.n_heads == 0,
        f"model.n_heads={model.n_heads}: must divide model.d_model={model.d_model}",
    )
