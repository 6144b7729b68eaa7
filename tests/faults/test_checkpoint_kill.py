"""kill -9 in the middle of asynchronous saves: a complete checkpoint is left to go on from."""

import pathlib
import random
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.checkpoints.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]
N = 500_000

# Saves a state that says its step, over and over, going on after the newest checkpoint it finds.
CHILD = f"""
import sys
import jax, jax.numpy as jnp
from cramjax.checkpoints.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
x = jax.random.normal(jax.random.key(0), ({N},))
step = checkpoints.latest() or 0
while True:
    step += 1
    checkpoints.save(step, {{"noise": x, "step": jnp.full({N}, step)}}, {{"step": step}})
    print("begun", step, flush=True)
    checkpoints.wait()
    print("complete", step, flush=True)
"""


def kill_while_saving(folder, chooser):
    """Start a child, kill it in one of its saves; returns the newest step it called complete."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    n_saves, complete = chooser.randint(1, 4), 0
    for line in child.stdout:
        word, step = line.split()
        if word == "complete":
            complete = int(step)
        elif (n_saves := n_saves - 1) == 0:
            break
    time.sleep(chooser.random() * 0.05)
    child.kill()
    child.wait()
    said = [line.split() for line in child.stdout.read().splitlines() if line.count(" ") == 1]
    child.stdout.close()
    return max([complete, *(int(step) for word, step in said if word == "complete")])


def check_what_is_left(folder, complete):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {"noise": jnp.float32, "step": jnp.int32}
    abstract = {
        name: jax.ShapeDtypeStruct((N,), dtype, sharding=sharding) for name, dtype in shapes.items()
    }
    checkpoints = Checkpoints(folder, keep=2)
    restored = checkpoints.restore(abstract)
    if complete == 0 and restored is None:
        checkpoints.close()
        return 0
    assert restored.step in (complete, complete + 1), "the newest complete checkpoint was lost"
    assert restored.sidecar == {"step": restored.step}
    assert (np.asarray(restored.state["step"]) == restored.step).all()
    np.testing.assert_array_equal(
        restored.state["noise"], jax.random.normal(jax.random.key(0), (N,))
    )
    checkpoints.close()
    # Nothing half written is left, and nothing was found damaged.
    assert all(path.name.isdigit() for path in folder.iterdir())
    return restored.step


def kill_repeatedly(folder, n_kills, seed):
    chooser, newest = random.Random(seed), 0
    for _ in range(n_kills):
        complete = max(newest, kill_while_saving(folder, chooser))
        newest = check_what_is_left(folder, complete)
    assert newest > 0


def test_a_kill_during_a_save_leaves_the_last_complete_checkpoint(tmp_path):
    kill_repeatedly(tmp_path / "checkpoints", 3, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_kills(tmp_path, seed):
    kill_repeatedly(tmp_path / "checkpoints", 12, seed)
