"""Studies: their points are sound, and the report says of each arm what its runs did."""

import json
import pathlib

import pytest

from cramjax.study import grid, studies
from cramjax.study.sweep import Result
from tools import study as tool


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_point_of_a_study_is_sound(name):
    made = studies.STUDIES[name]
    for part in made.sweeps.values():
        assert grid.points_of(made.recipe, part.overrides, grid.parse_grids(part.grids))


def test_where_a_curve_comes_to_a_loss():
    curve = [{"eval_loss": loss, "elapsed_s": at} for at, loss in ((10, 6.0), (20, 5.0), (30, 5.5), (40, 4.0))]
    assert studies.reached(curve, "elapsed_s", 5.5) == 15
    assert studies.reached(curve, "elapsed_s", 4.75) == 35
    assert studies.reached(curve, "elapsed_s", 7.0) == 10
    assert studies.reached(curve, "elapsed_s", 3.9) is None


def result(folder, values, final, curve=()):
    """A finished run of 100 seconds and 1e9 FLOPs, as a sweep finds it."""
    point = grid.Point(name=",".join(values.values()), values=values, spec="", overrides=(), config={})
    workdir = folder / point.name
    workdir.mkdir(parents=True)
    lines = [{"step": at, "elapsed_s": at, "flops": at * 1e7, "eval_loss": loss} for at, loss in (*curve, (100, final))]
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
        result(tmp_path / "s", {"seed": seed, "variant": "stack", "budget.hours": "0.1"}, 4.5) for seed in ("0", "1")
    ]
    text = studies.growth_report(studies.STUDIES["growth"], {"hours": hours, "sooner": sooner})
    assert "| control | 7 | 2.00 M | 1.00e+09 | 4.500 (4.000 to 5.000) | 100% | 100% |" in text
    assert "| stack | 7 | 2.00 M | 1.00e+09 | 3.000 (3.000 to 3.000) | 62% | 62% |" in text
    assert "| width | 7 | 2.00 M | 1.00e+09 | 4.500 (4.500 to 4.500) | 1 of 2 do | 1 of 2 do |" in text
    assert "| stack, 0.1 | 4.500 (4.500 to 4.500) | 1 of 2 |" in text and "Equal FLOPs" not in text


def test_mistakes_are_one_sentence(capsys, tmp_path):
    assert tool.main(["growt", "--out", str(tmp_path / "out")]) == 2
    assert "growt: no such study; there are growth" in capsys.readouterr().err
    assert tool.main(["growth", "--out", str(tmp_path / "out"), "--config.budget.flops=1e9"]) == 2
    assert "--config.budget.flops=1e9: the study sets budget.flops itself" in capsys.readouterr().err
    assert not pathlib.Path(tmp_path / "out").exists()
