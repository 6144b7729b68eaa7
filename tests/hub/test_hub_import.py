"""Directories of `transformers` as our models: logits at 1e-4 for every family, and what is in them beside the weights."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
# Networks this small lose more to torch's threads waiting for each other than they gain.
torch.set_num_threads(1)

from cramjax.hub import directory, families, tables  # noqa: E402
from cramjax.models import encoder, network, t5  # noqa: E402
from cramjax.models.layers import FLOAT32  # noqa: E402
from tests.hub import savedmodels  # noqa: E402

ATOL = 1e-4
ENCODERS = [case for case in savedmodels.CASES if not case.startswith("t5")]
T5S = [case for case in savedmodels.CASES if case.startswith("t5")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """case → (the directory, the torch model, what we read of it), each made once."""
    made = {}

    def get(case):
        if case not in made:
            path = tmp_path_factory.mktemp("saved")
            made[case] = path, savedmodels.save(case, path), directory.read_model(path)
        return made[case]

    return get


def batch(length, padded, start=5):
    numbers = np.random.default_rng(1)
    tokens = numbers.integers(start, savedmodels.VOCAB_SIZE, (3, length))
    mask = np.ones_like(tokens)
    if padded:
        mask[0, length - 6 :] = mask[2, 5:] = 0
    return tokens, mask, numbers


@functools.partial(jax.jit, static_argnums=0)
def forward(cfg, params, tokens, padding_mask, token_types):
    hidden = encoder.encode(
        cfg, FLOAT32, params, tokens, padding_mask=padding_mask, token_types=token_types
    )
    return encoder.head(cfg, FLOAT32, params, hidden), hidden


@functools.partial(jax.jit, static_argnums=0)
def t5_forward(cfg, params, tokens, padding_mask, targets):
    encoded = t5.encode(cfg, FLOAT32, params, tokens, padding_mask=padding_mask)
    return t5.head(
        cfg,
        FLOAT32,
        params,
        t5.decode(cfg, FLOAT32, params, encoded, targets, padding_mask=padding_mask),
    )


def ours(imported, tokens, mask=None, other=None, *, run=forward):
    """Logits and hidden states, or the logits of a T5 whose targets are `other`."""
    # A loop compiles in less time than layers one after the other.
    cfg = dataclasses.replace(imported.config, unroll=1)
    mask = None if mask is None else jnp.asarray(mask == 1)
    other = None if other is None else jnp.asarray(other, jnp.int32)
    return jax.tree.map(
        np.asarray, run(cfg, imported.params, jnp.asarray(tokens, jnp.int32), mask, other)
    )


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", ENCODERS)
def test_logits_of_encoders(saved, case, padded):
    _, model, imported = saved(case)
    # All the positions that fit; for ModernBERT several times the local window.
    length = min(imported.config.max_positions, 38)
    tokens, mask, numbers = batch(length, padded)
    tokens[mask == 0] = model.config.pad_token_id
    token_types = None
    if imported.config.token_types > 1:
        token_types = numbers.integers(0, 2, tokens.shape)
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask) if padded else None,
            **({} if token_types is None else {"token_type_ids": torch.tensor(token_types)}),
        ).logits.numpy()
    logits, _ = ours(imported, tokens, mask if padded else None, token_types)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits[mask == 1], expected[mask == 1], atol=ATOL, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", T5S)
def test_logits_of_t5(saved, case, padded):
    _, model, imported = saved(case)
    inputs, mask, numbers = batch(23, padded, start=2)
    targets = numbers.integers(2, savedmodels.VOCAB_SIZE, (3, 11))
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(inputs),
            attention_mask=torch.tensor(mask) if padded else None,
            decoder_input_ids=torch.tensor(targets),
        ).logits.numpy()
    logits = ours(imported, inputs, mask if padded else None, targets, run=t5_forward)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=ATOL, rtol=0)


def test_local_layers_matter(saved):
    *_, imported = saved("modernbert")
    cfg = imported.config
    assert (cfg.local_window, cfg.global_every, cfg.rotary_base, cfg.local_rotary_base) == (
        8,
        3,
        160000.0,
        10000.0,
    )


@pytest.mark.parametrize("case", savedmodels.CASES)
def test_the_tokenizer_and_the_rest(saved, case):
    path, model, imported = saved(case)
    assert imported.family == model.config.model_type
    assert imported.config.dropout == imported.config.attention_dropout == 0.0
    assert imported.config.vocab_size == savedmodels.VOCAB_SIZE and imported.extra == {}
    leaves = jax.tree.leaves(imported.params)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in leaves)
    assert sum(leaf.size for leaf in leaves) == sum(
        weight.numel() for weight in model.parameters()
    ) - 2 * 72 * case.startswith("roberta")
    # Neither truncated nor padded.
    assert len(imported.tokenizer.encode(" ".join(["w1"] * 20)).ids) == (
        21 if case.startswith("t5") else 22
    )
    assert len(imported.tokenizer.encode("w1").ids) == (2 if case.startswith("t5") else 3)
    assert directory.is_hf_directory(path) and not directory.is_hf_directory(path.parent)


@pytest.mark.parametrize(
    "case, suffix",
    [("bert", "Model"), ("bert", "ForSequenceClassification"), ("roberta-prelayernorm", "Model")],
)
def test_without_a_head_there_is_a_fresh_one_and_the_pooler_is_kept(tmp_path, case, suffix):
    model = savedmodels.save(case, tmp_path, savedmodels.build(case, suffix))
    imported = directory.read_model(tmp_path)
    assert imported.extra["head_missing"] is True
    head = imported.params["head"]
    assert (
        head["dense"]["kernel"].std() > 0.01
        and (head["norm"]["scale"] == 1).all()
        and not head["bias"].any()
    )
    shapes = jax.tree.map(lambda leaf: leaf.shape, network.abstract_params(imported.config))
    assert jax.tree.map(np.shape, imported.params) == shapes
    tokens, _, _ = batch(20, False)
    base = model if suffix == "Model" else model.base_model
    with torch.no_grad():
        expected = base(input_ids=torch.tensor(tokens))
    _, hidden = ours(imported, tokens)
    np.testing.assert_allclose(hidden, expected.last_hidden_state.numpy(), atol=ATOL, rtol=0)
    pooler = imported.extra["pooler"]
    pooled = np.tanh(hidden[:, 0] @ pooler["kernel"] + pooler["bias"])
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), atol=ATOL, rtol=0)


@pytest.mark.parametrize("suffix", ["Model", "ForSequenceClassification"])
def test_modernbert_without_its_head(tmp_path, suffix):
    case = "modernbert, biases"
    model = savedmodels.save(case, tmp_path, savedmodels.build(case, suffix))
    imported = directory.read_model(tmp_path)
    assert imported.extra == {"head_missing": True} and not imported.params["head"]["bias"].any()
    weight = dict(model.named_parameters())
    (name,) = [name for name in weight if name.endswith("layers.1.attn.Wo.weight")]
    kernel = imported.params["encoder"]["layers"]["attention"]["out"]["kernel"][1]
    np.testing.assert_array_equal(kernel.reshape(72, 72), weight[name].detach().numpy().T)


def test_a_t5_of_transformers_5_that_is_tied_but_does_not_scale(tmp_path):
    config = savedmodels.config_of("t5 v1.1")
    model = savedmodels.save(
        "t5 v1.1", tmp_path, transformers.T5ForConditionalGeneration(config).eval()
    )
    assert "lm_head.weight" not in safetensors_torch.load_file(tmp_path / "model.safetensors")
    imported = directory.read_model(tmp_path)
    tokens, _, _ = batch(9, False)
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(tokens), decoder_input_ids=torch.tensor(tokens)
        ).logits.numpy()
    logits = ours(imported, tokens, other=tokens, run=t5_forward)
    np.testing.assert_allclose(logits, expected, atol=ATOL, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_become_float32(saved, tmp_path, dtype):
    model = savedmodels.build("bert").to(dtype)
    savedmodels.save("bert", tmp_path, model)
    params = directory.read_model(tmp_path).params
    tokens = model.state_dict()["bert.embeddings.word_embeddings.weight"].float().numpy()
    np.testing.assert_array_equal(params["encoder"]["embeddings"]["tokens"], tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_weights_in_several_files(saved, tmp_path):
    *_, whole = saved("bert")
    savedmodels.save("bert", tmp_path, max_shard_size="100KB")
    assert (
        not (tmp_path / "model.safetensors").exists()
        and len(list(tmp_path.glob("model-*.safetensors"))) > 2
    )
    jax.tree.map(np.testing.assert_array_equal, directory.read_model(tmp_path).params, whole.params)
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(
        directory.UserError, match="model-00002-.*no such file, but the index names it"
    ):
        directory.read_model(tmp_path)


def test_old_names_and_copies_of_tied_tensors(saved, tmp_path):
    path, model, imported = saved("bert")
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    # As in bert-base-uncased.
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in state.items():
        for new, other in old.items():
            name = name.replace(new, other)
        renamed[name] = tensor
    renamed["bert.embeddings.position_ids"] = torch.arange(40)[None]
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).write_bytes((path / file).read_bytes())
    del renamed["cls.predictions.bias"]  # the copy is there
    safetensors_torch.save_file(renamed, tmp_path / "model.safetensors")
    jax.tree.map(
        np.testing.assert_array_equal, directory.read_model(tmp_path).params, imported.params
    )
    renamed["cls.predictions.decoder.weight"] += 1
    safetensors_torch.save_file(renamed, tmp_path / "model.safetensors")
    with pytest.raises(
        directory.UserError, match=r"cls.predictions.decoder.weight and bert.* differ"
    ):
        directory.read_model(tmp_path)


def test_rows_that_config_json_does_not_count(saved, tmp_path):
    path, *_ = saved("roberta")
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    raw = json.loads((path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"vocab_size": 120}))
    assert directory.read_model(tmp_path).config.vocab_size == savedmodels.VOCAB_SIZE


def test_positions_start_after_the_padding_token(saved):
    _, model, imported = saved("roberta")
    assert imported.config.max_positions == 38
    table = model.state_dict()["roberta.embeddings.position_embeddings.weight"].numpy()
    np.testing.assert_array_equal(imported.params["encoder"]["embeddings"]["positions"], table[2:])


def test_load_takes_such_a_directory(saved):
    import cramjax

    path, model, _ = saved("bert")
    loaded = cramjax.load(path)
    assert (
        loaded.special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4} and not loaded.is_t5
    )
    (guesses,) = cramjax.fill_mask(loaded, "w1 w2 [MASK] w4", top_k=3)
    ids = torch.tensor([loaded.tokenizer.encode("w1 w2 [MASK] w4").ids])
    with torch.no_grad():
        best = model(input_ids=ids).logits[0, 3].topk(3).indices
    assert [token for token, _ in guesses] == [
        loaded.tokenizer.id_to_token(int(token)) for token in best
    ]

    path, *_ = saved("roberta")
    assert cramjax.load(path).special == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}
    path, *_ = saved("t5 v1.0")
    loaded = cramjax.load(path)
    assert loaded.is_t5 and loaded.special == {"pad": 0, "sep": 1, "unk": 2}


# config.json of answerdotai/ModernBERT-base, as transformers 4 wrote it.
MODERNBERT_BASE = {
    "architectures": ["ModernBertForMaskedLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 50281,
    "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0, "classifier_pooling": "mean",
    "cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False, "embedding_dropout": 0.0,
    "eos_token_id": 50282, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "hidden_activation": "gelu",
    "hidden_size": 768, "initializer_cutoff_factor": 2.0, "initializer_range": 0.02, "intermediate_size": 1152,
    "layer_norm_eps": 1e-05, "local_attention": 128, "local_rope_theta": 10000.0, "max_position_embeddings": 8192,
    "mlp_bias": False, "mlp_dropout": 0.0, "model_type": "modernbert", "norm_bias": False, "norm_eps": 1e-05,
    "num_attention_heads": 12, "num_hidden_layers": 22, "pad_token_id": 50283, "position_embedding_type": "absolute",
    "sep_token_id": 50282, "tie_word_embeddings": True, "torch_dtype": "float32", "vocab_size": 50368,
}  # fmt: skip


def test_the_configuration_of_modernbert_base_in_both_spellings():
    name, cfg = families.from_json(MODERNBERT_BASE)
    assert name == "modernbert" and (cfg.local_window, cfg.global_every) == (128, 3)
    assert (cfg.rotary_base, cfg.local_rotary_base, cfg.max_positions) == (160000.0, 10000.0, 8192)
    config = transformers.ModernBertConfig(**MODERNBERT_BASE)
    assert families.from_json(json.loads(config.to_json_string(use_diff=False))) == (name, cfg)
    with torch.device("meta"):
        model = transformers.ModernBertForMaskedLM(config)
    assert network.count_params(cfg) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("case", savedmodels.CASES)
def test_there_and_back_again(saved, case, tmp_path):
    """Bit for bit; every tensor of the class is there, and transformers loads what comes out."""
    path, model, imported = saved(case)
    names = tables.family_table(imported.family, imported.config)
    original = {
        name: tensor.numpy()
        for name, tensor in model.state_dict().items()
        if name not in names.copies
    }
    state = tables.to_hf(imported.family, imported.config, imported.params, imported.extra)
    assert state.keys() == original.keys()
    for name, tensor in state.items():
        assert tensor.dtype == np.float32 and tensor.flags.c_contiguous
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)
    params, extra = tables.from_hf(imported.family, imported.config, state)
    assert extra == {}
    jax.tree.map(np.testing.assert_array_equal, params, imported.params)

    raw = families.to_json(
        imported.family, imported.config, special={"pad": model.config.pad_token_id}
    )
    assert families.from_json(raw) == (imported.family, imported.config)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    safetensors_torch.save_file(
        {name: torch.from_numpy(tensor) for name, tensor in state.items()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    again, info = type(model).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values())
    for name, tensor in again.state_dict().items():
        np.testing.assert_array_equal(
            tensor.numpy(), model.state_dict()[name].numpy(), err_msg=name
        )
    tokens = torch.tensor(batch(20, False)[0])
    inputs = {"input_ids": tokens} | (
        {"decoder_input_ids": tokens} if case.startswith("t5") else {}
    )
    with torch.no_grad():
        logits, expected = (network.eval()(**inputs).logits.numpy() for network in (again, model))
    np.testing.assert_allclose(logits, expected, atol=ATOL)


def test_the_pooler_and_a_missing_head_go_back_too():
    model = savedmodels.build("bert", "Model")
    original = {f"bert.{name}": tensor.numpy() for name, tensor in model.state_dict().items()}
    _, cfg = families.from_json(model.config.to_dict())
    state = tables.to_hf("bert", cfg, *tables.from_hf("bert", cfg, original))
    assert state.keys() == original.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)
