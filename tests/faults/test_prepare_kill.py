"""Preparations killed at several moments, and two at once: the dataset is as if undisturbed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests/data"]
from text_source import FakeSource
from cramjax.config import languages, schema
from cramjax import console
from cramjax.data import prepare
data = schema.defaults().data
data.update(cache_dir={cache!r}, vocab_size=300, heldout_fraction=0.1)
data.update(max_shard_tokens=2048, tokenizer_sample_mb=0.01)
data.update(languages.choices(data))
source = FakeSource(parts_n=12, documents_n=30, log={log!r}, pause_s={pause!r})
print(prepare.prepare(data, [source], announce=console.announce, n_workers={workers}))
"""


def start(cache, log, pause_s=0.004, workers=2):
    log.mkdir(exist_ok=True, parents=True)
    script = SCRIPT.format(
        root=str(ROOT), cache=str(cache), log=str(log), pause=pause_s, workers=workers
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def content(out):
    directory = pathlib.Path(out.strip())
    return directory.name, {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    process = start(tmp_path / "data", tmp_path / "log", pause_s=0.0, workers=1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return content(out)


def test_killed_again_and_again_it_gives_the_same_dataset_and_reads_no_finished_part_twice(
    tmp_path, undisturbed
):
    cache, log = tmp_path / "data", tmp_path / "log"

    n_kills = 0
    for n_parts_before_kill in (1, 4, 7, 9, 11):
        process = start(cache, log)
        while (
            process.poll() is None
            and len(list(cache.glob("*.partial/spool/*.json"))) < n_parts_before_kill
        ):
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)  # the process alone: its workers have to notice
            n_kills += 1
        process.communicate(timeout=60)
        assert not list(cache.glob("*/manifest.json")) or process.returncode == 0
    assert n_kills >= 3

    process = start(cache, log)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert content(out) == undisturbed
    # At each kill, each of the two workers may have read its part, but not have written it yet.
    reads = [path.name.split(".")[0] for path in log.iterdir()]
    assert set(reads) == {f"part-{number:03d}" for number in range(12)}
    assert len(reads) <= 12 + 2 * n_kills


def test_workers_end_with_a_killed_parent(tmp_path):
    process = start(tmp_path / "data", tmp_path / "log", pause_s=1.0)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(workers := children.read_text().split()) < 3:  # two workers and the resource tracker
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{pid}").exists() and not _is_zombie(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def _is_zombie(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_two_at_once_the_second_waits_and_reads_nothing(tmp_path, undisturbed):
    cache, log = tmp_path / "data", tmp_path / "log"
    first = start(cache, log)
    while not list(cache.glob("*.partial/spool")):
        assert first.poll() is None
        time.sleep(0.005)
    second = start(cache, tmp_path / "log2")
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "another process prepares this dataset" in err
    assert not list((tmp_path / "log2").iterdir())
    assert content(out) == undisturbed
    assert first.wait(timeout=60) == 0
    first.communicate()
