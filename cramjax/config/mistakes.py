"""Finds the mistakes in a configuration: unknown keys, wrong values, keys that do not fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from cramjax.config import mixing, pairs, replaced_tokens, schema, stages
from cramjax.config.families import FAMILIES, family_key, model_keys
from cramjax.config.fields import Field, NoneType
from cramjax.config.views import Config

_MISSING = object()

_OF_PAIRS = ("objective.name", pairs.OBJECTIVE)
_OF_REPLACED = ("objective.name", replaced_tokens.OBJECTIVE)
_OF_SCORES = ("eval.bleu", True)
_OF_MUON = ("optimizer.name", "muon")

# Keys that do nothing unless another key has this value.
_USED_WITH = (
    ("data.source_field", _OF_PAIRS),
    ("data.source_prefix", _OF_PAIRS),
    ("data.target_len", _OF_PAIRS),
    ("data.long_pairs", _OF_PAIRS),
    ("objective.generator_width", _OF_REPLACED),
    ("objective.generator_layers", _OF_REPLACED),
    ("objective.label_smoothing", _OF_PAIRS),
    ("eval.bleu", _OF_PAIRS),
    ("eval.bleu_source", _OF_SCORES),
    ("eval.bleu_every_fraction", _OF_SCORES),
    ("objective.mask_special", ("model.family", "encoder")),
    ("objective.hard_masks", ("objective.name", "mlm")),
    ("optimizer.momentum", _OF_MUON),
    ("optimizer.momentum_warmup", _OF_MUON),
)


def find(config: Config) -> list[str]:
    """Returns every mistake in `config` as one sentence each, an empty list for a sound one."""
    values = config.to_dict()
    entries = dict(schema.SCHEMA)

    # The family decides the other keys of the model, so without a sound one they are not judged.
    family = "encoder"
    problems = find_in_family(config)
    if problems:
        del entries["model"]
        values.pop("model", None)
    else:
        family = values["model"]["family"]
        entries["model"] = model_keys(family)

    problems += _unknown_keys(values, entries, family)
    for key, field in schema.walk(entries):
        problems += value_problems(key, field, _lookup(values, key))

    # Relations between keys are worth a check only if each value is sound.
    return problems or list(_relation_problems(config))


def find_in_family(config: Config) -> list[str]:
    """Returns the reasons why the section `model` belongs to no family, [] if it does."""
    model = config.to_dict().get("model")
    if not isinstance(model, Mapping):
        return ["model: must be a section; recipes start from cramjax.config.recipes.start"]
    family = model.get("family", _MISSING)
    problems = value_problems("model.family", family_key(), family)
    if problems:
        return problems

    # A recipe that sets the family by hand has the keys of the family it started with.
    for other in FAMILIES:
        if other != family and model.keys() == model_keys(other).keys():
            return [
                f"model.family={family!r}: the other keys of model are of the {other} family; "
                f"start the recipe with recipes.start(name, {family!r})"
            ]
    return []


def unknown_key(key: str, family: str) -> str:
    """Returns the sentence about a key that a configuration with this `model.family` lacks."""
    owners = [name for name in FAMILIES if key in dict(schema.walk(schema.sections(name)))]
    if owners:
        return f"{key}: a key of the {owners[0]} family; model.family is {family}"

    known = [name for name, _ in schema.walk(schema.sections(family))]
    # A bare or misplaced leaf name ("lr") is as common as a misspelling.
    leaf = key.rsplit(".", 1)[-1]
    near = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    near = near or difflib.get_close_matches(key, known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "cramjax/config/schema.py lists all keys"
    return f"{key}: unknown key; {hint}"


def _unknown_keys(
    values: Mapping[str, Any], entries: Mapping[str, Any], family: str, prefix: str = ""
) -> list[str]:
    problems = []
    for key, value in values.items():
        entry = entries.get(key)
        if isinstance(entry, dict) and isinstance(value, dict):
            problems += _unknown_keys(value, entry, family, f"{prefix}{key}.")
        elif isinstance(entry, dict):
            problems.append(f"{prefix}{key}={value!r}: must be a section of keys")
        elif not isinstance(entry, Field) or isinstance(value, dict):
            problems.append(unknown_key(prefix + key, family))
    return problems


def _lookup(values: Mapping[str, Any], key: str) -> Any:
    """Returns the value at a dotted key, or `_MISSING`."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, Mapping):
            return _MISSING
        node = node.get(part, _MISSING)
    return node


def value_problems(key: str, field: Field, value: Any) -> list[str]:
    """Returns what is wrong with the value of a key, whatever the other keys are."""
    if value is _MISSING:
        return [f"{key}: missing; recipes start from cramjax.config.recipes.start"]

    if not field.takes(value):
        names = ["None" if kind is NoneType else kind.__name__ for kind in field.kinds]
        return [f"{key}={value!r}: must be {' or '.join(names)} ({field.help})"]

    if field.choices and value not in field.choices:
        choices = [str(choice) for choice in field.choices]
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return [f"{key}={value!r}: must be one of {', '.join(choices)}{hint}"]

    problem = field.check(value)
    return [f"{key}={value!r}: {problem}"] if problem else []


def _relation_problems(config: Config) -> Iterator[str]:
    """Yields the keys that do not go together; each value is sound by itself."""
    limits = list(schema.BUDGET)
    if all(config.budget[name] is None for name in limits):
        yield f"budget: set at least one of {', '.join(limits)}"

    family = FAMILIES[config.model.family]
    if config.objective.name not in family.objectives:
        wanted = " or ".join(map(repr, family.objectives))
        yield (
            f"objective.name={config.objective.name!r}: must be {wanted} "
            f"where model.family is {config.model.family}"
        )
    yield from family.mistakes(config)
    if config.objective.name == pairs.OBJECTIVE:
        yield from pairs.mistakes(config)
    else:
        yield from pairs.other_mistakes(config)
    yield from _unused_keys(config)
    yield from mixing.mistakes(config)
    yield from _heldout_problems(config)
    yield from stages.mistakes(config)
    yield from _start_problems(config)
    yield from _batch_problems(config)
    yield from _optimizer_problems(config)
    yield from _mesh_problems(config)


def _unused_keys(config: Config) -> Iterator[str]:
    """Yields the keys that are set and would be ignored in silence."""
    values = config.to_dict()
    fields = dict(schema.walk(schema.sections(config.model.family)))
    for key, (other, wanted) in _USED_WITH:
        value = _lookup(values, key)
        if value != fields[key].default and _lookup(values, other) != wanted:
            yield f"{key}={value!r}: needs {other}={wanted}"


def _heldout_problems(config: Config) -> Iterator[str]:
    heldout = config.data.heldout
    if heldout is None:
        return
    if heldout.startswith("prepared:") or str(config.data.source).startswith("prepared:"):
        yield (
            f"data.heldout={heldout}: a prepared dataset has its held-out text already; leave "
            "data.heldout out"
        )


def _start_problems(config: Config) -> Iterator[str]:
    is_random = config.init_embeddings == "random"
    if config.init_from is not None and not is_random:
        yield (
            f"init_embeddings={config.init_embeddings}: init_from={config.init_from} brings its "
            "own embeddings; leave one of the two out"
        )
    if not is_random and 2 * config.model.d_model >= config.data.vocab_size:
        yield (
            f"init_embeddings={config.init_embeddings}: needs more than 2 * model.d_model = "
            f"{2 * config.model.d_model} entries of the vocabulary, not data.vocab_size="
            f"{config.data.vocab_size}"
        )


def _batch_problems(config: Config) -> Iterator[str]:
    batch_size, microbatch_size = config.batch_size, config.microbatch_size
    if microbatch_size is not None and batch_size % microbatch_size:
        yield f"microbatch_size={microbatch_size}: must divide batch_size={batch_size}"
    elif config.schedule.batch_ramp and config.schedule.ramp_start is not None:
        yield from _ramp_problems(config.schedule.ramp_start, batch_size, microbatch_size)
    if config.log.noise_scale and batch_size <= (microbatch_size or 1):
        yield (
            "log.noise_scale=True: compares microbatches; set microbatch_size to at most half of "
            f"batch_size={batch_size}"
        )


def _ramp_problems(ramp_start: int, batch_size: int, microbatch_size: int | None) -> Iterator[str]:
    if batch_size % ramp_start:
        yield (
            f"schedule.ramp_start={ramp_start}: must divide batch_size={batch_size}; take a "
            "divisor, None for one microbatch, or schedule.batch_ramp=0 for no ramp"
        )
    elif ramp_start % (microbatch_size or 1):
        yield (
            f"schedule.ramp_start={ramp_start}: must be a multiple of "
            f"microbatch_size={microbatch_size}"
        )


def _optimizer_problems(config: Config) -> Iterator[str]:
    optimizer, schedule = config.optimizer, config.schedule
    if optimizer.parameter_scale == "on" and optimizer.name not in ("adamw", "adafactor", "lion"):
        yield (
            f"optimizer.parameter_scale='on': {optimizer.name} has a scale of its own; "
            "use it with adamw, adafactor or lion"
        )
    if optimizer.relative_step and optimizer.name != "adafactor":
        yield f"optimizer.relative_step=True: belongs to adafactor, not to {optimizer.name}"
    if schedule.warmup + schedule.cooldown > 1:
        yield "schedule.warmup and schedule.cooldown: together at most 1"


def _mesh_problems(config: Config) -> Iterator[str]:
    sizes = list(config.mesh.to_dict().values())
    if sizes.count(-1) > 1:
        yield "mesh: -1 (the rest) may stand once"
    if 0 in sizes:
        yield "mesh: an axis has at least 1 device, or -1 for the rest"
