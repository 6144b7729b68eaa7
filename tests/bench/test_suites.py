"""Suites of benches: sound configurations, a table, one-sentence mistakes."""

import json
import pathlib
import subprocess

import pytest

from cramjax.bench import peers, suites
from cramjax.config.resolve import resolve
from cramjax.errors import RunFailed
from tools import bench as tool


@pytest.mark.parametrize("name", suites.SUITES)
def test_every_member_is_sound_and_has_a_peer(name):
    members = suites.SUITES[name]
    assert len({member.name for member in members}) == len(members)
    for member in members:
        config = resolve(member.spec, member.overrides)
        assert peers.specification(config)["n_rows"] == config.batch_size


def result(rate, best):
    """A result of `tools.bench --peer` in bfloat16, at `rate`, with a peer at `best`."""
    ours = {"bfloat16": {"mfu": 0.561, "peak_memory_bytes": 3 * 2**30}}
    tried = [
        {"peer": "Bert", "mode": "bfloat16 eager", "tokens_per_s": best / 2},
        {"peer": "TorchEncoder", "mode": "bfloat16 eager", "tokens_per_s": best},
        {"peer": "Bert", "mode": "bfloat16 compiled", "error": "no"},
    ]
    return {
        "ours": ours,
        "ours_tokens_per_s": {"bfloat16": [rate, rate]},
        "peers": tried,
        "ratio_to_peer": {"bfloat16": rate / best},
    }


def test_members_are_measured_one_after_the_other_and_drawn_up(monkeypatch, tmp_path, capsys):
    commands = []

    def run(command, **_):
        commands.append(command)
        out = pathlib.Path(command[command.index("--json") + 1])
        out.write_text(json.dumps(result(1500.0, 1000.0)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(suites.subprocess, "run", run)
    out = tmp_path / "all.json"
    command = ["--suite", "cpu", "--steps", "3", "--json", str(out), "--config.seed=1"]
    assert tool.main(command) == 0

    assert len(commands) == len(suites.SUITES["cpu"])
    assert all("--config.seed=1" in command for command in commands)
    names = [member.name for member in suites.SUITES["cpu"]]
    assert [entry["member"] for entry in json.loads(out.read_text())] == names
    row = (
        "| quickstart at 128 | bfloat16 | 1,500 and 1,500 | 56% | 3.0 GiB "
        "| TorchEncoder, eager | 1,000 | 1.50 | 3.00 |"
    )
    assert row in capsys.readouterr().out


def test_a_precision_without_a_peer_has_a_row():
    alone = result(1500.0, 1000.0) | {"member": "alone", "ratio_to_peer": {"bfloat16": None}}
    alone["peers"] = [peer for peer in alone["peers"] if "error" in peer]
    last = suites.table([alone]).splitlines()[-1]
    assert last == "| alone | bfloat16 | 1,500 and 1,500 | 56% | 3.0 GiB | none |  |  |  |"


def test_a_member_that_fails_ends_the_suite(monkeypatch):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(suites.subprocess, "run", fail)
    with pytest.raises(RunFailed, match="quickstart at 128: its bench failed"):
        list(suites.run("cpu", (), 3))


def test_mistakes_are_one_sentence(capsys):
    assert tool.main(["--suite", "gpus"]) == 2
    assert "--suite gpus: no such suite; there are gpu, cpu" in capsys.readouterr().err
    assert tool.main([]) == 2
    assert "give --config FILE, or --suite NAME" in capsys.readouterr().err
