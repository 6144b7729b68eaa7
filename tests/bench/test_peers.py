"""Peers: the same network in torch, and steps of it in a process of its own."""

import itertools
import os
import pathlib
import subprocess
import sys

import pytest

from cramjax.bench import peers
from cramjax.config.resolve import get_config
from cramjax.models import network
from cramjax.objectives.encoder_decoder import t5_config
from cramjax.objectives.masked_lm import encoder_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = (
    "model.d_model=32",
    "model.n_heads=2",
    "model.d_ff=48",
    "data.vocab_size=250",
    "data.seq_len=32",
    "batch_size=4",
    "schedule.batch_ramp=0",
)


def t5(*overrides):
    return get_config(
        "t5_efficient:tiny-nl2", *TINY, "model.head_dim=12", "data.extra_ids=100", *overrides
    )


def test_the_peer_has_the_sizes_of_the_configuration():
    wanted = peers.specification(t5("model.n_decoder_layers=3"))
    numbers = wanted["config"]
    assert numbers["model_type"] == "t5"
    assert [wanted[key] for key in ("n_rows", "length", "labels")] == [4, 32, 8]
    sizes = [numbers[key] for key in ("vocab_size", "d_kv", "num_layers", "num_decoder_layers")]
    assert sizes == [256, 12, 2, 3]
    assert numbers["feed_forward_proj"] == "relu"
    assert numbers["tie_word_embeddings"]


@pytest.mark.parametrize(
    "recipe, architecture",
    [
        # No class has the network of bert_1day, so the peer is one of the same sizes.
        ("bert_1day", "BertForMaskedLM"),
        ("bert_1day_modern", "ModernBertForMaskedLM"),
        ("bert_24h_academic", "MegatronBertForMaskedLM"),
        ("bert_original", "BertForMaskedLM"),
        ("t5_1day", "T5ForConditionalGeneration"),
    ],
)
def test_the_peer_is_the_same_network_where_there_is_one(recipe, architecture):
    config = get_config(recipe)
    wanted = peers.specification(config)
    assert wanted["config"]["architectures"] == [architecture]
    layers = wanted["config"].get("num_hidden_layers") or wanted["config"]["num_layers"]
    assert layers == config.model.n_layers
    assert wanted["n_rows"] == config.batch_size


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "encoder"])
def test_a_peer_is_measured_in_a_process_of_its_own(family):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    if family == "t5":
        config = t5()
        names = ["T5ForConditionalGeneration"]
    else:
        shape = ("model.n_layers=1", "model.positions=learned", "model.max_positions=32")
        config = get_config("bert_1day", *TINY, *shape)
        names = ["BertForMaskedLM", "TorchEncoder"]
    modes = ("float32 eager", "bfloat16 eager")
    results = peers.measure_peers(config, 3, modes)

    order = [(result["peer"], result["mode"]) for result in results]
    assert order == list(itertools.product(names, modes))
    for result in results:
        assert result["tokens_per_s"] == pytest.approx(4 * 32 / result["step_s"])
        assert result["microbatch_size"] == 4
        assert result["step_s_p10"] <= result["step_s"] <= result["step_s_p90"]
    vocab_size = config.data.vocab_size
    if family == "t5":
        n_params = network.count_params(t5_config(config.model, vocab_size))
    else:
        n_params = network.count_params(encoder_config(config.model, vocab_size))
    assert results[-1]["params"] == n_params


def test_without_torch_it_says_what_to_install(tmp_path):
    probe = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else real(name, *rest)
from tools import bench
sys.exit(bench.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", probe, "--config", "configs/t5_efficient.py:mini", "--peer"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "pip install -r requirements-test.txt" in done.stderr
    assert "Traceback" not in done.stderr
