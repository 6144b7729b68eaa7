"""Directories of `transformers` are read as our models: logits within 1e-4 for every family.

Also the other contents of such a directory: tokenizer, pooler, old names, padding rows.
"""

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
# Networks this small lose more to waiting threads than they gain.
torch.set_num_threads(1)

from cramjax.errors import UserError  # noqa: E402
from cramjax.hub import directory, families, tables  # noqa: E402
from cramjax.models import encoder, network, t5  # noqa: E402
from cramjax.models.layers import FLOAT32  # noqa: E402
from tests.hub import savedmodels  # noqa: E402

ATOL = 1e-4
ENCODERS = [case for case in savedmodels.CASES if not case.startswith("t5")]
T5S = [case for case in savedmodels.CASES if case.startswith("t5")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """case → (directory, torch model, our import of it); each case is made once."""
    cases = {}

    def get(case):
        if case not in cases:
            path = tmp_path_factory.mktemp("saved")
            cases[case] = path, savedmodels.save(case, path), directory.read_model(path)
        return cases[case]

    return get


def batch(length, padded, start=5):
    numbers = np.random.default_rng(1)
    tokens = numbers.integers(start, savedmodels.VOCAB_SIZE, (3, length))
    mask = np.ones_like(tokens)
    if padded:
        mask[0, length - 6 :] = 0
        mask[2, 5:] = 0
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
    hidden = t5.decode(cfg, FLOAT32, params, encoded, targets, padding_mask=padding_mask)
    return t5.head(cfg, FLOAT32, params, hidden)


def ours(imported, tokens, mask=None, other=None, *, run=forward):
    """Returns logits and hidden states, or the logits of a T5 whose targets are `other`."""
    # A loop compiles in less time than layers one after the other.
    cfg = dataclasses.replace(imported.config, unroll=1)
    mask = None if mask is None else jnp.asarray(mask == 1)
    other = None if other is None else jnp.asarray(other, jnp.int32)
    outputs = run(cfg, imported.params, jnp.asarray(tokens, jnp.int32), mask, other)
    return jax.tree.map(np.asarray, outputs)


def theirs(model, **inputs):
    """Returns the outputs of a torch model for NumPy inputs; None counts as not given."""
    given = {name: torch.tensor(value) for name, value in inputs.items() if value is not None}
    with torch.no_grad():
        return model(**given)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", ENCODERS)
def test_logits_of_encoders(saved, case, padded):
    _, model, imported = saved(case)
    # As many positions as fit; for ModernBERT these are several local windows.
    length = min(imported.config.max_positions, 38)
    tokens, mask, numbers = batch(length, padded)
    tokens[mask == 0] = model.config.pad_token_id
    token_types = None
    if imported.config.token_types > 1:
        token_types = numbers.integers(0, 2, tokens.shape)
    given_mask = mask if padded else None

    outputs = theirs(model, input_ids=tokens, attention_mask=given_mask, token_type_ids=token_types)
    expected = outputs.logits.numpy()
    logits, _ = ours(imported, tokens, given_mask, token_types)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits[mask == 1], expected[mask == 1], atol=ATOL, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", T5S)
def test_logits_of_t5(saved, case, padded):
    _, model, imported = saved(case)
    inputs, mask, numbers = batch(23, padded, start=2)
    targets = numbers.integers(2, savedmodels.VOCAB_SIZE, (3, 11))
    given_mask = mask if padded else None

    outputs = theirs(model, input_ids=inputs, attention_mask=given_mask, decoder_input_ids=targets)
    expected = outputs.logits.numpy()
    logits = ours(imported, inputs, given_mask, targets, run=t5_forward)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=ATOL, rtol=0)


def test_local_layers_matter(saved):
    *_, imported = saved("modernbert")
    cfg = imported.config
    assert (cfg.local_window, cfg.global_every) == (8, 3)
    assert (cfg.rotary_base, cfg.local_rotary_base) == (160000.0, 10000.0)


@pytest.mark.parametrize("case", savedmodels.CASES)
def test_the_tokenizer_and_the_rest(saved, case):
    path, model, imported = saved(case)
    assert directory.is_hf_directory(path) and not directory.is_hf_directory(path.parent)
    assert imported.family == model.config.model_type
    assert imported.config.dropout == imported.config.attention_dropout == 0.0
    assert imported.config.vocab_size == savedmodels.VOCAB_SIZE
    assert imported.extra == {}

    leaves = jax.tree.leaves(imported.params)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in leaves)
    n_params = sum(weight.numel() for weight in model.parameters())
    if case.startswith("roberta"):
        n_params -= 2 * 72  # two rows of the table are no positions
    assert sum(leaf.size for leaf in leaves) == n_params

    # The tokenizer neither truncates nor pads; it adds one special token for a T5, else two.
    n_special = 1 if case.startswith("t5") else 2
    assert len(imported.tokenizer.encode(" ".join(["w1"] * 20)).ids) == 20 + n_special
    assert len(imported.tokenizer.encode("w1").ids) == 1 + n_special


@pytest.mark.parametrize(
    "case, suffix",
    [("bert", "Model"), ("bert", "ForSequenceClassification"), ("roberta-prelayernorm", "Model")],
)
def test_without_a_head_there_is_a_fresh_one_and_the_pooler_is_kept(tmp_path, case, suffix):
    model = savedmodels.save(case, tmp_path, savedmodels.build(case, suffix))
    imported = directory.read_model(tmp_path)
    assert imported.extra["head_missing"] is True
    head = imported.params["head"]
    assert head["dense"]["kernel"].std() > 0.01
    assert (head["norm"]["scale"] == 1).all() and not head["bias"].any()
    shapes = jax.tree.map(lambda leaf: leaf.shape, network.abstract_params(imported.config))
    assert jax.tree.map(np.shape, imported.params) == shapes

    tokens, _, _ = batch(20, False)
    base = model if suffix == "Model" else model.base_model
    expected = theirs(base, input_ids=tokens)
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
    weights = dict(model.named_parameters())
    (name,) = [name for name in weights if name.endswith("layers.1.attn.Wo.weight")]
    kernel = imported.params["encoder"]["layers"]["attention"]["out"]["kernel"][1]
    np.testing.assert_array_equal(kernel.reshape(72, 72), weights[name].detach().numpy().T)


def test_a_t5_of_transformers_5_that_is_tied_but_does_not_scale(tmp_path):
    config = savedmodels.config_of("t5 v1.1")
    model = savedmodels.save(
        "t5 v1.1", tmp_path, transformers.T5ForConditionalGeneration(config).eval()
    )
    assert "lm_head.weight" not in safetensors_torch.load_file(tmp_path / "model.safetensors")
    imported = directory.read_model(tmp_path)
    tokens, _, _ = batch(9, False)
    expected = theirs(model, input_ids=tokens, decoder_input_ids=tokens).logits.numpy()
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
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    jax.tree.map(np.testing.assert_array_equal, directory.read_model(tmp_path).params, whole.params)

    next(tmp_path.glob("model-00002-*")).unlink()
    message = "model-00002-.*no such file; copy all parts of the model"
    with pytest.raises(UserError, match=message):
        directory.read_model(tmp_path)


def test_old_names_and_copies_of_tied_tensors(saved, tmp_path):
    path, model, imported = saved("bert")
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).write_bytes((path / file).read_bytes())
    # The names in bert-base-uncased.
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        state[name] = tensor.clone().contiguous()
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]
    del state["cls.predictions.bias"]  # its copy is there
    safetensors_torch.save_file(state, tmp_path / "model.safetensors")
    params = directory.read_model(tmp_path).params
    jax.tree.map(np.testing.assert_array_equal, params, imported.params)

    state["cls.predictions.decoder.weight"] += 1
    safetensors_torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"cls.predictions.decoder.weight and bert.* differ"):
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
    assert not loaded.is_t5
    assert loaded.special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    (guesses,) = cramjax.fill_mask(loaded, "w1 w2 [MASK] w4", top_k=3)
    ids = [loaded.tokenizer.encode("w1 w2 [MASK] w4").ids]
    best = theirs(model, input_ids=ids).logits[0, 3].topk(3).indices
    words = [loaded.tokenizer.id_to_token(int(token)) for token in best]
    assert [token for token, _ in guesses] == words

    path, *_ = saved("roberta")
    assert cramjax.load(path).special == {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}

    path, *_ = saved("t5 v1.0")
    loaded = cramjax.load(path)
    assert loaded.is_t5 and loaded.special == {"pad": 0, "sep": 1, "unk": 2}


# config.json of answerdotai/ModernBERT-base, as transformers 4 wrote it.
MODERNBERT_BASE = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "sep_token_id": 50282,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 50368,
}


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
def test_all_tensors_of_the_class_come_back_bit_for_bit(saved, case):
    _, model, imported = saved(case)
    copies = tables.family_table(imported.family, imported.config).copies
    original = {}
    for name, tensor in model.state_dict().items():
        if name not in copies:
            original[name] = tensor.numpy()

    state = tables.to_hf(imported.family, imported.config, imported.params, imported.extra)
    assert state.keys() == original.keys()
    for name, tensor in state.items():
        assert tensor.dtype == np.float32 and tensor.flags.c_contiguous
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)
    params, extra = tables.from_hf(imported.family, imported.config, state)
    assert extra == {}
    jax.tree.map(np.testing.assert_array_equal, params, imported.params)


@pytest.mark.parametrize("case", savedmodels.CASES)
def test_transformers_loads_what_comes_back(saved, case, tmp_path):
    _, model, imported = saved(case)
    special = {"pad": model.config.pad_token_id}
    raw = families.to_json(imported.family, imported.config, special=special)
    assert families.from_json(raw) == (imported.family, imported.config)

    (tmp_path / "config.json").write_text(json.dumps(raw))
    arrays = tables.to_hf(imported.family, imported.config, imported.params, imported.extra)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    safetensors_torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    again, info = type(model).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values())
    weights = model.state_dict()
    for name, tensor in again.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), weights[name].numpy(), err_msg=name)

    tokens, _, _ = batch(20, False)
    targets = tokens if case.startswith("t5") else None
    inputs = {"input_ids": tokens, "decoder_input_ids": targets}
    logits = theirs(again.eval(), **inputs).logits.numpy()
    expected = theirs(model.eval(), **inputs).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=ATOL)


def test_the_pooler_and_a_missing_head_go_back_too():
    model = savedmodels.build("bert", "Model")
    original = {f"bert.{name}": tensor.numpy() for name, tensor in model.state_dict().items()}
    _, cfg = families.from_json(model.config.to_dict())
    state = tables.to_hf("bert", cfg, *tables.from_hf("bert", cfg, original))
    assert state.keys() == original.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(tensor, original[name], err_msg=name)
