"""Studies: their points are sound, and the report says of each arm what its runs did."""

import json
import pathlib

import pytest

from cramjax.sweeps import compression_report, grid, growth_report, studies
from cramjax.sweeps.catalogue import STUDIES
from cramjax.sweeps.sweep import Result
from tools import study as tool


@pytest.mark.parametrize("name", STUDIES)
def test_every_point_of_a_study_is_sound(name):
    made = STUDIES[name]
    for part in made.sweeps.values():
        assert grid.points_of(made.recipe, part.overrides, grid.parse_grids(part.grids))


def test_where_a_curve_comes_to_a_loss():
    curve = [
        {"eval_loss": loss, "elapsed_s": at}
        for at, loss in ((10, 6.0), (20, 5.0), (30, 5.5), (40, 4.0))
    ]
    assert growth_report.reached(curve, "elapsed_s", 5.5) == 15
    assert growth_report.reached(curve, "elapsed_s", 4.75) == 35
    assert growth_report.reached(curve, "elapsed_s", 7.0) == 10
    assert growth_report.reached(curve, "elapsed_s", 3.9) is None


def result(folder, values, final, curve=()):
    """A finished run of 100 seconds and 1e9 FLOPs, as a sweep finds it."""
    point = grid.Point(
        name=",".join(values.values()), values=values, spec="", overrides=(), config={}
    )
    workdir = folder / point.name
    workdir.mkdir(parents=True)
    lines = [
        {"step": at, "elapsed_s": at, "flops": at * 1e7, "eval_loss": loss}
        for at, loss in (*curve, (100, final))
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"steps": 7, "tokens": 2e6, "flops": 1e9, "elapsed_s": 100, "eval_loss": final}
    return Result(point, workdir, "finished", summary)


def test_the_report_compares_with_the_control_of_the_same_seed(tmp_path):
    hours = []
    for seed, final in (("0", 5.0), ("1", 4.0)):
        hours.append(result(tmp_path / "h", {"seed": seed, "variant": "control"}, final))
        # Reaches 5.0 after 50 and 4.0 after 75 of the control's 100 seconds.
        curve = [(50, 5.0)]
        hours.append(result(tmp_path / "h", {"seed": seed, "variant": "stack"}, 3.0, curve))
        hours.append(result(tmp_path / "h", {"seed": seed, "variant": "width"}, 4.5))
    sooner = [
        result(tmp_path / "s", {"seed": seed, "variant": "stack", "budget.hours": "0.1"}, 4.5)
        for seed in ("0", "1")
    ]
    text = growth_report.report(
        STUDIES["growth"], studies.Found(sweeps={"hours": hours, "sooner": sooner})
    )
    assert "| control | 7 | 2.00 M | 1.00e+09 | 4.500 (4.000 to 5.000) | 100% | 100% |" in text
    assert "| stack | 7 | 2.00 M | 1.00e+09 | 3.000 (3.000 to 3.000) | 62% | 62% |" in text
    assert (
        "| width | 7 | 2.00 M | 1.00e+09 | 4.500 (4.500 to 4.500) | 1 of 2 do | 1 of 2 do |" in text
    )
    assert "| stack, 0.1 | 4.500 (4.500 to 4.500) | 1 of 2 |" in text and "Equal FLOPs" not in text


def test_mistakes_are_one_sentence(capsys, tmp_path):
    assert tool.main(["growt", "--out", str(tmp_path / "out")]) == 2
    assert "growt: no such study; there are growth" in capsys.readouterr().err
    assert tool.main(["growth", "--out", str(tmp_path / "out"), "--config.budget.flops=1e9"]) == 2
    assert (
        "--config.budget.flops=1e9: the study sets budget.flops itself" in capsys.readouterr().err
    )
    assert not pathlib.Path(tmp_path / "out").exists()


def entry(model, prune, bits, size, values, metric="accuracy"):
    value = sorted(values)[len(values) // 2]
    shape = {"model": model, "prune": prune, "bits": bits, "bytes": size, "metric": metric}
    return shape | {"values": list(values), "value": value}


SMALL_AND_LARGE = [
    entry("small", 0, 32, 900_000, (70.0, 69.0, 71.0)),
    entry("small", 0.5, 32, 600_000, (68.0,)),
    entry("large", 0, 32, 3_900_000, (80.0,)),
    entry("large", 0.9, 4, 700_000, (75.0,)),
    entry("large", 0, 4, 1_000_000, (79.0,)),
]


def test_what_is_best_within_so_many_bytes():
    table = compression_report.within(SMALL_AND_LARGE).splitlines()
    assert table[0] == "| accuracy, at most | 1 MB | 2 MB | 4 MB |"
    assert table[2] == "| small | 70.0 (32 bits) | 70.0 (32 bits) | 70.0 (32 bits) |"
    assert table[3] == "| large | **79.0** (4 bits) | **79.0** (4 bits) | **80.0** (32 bits) |"
    # A loss is the better the lower it is, and what fits nowhere is left empty.
    losses = [
        entry(*row)
        for row in (
            ("a", 0, 32, 900_000, (3.0,), "heldout_loss"),
            ("b", 0, 32, 1e6, (2.0,), "heldout_loss"),
        )
    ]
    assert compression_report.within([*losses, entry("b", 0, 8, 400_000, (2.5,), "heldout_loss")]).splitlines()[2:] == [
        "| a |  | 3.0 (32 bits) |",
        "| b | **2.5** (8 bits) | **2.0** (32 bits) |",
    ]  # fmt: skip


def test_a_study_compresses_what_its_sweeps_have_trained(tmp_path):
    made = STUDIES["train_large"]
    points = grid.points_of(made.recipe, (), grid.parse_grids(made.sweeps["sizes"].grids))
    commands = []

    def launch(command, log, stop):
        commands.append(command)
        out = pathlib.Path(
            command[command.index("--workdir" if "--workdir" in command else "--out") + 1]
        )
        if "cramjax.main" in command:
            point = next(point for point in points if point.name == out.name)
            (out / "config.json").write_text(json.dumps(point.config))
            summary = {
                "params": 1e6,
                "steps": 7,
                "tokens": 2e6,
                "flops": 1e9,
                "elapsed_s": 100,
                "eval_loss": 5.0,
            }
            (out / "summary.json").write_text(json.dumps(summary))
        else:
            (out / "pareto.json").write_text(json.dumps(SMALL_AND_LARGE))
        return 0

    assert studies.run(made, (), tmp_path, data_dir="glue", launch=launch) == 0
    sizes = [command for command in commands if "cramjax.main" in command]
    compressions = [command for command in commands if "tools.compress" in command]
    assert len(sizes) == 4 and len(compressions) == 2
    assert (
        compressions[0].count("--checkpoint") == 4
        and compressions[0][compressions[0].index("--task") + 1] == "sst2"
    )
    assert "glue" in compressions[1]
    text = (tmp_path / "report.md").read_text()
    assert "1.00 M | 7 | 2.0 M | 1.00e+09 | 5.000" in text
    assert "| small | 70.0 (69.0 to 71.0) | 68.0 |" in text  # pruned, nothing quantised
    assert "| large | 80.0 | 79.0 |" in text  # quantised, nothing pruned


def test_a_study_goes_on_after_a_compression_that_failed(tmp_path, capsys):
    made = STUDIES["train_large"]
    points = grid.points_of(made.recipe, (), grid.parse_grids(made.sweeps["sizes"].grids))
    for point in points:
        (tmp_path / "sizes" / point.name).mkdir(parents=True)
        (tmp_path / "sizes" / point.name / "config.json").write_text(json.dumps(point.config))
        summary = {
            "params": 1e6,
            "steps": 7,
            "tokens": 2e6,
            "flops": 1e9,
            "elapsed_s": 100,
            "eval_loss": 5.0,
        }
        (tmp_path / "sizes" / point.name / "summary.json").write_text(json.dumps(summary))
    tasks = []

    def launch(command, log, stop):
        tasks.append(command[command.index("--task") + 1])
        return 1

    assert studies.run(made, (), tmp_path, data_dir="glue", launch=launch) == 1
    assert tasks == ["sst2", "mrpc"] and "sst2  failed with exit code 1" in capsys.readouterr().err


def test_a_study_says_what_data_it_needs(capsys, tmp_path):
    assert tool.main(["train_large", "--out", str(tmp_path / "out")]) == 2
    assert (
        "--data_dir: this study finetunes; give the folder with the data of sst2, mrpc"
        in capsys.readouterr().err
    )
    assert tool.main(["growth", "--out", str(tmp_path / "out"), "--data_dir", "glue"]) == 2
    assert "--data_dir: this study finetunes nothing; leave it out" in capsys.readouterr().err
