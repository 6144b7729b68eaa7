"""The strict session of every test: eight fake devices on the CPU, no network.

Dtype and rank promotion are errors. `JAX_PLATFORMS=cuda,cpu python -m pytest tests/gpu -n 0` runs
the tests that need a card.
"""

import contextlib
import gc
import importlib.metadata
import os
import pathlib
import signal
import sys

# Under nohup and in the background of a script some signals are ignored: here, and so in all that
# tests start.
for _signum, _usual in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, _usual)

# Python's collector passes over all objects of JAX, torch and TensorFlow again and again, a tenth
# of the tests' time. Here it comes more rarely, and leaves out what is there before the first test.
gc.set_threshold(100_000, 20, 20)

# A shell that names no platform gets the CPU, also beside a card.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is the compilation of programs that run for milliseconds. LLVM need not
# optimise them, need not divide them among threads, and the older emitter of fusions compiles in
# half the time. XLA's passes over the program, which tests look at, are the same.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Later versions have no older emitter, and XLA ends a process whose flags it does not know.
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault(
        "XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"
    )
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = pathlib.Path(__file__).resolve().parents[1]
# Many tests compile the same programs, and the next run compiles them again. They are kept, for
# the processes that tests start as well.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with contextlib.suppress(ImportError):
    # A CUDA build of torch brings triton, which crashes the process if TensorFlow is loaded first.
    import triton  # noqa: F401

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

sys.path.insert(0, str(ROOT))
from cramjax import start  # noqa: E402

# Runs in this process and runs of commands are compared bit by bit, so both compile alike.
if os.environ["JAX_PLATFORMS"] == "cpu":
    start.fuse_updates()
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadlines: a test that asserts a time fails on a busy machine. In CI the examples are the same
# in every run.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
PROFILE = "ci" if os.environ.get("CI") else "local"
hypothesis.settings.load_profile(PROFILE)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    return ROOT


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
    """A corpus in which the next word is predictable: 400 documents, blank lines between."""
    import random

    chooser = random.Random(0)
    names = ["anna", "boris", "clara", "david", "elena", "felix"]
    verbs = ["reads", "writes", "paints", "builds", "sells", "repairs"]
    things = ["books", "letters", "houses", "boats", "clocks", "chairs"]
    places = ["in the garden", "at the river", "on the hill", "near the old station", "by the sea"]
    documents = []
    for number in range(400):
        sentences = []
        for _ in range(chooser.randint(3, 9)):
            verb = chooser.randrange(6)
            sentences.append(
                f"{chooser.choice(names)} {verbs[verb]} {things[verb]} {chooser.choice(places)} ."
            )
        documents.append(" ".join(sentences) + f" this is story number {number} .")
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    path.write_text("\n\n".join(documents))
    return path


@pytest.fixture(scope="session")
def small_run(corpus, tmp_path_factory) -> pathlib.Path:
    """The workdir of a run of 20 steps on `corpus`, for tools that want any checkpoint.

    Its first checkpoint is kept for an hour of the clock that is over after the first step.
    """
    from cramjax import main
    from tests import stepping
    from tests.e2e import test_main as cli

    workdir = tmp_path_factory.mktemp("runs") / "small"
    arguments = cli.command(corpus, workdir, *cli.SMALL, "--config.budget.steps=20")
    arguments.append("--config.checkpoint.at_hours=[1e-06, 1000.0]")
    with stepping.one_device(), pytest.MonkeyPatch.context() as patch:
        # The run notes its command.
        patch.setattr(sys, "orig_argv", ["python", *arguments[1:]])
        assert main.main(arguments[3:]) == 0
    return workdir
