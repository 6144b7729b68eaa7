"""`cramjax COMMAND` is a module of its own, the shell completes it, and the doctor answers."""

import importlib.util
import os
import subprocess
import sys
import tomllib

import pytest

from cramjax import __main__ as command
from cramjax import __version__, doctor
from cramjax.config import recipes
from cramjax.config.resolve import resolve


def run(*words, monkeypatch):
    monkeypatch.setattr(command.stop, "end_imports", lambda: None)
    monkeypatch.setattr(sys, "argv", ["cramjax", *words])
    return command.main()


@pytest.mark.parametrize("name", command.COMMANDS)
def test_a_command_is_a_module_with_help(name, monkeypatch, capsys):
    assert importlib.util.find_spec(command.COMMANDS[name][0])
    with pytest.raises(SystemExit) as end:
        run(name, "--help", monkeypatch=monkeypatch)
    assert end.value.code == 0
    assert f"usage: cramjax {name} " in capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("--help",), ("help",)])
def test_help_lists_the_commands(words, monkeypatch, capsys):
    assert run(*words, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in command.COMMANDS)


def test_the_version_is_printed(monkeypatch, capsys):
    assert run("--version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == f"cramjax {__version__}\n"


def test_an_unknown_command_is_a_sentence(monkeypatch, capsys):
    assert run("trian", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == "error: cramjax trian: no such command; did you mean train?\n"


def test_a_recipe_goes_by_its_name_or_file():
    by_name = resolve("bert_1day:smoke")
    by_file = resolve(f"{recipes.RECIPES / 'bert_1day.py'}:smoke")
    assert by_name == by_file and by_name.name == "bert_1day-smoke"


@pytest.mark.parametrize(
    "line, expected",
    [
        ("cramjax comp", {"compress "}),
        ("cramjax train --config bert_1", {"bert_1day", "bert_1day_modern"}),
        ("cramjax train --config.data.max_m", {"--config.data.max_mb "}),
        ("cramjax compress --prune_", {"--prune_embeddings "}),
    ],
)
def test_the_shell_completes(line, expected, root, tmp_path):
    answer = tmp_path / "answer"
    environment = os.environ | {
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "PYTHONPATH": str(root),
    }
    done = subprocess.run([sys.executable, "-m", "cramjax"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert set(answer.read_text().split("\013")) == expected


@pytest.mark.parametrize("extra, file", [("docs", "docs"), ("dev", "test")])
def test_extras_are_the_files_of_requirements(extra, file, root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = []
    for line in (root / f"requirements-{file}.txt").read_text().splitlines():
        if requirement := line.partition("#")[0].strip():
            wanted.append(requirement)
    assert project["optional-dependencies"][extra] == wanted


def test_the_doctor_says_what_is_here_and_what_is_missing(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert f"cramjax {__version__}" in said and "jax " in said and "JAX_PLATFORMS=cpu" in said
    assert "HF_TOKEN is set" in said and "hf_secret" not in said
    assert "no nvidia-smi" in said and "tfds: sources need pip install" in said


def test_a_card_without_its_plugin_is_said(monkeypatch, capsys, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GeForce RTX 3060, 580.65, 12288 MiB, 400 MiB, 8.6'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(tool))
    monkeypatch.setattr(doctor, "_has_cuda", lambda: False)
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "RTX 3060, 580.65" in said and "cramjax[cuda13]" in said
