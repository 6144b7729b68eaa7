"""tools.finetune as a process: a run's checkpoint, a Hugging Face directory, mistakes, kills."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e import test_main as cli
from tests.finetuning import grammar

TOOL = [sys.executable, "-m", "tools.finetune"]


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return grammar.write_glue(tmp_path_factory.mktemp("glue"))


def flags(checkpoint, glue, out, *more):
    settings = ("--set=batch_size=16", "--set=lr=1e-3", "--set=epochs=2")
    places = (f"--checkpoint={checkpoint}", f"--data_dir={glue}", f"--out={out}")
    return [*TOOL, *places, *settings, *more]


@pytest.mark.slow
def test_a_run_is_finetuned(small_run, glue, tmp_path):
    # Dear, because a run is pretrained first. The cheaper tests of finetuning start from a model in
    # memory: only here does the command read a run's checkpoint and write every file it promises.
    more = ("--task=cola", "--seeds=1", "--compare", "--set=max_steps=3")
    done = cli.run(flags(small_run, glue, tmp_path, *more))
    assert "CoLA MCC" in done.stdout
    assert "crammed BERT" in done.stdout
    assert "compiling" in done.stderr

    found = json.loads((tmp_path / "results.json").read_text())
    assert found["command"].startswith("python -m cramjax finetune ")
    assert len(found["cola"]["matthews"]["seeds"]) == 1
    assert (tmp_path / "results.md").stat().st_size
    assert (tmp_path / "predictions" / "cola.tsv").stat().st_size


@pytest.mark.slow
def test_killed_and_resumed_it_gives_the_same(small_run, glue, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    cli.run(flags(small_run, glue, whole, "--task", "cola,rte", "--seeds", "2"))
    command = flags(small_run, glue, killed, "--task", "cola,rte", "--seeds", "2")
    with subprocess.Popen(
        command, cwd=cli.ROOT, env=cli.environment(), stderr=subprocess.DEVNULL
    ) as process:
        while not list(killed.rglob("seed-0.json")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)

    n_done = len(list(killed.rglob("seed-*.json")))

    assert 0 < n_done < 4

    again = cli.run(command)
    assert sum("examples" in line for line in again.stderr.splitlines()) == 4 - n_done

    found, expected = (
        json.loads((folder / "results.json").read_text()) for folder in (killed, whole)
    )
    for task, metric in (("cola", "matthews"), ("rte", "accuracy")):
        assert found[task][metric] == expected[task][metric]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "colla"), "unknown; the tasks are cola"),
        (("--task", "none.yaml"), "--task none.yaml: not readable"),
        (("--task", "cola", "--protocol", "cram"), "there are cramming"),
        (("--task", "cola", "--set", "lr=high"), "must be float"),
        (("--task", "sst2"), "SST-2/train.tsv: no such file"),
    ],
)
def test_mistakes_are_one_sentence(small_run, glue, tmp_path, arguments, message):
    failed = cli.run(flags(small_run, glue, tmp_path, *arguments), check=False)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stderr.count("\n") == 1


@pytest.mark.slow
def test_sigterm_ends_it_and_keeps_what_is_done(small_run, glue, tmp_path):
    command = flags(small_run, glue, tmp_path / "out", "--task", "cola", "--seeds", "200")
    with subprocess.Popen(
        command, cwd=cli.ROOT, env=cli.environment(), stderr=subprocess.DEVNULL
    ) as process:
        while not list(tmp_path.rglob("seed-2.json")) and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(30) == 143

    assert len(list(tmp_path.rglob("seed-*.json"))) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_a_hugging_face_directory_is_a_checkpoint_too(glue, tmp_path, kind):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "hf"
    if kind == "bert":
        tokenizer = grammar.model("encoder").tokenizer
        config = transformers.BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=64,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
        )
        transformers.BertForPreTraining(config).save_pretrained(folder)
    else:
        tokenizer = grammar.model("t5").tokenizer
        n = tokenizer.get_vocab_size()
        config = transformers.T5Config(
            vocab_size=n, d_model=32, d_kv=16, d_ff=48, num_layers=1, num_heads=2
        )
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))

    more = ("--task=cola,stsb", "--seeds=1", "--save")
    done = cli.run(flags(folder, glue, tmp_path / "out", *more))
    assert "MCC" in done.stdout

    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["protocol"]["name"] == {"bert": "cramming", "t5": "t5"}[kind]
    assert ("illegal_outputs" in found["cola"]) == (kind == "t5")
