"""Plans: by formula, which needs nothing, and by libtpu's compiler where it is installed."""

import collections
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import pytest

from cramjax.config.resolve import get_config
from cramjax.errors import UserError
from cramjax.planning import cards, compiler, hlo, kernels, plan, report, targets
from cramjax.training import session
from tests.planning import programs

TINY = (
    "model.n_layers=2", "model.d_model=64", "model.n_heads=2", "model.d_ff=128",
    "data.vocab_size=512", "data.seq_len=64", "batch_size=64", "microbatch_size=None",
)  # fmt: skip
PIP = 'pip install "jax[cuda12]'


@pytest.fixture
def no_compilers(monkeypatch):
    """Without the wheels of GPUs and TPUs, plans are by formula."""
    monkeypatch.setattr(targets, "missing", lambda card: PIP)


def planned(device, *overrides, recipe="quickstart"):
    return plan.make(get_config(recipe, *TINY, *overrides), cards.find(device), lambda text: None)


def test_bytes_by_kind_add_up_to_what_is_needed(no_compilers):
    made = planned("rtx3060")
    kinds = ("parameters", "optimizer", "activations", "temporaries")
    assert sum(made.memory[kind] for kind in kinds) == made.memory["needed"]
    assert made.memory["needed"] == made.measured[made.microbatch_size]
    assert made.memory["parameters"] == 4 * made.n_params

    assert made.fits
    assert made.microbatch_size == 64
    assert made.source == "analytic"
    assert PIP in made.note
    assert made.precision == "bfloat16"
    assert made.attention.startswith("short")


@pytest.mark.parametrize(
    "device, precision, attention",
    [
        ("t4", "float16", "xla"),
        ("gtx1080ti", "float32", "xla"),
        ("h100", "bfloat16", "short128x8x3"),
        ("v5e-1", "bfloat16", "xla"),
    ],
)
def test_number_format_and_kernel_are_those_of_the_card(no_compilers, device, precision, attention):
    made = planned(device)
    assert (made.precision, made.attention) == (precision, attention)


def test_the_roofline_is_the_slower_of_products_and_traffic(no_compilers):
    made = planned("rtx4090", "budget.hours=2")
    assert made.step_s["compute"] == pytest.approx(made.flops / (165.2e12))
    assert made.tokens_per_s == pytest.approx(64 * 64 / max(made.step_s.values()))
    assert made.tokens == pytest.approx(7200 * made.tokens_per_s)
    assert made.steps == pytest.approx(made.tokens / 64**2)
    # A network this small waits for memory.
    assert made.step_s["memory"] > made.step_s["compute"]


def test_what_the_budget_buys(no_compilers):
    hours = planned("rtx3060", "budget.hours=1")
    tokens = planned("rtx3060", "budget.hours=None", f"budget.tokens={hours.tokens}")
    steps = planned("rtx3060", "budget.hours=None", f"budget.steps={round(hours.steps)}")
    flops = planned("rtx3060", "budget.hours=None", f"budget.flops={hours.flops * hours.steps}")
    first = planned("rtx3060", "budget.hours=1", f"budget.tokens={hours.tokens / 4}")
    assert [made.hours for made in (tokens, steps, flops)] == pytest.approx([1, 1, 1], rel=1e-3)
    assert first.hours == pytest.approx(0.25)
    assert first.steps == pytest.approx(hours.steps / 4)

    # A batch that grows from 16 to 64 over the whole budget makes more steps of the same tokens.
    ramp = planned("rtx3060", "budget.hours=1", "microbatch_size=16", "schedule.batch_ramp=1.0")
    mean = (1 / 16 + 1 / 32 + 1 / 48 + 1 / 64) / 4
    assert ramp.steps == pytest.approx(ramp.tokens / 64 * mean, rel=0.01)
    assert ramp.microbatch_size == 64


def test_stairs_of_a_ramp_bound_the_microbatch_and_do_not_depend_on_it(no_compilers, monkeypatch):
    ramp = ("budget.hours=1", "schedule.batch_ramp=1.0", "schedule.ramp_start=16")
    made = planned("rtx3060", *ramp)
    assert made.microbatch_size == 16
    # On a card with less memory the microbatch is smaller, and the steps are of the same size.
    monkeypatch.setattr(session.Session, "step_bytes", lambda self, n: int(2e9 + n * 0.9e9))
    small = planned("rtx3060", *ramp)
    assert small.microbatch_size == 8
    mean = (1 / 16 + 1 / 32 + 1 / 48 + 1 / 64) / 4
    for each in (made, small):
        assert each.steps == pytest.approx(each.tokens / 64 * mean, rel=0.01)
    with pytest.raises(UserError, match="schedule.ramp_start=4: must be a multiple of the 8 dev"):
        planned("v5e-8", "schedule.batch_ramp=1.0", "schedule.ramp_start=4")


def test_devices_share_parameters_under_fsdp(no_compilers):
    copied = planned("v5e-8")
    shared = planned("v5e-8", "mesh.data=1", "mesh.fsdp=8")
    assert copied.memory["parameters"] == 4 * copied.n_params
    assert shared.memory["parameters"] < 0.2 * copied.memory["parameters"]
    assert copied.flops == shared.flops
    assert copied.microbatch_size == 64


def test_a_microbatch_that_is_asked_for_has_to_fit(no_compilers, monkeypatch):
    monkeypatch.setattr(session.Session, "step_bytes", lambda self, n: int(2e9 + n * 0.23e9))
    assert planned("rtx3060").microbatch_size == 32
    assert planned("rtx3060", "microbatch_size=32").fits
    assert not planned("rtx3060", "microbatch_size=64").fits

    monkeypatch.setattr(session.Session, "step_bytes", lambda self, n: int(20e9))
    made = planned("rtx3060")
    assert not made.fits
    assert made.microbatch_size is None
    assert made.entry()["fits"] is False
    assert "does not fit; try --config.model.remat=full" in report.table([made])


def test_table_and_picture(no_compilers, tmp_path):
    plans = [planned("rtx3060"), planned("v5e-8")]
    lines = report.table(plans).splitlines()
    assert lines[0].split()[:3] == ["device", "fits", "microbatch"]
    assert lines[2].startswith("v5e-8 (8 devices)")
    assert any(PIP in line for line in lines)
    report.plot(plans, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_program_there_are_no_expected_times_and_a_note_says_why(no_compilers):
    plans = [planned("rtx3060"), planned("v5e-8")]
    for made, reason in zip(plans, ("without the compiler", "of TPUs"), strict=True):
        entry = made.entry()
        for key in ("expected_step_s", "expected_tokens_per_s", "expected_s_by_kind"):
            assert entry[key] is None
        assert reason in entry["expected_note"]
        assert "program" not in entry
        assert f"{made.card.name}: {entry['expected_note']}" in report.table(plans)


@pytest.mark.parametrize(
    "device, basis", [("h100", "measured on an H100"), ("rtx3060", "scaled from an H100")]
)
def test_expected_times_stand_beside_the_best_possible_ones(
    no_compilers, monkeypatch, tmp_path, device, basis
):
    compile_by(monkeypatch, Compiled)
    made = planned(device, "microbatch_size=16", "budget.hours=2")

    entry = made.entry()
    expected = made.expected
    assert made.program == programs.STEP
    assert not {"program", "expected_rows"} & set(entry)
    assert basis in entry["expected_basis"]
    assert entry["expected_note"] == "compiled otherwise; without what devices exchange"

    # Three layers of each of four microbatches, and once a step.
    assert {row.kernel.count for row in expected.rows} == {3 * 64 // 16, 1}
    assert sum(entry["expected_s_by_kind"].values()) == pytest.approx(entry["expected_step_s"])
    assert entry["expected_tokens_per_s"] == pytest.approx(64 * 64 / expected.step_s)
    assert entry["expected_tokens"] == pytest.approx(7200 * expected.tokens_per_s)
    assert entry["expected_hours"] == 2
    assert entry["expected_mfu"] == pytest.approx(made.flops / expected.step_s / made.peak_flops)

    table = report.table([made, dataclasses.replace(made, expected=None)])
    assert basis in table and f"{expected.mfu:.1%}" in table and "compiled otherwise" in table
    report.plot([made, dataclasses.replace(made, expected=None)], tmp_path / "plan.png")
    assert json.dumps(entry)


def test_a_step_that_does_not_fit_has_a_program_and_no_expected_times(no_compilers, monkeypatch):
    compile_by(monkeypatch, lambda size: Compiled(size, gib=size))
    monkeypatch.setattr(plan.remedies, "find", lambda *args, **settings: [])
    made = planned("rtx3060", "microbatch_size=64")
    assert not made.fits
    assert made.expected is None
    assert made.program == programs.STEP
    assert made.entry()["expected_note"] == "no expected times: the step does not fit"
    assert planned("rtx3060", "microbatch_size=8").expected.note


def compile_by(monkeypatch, step):
    """Let plans have `step(size)` as the compiled train step."""
    monkeypatch.setattr(plan, "targets", types.SimpleNamespace(missing=lambda card: None))
    monkeypatch.setattr(plan, "open_on_card", plan.open_stand_in)
    steps = types.SimpleNamespace(note="compiled otherwise", step=step)
    monkeypatch.setattr(plan, "Compiler", lambda made, card, announce: steps)


class Compiled:
    """A train step with the program of `programs` that needs `gib` GiB."""

    def __init__(self, size, gib=1):
        self.size = size
        self.gib = gib

    def memory_analysis(self):
        return types.SimpleNamespace(
            argument_size_in_bytes=0,
            temp_size_in_bytes=self.gib * 2**30,
            output_size_in_bytes=0,
            alias_size_in_bytes=0,
        )

    def as_text(self):
        return programs.STEP


def test_generated_products_are_tried_once(monkeypatch):
    tried = []
    lines = []

    def compile_train_step(made, options=None):
        tried.append((made.microbatch_size, options))
        if options and made.microbatch_size > 1:
            raise jax.errors.JaxRuntimeError(
                "INTERNAL: Couldn't find output tile sizes that satisfy hlo"
            )
        return Compiled(made.microbatch_size), 0.0

    monkeypatch.setattr(compiler, "compile_train_step", compile_train_step)
    made = collections.namedtuple("Made", "microbatch_size")(None)
    monkeypatch.setattr(
        compiler.dataclasses, "replace", lambda made, **changes: made._replace(**changes)
    )
    steps = compiler.Compiler(made, cards.CARDS["h100"], lines.append)
    assert [steps.step(size).size for size in (1, 16, 16, 32)] == [1, 16, 16, 32]
    by_option = [(size, bool(options)) for size, options in tried]
    assert by_option == [(1, True), (16, True), (16, False), (32, False)]
    assert sum("no tile that fits" in line for line in lines) == 1
    assert "libraries' products alone" in steps.note

    # Turing generates no products.
    tried.clear()
    compiler.Compiler(made, cards.CARDS["t4"], lines.append).step(16)
    assert tried == [(16, None)]


def tool(root, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tools.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--device", "rtx3070ti"), "--device rtx3070ti: not known"),
        (("--device", "t4", "--config.batch_size=0"), "batch_size"),
        (("--device", "t4,h100", "--program", "step.txt"), "--program: is of one device"),
        (("--device", "v5e-8", "--kernels", "5"), "v5e-8 is not a GPU"),
    ],
)
def test_mistakes_are_one_sentence(root, flags, message):
    ended = tool(root, "--config", "configs/quickstart.py", *flags)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(targets.missing(cards.CARDS["h100"]) is None, reason="has the compiler")
def test_a_program_needs_the_compiler_and_the_line_to_install_it_is_said(root, tmp_path):
    flags = ("--program", str(tmp_path / "step.txt"), "--kernels", "5")
    ended = tool(root, "--config", "configs/quickstart.py", "--device", "h100", *flags)
    assert ended.returncode == 2
    assert "pip install" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(
    targets.missing(cards.CARDS["h100"]) is not None, reason="needs the wheels of jax[cuda12]"
)
def test_a_program_compiled_for_an_absent_gpu_is_expected_kernel_by_kernel(root, tmp_path):
    out = tmp_path / "plan.json"
    program = tmp_path / "step.txt"
    network = (
        "batch_size=32", "microbatch_size=16", "schedule.batch_ramp=0", "model.n_layers=2",
        "optimizer.name=adamw",
    )  # fmt: skip
    config = ["--config", "configs/bert_1day.py", *(f"--config.{flag}" for flag in network)]
    files = ["--json", str(out), "--program", str(program), "--kernels", "500"]
    ended = tool(root, *config, "--device", "h100", *files)
    assert ended.returncode == 0, ended.stderr

    (entry,) = json.loads(out.read_text())["plans"]
    assert entry["source"] == "compiled"
    assert entry["expected_step_s"] > max(entry["step_s"].values())
    assert 0 < entry["expected_mfu"] < 1
    assert entry["expected_note"] == ""
    assert entry["expected_s_by_kind"]["products"] > 0
    assert entry["expected_s_by_kind"]["attention"] > 0

    # Products and attention are nearly all that the model's FLOPs count.
    launched = kernels.launched(hlo.parse(program.read_text()), 2)
    flops = sum(kernel.count * kernel.work.flops for kernel in launched)
    assert flops == pytest.approx(entry["flops"], rel=0.15)
    attention = [kernel for kernel in launched if kernel.kind == kernels.ATTENTION]
    assert sum(kernel.count for kernel in attention) == 2 * 2 * 2
    assert {"generated", "rows", "forward", "backward"} <= {kernel.form for kernel in launched}
    assert "dot_product_attention" in ended.stdout
    assert "the other 0" in ended.stdout


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
def test_a_train_step_is_compiled_for_tpus_that_are_not_here(root, tmp_path):
    # Dear, because libtpu compiles the step for eight devices. The cheaper tests of plans replace
    # the compiler; this one shows that the real one is asked, and read rightly. One sequence on a
    # device is the only size, so that one program is compiled.
    out = tmp_path / "plan.json"
    overrides = (*TINY, "batch_size=8", "eval.batch_size=8")
    config = ["--config", "configs/quickstart.py", *(f"--config.{name}" for name in overrides)]
    ended = tool(root, *config, "--device", "v5e-8", "--json", str(out))
    assert ended.returncode == 0, ended.stderr

    (entry,) = json.loads(out.read_text())["plans"]
    assert entry["source"] == "compiled"
    assert entry["n_devices"] == 8
    assert entry["microbatch_size"] == 8
    assert entry["memory"]["needed"] > entry["memory"]["parameters"] + entry["memory"]["optimizer"]
    assert "v5e-8 (8 devices)" in ended.stdout
