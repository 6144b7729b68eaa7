"""Preparation on a cluster of two nodes: the same bytes, also if a worker is killed at work."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from executors import InThisProcess, Killed
from text_source import FakeSource

from cramjax import console
from cramjax.config import languages, schema
from cramjax.data import prepare, ray_executor
from cramjax.data.ray_executor import RayExecutor
from cramjax.errors import RunFailed, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeadlySource(FakeSource):
    """Kills the process that reads its third part, `n_kills` times."""

    flags: str
    n_kills: int = 1

    def read(self, part, drop):
        for number, text in enumerate(super().read(part, drop)):
            if part.name == "part-002" and number == 20:
                flags = pathlib.Path(self.flags)
                if len(list(flags.iterdir())) < self.n_kills:
                    (flags / f"{os.getpid()}.{time.monotonic_ns()}").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            yield text


def settings(cache):
    data = schema.defaults().data
    data.update(cache_dir=str(cache), vocab_size=120, heldout_fraction=0.2)
    data.update(max_shard_tokens=2048, tokenizer_sample_mb=0.01, dedup_near=0.9)
    data.update(languages.choices(data))
    return data


def files_of(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of two nodes, with two and one cores."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path or os.getcwd() for path in sys.path))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setattr("cramjax.data.build._GROUP_BYTES", 1)
        patch.setattr("cramjax.data.duplicates._RANGE_DOCUMENTS", 64)
        node = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args=node)
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
        yield nodes.address
        nodes.shutdown()


@pytest.mark.slow
def test_every_executor_makes_the_same_bytes_also_after_a_kill(cluster, tmp_path):
    flags = tmp_path / "flags"
    flags.mkdir()
    source = DeadlySource(flags=str(flags), n_kills=0, texts=("the same in all parts " * 3,))
    expected = files_of(prepare.prepare(settings(tmp_path / "a"), [source], n_workers=1))
    assert files_of(prepare.prepare(settings(tmp_path / "b"), [source], n_workers=3)) == expected

    lines = []
    executor = RayExecutor(tmp_path / "c", lines.append, address=cluster)
    deadly = dataclasses.replace(source, n_kills=1)
    found = prepare.prepare(settings(tmp_path / "c"), [deadly], executor=executor)
    assert files_of(found) == expected
    assert lines == ["ray: 2 node(s), 3 cores"] and len(list(flags.iterdir())) == 1
    assert [path for path in (tmp_path / "c").iterdir() if path.name.startswith(".")] == []

    # Begun on this machine, killed, and finished on the cluster.
    with pytest.raises(Killed):
        half = InThisProcess(n_before_kill=9)
        prepare.prepare(settings(tmp_path / "d"), [source], executor=half)
    executor = RayExecutor(tmp_path / "d", console.silent, address=cluster)
    found = prepare.prepare(settings(tmp_path / "d"), [source], executor=executor)
    assert files_of(found) == expected


@pytest.mark.slow
def test_what_goes_wrong_on_a_node_is_a_sentence(cluster, tmp_path, monkeypatch):
    def run(source, cache=tmp_path / "cache"):
        executor = RayExecutor(cache, console.silent, address=cluster)
        return prepare.prepare(settings(cache), [source], executor=executor)

    with pytest.raises(UserError, match="^part-003 is no text; remove it$"):
        run(FakeSource(mistake="part-003 is no text; remove it"))
    (tmp_path / "flags").mkdir()
    with pytest.raises(RunFailed, match=r"part-002: 5 processes at work on it were lost"):
        run(DeadlySource(flags=str(tmp_path / "flags"), n_kills=99), tmp_path / "other")

    versions = ray_executor._versions()
    answers = {
        r"cannot see data.cache_dir=/elsewhere; put it on a": ("see data.cache_dir=/elsewhere", {}),
        r"has numpy 0.1, and this one": ("", versions | {"numpy": "0.1"}),
    }
    for sentence, answer in answers.items():
        monkeypatch.setattr(
            RayExecutor, "_ask", lambda self, *_, answer=answer: self._ray.put(answer)
        )
        with pytest.raises(UserError, match=sentence):
            run(FakeSource())


def test_without_ray_the_sentence_has_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install 'ray"):
        RayExecutor(tmp_path, console.silent)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_a_signal_leaves_no_process_of_a_local_cluster(tmp_path, root, corpus, signum):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "tools.prepare_data", "--executor=ray", "--workers=2"]
    command += ["--config", "configs/quickstart.py", f"--config.data.cache_dir={tmp_path}"]
    command += [f"--config.data.source=text:{corpus}"]
    process = subprocess.Popen(
        command, cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while "ray: 1 node(s), 2 cores" not in (line := process.stderr.readline()):
        assert line, process.wait()
    started = descendants(process.pid)
    # The whole group, as a terminal and Slurm do.
    os.killpg(process.pid, signum)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum)

    assert len(started) >= 3
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in started):
        assert time.monotonic() < deadline, "processes outlive the command"
        time.sleep(0.1)


def descendants(pid):
    found = []
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in map(int, children):
        found += [child, *descendants(child)]
    return found


def is_alive(pid):
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"
