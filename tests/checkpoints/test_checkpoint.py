"""Checkpoints: round trips over device counts, old ones, refusals, damage and failing disks."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import resource
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cramjax.checkpoints import checkpoint, sealing
from cramjax.checkpoints.checkpoint import Checkpoints
from cramjax.errors import RunFailed, UserError
from cramjax.optim.average import with_trailing_average

# Orbax leaves an event loop behind when a read or write fails. Python's garbage collector notes it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt_state: tuple


def make_state(seed=0, width=16, step=0):
    params = {
        "embed": jax.random.normal(jax.random.key(seed), (64, width)),
        "norm": {"scale": jnp.ones(width, jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(step), params, optimizer.init(params))


def sharded(n_devices):
    """Returns a function from a leaf to its sharding: rows of a matrix over the devices."""
    mesh = Mesh(np.array(jax.devices()[:n_devices]), ("data",))

    def sharding(leaf):
        spec = P("data") if leaf.ndim == 2 else P()
        return NamedSharding(mesh, spec)

    return sharding


def place(state, n_devices):
    sharding = sharded(n_devices)
    return jax.tree.map(lambda leaf: jax.device_put(leaf, sharding(leaf)), state)


def abstract(state, n_devices=1):
    sharding = sharded(n_devices)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf)), state
    )


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def test_nothing_saved_is_nothing_restored(folder):
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() is None and checkpoints.restore(abstract(make_state())) is None
    checkpoints.close()


def test_a_state_goes_from_one_device_to_eight_and_back_bit_for_bit(folder):
    state = make_state()
    sidecar = {
        "clock": {"elapsed_s": 1.5, "limits": {"steps": 9}},
        "tokenizer_sha256": "ab",
        "row": 2**40,
    }
    for step, (saved_on, restored_on) in enumerate([(1, 8), (8, 1)], 1):
        checkpoints = Checkpoints(folder)
        checkpoints.save(step, place(state, saved_on), sidecar)
        checkpoints.close()
        checkpoints = Checkpoints(folder)
        restored = checkpoints.restore(abstract(state, restored_on), {"tokenizer_sha256": "ab"})
        checkpoints.close()
        assert restored.step == step and restored.sidecar == sidecar
        assert_same(restored.state, state)
        assert isinstance(restored.state, State)
        assert len(restored.state.params["embed"].sharding.device_set) == restored_on


def test_the_saved_arrays_are_those_at_the_call_although_the_next_steps_donate_them(folder):
    checkpoints = Checkpoints(folder, keep=5)
    bump = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(1_000_000)
    for step in range(3):
        checkpoints.save(step, {"x": x}, {})
        for _ in range(10):
            x = bump(x)
    checkpoints.wait()
    for step in (2, 1, 0):
        restored = checkpoints.restore(
            {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)}
        )
        assert restored.step == step and set(np.unique(restored.state["x"])) == {10.0 * step}
        (folder / str(step)).rename(folder / f"aside-{step}")
        checkpoints.close()
        checkpoints = Checkpoints(folder)
    checkpoints.close()


def test_a_marked_checkpoint_is_kept_for_good_also_by_another_process(folder):
    state = make_state()
    for numbers in ((1, 2, 3), (4, 5, 6)):  # two starts
        checkpoints = Checkpoints(folder, keep=1)
        for step in numbers:
            hours = [step / 2] if step in (2, 4) else []
            checkpoints.save(step, state, {"step": step, "kept_for_hours": hours}, block=True)
        checkpoints.close()
    assert steps(folder) == [2, 4, 6]
    assert sealing.marked(folder) == {2: [1.0], 4: [2.0]}
    # Anything may stand in the sidecar of a folder from elsewhere.
    for content in ('{"kept_for_hours": ["x"]}', '{"kept_for_hours": 3}', "[", "[]"):
        (folder / "2" / "sidecar" / "metadata").write_text(content)
        assert sealing.marked(folder) == {4: [2.0]}


def test_the_newest_are_kept_whole_and_the_rest_leaves_nothing(folder):
    checkpoints = Checkpoints(folder, keep=2)
    for step in (3, 7, 8, 20):
        checkpoints.save(step, make_state(step), {"step": step})
    checkpoints.save(20, make_state(1), {"step": "again"})  # already saved: nothing happens
    checkpoints.close()
    assert sorted(path.name for path in folder.iterdir()) == ["20", "8"]
    restored = Checkpoints(folder).restore(abstract(make_state()))
    assert restored.sidecar == {"step": 20}
    assert_same(restored.state, make_state(20))


def test_another_tokenizer_or_model_is_refused_with_what_differs(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save(
        1,
        make_state(),
        {"tokenizer_sha256": "abc", "model": {"d_model": 16, "ffn": "gelu"}},
        block=True,
    )
    with pytest.raises(UserError, match="tokenizer_sha256 is abc in the checkpoint, xyz now"):
        checkpoints.restore(abstract(make_state()), {"tokenizer_sha256": "xyz"})
    with pytest.raises(UserError, match=r"model.ffn is gelu in the checkpoint, geglu now"):
        checkpoints.restore(abstract(make_state()), {"model": {"d_model": 16, "ffn": "geglu"}})
    with pytest.raises(
        UserError,
        match=r"params.embed is float32\[64, 16\] in the checkpoint, float32\[64, 32\] now",
    ):
        checkpoints.restore(abstract(make_state(width=32)))
    more = make_state()
    more = dataclasses.replace(more, params=more.params | {"head": jnp.ones(3)})
    with pytest.raises(UserError, match="params.head is not in the checkpoint"):
        checkpoints.restore(abstract(more))
    checkpoints.close()


def test_what_must_match_is_compared_as_json(folder):
    checkpoints = Checkpoints(folder)
    shape = {"sizes": (1, 2), 3: None}
    checkpoints.save(1, make_state(), {"model": shape}, block=True)
    assert checkpoints.restore(abstract(make_state()), {"model": shape}).step == 1
    with pytest.raises(UserError, match="optimizer is not in the checkpoint"):
        checkpoints.restore(abstract(make_state()), {"optimizer": "adamw"})
    checkpoints.close()


def test_a_save_is_allowed_where_transfers_are_not_and_counts_only_once_complete(
    folder, monkeypatch
):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, make_state(1), {}, block=True)
    state, go_on = make_state(2), threading.Event()
    monkeypatch.setattr(sealing, "seal", lambda _: go_on.wait(30))
    with jax.transfer_guard("disallow"):
        checkpoints.save(2, state, {})
    assert checkpoints.latest() == 1
    go_on.set()
    checkpoints.wait()
    assert checkpoints.latest() == 2
    checkpoints.close()


def test_at_most_ten_differences_are_listed(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {f"w{n}": jnp.ones(2) for n in range(30)}, {}, block=True)
    with pytest.raises(UserError) as caught:
        checkpoints.restore(abstract({f"w{n}": jnp.ones(3) for n in range(30)}))
    assert str(caught.value).count("in the checkpoint") == 10 and "and 20 more" in str(caught.value)
    checkpoints.close()


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip_bit, pathlib.Path.unlink])
@pytest.mark.parametrize("name", ["state/manifest.ocdbt", "sidecar/metadata", "largest"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, caplog, damage, name):
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"step": step})
    checkpoints.close()
    files = [path for path in (folder / "2").rglob("*") if path.is_file()]
    path = folder / "2" / name
    if name == "largest":
        path = max(files, key=lambda path: path.stat().st_size)
    damage(path)

    checkpoints = Checkpoints(folder)
    with caplog.at_level(logging.WARNING, "cramjax"):
        restored = checkpoints.restore(abstract(make_state()))
    assert restored.step == 1 and restored.sidecar == {"step": 1}
    assert "damaged" in caplog.text and "step 1" in caplog.text
    assert (folder / "damaged-2").is_dir()
    checkpoints.save(2, make_state(5), {"step": 2})  # its step is free again
    checkpoints.close()
    assert_same(Checkpoints(folder).restore(abstract(make_state())).state, make_state(5))


def test_a_checkpoint_that_was_not_sealed_is_still_checked_by_its_format(folder):
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {}, block=True)
    checkpoints.close()
    (folder / "2" / "checksums.json").unlink()
    assert Checkpoints(folder).restore(abstract(make_state())).step == 2
    _truncate(folder / "2" / "state" / "manifest.ocdbt")
    assert Checkpoints(folder).restore(abstract(make_state())).step == 1


def test_nothing_readable_ends_the_run_and_moves_nothing(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, make_state(), {}, block=True)
    _truncate(folder / "1" / "state" / "manifest.ocdbt")
    with pytest.raises(RunFailed, match="no checkpoint can be read"):
        checkpoints.restore(abstract(make_state()))
    assert steps(folder) == [1]
    checkpoints.close()


def test_reading_a_run_that_goes_on_touches_nothing(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, make_state(), {}, block=True)
    (folder / "5.orbax-checkpoint-tmp").mkdir()
    before = sorted(folder.rglob("*"))
    reader = Checkpoints(folder, read_only=True)
    assert reader.restore(abstract(make_state())).step == 1
    reader.close()
    assert sorted(folder.rglob("*")) == before
    checkpoints.close()


@contextlib.contextmanager
def full_disk():
    """Inside, no file may grow over 100 kB, so the arrays of a larger state cannot be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_save_is_a_warning_and_the_next_one_makes_up_for_it(folder, caplog):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, make_state(1), {}, block=True)
    with caplog.at_level(logging.WARNING, "cramjax"), full_disk():
        checkpoints.save(2, make_state(2, width=4096), {})
        checkpoints.wait()
        assert checkpoints.save_failed and checkpoints.latest() == 1
    assert "could not be saved" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["1"]  # what was half written is gone
    checkpoints.save(3, make_state(3, width=4096), {})
    checkpoints.wait()
    assert not checkpoints.save_failed and steps(folder) == [1, 3]
    checkpoints.close()
    assert_same(
        Checkpoints(folder).restore(abstract(make_state(width=4096))).state,
        make_state(3, width=4096),
    )


def test_three_failures_in_a_row_end_the_run(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, make_state(1), {}, block=True)
    with (
        full_disk(),
        pytest.raises(RunFailed, match="3 checkpoints in a row.*newest complete one is step 1"),
    ):
        checkpoints.save(2, make_state(2, width=4096), {}, block=True)
    checkpoints.close()
    assert steps(folder) == [1]


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_tensorflow_is_not_imported_and_orbax_is_silent(tmp_path):
    code = f"""
import logging, sys
logging.basicConfig(level=logging.INFO)
import jax.numpy as jnp
from cramjax.checkpoints.checkpoint import Checkpoints
checkpoints = Checkpoints({str(tmp_path)!r})
checkpoints.save(1, {{"x": jnp.ones(3)}}, {{}}, block=True)
checkpoints.close()
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert done.returncode == 0 and "orbax" not in done.stderr.lower(), done.stderr


def test_the_sentence_about_a_failed_save_is_what_the_system_said():
    # TensorStore's message of a full disk; the reason comes after two long paths.
    path = "/runs/mine/checkpoints/4.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/" * 3
    text = (
        f'RESOURCE_EXHAUSTED: Error writing "step/0" in OCDBT database at local file "{path}": '
        f'Failed writing: "{path}d/3de4": Failed to write 566706 bytes to file 14: No space left '
        "on device [os_error_code='28']"
    )
    assert checkpoint._reason(ValueError(text)) == "No space left on device"
    assert checkpoint._reason(PermissionError(13, "Permission denied")) == "Permission denied"
    assert checkpoint._reason(ValueError("cut\n short")) == "ValueError: cut short"


def test_what_orbax_says_of_its_own_tasks_is_not_printed(capfd, caplog):
    checkpoint._quieten_orbax()
    closed = types.SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    sys.unraisablehook(closed)
    logging.getLogger("asyncio").error("never retrieved: 4.orbax-checkpoint-tmp")
    logging.getLogger("asyncio").error("another task")
    assert "another task" in caplog.text and "orbax" not in caplog.text
    assert "Event loop" not in "".join(capfd.readouterr())


def test_a_checkpoint_that_is_dropped_while_it_is_read_gives_way_to_the_newest(folder, monkeypatch):
    """A run that goes on deletes old checkpoints beside whoever reads them."""
    writer = Checkpoints(folder, keep=2)
    for step in (1, 2):
        writer.save(step, make_state(step), {"step": step}, block=True)
    reader = Checkpoints(folder, read_only=True)
    verify = sealing.verify

    def verify_late(path):
        if path.name == "2":
            for step in (3, 4):
                writer.save(step, make_state(step), {"step": step}, block=True)
        verify(path)

    monkeypatch.setattr(sealing, "verify", verify_late)
    restored = reader.restore_params()
    assert restored.step == 4 and restored.sidecar == {"step": 4}
    np.testing.assert_array_equal(restored.state["embed"], make_state(4).params["embed"])
    reader.close()
    writer.close()


def test_damage_to_the_checkpoint_that_is_loaded_names_the_others(folder):
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {}, block=True)
    _flip_bit(folder / "2" / "sidecar" / "metadata")
    with pytest.raises(RunFailed, match="2: damaged .*sidecar/metadata.*; load step 1$"):
        checkpoints.restore_params()
    assert checkpoints.restore_params(1).step == 1
    checkpoints.close()


@pytest.mark.parametrize("content", [b"[1, 2]", b"{", b""])
def test_damage_to_the_metadata_of_orbax_is_damage_to_one_checkpoint(folder, content):
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {}, block=True)
    checkpoints.close()
    (folder / "2" / "_CHECKPOINT_METADATA").write_bytes(content)
    with pytest.raises(RunFailed, match="2/_CHECKPOINT_METADATA: .*; move its folder away"):
        Checkpoints(folder, read_only=True)
    again = Checkpoints(folder)
    assert again.restore(abstract(make_state())).step == 1
    again.close()


def test_a_folder_whose_name_is_no_utf_8_keeps_checkpoints(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    state = {"params": {"w": jnp.arange(3.0)}}
    for step in (1, 2):
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            checkpoints.save(step, state, {}, block=True)
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        params = checkpoints.restore_params().state
        assert checkpoints.latest() == 2 and params["w"].tolist() == [0.0, 1.0, 2.0]


def test_a_trailing_mean_is_loaded_in_the_place_of_the_parameters(folder):
    state = make_state()
    optimizer = with_trailing_average(optax.adam(1.0), 4)
    averaged = optimizer.init(make_state(seed=7).params)
    state = dataclasses.replace(state, opt_state=averaged)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(1, state, {}, block=True)
        loaded = checkpoints.restore_params().state
        restored = checkpoints.restore(abstract(state)).state
    jax.tree.map(np.testing.assert_array_equal, loaded, make_state(seed=7).params)
    # Training goes on with the parameters themselves.
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
