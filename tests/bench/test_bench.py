"""tools.bench: every key that its help names, from a real step of a tiny network."""

import json
import re

import jax
import pytest

from cramjax.bench import overhead
from cramjax.training.state import initial_state
from tests.stepping import COMMON, one_device, open_tiny
from tools import bench as tool


def test_a_round_of_the_loop_is_timed_around_a_program_that_leaves_the_state_alone(monkeypatch):
    monkeypatch.setattr(overhead, "N_ROUNDS", 4)
    made = open_tiny("microbatch_size=4")
    state = initial_state(made.objective, made.optimizer, made.dynamic_scale, made.abstract, 0)
    step = jax.jit(overhead._idle)
    same, metrics = step(state, None, jax.numpy.float32(0.5), jax.numpy.int32(2))
    jax.tree.map(
        lambda a, b: a.dtype == b.dtype and (a == b).all() or pytest.fail("changed"), same, state
    )
    assert set(metrics) == {"loss", "grad_norm", "skipped", "skipped_in_row"}
    assert 0 < overhead.host_s(made, state) < float("inf")
    assert all(
        leaf.is_deleted() for leaf in jax.tree.leaves(state.params)
    )  # it is given up, as a step's is


@pytest.mark.slow
def test_a_bench_has_the_keys_that_its_help_names(tmp_path, capsys):
    flags = [
        f"--config.{override}"
        for override in (*COMMON, "optimizer.name=adamw", "microbatch_size=8")
    ]
    out = tmp_path / "new" / "bench.json"
    with one_device():
        assert (
            tool.main(
                ["--config", "configs/quickstart.py", *flags, "--steps", "3", "--json", str(out)]
            )
            == 0
        )
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out)
    named = tool.EXAMPLE.split("with --peer")[0]
    keys = {
        key
        for line in named.splitlines()
        if line.startswith("  ")
        for key in re.findall(r"[a-z_0-9]+", line[2:54])
    }
    words = {"of", "the", "a", "that", "median"}
    assert {key for key in keys if "_" in key} - words <= set(found)
    assert found["step_s_p10"] <= found["step_s"] <= found["step_s_p90"] and found["host_us"] > 0
    assert found["tokens_per_s"] == pytest.approx(16 * 32 / found["step_s"])
    assert found["mfu"] == pytest.approx(found["model_tflops"] / found["matmul_peak_tflops"])
