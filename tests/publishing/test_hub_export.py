"""Networks written as classes of `transformers`: random shapes of every family, loaded there, and read back bit for bit."""

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
from cramjax.models import classifier, encoder, t5  # noqa: E402
from cramjax.publishing import classes, parity, saving  # noqa: E402
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


# What a recipe of each family fixes, and what may be anything there.
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
        local = {
            "local_window": draw(st.sampled_from([0, 6])),
            "global_every": draw(st.integers(1, 3)),
        }
        numbers |= {"rotary_base": draw(st.sampled_from([10000.0, 160000.0]))} | (
            local if local["global_every"] > 1 else {}
        )
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
    """Parameters of `cfg` in which nothing is 0 or 1, so that nothing is right by chance."""
    numbers = np.random.default_rng(seed)
    flat = {
        path: (numbers.normal(size=shape) * 0.3 + path.endswith("scale")).astype(np.float32)
        for path, shape in families.shapes(cfg).items()
    }
    return unflatten_dict(flat, sep="/")


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))
    )


# Every example compiles a network and loads torch's.
settings = hypothesis.settings(max_examples=6, suppress_health_check=list(hypothesis.HealthCheck))


@settings
@hypothesis.given(drawn=encoders())
def test_an_encoder_is_a_stock_class_and_comes_back(drawn, tokenizer, tmp_path_factory):
    name, cfg = drawn
    path, params = tmp_path_factory.mktemp("export"), random_params(cfg)
    raw = saving.save(path, cfg, params, tokenizer, max_length=128)
    assert raw["model_type"] == name and raw["architectures"] == [
        families.FAMILIES[name].architecture
    ]
    imported = directory.read(path)
    assert equal(imported.params, params)
    assert parity.compare(path, imported.config, imported.params, tokenizer) < parity.TOLERANCE


@settings
@hypothesis.given(cfg=t5s())
def test_a_t5_is_a_stock_class_and_comes_back(cfg, t5_tokenizer, tmp_path_factory):
    path, params = tmp_path_factory.mktemp("export"), random_params(cfg)
    saving.save(path, cfg, params, t5_tokenizer, max_length=128)
    imported = directory.read(path)
    assert equal(imported.params, params)
    assert parity.compare(path, imported.config, imported.params, t5_tokenizer) < parity.TOLERANCE
    generation = transformers.GenerationConfig.from_pretrained(path)
    assert (
        generation.decoder_start_token_id,
        generation.eos_token_id,
        generation.pad_token_id,
    ) == (0, 1, 0)


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
    path, labels = tmp_path_factory.mktemp("export"), ["no", "yes", "perhaps"][:n_outputs]
    raw = saving.save(path, head, params, tokenizer, labels=labels, max_length=128)
    assert raw["architectures"] == [
        families.FAMILIES[name].architecture.replace("MaskedLM", "SequenceClassification")
    ]
    assert parity.compare(path, head, params, tokenizer) < parity.TOLERANCE
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    assert model.config.id2label == dict(enumerate(labels)) and model.num_labels == n_outputs


@settings
@hypothesis.given(
    drawn=st.one_of(encoders(), t5s().map(lambda cfg: ("t5", cfg))), classifies=st.booleans()
)
def test_the_list_of_tensors_is_that_of_the_class(drawn, classifies):
    """`classes.json` against the classes, whatever the sizes."""
    name, cfg = drawn
    special, wide = {"pad": 0, "cls": 2, "sep": 1}, equivalence.find(cfg)[1]
    if classifies and name != "t5":
        transform = families.FAMILIES[name].transform
        wide = classifier.ClassifierConfig(
            encoder=wide, width=cfg.d_model, n_outputs=3, transform=transform
        )
    raw = families.to_json(name, wide, special=special)
    with torch.device("meta"):
        kind = getattr(transformers, raw["architectures"][0])
        model = kind(
            kind.config_class(
                **{key: value for key, value in raw.items() if key != "architectures"}
            )
        )
    tied = [re.compile(pattern) for pattern in model._tied_weights_keys or ()]
    untied = name == "t5" and not cfg.tie_embeddings  # the class ties it, until a file has it
    shapes = {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        if not any(pattern.fullmatch(key) for pattern in tied)
        or (untied and key == "lm_head.weight")
    }
    assert classes.expected(raw) == shapes


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
    assert equivalence.exports(networks.named(name)) == family


def test_a_network_without_a_class_is_refused_with_the_keys_to_change():
    cfg = encoder.EncoderConfig(
        vocab_size=90, n_layers=2, d_model=8, n_heads=2, d_ff=8, ffn="geglu"
    )
    with pytest.raises(
        UserError,
        match="model.positions=scaled_sinusoidal.*ModernBertForMaskedLM.*positions=rotary",
    ):
        equivalence.find(cfg)
    assert equivalence.exports(cfg) is None
    changed = dataclasses.replace(cfg, positions="rotary", first_norm=False, head_transform=True)
    assert equivalence.exports(changed) == "modernbert"


def test_a_head_without_a_class_is_refused(tokenizer, tmp_path):
    cfg = encoder.EncoderConfig(
        vocab_size=90,
        n_layers=2,
        d_model=8,
        n_heads=2,
        d_ff=8,
        positions="learned",
        head_transform=True,
    )
    for options, message in (
        ({"width": 9}, "finetune with --set head=stock"),
        (
            {"width": 8, "pooling": "mean"},
            "reads the first token; finetune with --set pooling=first",
        ),
    ):
        head = classifier.ClassifierConfig(encoder=cfg, n_outputs=2, **options)
        params = random_params(head)
        with pytest.raises(UserError, match=message):
            saving.save(tmp_path, head, params, tokenizer, max_length=128)


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
    saving.save(tmp_path, SMALL, params, tokenizer, max_length=32)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.roberta_prelayernorm.embeddings.position_embeddings.weight[7] += 1
    model.save_pretrained(tmp_path)
    assert "cramjax_network" in json.loads((tmp_path / "config.json").read_text())
    imported = directory.read(tmp_path)
    assert imported.config.positions == "learned" and imported.config.token_types == 1
    assert parity.compare(tmp_path, imported.config, imported.params, tokenizer) < parity.TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_and_several_files(tokenizer, tmp_path, dtype):
    params = random_params(SMALL)
    saving.save(
        tmp_path, SMALL, params, tokenizer, max_length=32, dtype=dtype, max_shard_size="3KB"
    )
    assert (
        len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
        and not (tmp_path / "model.safetensors").exists()
    )
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, dtype="auto")
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}
    imported = directory.read(tmp_path)
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(saving.DTYPES[dtype]).astype(np.float32), params
    )
    assert equal(imported.params, rounded)


def test_numbers_beyond_float16_are_refused(tokenizer, tmp_path):
    params = random_params(SMALL)
    params["head"]["dense"]["kernel"][0, 0] = 1e5
    with pytest.raises(
        UserError, match="--dtype float16: lm_head.dense.weight holds numbers up to 100000"
    ):
        saving.save(tmp_path, SMALL, params, tokenizer, max_length=32, dtype="float16")


def test_what_is_not_as_the_class_has_it_is_found(tokenizer, tmp_path):
    params = random_params(SMALL)
    raw = saving.save(tmp_path, SMALL, params, tokenizer, max_length=32)
    wanted = classes.expected(raw)
    classes.check_config(raw)
    classes.check_tensors(raw, wanted)
    for changes, message in (
        ({"hidden_size": "12"}, "hidden_size='12' is no size"),
        ({"pad_token_id": 96}, "pad_token_id=96 is no id"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ):
        with pytest.raises(RunFailed, match=message):
            classes.check_config(raw | changes)
    with pytest.raises(RunFailed, match="needs layer_norm_eps"):
        classes.check_config({key: value for key, value in raw.items() if key != "layer_norm_eps"})
    with pytest.raises(RunFailed, match=r"lm_head.bias: .* has \(96,\), this model no such tensor"):
        classes.check_tensors(
            raw, {key: shape for key, shape in wanted.items() if key != "lm_head.bias"}
        )
    with pytest.raises(RunFailed, match="lm_head.more: .* has no such tensor"):
        classes.check_tensors(raw, wanted | {"lm_head.more": (1,)})


def test_parity_finds_a_wrong_weight_and_a_wrong_tokenizer(tokenizer, tmp_path):
    params = random_params(SMALL)
    saving.save(tmp_path, SMALL, params, tokenizer, max_length=32)
    wrong = jax.tree.map(np.copy, params)
    wrong["encoder"]["layers"]["attention"]["qkv"]["kernel"][1, 3, 2, 0] += 0.5
    with pytest.raises(RunFailed, match="logits of RobertaPreLayerNormForMaskedLM differ"):
        parity.compare(tmp_path, SMALL, wrong, tokenizer)
    other = tokenizer_files.train(
        "wordpiece", WORDS, vocab_size=60, lowercase=True, ascii_only=True
    )[0]
    with pytest.raises(RunFailed, match="AutoTokenizer gives other ids"):
        parity.compare(tmp_path, SMALL, params, other)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
@pytest.mark.parametrize("extra_ids", [0, 9])
def test_the_tokenizer_gives_the_same_ids(tmp_path, kind, extra_ids):
    made, _ = tokenizer_files.train(
        kind, WORDS, vocab_size=80, lowercase=False, ascii_only=False, extra_ids=extra_ids
    )
    tokenizer_files.save(made, tmp_path, types=False, max_length=77)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [
        "anna reads  books",
        " Boris, 12 écrits…\n№ ",
        "",
        "[MASK] x <extra_id_0> </s>",
        "in the " * 40,
    ]
    assert [loaded(text)["input_ids"] for text in texts] == [
        made.encode(text).ids for text in texts
    ]
    assert loaded("anna", "boris")["input_ids"] == made.encode("anna", "boris").ids
    assert loaded.model_max_length == 77 and "token_type_ids" not in loaded("anna")
    pad = loaded(["anna", "anna reads books"], padding=True)
    assert pad["input_ids"][0][-1] == loaded.pad_token_id == 0 and pad["attention_mask"][0][-1] == 0


def test_a_single_text_may_be_read_as_a_pair_with_an_empty_one(tokenizer, t5_tokenizer):
    for made in (tokenizer, t5_tokenizer):
        twin = tokenizer_files.with_empty_second(made)
        single, pair = twin.encode("anna reads"), made.encode("anna reads", "")
        assert single.ids == pair.ids and single.type_ids == pair.type_ids
        assert twin.encode("anna", "reads").ids == made.encode("anna", "reads").ids
