"""The typed views name the keys of the schema with the types of their values."""

import types
import typing

import pytest

from cramjax.config import families, schema, views

SECTIONS = [
    (key, view)
    for key, view in typing.get_type_hints(views.Config).items()
    if isinstance(schema.SCHEMA[key], dict) and key != "model"
]
FAMILY_VIEWS = {"encoder": views.EncoderModelConfig, "t5": views.T5ModelConfig}


def kinds_of(annotation):
    """The classes of values that an annotation admits; an int is a float to a type checker."""
    if isinstance(annotation, types.UnionType):
        return set().union(*map(kinds_of, typing.get_args(annotation)))
    kind = typing.get_origin(annotation) or annotation
    return {int, float} if kind is float else {kind}


def assert_is_view(view, section, name):
    hints = typing.get_type_hints(view)
    assert list(hints) == list(section), name
    for key, entry in section.items():
        wanted = set(entry.kinds)
        if (name, key) == ("data", "max_mb"):
            wanted.remove(str)  # "budget" becomes a number when a run starts
        assert kinds_of(hints[key]) == wanted, f"{name}.{key}"


@pytest.mark.parametrize("name, view", SECTIONS, ids=[name for name, _ in SECTIONS])
def test_a_section_has_the_keys_of_the_schema(name, view):
    assert_is_view(view, schema.SCHEMA[name], name)


def test_the_whole_has_the_keys_of_the_schema():
    hints = typing.get_type_hints(views.Config)
    assert list(hints) == list(schema.SCHEMA)
    for key, entry in schema.SCHEMA.items():
        if isinstance(entry, schema.Field):
            assert kinds_of(hints[key]) == set(entry.kinds), key


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_family_has_the_keys_of_its_schema(family):
    assert_is_view(FAMILY_VIEWS[family], families.model_keys(family), "model")


def test_the_model_has_the_common_keys():
    keys = {"family": families.family_key()} | families.COMMON
    assert_is_view(views.ModelConfig, keys, "model")
