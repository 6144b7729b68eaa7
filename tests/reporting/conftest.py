"""Real runs for the tests of pages: each is trained once for all of them."""

import pytest

from cramjax import main
from cramjax.sweeps import track
from tests import stepping
from tests.e2e import test_main as bert
from tests.e2e import test_t5_main as t5


@pytest.fixture(scope="session")
def t5_run(corpus, tmp_path_factory):
    """The workdir of a T5 of ten steps, with three evaluations."""
    workdir = tmp_path_factory.mktemp("pages") / "t5"
    flags = ("--config.budget.steps=10", "--config.log.fill_masks=0")
    with stepping.one_device():
        assert main.main(t5.command(corpus, workdir, *flags)[3:]) == 0
    return workdir


@pytest.fixture(scope="session")
def real_track(corpus, tmp_path_factory):
    """The folder of a track: the control and one change, two seeds each, of ten steps.

    Its 00-control and 01-cautious are real sweeps.
    """
    out = tmp_path_factory.mktemp("pages") / "track"
    # The command without interpreter, workdir and recipe: the flags alone.
    flags = [
        flag.removeprefix("--config.")
        for flag in bert.command(corpus, out, *bert.SMALL)
        if flag.startswith("--config.")
    ]
    own = ("budget.steps=10", "eval.every_fraction=0.5", "data.max_mb=None", "model.n_layers=2")
    small = track.Track(recipe="best_small", entries=("cautious",))
    with stepping.one_device():
        code = track.run(small, [*flags, *own], out, n_seeds=2, launch=_train)
    assert code == 0
    return out


def _train(command, log, stop):
    """Stands in for `launch`: trains in this process."""
    return main.main(command[3:])
