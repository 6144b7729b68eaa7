"""tools.bench: every key that its help names, from a real step of a tiny network."""

import json
import re

import jax
import numpy as np
import pytest

from cramjax.bench import overhead
from cramjax.training.state import initial_state
from tests.stepping import COMMON, one_device, open_tiny
from tools import bench as tool


def test_a_round_of_the_loop_is_timed_around_a_program_that_leaves_the_state_alone(monkeypatch):
    monkeypatch.setattr(overhead, "N_ROUNDS", 4)
    session = open_tiny("microbatch_size=4")
    state = initial_state(
        session.objective, session.optimizer, session.dynamic_scale, session.abstract, 0
    )

    step = jax.jit(overhead.idle_step)
    scalars = np.uint32(0), np.float32(0.5), np.int32(2)
    same, metrics = step(state, None, *scalars)
    assert jax.tree.structure(same) == jax.tree.structure(state)
    for after, before in zip(jax.tree.leaves(same), jax.tree.leaves(state), strict=True):
        assert after.dtype == before.dtype
        assert (after == before).all()
    assert set(metrics) == {"loss", "grad_norm", "skipped", "skipped_in_row"}

    assert 0 < overhead.host_s(session, state) < float("inf")
    # The state is given up, as by a train step.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def keys_named_in_help():
    """The words with an underscore in the left column of the help, up to the keys of --peer."""
    lines = tool.EXAMPLE.split("with --peer")[0].splitlines()
    left = " ".join(line[2:40] for line in lines if line.startswith("  "))
    return {word for word in re.findall(r"[a-z_0-9]+", left) if "_" in word}


@pytest.mark.slow
def test_a_bench_has_the_keys_that_its_help_names(tmp_path, capsys):
    overrides = (*COMMON, "optimizer.name=adamw", "microbatch_size=8")
    flags = [f"--config.{override}" for override in overrides]
    out = tmp_path / "new" / "bench.json"
    command = ["--config", "configs/quickstart.py", *flags, "--steps", "3", "--json", str(out)]
    with one_device():
        assert tool.main(command) == 0

    result = json.loads(out.read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert keys_named_in_help() <= set(result)
    assert result["step_s_p10"] <= result["step_s"] <= result["step_s_p90"]
    assert result["host_us"] > 0
    assert result["tokens_per_s"] == pytest.approx(16 * 32 / result["step_s"])
    assert result["mfu"] == pytest.approx(result["model_tflops"] / result["matmul_peak_tflops"])
