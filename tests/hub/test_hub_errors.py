"""Mistakes in a directory are named in one sentence, with the file or key and what to do.

None of this needs torch.
"""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import models

from cramjax.errors import UserError
from cramjax.hub import directory, families, tables
from cramjax.models import network
from tests import networks

BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
MODERN = {
    "model_type": "modernbert",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 40,
    "d_model": 16,
    "num_layers": 1,
    "num_heads": 2,
    "d_kv": 8,
    "d_ff": 24,
}


def random_params(cfg):
    import jax

    numbers = np.random.default_rng(0)

    def random(leaf):
        return numbers.normal(size=leaf.shape).astype(np.float32)

    return jax.tree.map(random, network.abstract_params(cfg))


def tokenizer(names=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b")):
    ids = {name: i for i, name in enumerate(names)}
    return tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))


@pytest.fixture
def path(tmp_path):
    """A directory without mistakes."""
    family, cfg = families.from_json(BERT)
    save_file(tables.to_hf(family, cfg, random_params(cfg)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    directory.read_model(tmp_path)
    return tmp_path


def refused(path, *parts):
    """Reading is refused in one sentence with all of `parts`."""
    with pytest.raises(UserError) as caught:
        directory.read_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "name, parts",
    [
        ("config.json", ["config.json: no such file", "save_pretrained"]),
        (
            "tokenizer.json",
            ["tokenizer.json: no such file", "AutoTokenizer.from_pretrained(", "save_pretrained("],
        ),
        ("model.safetensors", ["model.safetensors: no such file", "safe_serialization=True"]),
    ],
)
def test_missing_files(path, name, parts):
    (path / name).unlink()
    assert directory.is_hf_directory(path)
    refused(path, *parts)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe{}"])
def test_malformed_files(path, name, content):
    (path / name).write_bytes(content)
    refused(path, name, "save")


def test_a_truncated_file_of_weights(path):
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(path, "model.safetensors: not readable as safetensors")


def test_pickled_weights_alone(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    refused(
        path,
        "pytorch_model.bin",
        "AutoModel.from_pretrained(",
        ".save_pretrained(",
        "safe_serialization=True",
    )


def test_no_directory(tmp_path):
    refused(tmp_path / "absent", "absent: no such directory")
    assert not directory.is_hf_directory(tmp_path / "absent")
    assert not directory.is_hf_directory(tmp_path)
    (tmp_path / "config.json").write_text('{"precision": "auto"}')  # that of a run
    assert not directory.is_hf_directory(tmp_path)


def test_an_index_without_its_map(path):
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text("{}")
    refused(path, "model.safetensors.index.json: has no weight_map")


LAYER = "bert.encoder.layer"


@pytest.mark.parametrize("name", [f"{LAYER}.1.output.dense.weight", "cls.predictions.bias"])
def test_a_missing_tensor(path, name):
    state = load_file(path / "model.safetensors")
    del state[name]
    save_file(state, path / "model.safetensors")
    refused(path, str(path), f"{name} is missing")


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "parts"),
    [
        (
            f"{LAYER}.0.intermediate.dense.bias",
            (25,),
            np.float32,
            ["layer.0.intermediate.dense.bias has shape [25], but config.json says [24]"],
        ),
        (
            "bert.embeddings.position_embeddings.weight",
            (13, 16),
            np.float32,
            ["position_embeddings.weight has shape [13, 16], but config.json says [12, 16]"],
        ),
        (
            f"{LAYER}.0.output.dense.weight",
            (16, 24),
            np.int8,
            ["layer.0.output.dense.weight is of int8", "unquantized"],
        ),
    ],
)
def test_wrong_tensors(path, name, shape, dtype, parts):
    state = load_file(path / "model.safetensors")
    state[name] = np.zeros(shape, dtype)
    save_file(state, path / "model.safetensors")
    refused(path, str(path), *parts)


def test_tokenizers_that_do_not_fit(path):
    tokenizer([f"w{i}" for i in range(6)] + ["[UNK]"]).save(str(path / "tokenizer.json"))
    refused(path, "tokenizer.json: has no token for pad")
    many = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(40))]
    tokenizer(many).save(str(path / "tokenizer.json"))
    refused(path, "tokenizer.json: has an entry 44, but the embedding 40 rows")
    words = models.WordLevel({"w0": 0, "w1": 1}, unk_token="[UNK]")
    tokenizers.Tokenizer(words).save(str(path / "tokenizer.json"))
    refused(path, "tokenizer.json: its unknown token '[UNK]' is no entry of its vocabulary")


FULL, SLIDING = "full_attention", "sliding_attention"
FAMILIES = "known: bert, megatron-bert, roberta, roberta-prelayernorm, modernbert, electra, t5"


def rope(kind, **values):
    return {"rope_parameters": {kind: values}}


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        ({"model_type": "gpt2"}, ["'gpt2'", FAMILIES]),
        ({}, ["model_type=None"]),
        (BERT | {"hidden_act": "gelu_new"}, ["hidden_act='gelu_new'", "has to be gelu"]),
        (BERT | {"hidden_act": "gelu_pytorch_tanh"}, ["hidden_act"]),
        (
            BERT | {"position_embedding_type": "relative_key"},
            ["position_embedding_type", "absolute"],
        ),
        (BERT | {"is_decoder": True}, ["is_decoder"]),
        (BERT | {"hidden_size": None}, ["has no hidden_size"]),
        (BERT | {"hidden_size": "16"}, ["hidden_size='16'", "int"]),
        (BERT | {"hidden_size": 17}, ["17", "n_heads"]),
        (BERT | {"num_attention_heads": 0}, ["num_attention_heads=0", "at least 1"]),
        (MODERN | {"hidden_activation": "silu"}, ["hidden_activation"]),
        (MODERN | {"mlp_bias": True}, ["mlp_bias", "attention_bias"]),
        (MODERN | {"norm_bias": True}, ["norm_bias", "classifier_bias"]),
        (MODERN | {"layer_types": [SLIDING] * 4}, ["layer_types"]),
        (MODERN | {"layer_types": [FULL, FULL, SLIDING, FULL]}, ["layer_types"]),
        (MODERN | rope(FULL, rope_type="yarn"), ["rope_type"]),
        (MODERN | {"layer_types": 4}, ["layer_types"]),
        (MODERN | {"rope_parameters": {FULL: 3}}, ["full_attention=3", "object"]),
        (MODERN | rope(FULL, rope_theta="x"), ["rope_theta='x'"]),
        (T5 | {"feed_forward_proj": "gated-silu"}, ["feed_forward_proj", "relu or gated-gelu"]),
        (T5 | {"relative_attention_num_buckets": 30}, ["30 relative buckets"]),
    ],
)
def test_configurations_that_are_not_ours(raw, parts):
    with pytest.raises(UserError) as caught:
        families.from_json(raw, "dir/config.json")
    assert all(part in str(caught.value) for part in ["dir/config.json", *parts]), caught.value


def test_older_files_leave_out_keys():
    _, cfg = families.from_json(T5)
    assert (cfg.ffn, cfg.tie_embeddings) == ("relu", True)
    assert (cfg.n_decoder_layers, cfg.relative_buckets) == (1, 32)
    newer = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    _, cfg = families.from_json(newer)
    assert (cfg.ffn, cfg.tie_embeddings) == ("geglu_tanh", False)

    _, cfg = families.from_json(MODERN)
    assert (cfg.local_window, cfg.global_every, cfg.local_rotary_base) == (128, 3, 10000.0)
    _, cfg = families.from_json(MODERN | {"layer_types": [FULL] * 4})
    assert (cfg.local_window, cfg.global_every) == (0, 1)
    one_global = [FULL] + [SLIDING] * 3
    _, cfg = families.from_json(MODERN | {"layer_types": one_global})
    assert families.to_json("modernbert", cfg)["layer_types"] == one_global

    _, cfg = families.from_json(BERT | {"model_type": "roberta", "pad_token_id": 0})
    assert cfg.max_positions == 11


def test_networks_that_no_family_has():
    bert = networks.named("bert-base")
    crammed = networks.named("crammed-bert")
    pairs = (("bert", crammed), ("modernbert", bert), ("t5", bert), ("megatron-bert", bert))
    for name, cfg in pairs:
        with pytest.raises(UserError, match=f"no {name}"):
            tables.family_table(name, cfg)
    with pytest.raises(UserError, match="local_window"):
        families.to_json("bert", dataclasses.replace(bert, local_window=8))
