"""Flags that several commands share."""

import importlib
import pathlib

import pytest

from cramjax.config import cli


@pytest.mark.parametrize(
    ("module", "flag", "least"),
    [
        ("cramjax.main", "--show_batch", 1),
        ("tools.bench", "--steps", 1),
        ("tools.compress", "--seeds", 1),
        ("tools.compress", "--epochs", 0),
        ("tools.compress", "--qat_epochs", 0),
        ("tools.finetune", "--seeds", 1),
        ("tools.finetune", "--together", 1),
        ("tools.plan", "--kernels", 1),
        ("tools.probe", "--limit", 1),
    ],
)
@pytest.mark.parametrize("below", [True, False])
def test_a_number_that_is_too_small_or_none_is_a_usage_error(module, flag, least, below, capsys):
    text = str(least - 1) if below else "many"
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([f"{flag}={text}"])

    assert ended.value.code == 2
    mistake = f"must be at least {least}" if below else "must be a whole number"
    assert f"argument {flag}: {text}: {mistake}" in capsys.readouterr().err


def test_a_path_of_a_flag_may_begin_with_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert cli.path("~/run") == pathlib.Path("/home/me/run")
    assert cli.path("runs/~x") == pathlib.Path("runs/~x") and cli.in_home("tfds") == "tfds"
