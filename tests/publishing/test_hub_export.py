"""Networks are written as classes of `transformers`, loaded there, and read back bit for bit.

Random shapes of every family.
"""

import dataclasses
import json
import re

import hypothesis
import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

from cramjax.data import tokenizers as tokenizer_files  # noqa: E402
from cramjax.errors import RunFailed, UserError  # noqa: E402
from cramjax.hub import directory, equivalence, families  # noqa: E402
from cramjax.models import classifier, detector, encoder, t5  # noqa: E402
from cramjax.publishing import classes, parity, saving  # noqa: E402
from cramjax.publishing.stock import StockModel  # noqa: E402
from tests import networks  # noqa: E402

WORDS = [
    "anna reads books in the garden",
    "boris writes letters at the river, or 12 of them",
    "clara paints houses",
] * 9


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_files.train(
        "wordpiece", WORDS, vocab_size=90, lowercase=True, ascii_only=True
    )[0]


@pytest.fixture(scope="module")
def t5_tokenizer():
    return tokenizer_files.train(
        "unigram", WORDS, vocab_size=70, lowercase=True, ascii_only=True, extra_ids=9
    )[0]


# The fields that a recipe of each family fixes. Biases may be anything.
BIASES = ("norm_bias", "linear_bias", "head_bias", "decoder_bias")
FAMILIES = {
    "bert": {"norm_position": "post", "final_norm": False, "ffn": "gelu"},
    "megatron-bert": {"embedding_norm": False, "ffn": "gelu"},
    "roberta-prelayernorm": {"ffn": "gelu"},
    "modernbert": {"ffn": "geglu", "first_norm": False, "positions": "rotary"},
}


@st.composite
def encoders(draw):
    name = draw(st.sampled_from(sorted(FAMILIES)))
    head_dim, n_heads = draw(st.sampled_from([4, 6, 10])), draw(st.integers(1, 3))
    numbers = {
        "vocab_size": draw(st.sampled_from([90, 96])),
        "n_layers": draw(st.integers(2, 3)),
        "n_heads": n_heads,
        "d_model": head_dim * n_heads,
        "d_ff": draw(st.integers(3, 20)),
        "max_positions": draw(st.integers(25, 40)),
        "norm_eps": draw(st.sampled_from([1e-12, 1e-5])),
        "head_transform": True,
        **{bias: draw(st.booleans()) for bias in BIASES},
    }
    if name == "modernbert":
        window, every = draw(st.sampled_from([0, 6])), draw(st.integers(1, 3))
        numbers["rotary_base"] = draw(st.sampled_from([10000.0, 160000.0]))
        if every > 1:
            numbers |= {"local_window": window, "global_every": every}
    else:
        numbers["positions"] = draw(st.sampled_from(["learned", "scaled_sinusoidal", "none"]))
        numbers["token_types"] = draw(st.integers(0, 2))
    return name, encoder.EncoderConfig(**FAMILIES[name], **numbers, unroll=1)


@st.composite
def t5s(draw):
    return t5.T5Config(
        vocab_size=draw(st.sampled_from([80, 88])),
        n_layers=draw(st.integers(1, 3)),
        n_decoder_layers=draw(st.integers(1, 3)),
        d_model=draw(st.sampled_from([8, 12])),
        n_heads=draw(st.integers(1, 3)),
        head_dim=draw(st.sampled_from([3, 4])),
        d_ff=draw(st.integers(3, 20)),
        ffn=draw(st.sampled_from(["relu", "gelu", "geglu", "geglu_tanh"])),
        tie_embeddings=draw(st.booleans()),
        unroll=1,
    )


def random_params(cfg, seed=0):
    """Returns parameters of `cfg`; none is 0 or 1, so that nothing is right by chance."""
    numbers = np.random.default_rng(seed)
    flat = {
        path: (numbers.normal(size=shape) * 0.3 + path.endswith("scale")).astype(np.float32)
        for path, shape in families.shapes(cfg).items()
    }
    return unflatten_dict(flat, sep="/")


def equal(a, b):
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def save(path, cfg, params, tokenizer, *, labels=None, max_length=128, **options):
    """Writes a network as the export does; returns config.json."""
    model = StockModel(
        config=cfg, params=params, labels=labels, tokenizer=tokenizer, max_length=max_length
    )
    return saving.save(path, model, **options)


# Every example compiles a network and loads torch's.
settings = hypothesis.settings(max_examples=6, suppress_health_check=list(hypothesis.HealthCheck))


@settings
@hypothesis.given(drawn=encoders())
def test_an_encoder_is_a_stock_class_and_comes_back(drawn, tokenizer, tmp_path_factory):
    name, cfg = drawn
    path, params = tmp_path_factory.mktemp("export"), random_params(cfg)
    raw = save(path, cfg, params, tokenizer)
    assert raw["model_type"] == name
    assert raw["architectures"] == [families.FAMILIES[name].architecture]

    imported = directory.read_model(path)
    assert equal(imported.params, params)
    assert parity.compare(path, imported.config, imported.params, tokenizer) < parity.TOLERANCE


@settings
@hypothesis.given(cfg=t5s())
def test_a_t5_is_a_stock_class_and_comes_back(cfg, t5_tokenizer, tmp_path_factory):
    path, params = tmp_path_factory.mktemp("export"), random_params(cfg)
    save(path, cfg, params, t5_tokenizer)
    imported = directory.read_model(path)
    assert equal(imported.params, params)
    assert parity.compare(path, imported.config, imported.params, t5_tokenizer) < parity.TOLERANCE

    generation = transformers.GenerationConfig.from_pretrained(path)
    assert generation.decoder_start_token_id == generation.pad_token_id == 0
    assert generation.eos_token_id == 1


@pytest.mark.slow
@settings
@hypothesis.given(drawn=encoders(), n_outputs=st.integers(1, 3), mean=st.booleans())
def test_a_classifier_is_a_stock_class(drawn, n_outputs, mean, tokenizer, tmp_path_factory):
    name, cfg = drawn
    transform = families.FAMILIES[name].transform
    pooling = "mean" if mean and name == "modernbert" else "first"
    head = classifier.ClassifierConfig(
        encoder=cfg, width=cfg.d_model, n_outputs=n_outputs, pooling=pooling, transform=transform
    )
    params = random_params(head)
    path = tmp_path_factory.mktemp("export")
    labels = ("no", "yes", "perhaps")[:n_outputs]
    raw = save(path, head, params, tokenizer, labels=labels)
    predicting = families.FAMILIES[name].architecture
    assert raw["architectures"] == [predicting.replace("MaskedLM", "SequenceClassification")]
    assert parity.compare(path, head, params, tokenizer) < parity.TOLERANCE

    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    assert model.config.id2label == dict(enumerate(labels)) and model.num_labels == n_outputs


@settings
@hypothesis.given(
    drawn=encoders(),
    kind=st.sampled_from([classifier.TOKEN, classifier.SPAN, classifier.EMBEDDING]),
    pooling=st.sampled_from(["first", "mean"]),
)
def test_a_head_on_tokens_is_a_stock_class(drawn, kind, pooling, tokenizer, tmp_path_factory):
    name, cfg = drawn
    has_scores = kind != classifier.EMBEDDING
    head = classifier.ClassifierConfig(
        encoder=cfg,
        width=cfg.d_model,
        n_outputs=2 * has_scores,
        pooling=pooling,
        transform=families.FAMILIES[name].transform_of(kind),
        head=kind,
    )
    params = random_params(head)
    path = tmp_path_factory.mktemp("export")
    raw = save(path, head, params, tokenizer, labels=("O", "B-place"))
    predicting = families.FAMILIES[name].architecture
    assert raw["architectures"] == [predicting.replace("ForMaskedLM", families.ENDINGS[kind])]
    assert parity.compare(path, head, params, tokenizer) < parity.TOLERANCE

    if has_scores:
        model = getattr(transformers, raw["architectures"][0]).from_pretrained(path)
        assert model.config.id2label == {0: "O", 1: "B-place"} and model.num_labels == 2


def discriminator(**changes):
    numbers = {"vocab_size": 96, "n_layers": 2, "d_model": 12, "n_heads": 2, "d_ff": 10}
    numbers |= FAMILIES["bert"] | {"positions": "learned", "max_positions": 30, "unroll": 1}
    return detector.DetectorConfig(**numbers | {"head_transform": True} | changes)


@pytest.mark.parametrize("biases", [True, False])
def test_a_discriminator_is_the_stock_electra(biases, tokenizer, tmp_path):
    """Its logits, padded or not, are those of `ElectraForPreTraining`; missing biases are zeros."""
    cfg = discriminator(**dict.fromkeys(BIASES, biases), token_types=2 * biases)
    params = random_params(cfg)
    raw = save(tmp_path, cfg, params, tokenizer)
    assert raw["architectures"] == ["ElectraForPreTraining"]
    imported = directory.read_model(tmp_path)
    assert imported.config == dataclasses.replace(cfg, unroll="auto")
    assert equal(imported.params, params)
    difference = parity.compare(tmp_path, imported.config, imported.params, tokenizer)
    assert difference < parity.TOLERANCE

    raw["embedding_size"] = 6
    with pytest.raises(UserError, match="embedding_size=6 is not supported for electra"):
        families.from_json(raw)


def modern_discriminator(**changes):
    modern = FAMILIES["modernbert"] | {"norm_position": "pre", "final_norm": True}
    return discriminator(**modern | changes)


@pytest.mark.parametrize("biases", [True, False])
def test_the_encoder_of_a_modern_discriminator_is_a_stock_class(biases, tokenizer, tmp_path):
    cfg = modern_discriminator(**dict.fromkeys(BIASES, biases))
    params = random_params(cfg)
    raw = save(tmp_path, cfg, params, tokenizer)
    assert raw["architectures"] == ["ModernBertModel"]
    model = StockModel(config=cfg, params=params, labels=None, tokenizer=tokenizer, max_length=128)
    config, read = saving.read_back(tmp_path, model, exact=True)
    assert list(read) == ["encoder"] and equal(read["encoder"], params["encoder"])
    assert parity.compare(tmp_path, config, read, tokenizer) < parity.TOLERANCE


@pytest.mark.parametrize("make", [discriminator, modern_discriminator])
def test_the_list_of_tensors_of_a_discriminator_is_that_of_the_class(make):
    family, stock = equivalence.find_family(make())
    raw = families.to_json(family, stock, special={"pad": 0, "cls": 2, "sep": 1})
    keys = {key: value for key, value in raw.items() if key != "architectures"}
    kind = getattr(transformers, raw["architectures"][0])
    with torch.device("meta"):
        model = kind(kind.config_class(**keys))
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert classes.expected_tensors(raw) == shapes


def test_a_discriminator_without_a_class_is_refused_with_the_keys_to_change():
    with pytest.raises(UserError, match="positions=none.*--config.model.positions=rotary"):
        equivalence.find_family(modern_discriminator(positions="none"))


@settings
@hypothesis.given(
    drawn=st.one_of(encoders(), t5s().map(lambda cfg: ("t5", cfg))),
    kind=st.sampled_from([None, *families.ENDINGS]),
)
def test_the_list_of_tensors_is_that_of_the_class(drawn, kind):
    """`classes.json` agrees with the classes, whatever the sizes."""
    name, cfg = drawn
    _, stock = equivalence.find_family(cfg)
    if kind and name != "t5":
        transform = families.FAMILIES[name].transform_of(kind)
        stock = classifier.ClassifierConfig(
            encoder=stock, width=cfg.d_model, n_outputs=3, transform=transform, head=kind
        )
    raw = families.to_json(name, stock, special={"pad": 0, "cls": 2, "sep": 1})

    kind = getattr(transformers, raw["architectures"][0])
    keys = {key: value for key, value in raw.items() if key != "architectures"}
    with torch.device("meta"):
        model = kind(kind.config_class(**keys))
    tied = [re.compile(pattern) for pattern in model._tied_weights_keys or ()]
    untied = name == "t5" and not cfg.tie_embeddings  # the class ties it, until a file has it
    shapes = {}
    for key, tensor in model.state_dict().items():
        is_tied = any(pattern.fullmatch(key) for pattern in tied)
        if not is_tied or (untied and key == "lm_head.weight"):
            shapes[key] = tuple(tensor.shape)
    assert classes.expected_tensors(raw) == shapes


@pytest.mark.parametrize(
    "name, family",
    [
        ("crammed-bert", None),
        ("bert-base", "bert"),
        ("bert-large-24h", "megatron-bert"),
        ("modernbert-crammed", "modernbert"),
    ],
)
def test_which_recipes_have_a_class(name, family):
    assert equivalence.export_family(networks.named(name)) == family


def test_a_network_without_a_class_is_refused_with_the_keys_to_change():
    cfg = encoder.EncoderConfig(
        vocab_size=90, n_layers=2, d_model=8, n_heads=2, d_ff=8, ffn="geglu"
    )
    message = "model.positions=scaled_sinusoidal.*ModernBertForMaskedLM.*positions=rotary"
    with pytest.raises(UserError, match=message):
        equivalence.find_family(cfg)
    assert equivalence.export_family(cfg) is None

    changed = dataclasses.replace(cfg, positions="rotary", first_norm=False, head_transform=True)
    assert equivalence.export_family(changed) == "modernbert"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 9}, "finetune with --set head=stock"),
        (
            {"width": 8, "pooling": "mean"},
            "reads the first token; finetune with --set pooling=first",
        ),
    ],
)
def test_a_head_without_a_class_is_refused(tokenizer, tmp_path, options, message):
    cfg = encoder.EncoderConfig(
        vocab_size=90,
        n_layers=2,
        d_model=8,
        n_heads=2,
        d_ff=8,
        positions="learned",
        head_transform=True,
    )
    head = classifier.ClassifierConfig(encoder=cfg, n_outputs=2, **options)
    with pytest.raises(UserError, match=message):
        save(tmp_path, head, random_params(head), tokenizer)


SMALL = encoder.EncoderConfig(
    vocab_size=96,
    n_layers=2,
    d_model=12,
    n_heads=2,
    d_ff=16,
    max_positions=32,
    head_transform=True,
    positions="none",
)


def test_a_network_trained_on_in_transformers_stays_what_it_became(tokenizer, tmp_path):
    params = random_params(SMALL)
    save(tmp_path, SMALL, params, tokenizer)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.roberta_prelayernorm.embeddings.position_embeddings.weight[7] += 1
    model.save_pretrained(tmp_path)

    assert "cramjax_network" in json.loads((tmp_path / "config.json").read_text())
    imported = directory.read_model(tmp_path)
    assert imported.config.positions == "learned" and imported.config.token_types == 1
    assert parity.compare(tmp_path, imported.config, imported.params, tokenizer) < parity.TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_and_several_files(tokenizer, tmp_path, dtype):
    params = random_params(SMALL)
    save(tmp_path, SMALL, params, tokenizer, dtype=dtype, max_shard_size="3KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()

    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, dtype="auto")
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}

    def rounded(leaf):
        return leaf.astype(saving.DTYPES[dtype]).astype(np.float32)

    assert equal(directory.read_model(tmp_path).params, jax.tree.map(rounded, params))


def test_numbers_beyond_float16_are_refused(tokenizer, tmp_path):
    params = random_params(SMALL)
    params["head"]["dense"]["kernel"][0, 0] = 1e5
    message = "--dtype float16: lm_head.dense.weight holds numbers up to 100000"
    with pytest.raises(UserError, match=message):
        save(tmp_path, SMALL, params, tokenizer, dtype="float16")


def test_a_config_that_its_class_does_not_take_is_found(tokenizer, tmp_path):
    raw = save(tmp_path, SMALL, random_params(SMALL), tokenizer)
    classes.check_config(raw)
    for changes, message in (
        ({"hidden_size": "12"}, "hidden_size='12' is no size"),
        ({"pad_token_id": 96}, "pad_token_id=96 is no id"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ):
        with pytest.raises(RunFailed, match=message):
            classes.check_config(raw | changes)

    del raw["layer_norm_eps"]
    with pytest.raises(RunFailed, match="needs layer_norm_eps"):
        classes.check_config(raw)


def test_tensors_that_the_class_lacks_or_needs_are_found(tokenizer, tmp_path):
    raw = save(tmp_path, SMALL, random_params(SMALL), tokenizer)
    shapes = classes.expected_tensors(raw)
    classes.check_tensors(raw, shapes)
    with pytest.raises(RunFailed, match="lm_head.more: .* has no such tensor"):
        classes.check_tensors(raw, shapes | {"lm_head.more": (1,)})

    del shapes["lm_head.bias"]
    with pytest.raises(RunFailed, match=r"lm_head.bias: .* has \(96,\), this model no such tensor"):
        classes.check_tensors(raw, shapes)


def test_parity_finds_a_wrong_weight_and_a_wrong_tokenizer(tokenizer, tmp_path):
    params = random_params(SMALL)
    save(tmp_path, SMALL, params, tokenizer)
    wrong = jax.tree.map(np.copy, params)
    wrong["encoder"]["layers"]["attention"]["qkv"]["kernel"][1, 3, 2, 0] += 0.5
    with pytest.raises(RunFailed, match="logits of RobertaPreLayerNormForMaskedLM differ"):
        parity.compare(tmp_path, SMALL, wrong, tokenizer)

    other, _ = tokenizer_files.train(
        "wordpiece", WORDS, vocab_size=60, lowercase=True, ascii_only=True
    )
    with pytest.raises(RunFailed, match="AutoTokenizer gives other ids"):
        parity.compare(tmp_path, SMALL, params, other)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
@pytest.mark.parametrize("extra_ids", [0, 9])
def test_the_tokenizer_gives_the_same_ids(tmp_path, kind, extra_ids):
    ours, _ = tokenizer_files.train(
        kind, WORDS, vocab_size=80, lowercase=False, ascii_only=False, extra_ids=extra_ids
    )
    tokenizer_files.save(ours, tmp_path, types=False, max_length=77)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [
        "anna reads  books",
        " Boris, 12 écrits…\n№ ",
        "",
        "[MASK] x <extra_id_0> </s>",
        "in the " * 40,
    ]
    assert [theirs(text)["input_ids"] for text in texts] == [
        ours.encode(text).ids for text in texts
    ]
    assert theirs("anna", "boris")["input_ids"] == ours.encode("anna", "boris").ids
    assert theirs.model_max_length == 77
    assert "token_type_ids" not in theirs("anna")

    padded = theirs(["anna", "anna reads books"], padding=True)
    assert padded["input_ids"][0][-1] == theirs.pad_token_id == 0
    assert padded["attention_mask"][0][-1] == 0


def test_a_single_text_may_be_read_as_a_pair_with_an_empty_one(tokenizer, t5_tokenizer):
    for original in (tokenizer, t5_tokenizer):
        twin = tokenizer_files.with_empty_second(original)
        single, pair = twin.encode("anna reads"), original.encode("anna reads", "")
        assert single.ids == pair.ids and single.type_ids == pair.type_ids
        assert twin.encode("anna", "reads").ids == original.encode("anna", "reads").ids
