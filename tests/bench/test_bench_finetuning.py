"""The benchmark of finetuning: its arithmetic, what it asks of the peer, and both sides on a tiny network."""

import importlib.util
import json
import stat
import subprocess
import sys

import pytest

from cramjax.bench import finetuning, finetuning_peer
from cramjax.config.resolve import get_config
from cramjax.errors import RunFailed, UserError
from cramjax.glue.tasks import find_tasks
from tests.finetuning import grammar
from tools import bench as tool

TINY = (
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
    "model.d_ff=48",
    "data.vocab_size=200",
)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """CoLA of 41 sentences (the last batch of an epoch has 9) and RTE, one of whose texts is too long."""
    folder = grammar.write_glue(tmp_path_factory.mktemp("bench") / "glue", n_train=41)
    rte = folder / "RTE" / "train.tsv"
    rte.write_text(rte.read_text().replace("\n0\t", "\n0\t" + "red " * 200))
    return folder


def ours(glue, task, n_steps):
    return finetuning._Ours(
        get_config("quickstart", *TINY), find_tasks([task])[0], str(glue), n_steps
    )


def test_ratios_are_over_the_peers_best():
    peers = [
        {"mode": "float32", "examples_per_s": 10.0},
        {"mode": "float32, compiled", "error": "no compiler"},
        {"mode": "float32, grouped by length", "examples_per_s": 20.0},
        {"mode": "bfloat16", "examples_per_s": 40.0},
    ]
    found = finetuning.comparison(
        {"float32": 50.0, "bfloat16": 90.0}, {"float32": 30.0, "bfloat16": 70.0}, peers
    )
    assert found["ratio_to_peer"] == {"float32": 4.0, "float32_any": 2.0, "best": 2.0}
    assert (
        finetuning.comparison({"float32": 1.0}, {"float32": 1.0}, [])["ratio_to_peer"]["best"]
        is None
    )


def test_short_batches_count_as_what_they_hold():
    assert finetuning_peer.n_examples(41, 16, range(3)) == 41
    assert finetuning_peer.n_examples(41, 16, range(2, 5)) == 9 + 16 + 16
    assert finetuning_peer.n_examples(32, 16, range(7)) == 7 * 16
    assert finetuning_peer.n_examples(5, 16, range(3)) == 15


def test_the_peer_is_asked_for_the_same_sizes_and_settings(glue):
    measure = ours(glue, "cola", 3)
    wanted = measure.specification()
    numbers = wanted["numbers"]
    assert (numbers["vocab_size"], numbers["hidden_size"], numbers["num_hidden_layers"]) == (
        200,
        32,
        2,
    )
    assert numbers["intermediate_size"] == 72 and numbers["num_labels"] == 2
    assert (numbers["hidden_dropout_prob"], numbers["attention_probs_dropout_prob"]) == (0.1, 0.1)
    assert (
        wanted["settings"]["batch_size"],
        wanted["settings"]["lr"],
        wanted["settings"]["b2"],
    ) == (16, 4e-5, 0.98)
    assert (
        len(wanted["input_ids"]) == len(wanted["labels"]) == 41 and "token_type_ids" not in wanted
    )
    assert [list(found.ids) for found in measure._feed._sequences["train"]] == wanted["input_ids"]
    json.dumps(wanted)


def test_pairs_are_cut_and_typed_as_ours(glue):
    measure = ours(glue, "rte", 3)
    wanted = measure.specification()
    assert max(map(len, wanted["input_ids"])) == 128 == wanted["numbers"]["max_position_embeddings"]
    sequences = measure._feed._sequences["train"]
    assert [list(found.ids) for found in sequences] == wanted["input_ids"]
    assert [list(found.types) for found in sequences] == wanted["token_type_ids"]


@pytest.mark.slow
def test_all_steps_run_and_are_counted(glue, monkeypatch):
    """More steps than the protocol's five epochs of a small task have; a second call neither compiles nor warms up again."""
    calls = []
    real = finetuning.training.train

    def train(*args, **options):
        calls.append(real(*args, **options).n_steps)
        return type("Trained", (), {"n_steps": calls[-1]})

    monkeypatch.setattr(finetuning.training, "train", train)
    measure = ours(glue, "cola", 17)
    first, second = measure("float32"), measure("float32")
    assert calls == [17, 17, 17]
    assert first["examples_per_s"] * first["seconds"] == pytest.approx(5 * 41 + 2 * 16)
    assert second["compile_s"] == first["compile_s"]


def test_ours_is_measured_on_both_sides_of_the_peer(glue, monkeypatch, capsys):
    order, rates = [], iter([10.0, 20.0, 30.0, 40.0])

    def side(self, precision):
        order.append(precision)
        return {"examples_per_s": next(rates)}

    def peer(wanted, n_steps, modes):
        order.append((n_steps, modes))
        return [{"peer": "", "mode": mode, "examples_per_s": 10.0} for mode in modes]

    monkeypatch.setattr(finetuning._Ours, "__call__", side)
    monkeypatch.setattr(finetuning_peer, "measure", peer)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    flags = [f"--config.{pair}" for pair in TINY]
    command = [
        "--config",
        "configs/quickstart.py",
        "--finetune",
        "cola",
        "--data_dir",
        str(glue),
        "--steps",
        "7",
    ]
    assert tool.main([*command, "--peer", "--peer_modes", "eager", *flags]) == 0
    assert order == ["float32", "bfloat16", (7, finetuning_peer.EAGER_MODES), "float32", "bfloat16"]
    assert len(finetuning_peer.EAGER_MODES) == 4
    said = capsys.readouterr()
    # Warnings, as of a number of rows that is not the published one, leave standard output to the result.
    found = json.loads(said.out)
    assert "8,551 were published" in said.err
    assert found["ours_examples_per_s"] == {"float32": [10.0, 30.0], "bfloat16": [20.0, 40.0]}
    assert found["ratio_to_peer"] == {"float32": 2.0, "float32_any": 2.0, "best": 3.0}


def test_a_peer_is_a_process_that_gets_all_or_fails(tmp_path, monkeypatch):
    line = json.dumps({"peer": "Trainer", "mode": "float32", "examples_per_s": 1.0})
    fake = tmp_path / "python"
    fake.write_text(
        f"#!/bin/sh\ncat > {tmp_path}/asked\necho \"{{'train_runtime': 1}}\"\necho '{line}'\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(finetuning_peer.sys, "executable", str(fake))
    (found,) = finetuning_peer.measure({"labels": [1]}, 5, ("float32",))
    assert found["examples_per_s"] == 1.0
    assert json.loads((tmp_path / "asked").read_text()) == {
        "labels": [1],
        "modes": ["float32"],
        "n_steps": 5,
    }
    with pytest.raises(RunFailed, match="ended without its measurements"):
        finetuning_peer.measure({"labels": [1]}, 5, ("float32", "bfloat16"))


@pytest.mark.parametrize("missing", ["torch", "transformers", "accelerate"])
def test_what_is_missing_is_named(monkeypatch, missing):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(UserError, match="pip install -r requirements-test.txt"):
        finetuning.bench(get_config("quickstart", *TINY), "cola", "nowhere", 2, peer=True)


def test_other_tasks_are_refused(tmp_path):
    for config, task in (
        (get_config("quickstart", *TINY), "stsb"),
        (get_config("t5_1day"), "cola"),
    ):
        with pytest.raises(UserError, match="one task of classification with an encoder"):
            finetuning.bench(config, task, str(tmp_path), 2, peer=False)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--finetune", "cola"), "--data_dir"),
        (("--peer", "--peer_modes", "eager"), "--peer_modes"),
        (("--finetune", "cola", "--data_dir", "x", "--peer_modes", "all"), "--peer_modes"),
        (("--steps", "0"), "--steps 0"),
        (("--finetune", "cola", "--data_dir", "no/such/folder"), "no/such/folder"),
    ],
)
def test_mistakes_are_one_sentence(capsys, flags, named):
    assert tool.main(["--config", "configs/quickstart.py", *flags]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_help_needs_no_jax(root):
    check = (
        "import sys; from tools import bench\n"
        "try: bench.main(['--help'])\n"
        "finally: assert not {'jax', 'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--peer_modes" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cola", "rte"])
def test_both_sides_are_measured(glue, task):
    for package in ("torch", "transformers", "accelerate"):
        pytest.importorskip(package)
    modes = ("float32", "bfloat16, grouped by length")
    config = get_config("quickstart", *TINY)
    found = finetuning.bench(config, task, str(glue), 4, peer=True, modes=modes)
    assert [peer["mode"] for peer in found["peers"]] == list(modes)
    assert (
        all(peer["examples_per_s"] > 0 for peer in found["peers"])
        and found["ratio_to_peer"]["best"] > 0
    )
    assert set(found["peers"][0]["versions"]) == {"torch", "transformers", "accelerate"}
    assert set(found["ours"]) == {"float32", "bfloat16"} and found["mean_tokens"] > 3
