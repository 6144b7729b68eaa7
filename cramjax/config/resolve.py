"""Makes one frozen, checked configuration of a recipe file and overrides, before JAX starts."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import os
import pathlib
import types
from collections.abc import Iterable, Mapping
from typing import Any, cast

import ml_collections

from cramjax.config import languages, mistakes, pairs, schema, stages
from cramjax.config.fields import AUTO, Field
from cramjax.config.recipes import RECIPES
from cramjax.config.views import Config
from cramjax.errors import UserError

# The JSON forms of Python's literals.
_LITERALS = {"true": "True", "false": "False", "null": "None", "none": "None"}


def get_config(recipe: str, *overrides: str) -> Config:
    """Returns the checked configuration of a recipe.

    Args:
        recipe: a name ("bert_1day"), a name with a variant ("bert_1day:smoke"), or a path.
        overrides: "key.sub=value", each for one key.

    Raises:
        UserError: the message names every unknown key, wrong type and impossible combination.
    """
    return resolve(recipe, overrides)


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns `config` with other values at keys such as "model.n_layers", without a check."""
    copy = ml_collections.ConfigDict(config.to_dict())
    with copy.ignore_type():
        copy.update_from_flattened_dict(dict(values))
    return freeze(copy.to_dict())


def freeze(values: Mapping[str, Any]) -> Config:
    """Returns the nested dict of a configuration in the frozen form that the other rooms read."""
    growth = dict(values["growth"])
    growth["stages"] = stages.frozen(growth["stages"])
    return cast(Config, ml_collections.FrozenConfigDict({**values, "growth": growth}))


def resolve(spec: str, overrides: Iterable[str] = ()) -> Config:
    """Returns the checked configuration of a recipe with "key.sub=value" overrides.

    Args:
        spec: name or file of the recipe, and its variant after a colon.
        overrides: for one key each.

    Raises:
        UserError: the message names every mistake.
    """
    config = _load_recipe(spec)
    problems = []
    for text in overrides:
        problem = _override(config, text)
        if problem:
            problems.append(problem)
    problems += mistakes.find(config)

    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"{spec}: {len(problems)} mistake(s) in the configuration:\n{listed}")
    if pairs.are_prepared(config.data) and config.data.compressibility == AUTO:
        # A pair is a few words, which say nothing about the share of its characters.
        config.data.compressibility = None
    config.data.update(languages.choices(config.data))
    _expand_home(config)
    return freeze(config.to_dict())


def _expand_home(config: Config) -> None:
    """Replaces a leading ~ of every path by the user's home: a shell does not after an equals sign.

    A folder called ~ is never what is meant.
    """
    data = config.data
    data.cache_dir = os.path.expanduser(data.cache_dir)
    data.tokenizer = os.path.expanduser(data.tokenizer)
    if config.init_from:
        config.init_from = os.path.expanduser(config.init_from)
    if config.growth.control:
        config.growth.control = os.path.expanduser(config.growth.control)
    data.source = _in_home(data.source)
    if data.heldout:
        data.heldout = _in_home(data.heldout)
    if config.eval.bleu_source:
        config.eval.bleu_source = _in_home(config.eval.bleu_source)


def _in_home(source: Any) -> Any:
    """Returns a source of text, or a mixture of sources, with the home in its paths."""
    if isinstance(source, list | tuple):
        return type(source)(_in_home(entry) for entry in source)
    if not isinstance(source, str):
        return source
    scheme, _, address = str(source).partition(":")
    if scheme not in ("text", "prepared", *pairs.SCHEMES):
        return source
    files = address.split(",") if scheme == "pairs" else [address]
    return f"{scheme}:{','.join(map(os.path.expanduser, files))}"


def _load_recipe(spec: str) -> Config:
    """Returns the configuration that the recipe NAME[:ARG] or FILE[:ARG] makes.

    Raises:
        UserError: the file is missing or is no recipe.
    """
    file, _, arg = spec.partition(":")
    path = pathlib.Path(os.path.expanduser(file))
    if path.suffix != ".py" and path.parent == pathlib.Path():
        path = RECIPES / f"{file}.py"
    if not path.is_file():
        raise _no_such_recipe(file)
    module = _import(path, file)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file}: a recipe defines get_config(arg=None), this file does not")

    takes_arg = bool(inspect.signature(module.get_config).parameters)
    if arg and not takes_arg:
        raise UserError(f"{file}: this recipe takes no argument after the colon, got {arg!r}")
    return module.get_config(arg or None) if takes_arg else module.get_config()


def _no_such_recipe(file: str) -> UserError:
    known = sorted(path.stem for path in RECIPES.glob("*.py"))
    near = difflib.get_close_matches(pathlib.Path(file).stem, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"recipes: {', '.join(known)}"
    return UserError(f"{file}: no such recipe; {hint}")


def _import(path: pathlib.Path, file: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{file}: a recipe is a Python file, FILE.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{file}:{error.lineno}: not valid Python: {error.msg}") from error
    return module


def _override(config: Config, text: str) -> str | None:
    """Sets "key.sub=value" in place; returns the mistake if it cannot be set."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"{text}: an override has the form key.sub=value"

    if mistakes.find_in_family(config):
        return None  # reported with the recipe's other mistakes
    family = config.model.family
    if key == "model.family" and value != family:
        return f"{text}: the recipe's network is of the {family} family; take another recipe"

    fields = dict(schema.walk(schema.sections(family)))
    if key not in fields:
        return mistakes.unknown_key(key, family)
    node: Any = config
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node[parent]
    node[leaf] = _parse(value, fields[key])
    return None


def _parse(text: str, field: Field) -> Any:
    """Returns the value of an override: a Python literal, or the text itself.

    `true`, `false` and `null` are read as in JSON.
    """
    text = _LITERALS.get(text, text)
    if field.kinds == (str,):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
