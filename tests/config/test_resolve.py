import pytest

from cramjax.config import families, schema
from cramjax.config.resolve import get_config, resolve
from cramjax.errors import UserError


def test_overrides_are_parsed_by_the_kind_of_their_key():
    config = get_config(
        "quickstart",
        "data.seq_len=64",
        "budget.hours=null",
        "budget.steps=7",
        "data.source=text:a=b",
    )
    assert config.data.seq_len == 64
    assert config.budget.hours is None and config.budget.steps == 7
    assert config.data.source == "text:a=b"


def test_a_mixture_can_be_given_on_the_command_line():
    config = get_config("quickstart", "data.source=[['text:a.txt', 2], ['installed-docs', 1]]")
    assert [list(part) for part in config.data.source] == [["text:a.txt", 2], ["installed-docs", 1]]


def test_all_mistakes_are_reported_at_once_with_suggestions():
    with pytest.raises(UserError) as error:
        get_config(
            "quickstart",
            "modle.n_layers=3",
            "lr=1",
            "optimizer.nam=lion",
            "precision=bf16",
            "batch_size=many",
        )
    text = str(error.value)
    assert "model.n_layers?" in text and "optimizer.lr?" in text and "optimizer.name?" in text
    assert "precision='bf16'" in text and "bfloat16" in text
    assert "batch_size='many'" in text


def test_a_misspelt_key_in_the_file_is_refused_like_one_on_the_command_line(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from cramjax.config import recipes\n"
        "def get_config():\n"
        "    c = recipes.start('mine')\n"
        "    c.budget.steps = 1\n"
        "    c.model.n_layer = 3\n"
        "    c.modle = {'a': 1}\n"
        "    return c\n"
    )
    with pytest.raises(UserError) as error:
        resolve(str(recipe))
    assert "model.n_layer: unknown key; did you mean model.n_layers?" in str(error.value)
    assert "modle" in str(error.value)


@pytest.mark.parametrize(
    "override, part",
    [
        ("model.n_heads=3", "model.n_heads=3"),
        ("batch_size=33", "microbatch_size"),
        ("budget.hours=None", "budget"),
        ("mesh.fsdp=-1", "mesh"),
        ("objective.random_share=0.9", "objective.mask_share"),
        ("data.max_mb=-1", "data.max_mb"),
        ("schedule.plateau=0", "schedule.plateau=0.0: must be over 0"),
        ("schedule.warmup_from=2", "schedule.warmup_from=2.0: must be at most 1"),
        ("init_embeddings=counts", "init_embeddings='counts': .*random.*cooccurrence"),
    ],
)
def test_impossible_combinations_are_refused_in_a_sentence(override, part):
    with pytest.raises(UserError, match=part):
        get_config("quickstart", override)


def test_embeddings_start_in_one_way_and_have_room():
    counts = "init_embeddings=cooccurrence"
    with pytest.raises(UserError, match=f"{counts}: init_from=run brings its own embeddings"):
        get_config("quickstart", counts, "init_from=run")
    with pytest.raises(
        UserError, match=r"more than 2 \* model.d_model = 128 .* data.vocab_size=128"
    ):
        get_config("quickstart", counts, "model.d_model=64", "data.vocab_size=128")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("batch_size=256",), "schedule.ramp_start=512: must divide batch_size=256"),
        (("microbatch_size=1024",), "schedule.ramp_start=512: must be a multiple of microb"),
        (
            ("growth.stages=[{'until': 0.5, 'batch': 256}]",),
            "growth.stages[0].batch: 256 is no multiple of schedule.ramp_start=512",
        ),
        (
            ("data.document_end=False", "model.document_attention=True"),
            "data.document_end=False: model.document_attention=True tells documents by their ends",
        ),
        (
            ("data.document_end=False", "data.order=fragment"),
            "data.document_end=False: data.order=fragment counts the ends of documents",
        ),
    ],
)
def test_a_ramp_that_cannot_be_is_refused_in_a_sentence(overrides, part):
    with pytest.raises(UserError) as caught:
        get_config("bert_1day", *overrides)
    assert part in str(caught.value)
    if "ramp_start" in part:  # without a ramp, its start is not used
        get_config("bert_1day", *overrides, "schedule.batch_ramp=0")


@pytest.mark.parametrize(
    ("recipe", "override", "needs"),
    [
        ("quickstart", "data.source_field='de'", "objective.name=text_to_text"),
        ("quickstart", "data.source_prefix='a: '", "objective.name=text_to_text"),
        ("quickstart", "data.target_len=64", "objective.name=text_to_text"),
        ("quickstart", "data.long_pairs='drop'", "objective.name=text_to_text"),
        ("t5_1day", "objective.label_smoothing=0.1", "objective.name=text_to_text"),
        ("t5_1day", "eval.bleu=True", "objective.name=text_to_text"),
        ("quickstart", "eval.bleu_source='pairs:a,b'", "eval.bleu=True"),
        ("t5_pairs", "eval.bleu_source='pairs:a,b'", "eval.bleu=True"),
        ("t5_pairs", "eval.bleu_every_fraction=0.5", "eval.bleu=True"),
        ("t5_1day", "objective.mask_special=True", "model.family=encoder"),
        ("bert_1day", "optimizer.momentum=0.9", "optimizer.name=muon"),
        ("bert_1day", "optimizer.momentum_warmup=300", "optimizer.name=muon"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(recipe, override, needs):
    # Text is given without quotes, as on the command line.
    with pytest.raises(UserError) as caught:
        get_config(recipe, override.replace("'", ""))
    assert f"{override}: needs {needs}" in str(caught.value)


def test_keys_that_are_used_are_taken():
    get_config("bert_1day", "optimizer.name=muon", "optimizer.momentum=0.9", "optimizer.lr=0.01")
    get_config("t5_pairs", "eval.bleu=True", "eval.bleu_every_fraction=0.5")


def test_held_out_pairs_are_refused_beside_text():
    with pytest.raises(UserError, match="data.heldout=pairs:a,b: holds pairs; objective.name=text"):
        get_config("quickstart", "data.heldout=pairs:a,b")


@pytest.mark.parametrize(
    "override, part",
    [
        ("seed=4294967296", "must be at most 4294967295"),
        ("batch_size=9223372036854775808", "must be at most 9223372036854775807"),
        ("batch_size=1" + 30 * "0", "must be at most 9223372036854775807"),
        ("budget.hours=1e999", "must be a finite number"),
        ("budget.hours=nan", "must be int or float"),
        ("budget.tokens=1" + 400 * "0", "must be a finite number"),
        ("optimizer.lr=-1e999", "must be a finite number"),
        ("data.max_mb=1e999", "must be a finite number"),
        ('growth.stages=[{"until": 0.5, "lr": 1e999}]', "lr=inf: must be"),
    ],
)
def test_numbers_that_no_machine_holds_are_refused_in_a_sentence(override, part):
    with pytest.raises(UserError) as caught:
        get_config("bert_1day", override)
    assert part in str(caught.value) and override.split("=")[0] in str(caught.value)


def test_a_recipe_with_a_number_that_is_none_is_refused(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from configs import quickstart\n"
        "def get_config(arg=''):\n"
        "    config = quickstart.get_config()\n"
        "    config.budget.hours = float('nan')\n"
        "    config.data.max_mb = float('nan')\n"
        "    return config\n"
    )
    with pytest.raises(UserError) as caught:
        resolve(str(path), [])
    assert str(caught.value).count("must be a finite number") == 2


def test_sequences_longer_than_the_positions_are_refused():
    with pytest.raises(UserError, match="model.max_positions"):
        get_config("bert_1day", "data.seq_len=256")


def test_unknown_recipe_and_variant_name_what_there_is(root):
    with pytest.raises(UserError, match="did you mean bert_1day"):
        resolve("configs/bert_1dya.py")
    with pytest.raises(UserError, match="did you mean :smoke"):
        get_config("bert_1day:smok")


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_key_of_the_schema_has_help_and_a_sound_default(family):
    for key, field in schema.walk(schema.sections(family)):
        assert field.help, key
        assert field.check(field.default) is None, key
        assert not field.choices or field.default in field.choices, key


def test_the_configuration_cannot_be_changed_afterwards():
    config = get_config("quickstart")
    with pytest.raises(AttributeError):
        config.seed = 3


@pytest.mark.parametrize(
    "source, wanted",
    [
        ("text:~/a.txt", "text:/home/me/a.txt"),
        ("prepared:~", "prepared:/home/me"),
        ("text:a~/b.txt", "text:a~/b.txt"),
        ("installed-docs", "installed-docs"),
        ([["text:~/a.txt", 2], ["hf:~/b:c", 1]], (("text:/home/me/a.txt", 2), ("hf:~/b:c", 1))),
    ],
)
def test_the_home_of_a_path_is_found_where_no_shell_has_looked(monkeypatch, source, wanted):
    monkeypatch.setenv("HOME", "/home/me")
    config = get_config(
        "quickstart",
        f"data.source={source}",
        "data.cache_dir=~/cache",
        "data.tokenizer=~/t.json",
        "init_from=~/run",
    )
    assert config.to_dict()["data"]["source"] == wanted
    paths = (config.data.cache_dir, config.data.tokenizer, config.init_from)
    assert paths == ("/home/me/cache", "/home/me/t.json", "/home/me/run")


def test_variants_are_put_together_with_a_plus():
    config = get_config("t5_1day:small+climbmix")
    assert config.name == "t5_1day-small+climbmix" and config.model.n_layers == 8
    assert config.data.source == get_config("t5_1day:climbmix").data.source
    shaped = get_config("t5_efficient:small-nl24+fineweb_edu")
    assert shaped.name == "t5_efficient-small-nl24+fineweb_edu" and shaped.model.n_layers == 24
    with pytest.raises(UserError, match="stands alone"):
        get_config("bert_1day:smoke+climbmix")
    with pytest.raises(UserError, match="did you mean :climbmix"):
        get_config("t5_1day:small+climbmx")
