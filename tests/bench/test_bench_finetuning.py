"""The bench of finetuning: arithmetic, the peer's specification, both sides on a tiny network."""

import importlib.util
import json
import stat
import subprocess
import sys

import numpy as np
import pytest

from cramjax.bench import finetuning, finetuning_peer, peer_examples
from cramjax.config.resolve import get_config
from cramjax.errors import RunFailed, UserError
from cramjax.tasks import catalogue
from tests.finetuning import grammar, reading
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
    """CoLA of 41 sentences, so that the last batch has 9, and RTE with a text that is too long."""
    folder = grammar.write_glue(tmp_path_factory.mktemp("bench") / "glue", n_train=41)
    rte = folder / "RTE" / "train.tsv"
    rte.write_text(rte.read_text().replace("\n0\t", "\n0\t" + "red " * 200))
    # Tasks of tags and of answers lie in the folder itself.
    reading.write_conll(folder)
    reading.write_squad(folder)
    train = folder / "train-v1.1.json"
    content = json.loads(train.read_text())
    content["data"][0]["paragraphs"][0]["context"] += " a" * 500
    train.write_text(json.dumps(content))
    return folder


def ours(glue, task_name, n_steps):
    config = get_config("quickstart", *TINY)
    (task,) = catalogue.find([task_name])
    return finetuning.TimedFinetuning(config, task, str(glue), n_steps)


def test_ratios_are_over_the_peers_best():
    peers = [
        {"mode": "float32", "examples_per_s": 10.0},
        {"mode": "float32, compiled", "error": "no compiler"},
        {"mode": "float32, grouped by length", "examples_per_s": 20.0},
        {"mode": "bfloat16", "examples_per_s": 40.0},
    ]
    before = {"float32": 50.0, "float32, grouped by length": 70.0, "bfloat16": 90.0}
    after = {"float32": 30.0, "float32, grouped by length": 50.0, "bfloat16": 70.0}
    compared = finetuning.comparison(before, after, peers)
    assert compared["ratio_to_peer"] == {"float32": 4.0, "float32_any": 3.0, "best": 2.0}
    assert compared["best_peer_mode"] == {
        "float32": "float32",
        "float32_any": "float32, grouped by length",
        "best": "bfloat16",
    }

    narrow = {"bfloat16": 90.0}
    assert finetuning.comparison(narrow, narrow, peers)["ratio_to_peer"] == {
        "float32": None,
        "float32_any": None,
        "best": 2.25,
    }

    without_peers = finetuning.comparison(before, after, [])
    assert without_peers["ratio_to_peer"]["best"] is None
    assert without_peers["best_peer_mode"]["best"] is None


def test_short_batches_count_as_what_they_hold():
    assert finetuning_peer.n_examples(41, 16, range(3)) == 41
    assert finetuning_peer.n_examples(41, 16, range(2, 5)) == 9 + 16 + 16
    assert finetuning_peer.n_examples(32, 16, range(7)) == 7 * 16
    assert finetuning_peer.n_examples(5, 16, range(3)) == 15


def test_the_peer_is_asked_for_the_same_sizes_and_settings(glue):
    wanted = ours(glue, "cola", 3).specification()
    assert wanted["model"] == "BertForSequenceClassification"
    expected = {
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 72,
        "num_labels": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    assert expected.items() <= wanted["numbers"].items()
    settings = {"batch_size": 16, "lr": 4e-5, "b2": 0.98}
    assert settings.items() <= wanted["settings"].items()

    columns = wanted["columns"]
    assert columns.keys() == {"input_ids", "labels"}
    assert len(columns["input_ids"]) == len(columns["labels"]) == 41
    assert all(isinstance(number, int) for ids in columns["input_ids"] for number in ids)
    assert set(columns["labels"]) == {0, 1}
    json.dumps(wanted)


def test_pairs_are_cut_and_typed_as_ours(glue):
    wanted = ours(glue, "rte", 3).specification()
    assert wanted["numbers"]["max_position_embeddings"] == 128
    columns = wanted["columns"]
    assert max(map(len, columns["input_ids"])) == 128

    for ids, types in zip(columns["input_ids"], columns["token_type_ids"], strict=True):
        assert len(types) == len(ids)
        # The first text has type 0, the second type 1.
        assert set(types) == {0, 1}
        assert types == sorted(types)


def test_the_peer_learns_the_tags_of_the_first_tokens_of_words(glue):
    timed = ours(glue, "conll", 3)
    wanted = timed.specification()
    assert wanted["model"] == "BertForTokenClassification"
    assert wanted["numbers"]["num_labels"] == 3  # O, B-animal, B-color
    columns = wanted["columns"]
    assert columns.keys() == {"input_ids", "labels"}

    n_words = 0
    for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        assert len(ids) == len(labels)
        assert labels[0] == labels[-1] == finetuning_peer.NO_TAG
        n_words += sum(label != finetuning_peer.NO_TAG for label in labels)
    lines = (glue / "train.conll").read_text().splitlines()
    assert n_words == sum(bool(line) for line in lines)


def test_the_peer_learns_the_answers_of_our_windows(glue):
    timed = ours(glue, "squad", 3)
    wanted = timed.specification()
    assert wanted["model"] == "BertForQuestionAnswering"
    assert wanted["numbers"]["max_position_embeddings"] == 384
    columns = wanted["columns"]
    assert columns.keys() == {"input_ids", "token_type_ids", "start_positions", "end_positions"}
    # One context is read in two windows, of which the second has no answer.
    assert len(columns["input_ids"]) == 41
    lengths = [len(ids) for ids in columns["input_ids"]]
    assert max(lengths) == 384
    starts, ends = columns["start_positions"], columns["end_positions"]
    assert [number for number, start in enumerate(starts) if start == 0] == [1]

    answers = {
        tuple(ids[start : end + 1])
        for ids, start, end in zip(columns["input_ids"], starts, ends, strict=True)
        if start
    }
    assert len(answers) == 1  # "red"


def test_an_example_without_weight_is_ignored_by_both_sides():
    batch = {"starts": np.array([5]), "ends": np.array([7])}
    targets = peer_examples.KINDS["span"].targets
    learned = targets(batch | {"weights": np.ones(1)})
    assert learned == {"start_positions": 5, "end_positions": 7}
    ignored = targets(batch | {"weights": np.zeros(1)})
    assert set(ignored.values()) == {finetuning_peer.NOWHERE}


def test_a_peers_batch_is_as_long_as_its_longest_example_needs():
    torch = pytest.importorskip("torch")
    examples = [
        {"input_ids": [4, 5, 6], "token_type_ids": [0, 1, 1], "labels": [-100, 2, -100]},
        {"input_ids": list(range(9)), "token_type_ids": [1] * 9, "labels": [1] * 9},
    ]
    batch = finetuning_peer._collate(examples)
    assert {name: tuple(values.shape) for name, values in batch.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "labels", "attention_mask"), (2, 16)
    )
    assert all(values.dtype == torch.int64 for values in batch.values())
    assert batch["attention_mask"].sum(1).tolist() == [3, 9]
    assert batch["input_ids"][0].tolist() == [4, 5, 6] + [0] * 13
    assert batch["labels"][0].tolist() == [-100, 2] + [-100] * 14

    of_texts = finetuning_peer._collate([{"input_ids": [1], "labels": 1}])
    assert of_texts["labels"].tolist() == [1]


@pytest.mark.slow
def test_all_steps_run_and_are_counted(glue, monkeypatch):
    """The steps are more than the protocol's five epochs have; a second call does not warm up."""
    n_steps = []
    real = finetuning.training.train

    def train(*args, **options):
        trained = real(*args, **options)
        n_steps.append(trained.n_steps)
        return trained

    monkeypatch.setattr(finetuning.training, "train", train)
    timed = ours(glue, "cola", 17)
    first = timed.measure("float32")
    second = timed.measure("float32")
    assert n_steps == [17, 17, 17]
    assert first["examples_per_s"] * first["seconds"] == pytest.approx(5 * 41 + 2 * 16)
    assert second["compile_s"] == first["compile_s"]


def test_one_precision_is_measured_alone_and_another_refused(glue, monkeypatch):
    measured = []

    def measure(self, mode):
        measured.append(mode)
        return {"examples_per_s": 10.0}

    def peer(wanted, n_steps, modes):
        measured.extend(modes)
        return [{"mode": mode, "examples_per_s": 5.0} for mode in modes]

    monkeypatch.setattr(finetuning.TimedFinetuning, "measure", measure)
    monkeypatch.setattr(finetuning_peer, "measure", peer)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    config = get_config("quickstart", *TINY, "precision=float32")
    compared = finetuning.bench(config, "cola", str(glue), 3, peer=True)
    assert len(measured) == 2 + 4 + 2 and all(mode.startswith("float32") for mode in measured)
    assert compared["ratio_to_peer"] == {"float32": 2.0, "float32_any": 2.0, "best": 2.0}

    config = get_config("quickstart", *TINY, "precision=float16")
    with pytest.raises(UserError, match="precision=float16: --finetune measures"):
        finetuning.bench(config, "cola", str(glue), 3, peer=False)


def test_ours_is_measured_on_both_sides_of_the_peer(glue, monkeypatch, capsys):
    order = []
    rates = iter([10.0, 10.0, 20.0, 10.0, 30.0, 10.0, 40.0, 10.0])

    def measure(self, mode):
        order.append(mode)
        return {"examples_per_s": next(rates)}

    def peer(wanted, n_steps, modes):
        order.append((n_steps, modes))
        return [{"peer": "", "mode": mode, "examples_per_s": 10.0} for mode in modes]

    monkeypatch.setattr(finetuning.TimedFinetuning, "measure", measure)
    monkeypatch.setattr(finetuning_peer, "measure", peer)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    network = [f"--config.{pair}" for pair in TINY]
    task = ["--finetune", "cola", "--data_dir", str(glue), "--steps", "7"]
    peer_flags = ["--peer", "--peer_modes", "eager"]
    assert tool.main(["--config", "configs/quickstart.py", *network, *task, *peer_flags]) == 0

    modes = list(finetuning.MODES)
    assert order == [*modes, (7, finetuning_peer.EAGER_MODES), *modes]
    assert len(finetuning_peer.EAGER_MODES) == 4
    printed = capsys.readouterr()
    # Standard output has the result alone; warnings go to standard error.
    result = json.loads(printed.out)
    assert "8,551 were published" in printed.err
    assert result["ours_examples_per_s"]["float32"] == [10.0, 30.0]
    assert result["ours_examples_per_s"]["bfloat16"] == [20.0, 40.0]
    assert result["ratio_to_peer"] == {"float32": 2.0, "float32_any": 2.0, "best": 3.0}


def test_a_peer_is_a_process_that_gets_all_or_fails(tmp_path, monkeypatch):
    line = json.dumps({"peer": "Trainer", "mode": "float32", "examples_per_s": 1.0})
    fake = tmp_path / "python"
    fake.write_text(
        f"#!/bin/sh\ncat > {tmp_path}/asked\necho \"{{'train_runtime': 1}}\"\necho '{line}'\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(finetuning_peer.sys, "executable", str(fake))
    (result,) = finetuning_peer.measure({"labels": [1]}, 5, ("float32",))
    assert result["examples_per_s"] == 1.0
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
        (get_config("quickstart", *TINY), "glue"),
        (get_config("t5_1day"), "cola"),
    ):
        with pytest.raises(UserError, match="one task of classes, tags or answers"):
            finetuning.bench(config, task, str(tmp_path), 2, peer=False)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--finetune", "cola"), "--data_dir"),
        (("--peer", "--peer_modes", "eager"), "--peer_modes"),
        (("--finetune", "cola", "--data_dir", "x", "--peer_modes", "all"), "--peer_modes"),
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
@pytest.mark.parametrize("task", ["cola", "rte", "conll", "squad"])
def test_both_sides_are_measured(glue, task):
    for package in ("torch", "transformers", "accelerate"):
        pytest.importorskip(package)
    modes = ("float32", "bfloat16, grouped by length")
    config = get_config("quickstart", *TINY)
    result = finetuning.bench(config, task, str(glue), 4, peer=True, modes=modes)
    assert [peer["mode"] for peer in result["peers"]] == list(modes)
    assert result["best_peer_mode"]["best"] in modes
    assert all(peer["examples_per_s"] > 0 for peer in result["peers"])
    assert result["ratio_to_peer"]["best"] > 0
    assert set(result["peers"][0]["versions"]) == {"torch", "transformers", "accelerate"}
    assert set(result["ours"]) == set(finetuning.MODES)
    assert result["mean_tokens"] > 3
