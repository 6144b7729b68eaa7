"""The command line as a user runs it: real processes, on a small corpus."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import cramjax
from cramjax import main, stop
from cramjax.training.workdir import Workdir
from tests import stepping
from tests.conftest import QUICK_TO_COMPILE

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = (
    "--config.data.vocab_size=256",
    "--config.data.seq_len=32",
    "--config.data.heldout_fraction=0.1",
    "--config.data.loader=numpy",
    "--config.model.d_model=32",
    "--config.model.d_ff=64",
    "--config.budget.hours=None",
    "--config.eval.batch_size=16",
    "--config.eval.batches=2",
    "--config.log.every_steps=5",
    "--config.log.tensorboard=False",
    "--config.batch_size=16",
    "--config.microbatch_size=8",
    "--config.precision=float32",
    "--config.optimizer.name=adamw",
    "--config.optimizer.lr=5e-3",
)


def command(corpus, workdir, *flags, recipe="configs/quickstart.py"):
    source = f"--config.data.source=text:{corpus}"
    cache = f"--config.data.cache_dir={corpus.parent / 'prepared'}"
    return [
        sys.executable,
        "-m",
        "cramjax.main",
        "--config",
        recipe,
        "--workdir",
        str(workdir),
        source,
        cache,
        *flags,
    ]


def environment(**extra):
    """Returns the environment of a command: one device, and programs that compile quickly."""
    ours = {
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_FLAGS": QUICK_TO_COMPILE,
    }
    return os.environ | ours | extra


def run(*arguments, check=True, **extra):
    done = subprocess.run(
        *arguments, cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=300
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def run_here(capsys, arguments):
    """Run what `command` returns in this process, without a second import of JAX.

    Returns the exit code and stderr.
    """
    with stepping.one_device():
        code = main.main(arguments[3:])
    return code, capsys.readouterr().err


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir) if "loss" in line}


def params(workdir):
    """Returns the newest checkpoint's parameters as a flat dict."""
    flat = jax.tree_util.tree_flatten_with_path(cramjax.load(workdir).params)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def wait_for_step(workdir, step, process, timeout_s=120):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if (workdir / "metrics.jsonl").exists() and any(
            line["step"] >= step for line in lines(workdir)
        ):
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step}: {process.communicate()[1]}")


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    flags = (*SMALL, "--config.budget.steps=60", "--config.schedule.batch_ramp=0.5")
    done = run(command(corpus, workdir, *flags))
    return workdir, flags, done


def test_a_run_leaves_what_the_contract_names(undisturbed):
    # Dear, because its run is the undisturbed one that the tests of kills and resumes compare with.
    # It alone checks every file and key of a finished run.
    workdir, _, done = undisturbed
    for name in (
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "loss.png",
        "samples.jsonl",
        "summary.json",
        "tokenizer/tokenizer.json",
    ):
        assert (workdir / name).stat().st_size > 0, name

    summary = json.loads((workdir / "summary.json").read_text())
    assert (
        summary["steps"] == 60 and summary["stop_reason"] == "steps" and summary["progress"] == 1.0
    )
    for key in (
        "tokens", "flops", "params", "elapsed_s", "train_loss", "eval_loss", "eval_accuracy",
        "unigram_loss", "tokens_per_s", "mfu", "compile_s", "time_to_first_step_s",
        "data_wait_fraction", "goodput",
    ):  # fmt: skip
        assert summary[key] is not None, key

    assert summary["resumed_from"] is None and 0 < summary["goodput"] <= 1
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["60"]
    assert "compiling" in done.stderr and "unigram" in done.stderr


def test_metrics_lines_are_complete_and_the_learning_rate_ends_at_its_end(undisturbed):
    train = [line for line in lines(undisturbed[0]) if "loss" in line]
    evals = [line for line in lines(undisturbed[0]) if "eval_loss" in line]
    wanted = {
        "step",
        "elapsed_s",
        "progress",
        "tokens",
        "loss",
        "lr",
        "grad_norm",
        "batch_size",
        "tokens_per_s",
        "mfu",
    }
    assert all(wanted <= line.keys() for line in train)
    assert train[-1]["step"] == 60 and train[-1]["lr"] == 0.0 and train[-1]["progress"] == 1.0
    assert train[0]["batch_size"] == 8 and train[-1]["batch_size"] == 16  # the ramp
    assert len(evals) == 10 and evals[-1]["step"] == 60
    assert evals[-1]["eval_loss"] < evals[0]["eval_loss"]


def test_a_finished_run_whose_dataset_is_gone_says_so_and_shows_no_sentences(
    undisturbed, corpus, tmp_path, capsys
):
    workdir = shutil.copytree(undisturbed[0], tmp_path / "run")
    note = workdir / "checkpoints" / "60" / "sidecar" / "metadata"
    sidecar = json.loads(note.read_text())
    sidecar["dataset"]["directory"] = str(tmp_path / "gone")
    note.write_text(json.dumps(sidecar))
    (workdir / "checkpoints" / "60" / "checksums.json").unlink()
    code, said = run_here(capsys, command(corpus, workdir, *undisturbed[1]))
    assert code == 0 and "is finished" in said
    assert "no held-out sentences to show" in said and "gone is not a prepared dataset" in said


def test_a_finished_run_says_so_and_changes_nothing(undisturbed, corpus, capsys):
    workdir, flags, _ = undisturbed
    before = (workdir / "summary.json").read_bytes()
    code, said = run_here(capsys, command(corpus, workdir, *flags))
    assert code == 0 and "finished" in said
    assert (workdir / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    "how",
    [
        *(pytest.param(how, marks=pytest.mark.slow) for how in stop.EXIT_CODES),
        signal.SIGKILL,
    ],
    ids=lambda how: how.name,
)
def test_killed_and_restarted_the_parameters_are_bit_identical(
    undisturbed, corpus, tmp_path, capsys, how
):
    # Dear, because it trains twice. The tests of checkpoints kill a writer; this one kills a whole
    # run at any of its steps and compares every bit of the parameters. It goes on in this process.
    workdir = tmp_path / "killed"
    flags = (*undisturbed[1], "--config.checkpoint.every_steps=7")
    process = subprocess.Popen(
        command(corpus, workdir, *flags),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(workdir, random.choice([15, 25, 35]), process)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == stop.EXIT_CODES.get(how, -signal.SIGKILL), stderr
    assert "Traceback" not in stderr and "Exception ignored" not in stderr, stderr

    code, said = run_here(capsys, command(corpus, workdir, *flags))
    summary = json.loads((workdir / "summary.json").read_text())
    assert code == 0 and "resuming" in said and summary["resumed_from"] and summary["steps"] == 60
    steps = [line["step"] for line in lines(workdir) if "loss" in line]
    assert steps == sorted(set(steps))  # no step twice in the record
    guesses = (workdir / "samples.jsonl").read_text()
    assert guesses == (undisturbed[0] / "samples.jsonl").read_text()

    theirs, ours = params(undisturbed[0]), params(workdir)
    assert theirs.keys() == ours.keys()
    for name in theirs:
        np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)


def test_a_second_run_in_the_same_workdir_is_refused(corpus, tmp_path):
    # Two processes, because a lock is one process's.
    workdir = tmp_path / "busy"
    with Workdir(workdir):
        second = run(command(corpus, workdir, *SMALL, "--config.budget.steps=5"), check=False)
    assert second.returncode == 2 and str(workdir) in second.stderr
    assert "Traceback" not in second.stderr


def test_another_model_shape_is_refused_with_the_differing_entries(undisturbed, corpus, capsys):
    flags = (*undisturbed[1], "--config.model.d_ff=32")
    code, said = run_here(capsys, command(corpus, undisturbed[0], *flags))
    assert code == 2 and "d_ff is 64 in the checkpoint, 32 now" in said
    assert "Traceback" not in said


def test_early_termination_ends_the_run_with_its_reason(corpus, tmp_path, capsys):
    flags = (
        *SMALL,
        "--config.budget.steps=40",
        "--config.schedule.stop_loss=0.01",
        "--config.schedule.stop_after=0.5",
    )
    code, _ = run_here(capsys, command(corpus, tmp_path, *flags))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert code == 0 and summary["stop_reason"] == "early_termination"
    assert 20 <= summary["steps"] <= 22


def test_gradients_that_stay_infinite_stop_the_run_with_a_reason(corpus, tmp_path, capsys):
    flags = (
        *SMALL,
        "--config.budget.steps=200",
        "--config.optimizer.lr=1e30",
        "--config.optimizer.clip_norm=None",
    )
    code, said = run_here(capsys, command(corpus, tmp_path, *flags))
    assert code == 1 and "not finite" in said and "Traceback" not in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config", "configs/nothing.py"], "configs/nothing.py: no such recipe"),
        (["--config", "configs/quickstart.py", "--config.lr=3"], "optimizer.lr"),
        (["--config", "configs/quickstart.py", "--wrokdir=x"], "did you mean --workdir"),
        ([], "--config"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, message, tmp_path):
    done = run([sys.executable, "-m", "cramjax.main", *arguments], check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("source", ["text:/nowhere/*.txt", "prepared:/nowhere"])
def test_data_that_is_nowhere_is_one_sentence_and_exit_code_2(source, tmp_path, capsys):
    flags = ["--config", "configs/quickstart.py", f"--config.data.source={source}"]
    assert main.main([*flags, f"--workdir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert source.partition(":")[2] in said and "Traceback" not in said


@pytest.mark.parametrize(
    "module, flag",
    [
        ("cramjax.main", "--config"),
        ("tools.prepare_data", "--config"),
        ("tools.bench", "--config"),
        ("tools.shapes", "--recommend"),
        ("tools.sweep", "--grid"),
        ("tools.finetune", "--task"),
        ("tools.probe", "--suite"),
        ("tools.export_hf", "--push_to_hub"),
    ],
)
def test_help_names_purpose_flags_and_an_example_without_jax(module, flag):
    probe = (
        f"import runpy, sys; sys.argv = ['{module}', '--help']\n"
        f"try: runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'jax', 'tensorflow', 'numpy'} & set(sys.modules)"
    )
    done = run([sys.executable, "-c", probe])
    assert flag in done.stdout and "example" in done.stdout


@pytest.fixture(scope="module")
def smoke_cache(tmp_path_factory):
    """Recipes that read the same text with the same tokenizer prepare it once."""
    return tmp_path_factory.mktemp("prepared")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [path.stem for path in sorted((ROOT / "configs").glob("*.py"))])
def test_every_recipe_smokes(recipe, tmp_path, smoke_cache):
    flags = [f"--config.data.cache_dir={smoke_cache}"]
    run(
        [
            sys.executable,
            "-m",
            "cramjax.main",
            "--config",
            f"configs/{recipe}.py:smoke",
            "--workdir",
            str(tmp_path),
            *flags,
        ]
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 40 and summary["eval_loss"] is not None


def test_another_tokenizer_is_refused(undisturbed, corpus, capsys):
    flags = (*undisturbed[1], "--config.data.lowercase=False")
    code, said = run_here(capsys, command(corpus, undisturbed[0], *flags))
    assert code == 2 and "data.lowercase True → False" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_run_moves_from_one_device_to_eight_and_back(corpus, tmp_path):
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    # Nothing may follow the share of the budget spent, so that only the number of devices differs.
    flags = (*SMALL, "--config.schedule.name=constant")
    for steps, fsdp, extra in ((20, 1, {}), (40, 4, eight), (60, 1, {})):
        budget = (f"--config.budget.steps={steps}", f"--config.mesh.fsdp={fsdp}")
        run(command(corpus, tmp_path / "moved", *flags, *budget), **extra)
    run(command(corpus, tmp_path / "stayed", *flags, "--config.budget.steps=60"))

    moved = losses(tmp_path / "moved")
    stayed = losses(tmp_path / "stayed")
    summary = json.loads((tmp_path / "moved" / "summary.json").read_text())
    assert (
        summary["steps"] == 60 and summary["resumed_from"] == 40 and moved.keys() == stayed.keys()
    )
    # Eight devices add in another order, and Adam amplifies the difference with every step.
    for step, loss in stayed.items():
        limit = 0.05
        if step <= 20:
            limit = 1e-6
        elif step <= 25:
            limit = 1e-3
        assert abs(moved[step] - loss) < limit, step


@pytest.mark.slow
def test_stopped_while_preparing_data_it_exits_as_a_shell_expects_and_can_go_on(tmp_path):
    corpus = tmp_path / "big.txt"
    words = [f"word{number}" for number in range(997)]
    chooser = random.Random(0)
    corpus.write_text("\n\n".join(" ".join(chooser.choices(words, k=200)) for _ in range(20_000)))
    flags = (*SMALL, "--config.budget.steps=5", "--config.data.dedup_near=0.9")
    process = subprocess.Popen(
        command(corpus, tmp_path / "run", *flags),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(2.5)  # Python and the readers are up; 30 MB take longer
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in stderr, stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    run(command(corpus, tmp_path / "run", *flags))
