"""Protocols: what the papers say, and what a command line may change."""

import pathlib

import pytest

from cramjax.errors import UserError
from cramjax.finetuning.protocols import PROTOCOLS
from tools import finetune

GUIDE = pathlib.Path(__file__).parents[2] / "docs/guide/finetune_and_probe.md"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_help_and_guide_name_every_protocol(name):
    assert f"\n  {name} " in finetune.EXAMPLE
    assert f"| `{name}` |" in GUIDE.read_text()


def test_the_cramming_protocol_is_the_papers():
    settings = PROTOCOLS["cramming"].settings
    wanted = {
        "lr": 4e-5,
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-6,
        "batch_size": 16,
        "epochs": 5,
        "schedule": "cosine",
        "warmup": 0.1,
        "final": 0.0,
        "max_length": 128,
        "dropout": 0.1,
        "clip_norm": None,
        "head_width": 1024,
        "pooling": "first",
        "select": "last",
        "single_as_pair": True,
    }
    assert {key: getattr(settings, key) for key in wanted} == wanted
    assert PROTOCOLS["cramming"].n_seeds == 5
    assert PROTOCOLS["cramming"].points("rte") == [{}]


def test_the_protocol_of_24hbert_is_its_readmes():
    """run_glue.py as its README calls it, with the defaults of transformers' Trainer."""
    settings = PROTOCOLS["24hbert"].settings
    wanted = {
        "lr": 5e-5,
        "weight_decay": 0.01,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "clip_norm": 1.0,
        "batch_size": 32,
        "epochs": 5,
        "max_length": 128,
        "schedule": "linear",
        "select": "last",
    }
    assert {key: getattr(settings, key) for key in wanted} == wanted
    assert PROTOCOLS["24hbert"].n_seeds == 5
    # MRPC has 3,668 examples: 115 steps an epoch. The last step ends at 1e-7.
    rates = [settings.learning_rate(step, 575) for step in range(1, 576)]
    assert rates[24] == pytest.approx(2.5e-5) and max(rates) == rates[49] == pytest.approx(5e-5)
    assert rates[-1] == pytest.approx(1e-7)
    assert rates[49] - rates[50] == pytest.approx((5e-5 - 1e-7) / 525)


def test_a_warm_up_in_steps_is_the_same_for_every_task_and_may_be_longer_than_the_run():
    protocol = PROTOCOLS["cramming"].changed(["warmup_steps=10"], [])
    assert protocol.describe()["settings"]["warmup_steps"] == 10
    for n_steps in (20, 2000):
        assert protocol.settings.learning_rate(10, n_steps) == pytest.approx(4e-5)
    assert protocol.settings.learning_rate(5, 5) == pytest.approx(4e-5)
    assert protocol.settings.learning_rate(1, 5) == pytest.approx(4e-5 / 5)


def test_mosaic_starts_small_tasks_from_mnli():
    tasks = ("rte", "mrpc", "stsb", "mnli", "cola", "wnli")
    points = {task: PROTOCOLS["mosaic"].points(task)[0] for task in tasks}
    assert [points[task].get("start_from") for task in tasks] == ["mnli"] * 3 + [None] * 3
    assert points["mrpc"]["lr"] == 8e-5
    assert points["mnli"] == {"batch_size": 48}


def test_a_grid_is_all_combinations():
    protocol = PROTOCOLS["bert"].changed([], ["lr=1e-4,2e-4", "epochs=2,3"])
    values = [(point["lr"], point["epochs"]) for point in protocol.points("cola")]
    assert values == [(1e-4, 2), (1e-4, 3), (2e-4, 2), (2e-4, 3)]
    assert len(PROTOCOLS["bert"].points("cola")) == 4


def test_what_is_set_wins_over_tasks_and_grids():
    mosaic = PROTOCOLS["mosaic"].changed(["lr=1", "rte.epochs=7", "start_from=None"], [])
    assert mosaic.settings.lr == 1.0
    assert type(mosaic.settings.lr) is float
    assert mosaic.points("rte") == [{"weight_decay": 1e-5, "batch_size": 16, "epochs": 7}]
    assert PROTOCOLS["bert"].changed(["lr=1e-3"], []).points("cola") == [{}]

    both = PROTOCOLS["mosaic"].changed(["SST-2.lr=3", "lr=2"], [])
    assert both.settings.lr == 2.0
    assert both.points("sst2")[0]["lr"] == 3.0


@pytest.mark.parametrize(
    ("assignments", "grid", "message"),
    [
        (["learning_rate=1"], [], "no such setting"),
        (["epoch=1"], [], "did you mean epochs"),
        (["lr"], [], "a value is missing"),
        (["lr=fast"], [], "must be float"),
        (["epochs=1.5"], [], "must be int"),
        (["clip_norm=no"], [], "must be float or None"),
        (["epochs=0"], [], "at least 1"),
        (["dropout=1.5"], [], "share below 1"),
        (["schedule=square"], [], "square"),
        (["select=first"], [], "last or best"),
        (["pooling=max"], [], "first or mean"),
        (["optimizer=sgd"], [], "must be one of adamw"),
        (["microbatch_size=5"], [], "must divide batch_size=16"),
        (["coal.lr=1"], [], "coal"),
        (["cola.learn=1"], [], "no such setting"),
        ([], ["lr=1,two"], "must be float"),
        ([], ["epochs=0,1"], "at least 1"),
    ],
)
def test_mistakes_are_named(assignments, grid, message):
    with pytest.raises(UserError, match=message):
        PROTOCOLS["cramming"].changed(assignments, grid)


def test_a_description_has_everything():
    described = PROTOCOLS["mosaic"].describe()
    assert described["by_task"]["rte"]["start_from"] == "mnli"
    assert described["settings"]["max_length"] == 256
