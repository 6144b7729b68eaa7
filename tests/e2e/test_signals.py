"""Signals in real processes, while they import, read, train a tokenizer and compile:
answered, whatever C++ is doing.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e import test_main as cli

CODES = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
OTHERS = [(signal.SIGHUP, 129), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140), (signal.SIGXCPU, 152)]
# Of a test that fails: whatever is signalled would go on for a minute or more.
PATIENCE_S = 30
BLOCKED = """
import argparse, hashlib, sys
from cramjax.config.cli import make_parser, run_command
def command(args):
    print("blocked", flush=True)
    {blocks}
    return 0
sys.exit(run_command(command, None, make_parser("test", "A command.", "")))
"""
# Minutes of C code that knows nothing of signals and does not hold Python's lock, as a compilation.
SLEEP = 'hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000_000)'


def started(arguments, wanted, **extra):
    """A process that has just said `wanted` on stderr or stdout."""
    child = subprocess.Popen(
        arguments,
        cwd=cli.ROOT,
        env=cli.environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    for line in child.stdout:
        said += line
        if wanted in line:
            return child, said
    raise AssertionError(f"it did not say {wanted!r}: {said}")


def stopped(child, signum, after_s=0.0):
    """Send `child` a signal; returns its output, its exit code, and the seconds until its end."""
    time.sleep(after_s)
    assert child.poll() is None
    sent = time.monotonic()
    child.send_signal(signum)
    said, _ = child.communicate(timeout=PATIENCE_S)
    return said, child.returncode, time.monotonic() - sent


def check(child, signum, code, after_s=0.0):
    said, returned, seconds = stopped(child, signum, after_s)
    assert returned == code, said
    assert "Traceback" not in said and signum.name in said
    print(f"{signum.name} after {after_s} s: {seconds:.2f} s")


BLOCKS = {
    "c": SLEEP,
    # Code that catches everything does not keep the process.
    "caught": "[0 for _ in range(60) if _try()]\n"
    f"def _try():\n    try:\n        {SLEEP}\n    except BaseException:\n        return 1",
    "python": "import time; time.sleep(60)",
    # A stream that nobody reads.
    "full-pipe": "[print('x' * 4096) for _ in range(10**6)]",
}


@pytest.mark.parametrize(
    "kind, signum, code",
    [
        *(("c", *each) for each in CODES),
        *(("caught", *each) for each in OTHERS[:2]),
        *(("python", *each) for each in OTHERS[2:]),
        *(("full-pipe", *each) for each in CODES),
    ],
)
def test_a_command_that_is_blocked_ends(kind, signum, code):
    blocks = BLOCKS[kind]
    if "_try" in blocks:
        call, definition = blocks.split("\n", 1)
        script = definition + BLOCKED.format(blocks=call)
    else:
        script = BLOCKED.format(blocks=blocks)
    child, _ = started([sys.executable, "-c", script], "blocked")
    if "4096" in blocks:
        time.sleep(0.5)
        child.send_signal(signum)
        assert child.wait(timeout=PATIENCE_S) == code
        child.stdout.close()
        return
    check(child, signum, code, after_s=0.1)


@pytest.mark.parametrize("signum, code", CODES)
def test_a_signal_that_a_library_swallows_is_no_success(signum, code):
    # A destructor or an import may do so. The command ends before the second thread ends it.
    caught = "    try:\n        time.sleep(60)\n    except BaseException:\n        pass"
    script = "import time\ndef _swallow():\n" + caught + "\n" + BLOCKED.format(blocks="_swallow()")
    child, _ = started([sys.executable, "-c", script], "blocked")
    check(child, signum, code, after_s=0.1)


def test_a_signal_inside_a_destructor_prints_no_traceback():
    # Python reports what a destructor raises, and goes on.
    script = (
        "import time\n"
        "class Slow:\n"
        "    def __del__(self):\n"
        "        time.sleep(60)\n" + BLOCKED.format(blocks="slow = Slow(); del slow")
    )
    child, _ = started([sys.executable, "-c", script], "blocked")
    check(child, signal.SIGINT, 130, after_s=0.1)


def test_what_a_command_remembers_is_left_to_it():
    script = BLOCKED.format(
        blocks="from cramjax.stop import StopSignal; import time\n"
        "    with StopSignal() as stop:\n"
        "        while not stop.requested: time.sleep(0.05)\n"
        "        time.sleep(2); print('saved', flush=True)\n"
        "        return stop.exit_code"
    )
    child, _ = started([sys.executable, "-c", script], "blocked")
    said, code, _ = stopped(child, signal.SIGTERM, after_s=0.2)
    assert code == 143 and "saved" in said


@pytest.mark.parametrize("module", ["cramjax.main", "tools.plan"])
def test_a_signal_in_the_middle_of_imports_is_no_traceback(module):
    flags = ["--config", "configs/quickstart.py:smoke"] + (
        ["--device", "t4"] if "plan" in module else []
    )
    stages = (" cramjax\n", "argparse", "cramjax.errors", "jax._src.config", "optax")
    for imported, (signum, expected) in zip(stages, CODES[1:] + OTHERS, strict=True):
        child, _ = started([sys.executable, "-X", "importtime", "-m", module, *flags], imported)
        said, code, _ = stopped(child, signum)
        assert code == expected and "Traceback" not in said, (imported, said[-2000:])


@pytest.fixture(scope="module")
def deep(corpus, tmp_path_factory):
    """The command of a run whose step takes a minute to compile, with prepared data and nothing in
    the compile cache.
    """
    workdir, cache = tmp_path_factory.mktemp("deep") / "run", tmp_path_factory.mktemp("cache")
    flags = [
        *cli.SMALL,
        "--config.model.n_layers=64",
        "--config.model.unroll=True",
        "--config.budget.steps=100",
    ]
    command = cli.command(corpus, workdir, *flags)
    prepare = [sys.executable, "-m", "tools.prepare_data", *command[3:5], *command[7:]]
    cli.run(prepare)
    return command, workdir, {"JAX_COMPILATION_CACHE_DIR": str(cache)}


@pytest.mark.slow
@pytest.mark.parametrize("signum, code", CODES)
def test_a_compilation_is_interrupted_and_the_next_start_goes_on(deep, signum, code):
    command, workdir, extra = deep
    for after_s in (0.0, 0.7, 3.0, 8.0):
        child, _ = started(command, "compiling the train step", **extra)
        check(child, signum, code, after_s)
    # The lock of the workdir is free, and what was written is whole.
    assert not list(workdir.glob("checkpoints/*"))
    child, _ = started(command, "compiling the train step", **extra)
    child.kill()
    child.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("signum, code", CODES)
@pytest.mark.parametrize("tokenizer", ["wordpiece", "unigram"])
def test_the_training_of_a_tokenizer_is_interrupted_and_goes_on(tmp_path, tokenizer, signum, code):
    chooser = random.Random(0)
    words = [
        "".join(chooser.choices("abcdefghijklmnopqrstuvwxyz", k=chooser.randint(3, 9)))
        for _ in range(60_000)
    ]
    corpus = tmp_path / "words.txt"
    corpus.write_text("\n\n".join(" ".join(chooser.choices(words, k=60)) for _ in range(20_000)))
    flags = [f"--config.data.tokenizer={tokenizer}", "--config.data.vocab_size=8192"]
    command = cli.command(
        corpus, tmp_path / "run", *flags, "--config.budget.steps=1", "--config.budget.hours=None"
    )
    for after_s in (0.0, 1.0):
        child, _ = started(command, "okeniz")
        check(child, signum, code, after_s)
    prepared = [sys.executable, "-m", "tools.prepare_data", *command[3:5], *command[7:]]
    assert "vocabulary" in cli.run(prepared).stdout


@pytest.mark.slow
def test_a_group_that_is_interrupted_leaves_no_process_behind(deep):
    """Ctrl-C on a terminal reaches all processes of a command."""
    command, _, extra = deep
    child = subprocess.Popen(
        command,
        cwd=cli.ROOT,
        env=cli.environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in child.stdout:
        if "compiling the train step" in line:
            break
    os.killpg(child.pid, signal.SIGINT)
    child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
