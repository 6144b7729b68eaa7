"""The start of a process: every computing command prepares it first.

The settings for XLA:CPU are made for XLA:CPU alone.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
import stepping
from jax._src import xla_bridge

from cramjax import start
from cramjax.errors import UserError
from cramjax.models import short_attention
from cramjax.sweeps import catalogue, grid
from tests.e2e import test_main as cli

SMOKE = ("--config", "configs/quickstart.py:smoke")
COMMANDS = {
    "main": ("cramjax.main", *SMOKE, "--workdir", "{tmp}/run"),
    "main --show_batch": ("cramjax.main", *SMOKE, "--show_batch", "1"),
    "finetune": (
        "tools.finetune",
        "--checkpoint",
        "{tmp}/none",
        "--task",
        "rte",
        "--data_dir",
        "{tmp}",
    ),
    "probe": (
        "tools.probe",
        "--checkpoint",
        "{tmp}/none",
        "--suite",
        "blimp",
        "--data_dir",
        "{tmp}/blimp",
    ),
    "compress": ("tools.compress", "--checkpoint", "{tmp}/none", "--out", "{tmp}/out"),
    "export": ("tools.export_hf", "--checkpoint", "{tmp}/none", "--out", "{tmp}/out"),
    "bench": ("tools.bench", *SMOKE),
    "bench --finetune": ("tools.bench", *SMOKE, "--finetune", "cola", "--data_dir", "{tmp}"),
}


class Started(BaseException):
    """Raised by `start` in these tests; no command catches it."""


@pytest.fixture
def started(monkeypatch):
    """Makes any call of `start` end the command; asking for a device before is an error."""

    def stop_here(**_):
        raise Started

    def too_early(*_):
        raise AssertionError("a device is asked for before start()")

    monkeypatch.setattr(start, "start", stop_here)
    for name in ("backends", "get_backend", "devices", "local_devices"):
        monkeypatch.setattr(xla_bridge, name, too_early)
    monkeypatch.setattr(jax, "devices", too_early)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_computes_starts_first(started, name, tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    (tmp_path / "blimp").mkdir()
    pair = {
        "sentence_good": "a",
        "sentence_bad": "b",
        "field": "f",
        "linguistics_term": "t",
        "UID": "u",
        "pairID": "0",
    }
    (tmp_path / "blimp" / "a.jsonl").write_text(json.dumps(pair) + "\n")
    module, *arguments = COMMANDS[name]
    with pytest.raises(Started):
        importlib.import_module(module).main([text.format(tmp=tmp_path) for text in arguments])


@pytest.mark.parametrize("call", ["train", "load"])
def test_so_do_the_functions_of_notebooks(started, call, tmp_path):
    import cramjax

    with pytest.raises(Started):
        if call == "train":
            cramjax.train(cramjax.get_config("quickstart:smoke"), tmp_path / "run")
        else:
            cramjax.load(tmp_path)


def test_sweeps_and_studies_leave_it_to_the_commands_they_start(tmp_path):
    (point,) = grid.points_of(SMOKE[1], (), grid.parse_grids(["seed=0"]))
    assert COMMANDS["main"][0] in point.command(tmp_path)
    for study in catalogue.STUDIES.values():
        for part in study.compressions.values():
            assert "compress" in part.command([tmp_path], "glue", tmp_path)
    check = (
        "import sys, cramjax.sweeps.sweep, cramjax.sweeps.studies; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=pathlib.Path(__file__).parents[1])


@pytest.fixture
def tuned(monkeypatch):
    """A list that gets an entry when the allocator is changed."""
    calls = []
    monkeypatch.setattr(start, "keep_freed_memory", lambda: calls.append(True))
    monkeypatch.setattr(start, "keep_programs", lambda: None)
    monkeypatch.setattr(start, "claim_memory", lambda: None)
    monkeypatch.setattr(start, "fuse_updates", lambda: None)
    return calls


@pytest.mark.parametrize(
    "platforms, n_cores, wanted",
    [
        ("cpu", 2, True),
        ("cpu", start.FEW_CORES, True),
        ("cpu", start.FEW_CORES + 1, False),
        ("cpu", 64, False),
        ("cuda", 2, False),
        ("cuda,cpu", 2, False),
        ("tpu", 2, False),
    ],
)
def test_the_allocator_is_left_alone_but_for_few_cores(
    tuned, monkeypatch, platforms, n_cores, wanted
):
    monkeypatch.setattr(start, "n_cores", lambda: n_cores)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        start.start()
    finally:
        jax.config.update("jax_platforms", before)
    assert bool(tuned) is wanted


@pytest.mark.parametrize(
    "before, after",
    [
        ("", start._FUSE_OUTPUTS),
        ("--xla_cpu_use_onednn=false", f"--xla_cpu_use_onednn=false {start._FUSE_OUTPUTS}"),
        ("--xla_backend_extra_options=mine", "--xla_backend_extra_options=mine"),
    ],
)
def test_updates_are_fused_once_beside_a_user_s_own_flags(monkeypatch, before, after):
    monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):
        start.fuse_updates()
        assert os.environ["XLA_FLAGS"] == after


UPDATE = """
from cramjax import start
start.start()
import jax, jax.numpy as jnp, optax

def update(weights, state, gradient):
    updates, new = optax.adam(1e-3).update(gradient, state, weights)
    kept = jax.tree.map(lambda n, o: jnp.where(jnp.isfinite(gradient).all(), n, o), new, state)
    return optax.apply_updates(weights, updates), kept

weights = jnp.zeros((1024, 64))
arguments = (weights, optax.adam(1e-3).init(weights), weights)
program = jax.jit(update, donate_argnums=(0, 1)).lower(*arguments).compile().as_text()
print(program.count("f32[1024,64]{1,0} copy("))
"""


def test_moments_are_not_copied_before_they_change(root):
    def n_copies(flags):
        done = subprocess.run(
            [sys.executable, "-c", UPDATE],
            cwd=root,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    unfused = "--xla_backend_extra_options=xla_cpu_optimize_for_size=false"
    assert n_copies("") == 0 < n_copies(unfused)


@pytest.mark.parametrize(
    "files, plugin, environment, wanted",
    [
        (["nvidiactl"], True, {}, False),
        (["accel0"], True, {}, False),
        ([], True, {}, True),
        (["nvidiactl"], False, {}, True),
        (["nvidiactl"], True, {"CUDA_VISIBLE_DEVICES": ""}, True),
        (["nvidiactl"], True, {"CUDA_VISIBLE_DEVICES": "0"}, False),
    ],
)
def test_without_a_wish_the_platform_is_what_is_there(
    tmp_path, monkeypatch, files, plugin, environment, wanted
):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(start, "_DEVICES", tmp_path)
    monkeypatch.setattr(start, "_has_plugin", lambda: plugin)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        start, "jax", types.SimpleNamespace(config=types.SimpleNamespace(jax_platforms=None))
    )
    assert start.computes_on_cpu() is wanted


def test_the_card_s_memory_is_claimed_but_where_the_user_has_said_how_much(monkeypatch):
    names = (
        "XLA_CLIENT_MEM_FRACTION",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "XLA_PYTHON_CLIENT_PREALLOCATE",
    )
    for name in names:
        monkeypatch.delenv(name, raising=False)
    start.claim_memory()
    assert os.environ[names[0]] == str(start.GPU_FRACTION)
    monkeypatch.delenv(names[0])
    monkeypatch.setenv(names[1], "0.5")
    start.claim_memory()
    assert names[0] not in os.environ


@pytest.mark.parametrize(
    "platforms, error, sentence",
    [
        (
            "cuda",
            AssertionError(),
            "a plugin for cuda; install it .pip install .jax.cuda12",
        ),
        ("cuda,cpu", AssertionError(), "without a plugin for cuda"),
        ("cdua", RuntimeError("X is not in the list of known backends: []"), "did you mean cuda?"),
        ("tpu", RuntimeError("no chip\n found. (set JAX_PLATFORMS='' to)"), r"\(no chip found\.\)"),
        (None, RuntimeError("no driver"), r"JAX cannot start \(no driver\)"),
    ],
)
def test_a_platform_that_is_not_there_is_one_sentence(monkeypatch, platforms, error, sentence):
    def devices():
        raise error

    config = types.SimpleNamespace(jax_platforms=platforms)
    absent = types.SimpleNamespace(config=config, devices=devices, __version__="0.10.2")
    monkeypatch.setattr(start, "jax", absent)
    with pytest.raises(UserError, match=sentence) as raised:
        start.check_devices()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("caches", ["relative", "unwritable", "homeless", "written"])
def test_programs_are_kept_only_where_something_can_be_written(tmp_path, monkeypatch, caches):
    monkeypatch.chdir(tmp_path)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if caches == "homeless":  # and no entry of this user in the table of users
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    else:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if caches == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    if caches == "unwritable":
        (tmp_path / "home").touch()

    asked = {}
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    start.keep_programs()
    folder = tmp_path / "home" / ".cache" / "cramjax" / "xla"
    has_folder = caches in ("relative", "written")
    assert asked.get("jax_compilation_cache_dir") == (str(folder) if has_folder else None)
    assert folder.is_dir() == has_folder and not (tmp_path / "~").exists()


def test_the_program_of_a_kernel_does_not_say_which_lines_of_python_traced_it(monkeypatch):
    # Else a start that times kernels fills the compile cache with programs that the next one, which
    # need not time, never asks for: on an H100 it compiled and searched anew.
    before = jax.config.jax_traceback_in_locations_limit
    monkeypatch.delenv("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", raising=False)
    try:
        jax.config.update("jax_traceback_in_locations_limit", 100)
        assert "short_attention.py" in lowered_kernel()
        start.keep_programs()
        assert "short_attention.py" not in lowered_kernel()
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def lowered_kernel():
    """Returns a program for a GPU with our kernel in it, as text."""
    fused = jax.ShapeDtypeStruct((2, 128, 3, 2, 64), jnp.bfloat16)
    tile = next(iter(short_attention.TILES.values()))

    def mixture(fused):
        return short_attention.attention(fused, None, None, None, 0.125, 0.0, tile)

    return jax.jit(mixture).trace(fused).lower(lowering_platforms=("cuda",)).as_text()


COMPILE = """
import os, resource, sys
import jax
if sys.argv[1] == "started":
    from cramjax import start
    jax.config.update("jax_platforms", "cuda")
    start.check_devices = lambda: None  # there is no card
    start.start()
jax.config.update("jax_platforms", "cpu")
from cramjax.config.resolve import get_config
from cramjax.planning import cards, targets
from cramjax.training import session
config = get_config("bert_1day", "model.n_layers=4", "microbatch_size=64", "precision=bfloat16")
vocabulary = session.AssumedVocabulary(vocab_size=config.data.vocab_size)
made = session.session_on(config, vocabulary, targets.devices(cards.CARDS["h100"]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
session.compile_train_step(made)
print(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("jax_plugins"), reason="needs the wheels of jax[cuda12]"
)
def test_threads_that_compile_for_a_gpu_do_not_queue_for_the_allocator(root):
    environment = dict(os.environ) | {
        "XLA_FLAGS": "--xla_gpu_autotune_level=0",
        "JAX_ENABLE_COMPILATION_CACHE": "0",
    }

    def switches(how):
        command = [sys.executable, "-c", COMPILE, how]
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    bare, prepared = switches("bare"), switches("started")
    assert prepared < 3 * bare


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Counts the compilations of train steps, as (probe or "full", program), in an empty compile
    cache.
    """
    counted = []
    compile_program = jax.stages.Lowered.compile

    def count(lowered, compiler_options=None):
        text = lowered.as_text()
        if "@jit_step" in text:
            counted.append(("full" if compiler_options is None else "probe", hash(text)))
        return compile_program(lowered, compiler_options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", count)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "xla"))
    yield counted
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_start_compiles_one_step_in_full_and_the_next_one_does_not_search(
    compiled, corpus, tmp_path, monkeypatch
):
    # Dear, because it starts two runs. The tests of the search count probes of a fake compiler;
    # only a start shows that nothing else compiles, and that the second finds its answers.
    import cramjax
    from cramjax.tuning import devices

    monkeypatch.setattr(devices, "memory_bytes", lambda device: 2**40)
    small = [flag.removeprefix("--config.") for flag in cli.SMALL if "microbatch" not in flag]
    overrides = (
        f"data.source=text:{corpus}",
        f"data.cache_dir={tmp_path / 'data'}",
        "batch_size=64",
    )
    config = cramjax.get_config(
        "quickstart", *small, *overrides, "microbatch_size=None", "budget.steps=2"
    )

    with stepping.one_device():
        summary = cramjax.train(config, tmp_path / "first")
    assert [how for how, _ in compiled] == ["probe", "probe", "full"] and summary[
        "microbatch_size"
    ] == 64

    first = compiled[-1]
    compiled.clear()
    with stepping.one_device():
        cramjax.train(config, tmp_path / "second")
    assert compiled == [first]
