"""The benchmark of finetuning: its arithmetic, and both sides on a tiny network."""

import subprocess
import sys

import pytest

from cramjax.config.errors import UserError
from cramjax.config.resolve import get_config
from cramjax.study import finetune_bench, finetune_peer
from tests.finetuning import grammar

TINY = ("model.n_layers=1", "model.d_model=32", "model.n_heads=2", "model.d_ff=48", "data.vocab_size=200")


def test_ratios_are_over_the_peers_best():
    peers = [
        {"mode": "float32", "examples_per_s": 10.0},
        {"mode": "float32, compiled", "error": "no compiler"},
        {"mode": "float32, grouped by length", "examples_per_s": 20.0},
        {"mode": "bfloat16", "examples_per_s": 40.0},
    ]
    found = finetune_bench.comparison({"float32": 50.0, "bfloat16": 90.0}, {"float32": 30.0, "bfloat16": 70.0}, peers)
    assert found["ratio_to_peer"] == {"float32": 4.0, "float32_any": 2.0, "best": 2.0}
    assert finetune_bench.comparison({"float32": 1.0}, {"float32": 1.0}, [])["ratio_to_peer"]["best"] is None


def test_other_tasks_are_refused(tmp_path):
    for config, task in ((get_config("quickstart", *TINY), "stsb"), (get_config("t5_1day"), "cola")):
        with pytest.raises(UserError, match="one task of classification with an encoder"):
            finetune_bench.bench(config, task, str(tmp_path), 2, peer=False)


def test_flags_that_go_together(root):
    command = [sys.executable, "-m", "tools.bench", "--config", "configs/quickstart.py", "--finetune", "cola"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--data_dir" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_both_sides_are_measured(tmp_path, monkeypatch):
    for package in ("torch", "transformers", "accelerate"):
        pytest.importorskip(package)
    monkeypatch.setattr(finetune_peer, "MODES", ("float32", "bfloat16, grouped by length"))
    monkeypatch.setattr(finetune_peer.measure, "__defaults__", (finetune_peer.MODES,))
    glue = str(grammar.write_glue(tmp_path))
    found = finetune_bench.bench(get_config("quickstart", *TINY), "cola", glue, 4, peer=True)
    assert [peer["mode"] for peer in found["peers"]] == list(finetune_peer.MODES)
    assert all(peer["examples_per_s"] > 0 for peer in found["peers"]) and found["ratio_to_peer"]["best"] > 0
    assert set(found["ours"]) == {"float32", "bfloat16"} and found["mean_tokens"] > 3
