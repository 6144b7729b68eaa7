"""The amount of text for a card that is not here, as tools.prepare_data asks for it."""

import pytest

from cramjax.config.resolve import get_config
from cramjax.console import silent
from cramjax.errors import UserError
from cramjax.planning import cards, text
from cramjax.training import text_amount
from tools import prepare_data

CONFIG = get_config("bert_1day")


def test_a_named_card_gets_what_a_run_on_it_would_ask_for():
    for name, n_devices in (("rtx4090", None), ("h100", 8)):
        there = text_amount.settled_for(
            CONFIG, cards.find(name).device_kind, n_devices or 1, silent
        )
        assert text.settled(CONFIG, name, n_devices, silent).data.max_mb == there.data.max_mb
    slice_of_8 = text.settled(CONFIG, "v5e-8", None, silent).data.max_mb
    assert slice_of_8 > 4 * text.settled(CONFIG, "v5e-1", None, silent).data.max_mb


def test_every_card_of_the_plans_has_a_rate():
    for name in cards.CARDS:
        lines = []
        text.settled(CONFIG, name, None, lines.append)
        assert "counted" not in lines[1], name


def test_names_and_numbers_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="did you mean"):
        text.settled(CONFIG, "h10", None, silent)
    with pytest.raises(UserError, match="its own 8 devices"):
        text.settled(CONFIG, "v5e-8", 3, silent)


def test_the_tool_says_for_which_devices_it_prepares(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n\n".join(f"line {n} of a tale" * 20 for n in range(300)))
    arguments = [
        "--config=configs/quickstart.py:smoke",
        f"--config.data.source=text:{tmp_path}/a.txt",
        f"--config.data.cache_dir={tmp_path}/data",
        "--config.data.max_mb=budget",
        "--config.data.vocab_size=256",
        "--workers=1",
    ]
    assert prepare_data.main([*arguments, "--device=rtx3060"]) == 0
    named = capsys.readouterr()
    assert "data.max_mb=budget: at most 1 MB" in named.err and "training tokens" in named.out
    assert prepare_data.main([*arguments, "--n_devices=2"]) == 2
    assert "--device" in capsys.readouterr().err
    assert prepare_data.main(arguments) == 0
    assert "the devices of this machine" in capsys.readouterr().err
