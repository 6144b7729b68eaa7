"""The typed views name the keys of the schema with the types of their values."""

import types
import typing

import pytest

from cramjax.config import schema, views

FAMILIES = (views.EncoderModelConfig, views.T5ModelConfig)
SECTIONS = [
    (key, view)
    for key, view in typing.get_type_hints(views.Config).items()
    if isinstance(schema.SCHEMA[key], dict) and key != "model"
]


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
            wanted.remove(str)  # "budget" becomes a number in a resolved configuration
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


def test_the_families_have_the_keys_of_the_model():
    keys = {key for view in FAMILIES for key in typing.get_type_hints(view)}
    assert keys == set(schema.SCHEMA["model"])
    for view in FAMILIES:
        for key, annotation in typing.get_type_hints(view).items():
            assert kinds_of(annotation) == set(schema.SCHEMA["model"][key].kinds), key
