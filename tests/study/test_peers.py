import os
import pathlib
import subprocess
import sys

import pytest

from cramjax.config.resolve import get_config
from cramjax.study import peers

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = (
    "model.d_model=32",
    "model.n_heads=2",
    "model.d_ff=48",
    "data.vocab_size=250",
    "data.seq_len=32",
    "batch_size=4",
)


def t5(*overrides):
    return get_config("t5_efficient:tiny-nl2", *TINY, "model.head_dim=12", "data.extra_ids=100", *overrides)


def test_the_peer_has_the_sizes_of_the_configuration():
    wanted = peers.specification(t5("model.n_decoder_layers=3"))
    numbers = wanted["numbers"]
    assert (wanted["kind"], wanted["batch"], wanted["labels"]) == ("T5", [4, 32], 8)
    assert (numbers["vocab_size"], numbers["d_kv"], numbers["num_layers"], numbers["num_decoder_layers"]) == (
        256,
        12,
        2,
        3,
    )
    assert numbers["feed_forward_proj"] == "relu" and numbers["tie_word_embeddings"]
    bert = peers.specification(get_config("bert_1day"))
    assert bert["kind"] == "Bert" and bert["numbers"]["num_hidden_layers"] == 16 and bert["batch"] == [8192, 128]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "encoder"])
def test_a_peer_is_measured_in_a_process_of_its_own(family):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = t5() if family == "t5" else get_config("bert_1day", *TINY, "model.n_layers=1")
    found = peers.measure_peers(config, 3, modes=("float32 eager", "bfloat16 eager"))
    assert [result["mode"] for result in found] == ["float32 eager", "bfloat16 eager"]
    for result in found:
        assert result["tokens_per_s"] == pytest.approx(4 * 32 / result["step_s"])
        assert result["step_s_p10"] <= result["step_s"] <= result["step_s_p90"]
    if family == "t5":
        from cramjax.models import t5 as network
        from cramjax.training.span_corruption import t5_config

        assert found[0]["params"] == network.count_params(t5_config(config.model, config.data.vocab_size))


def test_without_torch_it_says_what_to_install(tmp_path):
    probe = (
        "import importlib.util, sys; real = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else real(name, *rest); "
        "from tools import bench; sys.exit(bench.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", probe, "--config", "configs/t5_efficient.py:mini", "--peer"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "pip install -r requirements-test.txt" in done.stderr
    assert "Traceback" not in done.stderr
