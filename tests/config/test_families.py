"""The keys of `model` by family, and how other families' keys are refused."""

import dataclasses

import pytest

from cramjax.config import families, schema, stages, stored
from cramjax.config.fields import count
from cramjax.config.resolve import get_config, resolve
from cramjax.errors import UserError
from cramjax.models.encoder import EncoderConfig
from cramjax.models.t5 import T5Config

NETWORKS = {"encoder": EncoderConfig, "t5": T5Config}
# The dataset decides the vocabulary, which vocab_multiple pads; only `compress` prunes heads.
NOT_CHOSEN = {"vocab_size", "pruned_heads"}
NOT_OF_THE_NETWORK = {"family", "vocab_multiple"}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_keys_are_the_fields_of_the_network(family):
    fields = {field.name: field for field in dataclasses.fields(NETWORKS[family])}
    keys = families.model_keys(family)
    assert keys.keys() - NOT_OF_THE_NETWORK == fields.keys() - NOT_CHOSEN
    for name, field in fields.items():
        if name in keys and field.default is not dataclasses.MISSING:
            assert keys[name].default == field.default, name


def problems_of(*arguments):
    with pytest.raises(UserError) as error:
        get_config(*arguments)
    return str(error.value)


def test_a_recipe_has_the_keys_of_its_family_alone():
    assert get_config("t5_1day").model.to_dict().keys() == families.model_keys("t5").keys()
    assert get_config("bert_1day").model.to_dict().keys() == families.model_keys("encoder").keys()


def test_a_key_of_another_family_is_refused_in_a_sentence():
    text = problems_of("t5_1day", "model.first_norm=True", "model.n_layer=3")
    assert "model.first_norm: a key of the encoder family; model.family is t5" in text
    assert "model.n_layer: unknown key; did you mean model.n_layers?" in text
    text = problems_of("bert_1day", "model.relative_buckets=64")
    assert "model.relative_buckets: a key of the t5 family; model.family is encoder" in text


@pytest.mark.parametrize("family", ["t5", "T5"])
def test_an_override_does_not_change_the_family(family):
    text = problems_of("bert_1day", f"model.family={family}", "lr=1")
    assert f"model.family={family}: the recipe's network is of the encoder family" in text
    assert "did you mean optimizer.lr?" in text
    assert get_config("bert_1day", "model.family=encoder").model.family == "encoder"


def recipe(folder, *lines):
    """Writes a recipe that starts as an encoder and runs `lines`."""
    path = folder / "mine.py"
    body = ["config = recipes.start('mine')", "config.budget.steps = 1", *lines, "return config"]
    path.write_text(
        "from cramjax.config import recipes\ndef get_config():\n"
        + "".join(f"    {line}\n" for line in body)
    )
    return str(path)


def test_a_recipe_that_sets_the_family_by_hand_is_told_how_to_start(tmp_path):
    with pytest.raises(UserError) as error:
        resolve(recipe(tmp_path, "config.model.family = 't5'", "config.seed = 'x'"))
    text = str(error.value)
    assert "the other keys of model are of the encoder family" in text
    assert "recipes.start(name, 't5')" in text and "seed='x'" in text
    assert "missing" not in text and "unknown" not in text


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("config.model.family = 'bert'", "model.family='bert': must be one of encoder, t5"),
        ("config.model = {}", "model.family: missing"),
        ("config.model = 3", "model: must be a section"),
        ("del config.model['unroll']", "model.unroll: missing"),
        ("config.data = 4", "data=4: must be a section"),
    ],
)
def test_a_broken_section_is_a_sentence(tmp_path, line, sentence):
    with pytest.raises(UserError) as error:
        resolve(recipe(tmp_path, line), ["model.n_layers=3"])
    assert sentence in str(error.value)


def test_another_family_is_one_entry(tmp_path, monkeypatch):
    def mistakes(config):
        if config.model.n_experts > config.model.d_ff:
            yield f"model.n_experts={config.model.n_experts}: more than model.d_ff"

    toy = families.FamilyKeys(
        keys={"n_experts": count(4, "experts of a feed-forward")},
        objectives=("mlm",),
        mistakes=mistakes,
    )
    monkeypatch.setitem(families.FAMILIES, "toy", toy)
    path = recipe(tmp_path, "config = recipes.start('mine', 'toy')", "config.budget.steps = 1")
    config = resolve(path, ["model.n_experts=8", "growth.stages=[{'until': 0.5, 'depth': 0.5}]"])
    assert config.model["n_experts"] == 8 and config.model.family == "toy"
    assert [stage.n_layers for stage in stages.of(config)] == [6, 12]
    with pytest.raises(UserError, match="n_experts=9999: more than model.d_ff"):
        resolve(path, ["model.n_experts=9999"])
    with pytest.raises(UserError, match="model.positions: a key of the encoder family"):
        resolve(path, ["model.positions=rotary"])


@pytest.mark.parametrize("name", ["bert_1day", "t5_1day"])
def test_the_flat_keys_of_version_0_1_are_left_out(name):
    content = get_config(name).to_dict()
    flat = {}
    for family in families.FAMILIES:
        flat |= schema.default_values(families.model_keys(family))
    old = content | {"model": flat | content["model"]}
    assert stored.current(old, "config.json", "") == content
    assert stored.read(old, "config.json", "").to_dict() == content
    assert len(old["model"]) == 38


def test_the_defaults_of_a_family_are_those_of_its_keys():
    assert schema.defaults("t5").model.norm_eps == 1e-6
    assert schema.defaults().model.norm_eps == 1e-12
