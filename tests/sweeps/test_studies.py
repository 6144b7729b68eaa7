"""Studies: their points are sound, and the report has what the runs of each arm did."""

import json
import pathlib

import pytest

from cramjax.errors import UserError
from cramjax.sweeps import compression_report, grid, growth_report, studies
from cramjax.sweeps.catalogue import STUDIES
from cramjax.sweeps.sweep import Result
from cramjax.training import equal_loss
from tools import study as tool


@pytest.mark.parametrize("name", STUDIES)
def test_every_point_of_a_study_is_sound(name):
    study = STUDIES[name]
    for part in study.sweeps.values():
        assert grid.points_of(study.recipe, part.overrides, grid.parse_grids(part.grids))


def test_where_a_curve_comes_to_a_loss():
    curve = [
        {"eval_loss": loss, "elapsed_s": at}
        for at, loss in ((10, 6.0), (20, 5.0), (30, 5.5), (40, 4.0))
    ]
    assert equal_loss.reached(curve, "elapsed_s", 5.5) == 15
    assert equal_loss.reached(curve, "elapsed_s", 4.75) == 35
    assert equal_loss.reached(curve, "elapsed_s", 7.0) == 10
    assert equal_loss.reached(curve, "elapsed_s", 3.9) is None


def result(folder, values, final, curve=()):
    """A finished run of 100 seconds and 1e9 FLOPs, as a sweep finds it."""
    name = ",".join(values.values())
    point = grid.Point(name=name, values=values, spec="", overrides=(), config={})
    workdir = folder / name
    workdir.mkdir(parents=True)

    lines = []
    for seconds, loss in (*curve, (100, final)):
        line = {"step": seconds, "elapsed_s": seconds, "flops": seconds * 1e7, "eval_loss": loss}
        lines.append(json.dumps(line) + "\n")
    (workdir / "metrics.jsonl").write_text("".join(lines))
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
    results = studies.StudyResults(sweeps={"hours": hours, "sooner": sooner})
    text = growth_report.report(STUDIES["growth"], results)

    assert "| control | 7 | 2.00 M | 1.00e+09 | 4.500 (4.000 to 5.000) | 100% | 100% |" in text
    assert "| stack | 7 | 2.00 M | 1.00e+09 | 3.000 (3.000 to 3.000) | 62% | 62% |" in text
    width = "| width | 7 | 2.00 M | 1.00e+09 | 4.500 (4.500 to 4.500) | 1 of 2 do | 1 of 2 do |"
    assert width in text
    assert "| stack, 0.1 | 4.500 (4.500 to 4.500) | 1 of 2 |" in text
    assert "Equal FLOPs" not in text


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


def test_a_lower_loss_is_better_and_a_cell_without_a_fitting_model_is_empty():
    entries = [
        entry("a", 0, 32, 900_000, (3.0,), "heldout_loss"),
        entry("b", 0, 32, 1e6, (2.0,), "heldout_loss"),
        entry("b", 0, 8, 400_000, (2.5,), "heldout_loss"),
    ]
    assert compression_report.within(entries).splitlines()[2:] == [
        "| a |  | 3.0 (32 bits) |",
        "| b | **2.5** (8 bits) | **2.0** (32 bits) |",
    ]


LARGE = STUDIES["train_large"]


def test_a_run_that_ended_with_nan_has_no_loss(tmp_path):
    hours = []
    for seed, final in (("0", 5.0), ("1", None)):
        hours.append(result(tmp_path, {"seed": seed, "variant": "control"}, final))
        stacked = 4.0 if final else None
        hours.append(result(tmp_path, {"seed": seed, "variant": "stack"}, stacked))
    results = studies.StudyResults(sweeps={"hours": hours, "sooner": hours})
    text = growth_report.report(STUDIES["growth"], results)
    assert "| stack | 7 | 2.00 M | 1.00e+09 | inf (4.000 to inf) | 1 of 2 do | 1 of 2 do |" in text
    assert "| stack | inf (4.000 to inf) | 1 of 2 |" in text


@pytest.mark.parametrize("damaged", ['[{"model": "a"}]', "{}", "[]", "[5]", "[{"])
def test_damaged_entries_of_a_compression_are_named(tmp_path, damaged):
    path = tmp_path / "pareto.json"
    path.write_text(damaged)
    with pytest.raises(UserError, match="pareto.json: .*; delete it"):
        studies.read_entries(path)


@pytest.fixture(scope="module")
def sizes():
    """The points of the sweep whose runs are compressed."""
    return grid.points_of(LARGE.recipe, (), grid.parse_grids(LARGE.sweeps["sizes"].grids))


def leave_run(workdir, point):
    """Leave in `workdir` what a finished run of `point` leaves."""
    (workdir / "config.json").write_text(json.dumps(point.config))
    summary = {"params": 1e6, "steps": 7, "tokens": 2e6, "flops": 1e9}
    summary |= {"elapsed_s": 100, "eval_loss": 5.0}
    (workdir / "summary.json").write_text(json.dumps(summary))


def value_of(flag, command):
    return command[command.index(flag) + 1]


def test_a_study_compresses_what_its_sweeps_have_trained(sizes, tmp_path):
    by_name = {point.name: point for point in sizes}
    runs = []
    compressions = []

    def launch(command, log, stop):
        if "cramjax.main" in command:
            runs.append(command)
            workdir = pathlib.Path(value_of("--workdir", command))
            leave_run(workdir, by_name[workdir.name])
        else:
            compressions.append(command)
            out = pathlib.Path(value_of("--out", command))
            (out / "pareto.json").write_text(json.dumps(SMALL_AND_LARGE))
        return 0

    assert studies.run(LARGE, (), tmp_path, data_dir="glue", launch=launch) == 0
    assert len(runs) == 4
    assert len(compressions) == 2
    assert all("compress" in command for command in compressions)
    assert compressions[0].count("--checkpoint") == 4
    assert value_of("--task", compressions[0]) == "sst2"
    assert "glue" in compressions[1]

    text = (tmp_path / "report.md").read_text()
    assert "1.00 M | 7 | 2.0 M | 1.00e+09 | 5.000" in text
    # Pruned, nothing quantised; quantised, nothing pruned.
    assert "| small | 70.0 (69.0 to 71.0) | 68.0 |" in text
    assert "| large | 80.0 | 79.0 |" in text


def test_a_study_goes_on_after_a_compression_that_failed(sizes, tmp_path, capsys):
    for point in sizes:
        workdir = tmp_path / "sizes" / point.name
        workdir.mkdir(parents=True)
        leave_run(workdir, point)
    tasks = []

    def launch(command, log, stop):
        tasks.append(value_of("--task", command))
        return 1

    assert studies.run(LARGE, (), tmp_path, data_dir="glue", launch=launch) == 1
    assert tasks == ["sst2", "mrpc"]
    assert "sst2  failed with exit code 1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_of_translation_is_scored_over_time_and_compressed_without_a_task(tmp_path):
    study = STUDIES["mt"]
    compressions = []

    def launch(command, log, stop):
        if "cramjax.main" not in command:
            compressions.append(command)
            out = pathlib.Path(value_of("--out", command))
            entries = [entry("small", 0, bits, 1e6 / bits, (bits,), "bleu") for bits in (32, 4)]
            (out / "pareto.json").write_text(json.dumps(entries))
            return 0
        workdir = pathlib.Path(value_of("--workdir", command))
        files = "pairs:m30k/train.de.gz,m30k/train.en.gz"
        assert f"--config.data.source={files}" in command
        bleu = 20.0 + len(workdir.name) + workdir.name.endswith("1")
        lines = [
            {"step": step, "elapsed_s": 60.0 * step, "bleu": bleu - 10 + step} for step in (5, 10)
        ]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"step": 10, "loss": 1.0}])
        (workdir / "metrics.jsonl").write_text(text)
        (point,) = [point for point in points if point.name == workdir.name]
        leave_run(workdir, point)
        summary = json.loads((workdir / "summary.json").read_text())
        scores = {"bleu": bleu, "chrf": 40.0}
        (workdir / "summary.json").write_text(json.dumps(summary | scores))
        return 0

    own = [text.format(data_dir="m30k") for text in study.files]
    points = []
    for part in study.sweeps.values():
        grids = grid.parse_grids(part.grids)
        points += grid.points_of(study.recipe, (*own, *part.overrides), grids)
    assert studies.run(study, (), tmp_path, data_dir="m30k", launch=launch) == 0
    assert len(compressions) == 1 and "--task" not in compressions[0]
    # The size that is too large for the time is not compressed.
    assert compressions[0].count("--checkpoint") == 9

    text = (tmp_path / "report.md").read_text()
    sized = len("variant-L1-H128,seed-0")
    row = f"| L1-H128 | 1.00 M | 7 | 2.0 M | 5.000 (5.000 to 5.000) | {20.0 + sized} "
    assert row in text
    assert f"| L1-H128 | {15.0 + sized} (300 s) | {20.0 + sized} (600 s) |" in text
    assert text.count("## BLEU over time") == 1 and "| L2-H256 | " in text
    assert "## BLEU: quantised, nothing pruned" in text and "| small | 32.0 | 4.0 |" in text
    assert (tmp_path / "bleu.png").stat().st_size > 5000


def test_a_study_says_what_data_it_needs(capsys, tmp_path):
    assert tool.main(["mt", "--out", str(tmp_path / "out")]) == 2
    assert "--data_dir: give the folder of the study's files (data" in capsys.readouterr().err
    assert tool.main(["train_large", "--out", str(tmp_path / "out")]) == 2
    assert (
        "--data_dir: this study finetunes; give the folder with the data of sst2, mrpc"
        in capsys.readouterr().err
    )
    assert tool.main(["growth", "--out", str(tmp_path / "out"), "--data_dir", "glue"]) == 2
    assert "--data_dir: this study finetunes nothing; leave it out" in capsys.readouterr().err
