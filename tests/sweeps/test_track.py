"""A track: entries are judged against the standing best, and what wins is built upon."""

import json
import pathlib

import numpy as np
import pytest
from scipy import special

from cramjax.config.resolve import resolve
from cramjax.errors import UserError
from cramjax.sweeps import grid, plots, track
from cramjax.sweeps.catalogue import TRACKS

SMALL = track.Track(recipe="best_small", entries=("decay", "muon", "average"))
# Nats by the changes of a run: muon helps, decay does not, and average hurts.
GAINS = {"decay": 0.0, "muon": -0.3, "average": 0.2}
# Of the rate, by how often it was raised: twice is best.
RAISED = (0.0, -0.3, -0.5, -0.2)


class Trains:
    """Stands in for `launch`: a run's loss follows from its variant and seed."""

    def __init__(self, fails=(), numberless=()):
        self.fails = set(fails)
        self.numberless = set(numberless)
        self.variants = []

    def __call__(self, command, log, stop):
        spec = command[command.index("--config") + 1]
        workdir = pathlib.Path(command[command.index("--workdir") + 1])
        flags = [text.removeprefix("--config.") for text in command if "--config." in text]
        config = resolve(spec, flags).to_dict()
        names = spec.partition(":")[2].split("+")
        if names[-1] in self.fails:
            return 1
        self.variants.append(spec.partition(":")[2])
        loss = 4.0 + 0.01 * config["seed"] + sum(GAINS.get(name, 0.0) for name in names)
        loss += RAISED[names.count("lr_up")]
        (workdir / "config.json").write_text(json.dumps(config))
        if names[-1] in self.numberless and config["seed"] == 1:
            loss = None
        summary = dict.fromkeys(("params", "steps", "tokens", "flops", "elapsed_s"), 1e6)
        (workdir / "summary.json").write_text(json.dumps(summary | {"eval_loss": loss}))
        return 0


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """The picture of a sweep is drawn anew after every run, which takes most of a test's time."""
    monkeypatch.setattr(plots, "plot", lambda drawn, keys, path: path.touch())


def test_what_wins_is_built_upon_and_the_rest_stays_in_the_table(tmp_path):
    trains = Trains()
    assert track.run(SMALL, (), tmp_path, n_seeds=2, launch=trains) == 0
    assert trains.variants[::2] == ["control", "decay", "muon", "muon+average"]
    text = (tmp_path / "report.md").read_text()
    assert "The best now: `muon`." in text
    assert [line.split(" | ")[0] for line in text.splitlines() if "±" in line] == [
        "| control",
        "| decay",
        "| muon",
        "| average",
    ]
    assert (tmp_path / "track.png").stat().st_size > 1000

    # Again with the same folder, nothing is trained anew.
    again = Trains()
    assert track.run(SMALL, (), tmp_path, n_seeds=2, launch=again) == 0
    assert not again.variants and (tmp_path / "report.md").read_text() == text


def test_a_change_is_tried_again_only_on_top_of_another_best(tmp_path, capsys):
    trains = Trains()
    names = ("decay", "decay", "muon", "decay", "muon")
    entries = track.Track(recipe="best_small", entries=names)
    assert track.run(entries, (), tmp_path, n_seeds=2, launch=trains) == 0
    assert trains.variants[::2] == ["control", "decay", "muon", "muon+decay"]
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["00-control", "01-decay", "03-muon", "04-decay"]
    lines = capsys.readouterr().err.splitlines()
    passed_over = [line for line in lines if "tried already" in line]
    assert passed_over == [
        "decay: on control it is decay, which was tried already",
        "muon: on muon it is muon, which was tried already",
    ]


def test_a_factor_that_wins_is_tried_once_more_and_not_taken_back(tmp_path, capsys):
    trains = Trains()
    entries = track.Track(recipe="best_small", entries=("lr_up", "lr_down", *("lr_up",) * 3))
    assert track.run(entries, (), tmp_path, n_seeds=2, launch=trains) == 0
    assert trains.variants[::2] == ["control", "lr_up", "lr_up+lr_up", "lr_up+lr_up+lr_up"]
    assert "lr_down: on lr_up it is control, which was tried" in capsys.readouterr().err


def test_a_change_that_contradicts_the_best_is_passed_over(tmp_path, capsys):
    trains = Trains()
    # The momentum that rises is Muon's.
    entries = track.Track(recipe="best_small", entries=("momentum", "muon", "momentum"))
    assert track.run(entries, (), tmp_path, n_seeds=2, launch=trains) == 0
    assert trains.variants[::2] == ["control", "muon", "muon+momentum"]
    assert "momentum: not tried on control: " in capsys.readouterr().err
    with pytest.raises(UserError, match="momentum_warmup"):
        overrides = ("optimizer.momentum_warmup=300",)
        track.run(entries, overrides, tmp_path / "two", n_seeds=2, launch=trains)


def test_a_failed_run_ends_it(tmp_path):
    assert track.run(SMALL, (), tmp_path, n_seeds=2, launch=Trains(fails=["muon"])) == 1
    assert "muon" not in (tmp_path / "report.md").read_text()


def test_an_entry_without_a_number_does_not_win_and_a_control_without_one_is_no_measure(tmp_path):
    trains = Trains(numberless=["muon"])
    assert track.run(SMALL, (), tmp_path / "one", n_seeds=2, launch=trains) == 0
    text = (tmp_path / "one" / "report.md").read_text()
    assert (
        "| muon | control | no number | +inf | 1 |" in text and "The best now: `control`." in text
    )
    with pytest.raises(UserError, match="00-control: a run of the control ended with no number"):
        trains = Trains(numberless=["control"])
        track.run(SMALL, (), tmp_path / "two", n_seeds=2, launch=trains)


def test_another_number_of_seeds_takes_another_folder(tmp_path):
    small = track.Track(recipe="best_small", entries=())
    assert track.run(small, (), tmp_path, n_seeds=2, launch=Trains()) == 0
    with pytest.raises(UserError, match="--seeds 3: .*track.json has {'seeds': 2}"):
        track.run(small, (), tmp_path, n_seeds=3, launch=Trains())


def test_p_is_welchs():
    fast, slow = [1.0, 1.1, 0.9, 1.0], [1.3, 1.6, 1.1, 1.4]
    parts = np.var(fast, ddof=1) / 4, np.var(slow, ddof=1) / 4
    t = (np.mean(fast) - np.mean(slow)) / np.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 3)
    assert track._welch(fast, slow) == pytest.approx(special.stdtr(freedom, t))
    assert track._welch([1.0, float("inf")], slow) == 1.0


def test_one_seed_is_refused(tmp_path):
    with pytest.raises(UserError, match="--seeds 1: a track compares means"):
        track.run(SMALL, (), tmp_path, n_seeds=1)


@pytest.mark.parametrize("name", TRACKS)
def test_every_entry_goes_with_all_before_it(name):
    listed = TRACKS[name]
    whole = "+".join(listed.entries)
    grid.points_of(listed.recipe, (), {"variant": [whole, f"{whole}+wide"], "seed": ["0"]})
