"""Plans: by formula, which needs nothing, and by libtpu's compiler where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from cramjax.config.resolve import get_config
from cramjax.planning import cards, plan, report, targets
from cramjax.training import footprint

TINY = (
    "model.n_layers=2", "model.d_model=64", "model.n_heads=2", "model.d_ff=128", "data.vocab_size=512", "data.seq_len=64",
    "batch_size=64", "microbatch_size=None",
)  # fmt: skip
PIP = 'pip install "jax[cuda12]'


@pytest.fixture
def no_compilers(monkeypatch):
    monkeypatch.setattr(targets, "missing", lambda card: PIP)


def planned(device, *overrides, recipe="quickstart"):
    return plan.make(get_config(recipe, *TINY, *overrides), cards.find(device), lambda text: None)


def test_bytes_by_kind_add_up_to_what_is_needed(no_compilers):
    made = planned("rtx3060")
    kinds = ("parameters", "optimizer", "activations", "temporaries")
    assert sum(made.memory[kind] for kind in kinds) == made.memory["needed"] == made.measured[made.microbatch_size]
    assert made.memory["parameters"] == 4 * made.n_params
    assert made.fits and made.microbatch_size == 64 and made.source == "analytic" and PIP in made.note
    assert made.precision == "bfloat16" and made.attention == "cudnn"


@pytest.mark.parametrize(
    "device, precision, attention",
    [
        ("t4", "float16", "xla"),
        ("gtx1080ti", "float32", "xla"),
        ("h100", "bfloat16", "cudnn"),
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
    assert made.tokens == pytest.approx(7200 * made.tokens_per_s) and made.steps == pytest.approx(made.tokens / 64**2)
    assert made.step_s["memory"] > made.step_s["compute"]  # so small a network waits for memory


def test_what_the_budget_buys(no_compilers):
    hours = planned("rtx3060", "budget.hours=1")
    tokens = planned("rtx3060", "budget.hours=None", f"budget.tokens={hours.tokens}")
    steps = planned("rtx3060", "budget.hours=None", f"budget.steps={round(hours.steps)}")
    flops = planned("rtx3060", "budget.hours=None", f"budget.flops={hours.flops * hours.steps}")
    first = planned("rtx3060", "budget.hours=1", f"budget.tokens={hours.tokens / 4}")
    assert [made.hours for made in (tokens, steps, flops)] == pytest.approx([1, 1, 1], rel=1e-3)
    assert first.hours == pytest.approx(0.25) and first.steps == pytest.approx(hours.steps / 4)
    # A batch that grows from 16 to 64 over the whole budget makes more steps of the same tokens.
    ramp = planned("rtx3060", "budget.hours=1", "microbatch_size=16", "schedule.batch_ramp=1.0")
    mean = (1 / 16 + 1 / 32 + 1 / 48 + 1 / 64) / 4
    assert ramp.steps == pytest.approx(ramp.tokens / 64 * mean, rel=0.01) and ramp.microbatch_size == 64


def test_devices_share_parameters_under_fsdp(no_compilers):
    whole, shared = planned("v5e-8"), planned("v5e-8", "mesh.data=1", "mesh.fsdp=8")
    assert whole.memory["parameters"] == 4 * whole.n_params
    assert shared.memory["parameters"] < 0.2 * whole.memory["parameters"]
    assert whole.flops == shared.flops and whole.microbatch_size == 64


def test_a_microbatch_that_is_asked_for_has_to_fit(no_compilers, monkeypatch):
    monkeypatch.setattr(footprint, "by_formula", lambda made, n: int(2e9 + n * 0.23e9))
    assert planned("rtx3060").microbatch_size == 32
    assert planned("rtx3060", "microbatch_size=32").fits and not planned("rtx3060", "microbatch_size=64").fits
    monkeypatch.setattr(footprint, "by_formula", lambda made, n: int(20e9))
    made = planned("rtx3060")
    assert not made.fits and made.microbatch_size is None and made.entry()["fits"] is False
    assert "does not fit; try --config.model.remat=full" in report.table([made])


def test_table_and_picture(no_compilers, tmp_path):
    plans = [planned("rtx3060"), planned("v5e-8")]
    lines = report.table(plans).splitlines()
    assert lines[0].split()[:3] == ["device", "fits", "microbatch"] and lines[2].startswith("v5e-8 (8 devices)")
    assert any(PIP in line for line in lines)
    report.plot(plans, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def tool(root, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tools.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)


def test_mistakes_are_one_sentence(root):
    for arguments, wanted in (
        (("--config", "configs/quickstart.py", "--device", "rtx3070ti"), "--device rtx3070ti: not known"),
        (("--config", "configs/quickstart.py", "--device", "t4", "--config.batch_size=0"), "batch_size"),
    ):
        ended = tool(root, *arguments)
        assert ended.returncode == 2 and wanted in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
def test_a_train_step_is_compiled_for_tpus_that_are_not_here(root, tmp_path):
    flags = [f"--config.{override}" for override in TINY]
    out = tmp_path / "plan.json"
    ended = tool(root, "--config", "configs/quickstart.py", *flags, "--device", "v5e-8", "--json", str(out))
    assert ended.returncode == 0, ended.stderr
    (entry,) = json.loads(out.read_text())["plans"]
    assert entry["source"] == "compiled" and entry["n_devices"] == 8 and entry["microbatch_size"] == 64
    assert entry["memory"]["needed"] > entry["memory"]["parameters"] + entry["memory"]["optimizer"]
    assert "v5e-8 (8 devices)" in ended.stdout
