"""Sweeps with stand-ins for runs.

Grids, mistakes before the first run, fronts, what a sweep leaves behind, which points run again.
"""

import csv
import fcntl
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax import figures, pareto
from cramjax.errors import UserError
from cramjax.stop import StopSignal
from cramjax.sweeps import grid, labels, plots, sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "configs" / "quickstart.py")
LRS = {"optimizer.lr": ["0.01", "0.02", "0.03"]}


@pytest.fixture(scope="module")
def points():
    return grid.points_of(f"{RECIPE}:smoke", ["budget.steps=4"], LRS)


class Runs:
    """Stands in for `launch`: leaves what a run leaves, or fails for the points in `failing`.

    At the point `signalled` a signal arrives. `started` has the names of the points it ran for.
    """

    def __init__(self, points, *, failing=(), signalled=None):
        self.configs = {point.name: point.config for point in points}
        self.failing = failing
        self.signalled = signalled
        self.started = []

    def __call__(self, command, log, stop):
        workdir = pathlib.Path(command[command.index("--workdir") + 1])
        self.started.append(workdir.name)
        (workdir / "config.json").write_text(json.dumps(self.configs[workdir.name]))
        if workdir.name == self.signalled:
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested
            return 143
        if workdir.name in self.failing:
            log.write_text("compiling…\nerror: the gradient is not finite\n  at step 3\n")
            return 1
        place = list(self.configs).index(workdir.name)
        leave_run(workdir, params=1000 * (place + 1), eval_loss=3.0 - place)
        return 0


def leave_run(workdir, **values):
    summary = {
        "params": 1000,
        "steps": 4,
        "tokens": 100,
        "flops": 5e12,
        "elapsed_s": 2.5,
        "eval_loss": 3.0,
        "stop_reason": "steps",
    }
    (workdir / "summary.json").write_text(json.dumps(summary | values))
    evals = [{"step": step, "elapsed_s": step / 2, "eval_loss": 9.0 - step} for step in (2, 4)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))


def rows(out):
    with (out / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def touch(drawn, keys, path):
    path.touch()


def run(points, out, launch, draw=touch):
    """Runs a sweep; its picture, which is drawn anew after every point, is what `draw` leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot", draw)
        return sweep.run_sweep(points, out, launch=launch, lines=sweep.Lines(io.StringIO()))


def test_values_are_split_at_commas_outside_brackets():
    grids = grid.parse_grids(
        ["data.source=[['text:a', 1], ['text:b', 2]],installed-docs", "seed=0, 1"]
    )
    assert grids == {
        "data.source": ["[['text:a', 1], ['text:b', 2]]", "installed-docs"],
        "seed": ["0", "1"],
    }
    in_braces = grid.parse_grids(["data.source=text:{a,b}=c.txt"])
    assert in_braces == {"data.source": ["text:{a,b}=c.txt"]}


@pytest.mark.parametrize(
    "texts",
    [
        ["seed"],
        ["seed="],
        ["=1"],
        ["seed=1,,2"],
        ["x=[1,2"],
        ["x=1]"],
        ["seed=1,1"],
        ["seed=1", "seed=2"],
    ],
)
def test_a_malformed_grid_is_the_users_mistake(texts):
    with pytest.raises(UserError, match=r"--grid "):
        grid.parse_grids(texts)


def test_points_are_the_cross_product_with_the_last_grid_fastest():
    grids = {"optimizer.lr": ["0.01", "0.02"], "seed": ["0", "1"]}
    points = grid.points_of(f"{RECIPE}:smoke", ["budget.steps=4"], grids)
    assert [point.name for point in points] == [
        f"optimizer.lr-{lr},seed-{seed}" for lr in ("0.01", "0.02") for seed in "01"
    ]
    last = points[-1].config
    assert (last["optimizer"]["lr"], last["seed"], last["budget"]["steps"]) == (0.02, 1, 4)
    command = points[-1].command(pathlib.Path("x"))
    assert command[3:5] == ["--config", f"{RECIPE}:smoke"]
    assert command[-3:] == [
        "--config.budget.steps=4",
        "--config.optimizer.lr=0.02",
        "--config.seed=1",
    ]


@pytest.mark.parametrize(
    "overrides, grids, differ",
    [
        (["data.max_mb=budget"], {"model.n_layers": ["2", "4"]}, True),
        (["data.max_mb=budget"], {"budget.steps": ["4", "8"]}, True),
        (["data.max_mb=budget"], LRS, False),
        (["data.max_mb=3"], {"model.n_layers": ["2", "4"]}, False),
    ],
)
def test_points_that_read_different_amounts_of_text_are_noticed(overrides, grids, differ):
    assert grid.differ_in_text(grid.points_of(f"{RECIPE}:smoke", overrides, grids)) == differ


def test_the_variant_is_the_argument_of_the_recipe():
    (point,) = grid.points_of(RECIPE, [], {"variant": ["smoke"]})
    assert point.spec == f"{RECIPE}:smoke" and point.config["name"] == "quickstart-smoke"
    assert point.name == "variant-smoke" and not point.overrides


def test_mistakes_of_all_points_are_reported_at_once():
    grids = {
        "variant": ["smoke", "smokey"],
        "optimizer.lr": ["0.1", "high"],
        "model.n_layer": ["2"],
    }
    with pytest.raises(UserError) as caught:
        grid.points_of(RECIPE, ["bach_size=3"], grids)
    text = str(caught.value)
    for part in (
        "did you mean :smoke",
        "optimizer.lr='high'",
        "did you mean model.n_layers",
        "did you mean batch_size",
    ):
        assert text.count(part) == 1, part
    assert "variant-smoke,optimizer.lr-high,model.n_layer-2" in text


@pytest.mark.parametrize(
    "spec, overrides, grids, message",
    [
        (f"{RECIPE}:smoke", [], {"variant": ["smoke"]}, "leave out one"),
        (RECIPE, ["seed=3"], {"seed": ["1", "2"]}, "--config.seed=3: seed has a --grid as well"),
        (RECIPE, [], {}, "at least one"),
        (RECIPE, [], {"optimizer.lr": ["0.1", "1e-1"]}, "the same configuration twice"),
    ],
)
def test_grids_that_contradict_the_rest_are_refused(spec, overrides, grids, message):
    with pytest.raises(UserError, match=message):
        grid.points_of(spec, overrides, grids)


@given(
    st.lists(
        st.dictionaries(st.text(min_size=1), st.text(), min_size=1, max_size=3),
        min_size=2,
        max_size=2,
    )
)
def test_names_are_safe_short_and_differ_where_values_do(pair):
    one, other = map(grid.point_name, pair)
    for name in (one, other):
        assert 0 < len(name) <= grid.MAX_NAME and not set(name) & set("/\\:*?\"<>| '\n\0")
    words = [word for values in pair for word in (*values.keys(), *values.values())]
    if all(word.isalnum() for word in words):
        assert (one == other) == (pair[0] == pair[1])


def test_readable_names_and_hashed_ones():
    name = grid.point_name({"variant": "tiny-nl2", "optimizer.lr": "0.01"})
    assert name == "variant-tiny-nl2,optimizer.lr-0.01"
    slash, colon = (grid.point_name({"data.source": f"text{mark}a"}) for mark in "/:")
    assert slash != colon and slash.startswith("data.source-text_a-")
    assert len(grid.point_name({"data.source": "x" * 500})) == grid.MAX_NAME


def dominates(one, other):
    return one[0] <= other[0] and one[1] <= other[1] and one != other


values = st.one_of(st.integers(0, 5).map(float), st.floats(0, 10))


@given(st.lists(st.tuples(values, values)))
def test_the_front_is_what_nothing_dominates(pairs):
    for pair, on_front in zip(pairs, pareto.front(pairs), strict=True):
        assert on_front == (not any(dominates(other, pair) for other in pairs))


def test_points_without_a_number_are_not_on_the_front_and_beat_nobody():
    nan, inf = float("nan"), float("inf")
    points = [(1, nan), (None, 1.0), (2, 3.0), (-inf, 0.0), (2, 3.0)]
    assert pareto.front(points) == [False, False, True, False, True]


def test_a_sweep_leaves_table_and_picture(points, tmp_path):
    runs = Runs(points)
    assert run(points, tmp_path, runs, draw=plots.plot) == 0
    assert runs.started == [point.name for point in points]
    table = rows(tmp_path)
    assert [row["status"] for row in table] == ["finished"] * 3
    assert [row["optimizer.lr"] for row in table] == LRS["optimizer.lr"]
    assert [float(row["eval_loss"]) for row in table] == [3.0, 2.0, 1.0]
    assert table[0]["workdir"] == str(tmp_path / points[0].name)
    assert table[0]["stop_reason"] == "steps"

    # More parameters and less loss, for the same FLOPs and time.
    assert [row["pareto_params"] for row in table] == ["1", "1", "1"]
    assert [row["pareto_flops"] for row in table] == ["0", "0", "1"]
    assert [row["pareto_s"] for row in table] == ["0", "0", "1"]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_finished_points_are_not_started_again(points, tmp_path):
    run(points[:2], tmp_path, Runs(points))
    runs = Runs(points)
    assert run(points, tmp_path, runs) == 0
    assert runs.started == [points[2].name]
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 3


def leave_runs(points, out):
    """Leaves what finished runs leave, without the sweep's picture."""
    for point in points:
        (out / point.name).mkdir()
        (out / point.name / "config.json").write_text(json.dumps(point.config))
        leave_run(out / point.name)


@pytest.mark.parametrize("damaged", ['{"steps": 4', "[]", '{"elapsed_s": "long"}'])
def test_a_run_whose_summary_is_damaged_is_started_again(points, tmp_path, damaged):
    leave_runs(points, tmp_path)
    (tmp_path / points[1].name / "summary.json").write_text(damaged)
    found = [result.status for result in sweep.find_results(points, tmp_path)]
    assert found == ["finished", "pending", "finished"]


def test_keys_that_came_later_do_not_make_another_configuration(points, tmp_path):
    leave_runs(points, tmp_path)
    path = tmp_path / points[0].name / "config.json"
    config = json.loads(path.read_text())
    del config["data"]["verify"]
    path.write_text(json.dumps(config))
    assert sweep.find_results(points, tmp_path)[0].status == "finished"


def test_the_amount_that_a_run_took_from_its_budget_does_not_make_another_configuration(tmp_path):
    points = grid.points_of(f"{RECIPE}:smoke", ["data.max_mb=budget"], LRS)
    results = sweep.find_results(points, tmp_path)
    for result in results:
        result.workdir.mkdir()
        data = result.point.config["data"] | {"max_mb": 12.5}
        (result.workdir / "config.json").write_text(
            json.dumps(result.point.config | {"data": data})
        )
        leave_run(result.workdir)
    assert [result.status for result in sweep.find_results(points, tmp_path)] == ["finished"] * 3


def test_a_damaged_configuration_is_named(points, tmp_path):
    leave_runs(points, tmp_path)
    path = tmp_path / points[0].name / "config.json"
    path.write_text('{"model": ')
    with pytest.raises(UserError, match=f"{path}: not readable as JSON"):
        sweep.find_results(points, tmp_path)


def test_a_failed_point_is_recorded_the_others_run_and_it_runs_again(points, tmp_path):
    assert run(points, tmp_path, Runs(points, failing={points[1].name})) == 1
    table = rows(tmp_path)
    assert [row["status"] for row in table] == ["finished", "failed", "finished"]
    assert table[1]["error"] == "the gradient is not finite at step 3"
    assert table[1]["eval_loss"] == table[1]["pareto_s"] == ""
    again = Runs(points)
    assert run(points, tmp_path, again) == 0
    assert again.started == [points[1].name] and rows(tmp_path)[1]["error"] == ""


def test_a_run_that_fails_after_its_summary_is_finished_with_the_error(points, tmp_path):
    def fails_late(command, log, stop):
        assert Runs(points)(command, log, stop) == 0
        log.write_text("error: no mask to fill")
        return 1

    assert run(points[:1], tmp_path, fails_late) == 0
    (row,) = rows(tmp_path)
    assert (row["status"], row["error"], row["eval_loss"]) == ("finished", "no mask to fill", "3.0")


def test_an_early_terminated_point_is_finished(points, tmp_path):
    run(points, tmp_path, Runs(points))
    leave_run(tmp_path / points[0].name, stop_reason="early_termination")
    runs = Runs(points)
    assert run(points, tmp_path, runs) == 0 and not runs.started
    assert rows(tmp_path)[0]["stop_reason"] == "early_termination"


def test_a_signal_stops_the_sweep_after_the_running_point(points, tmp_path):
    runs = Runs(points, signalled=points[1].name)
    assert run(points, tmp_path, runs) == 143
    assert runs.started == [point.name for point in points[:2]]
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "stopped", "pending"]
    again = Runs(points)
    assert run(points, tmp_path, again) == 0
    assert again.started == [point.name for point in points[1:]]


def test_a_folder_with_another_configuration_is_refused_before_anything_runs(points, tmp_path):
    run(points, tmp_path, Runs(points))
    changed = grid.points_of(f"{RECIPE}:smoke", ["budget.steps=5"], LRS)
    runs = Runs(changed)
    with pytest.raises(UserError, match="budget.steps is 4 there, 5 now") as caught:
        run(changed, tmp_path, runs)
    assert all(str(tmp_path / point.name) in str(caught.value) for point in points)
    assert not runs.started
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 3


def test_a_second_sweep_in_the_same_folder_is_refused(points, tmp_path):
    def nested(command, log, stop):
        with pytest.raises(UserError, match="--out .*another sweep is using it"):
            run(points, tmp_path, Runs(points))
        return Runs(points)(command, log, stop)

    assert run(points[:1], tmp_path, nested) == 0


def test_lines_say_number_name_state_and_time_left(points, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "plot", touch)
    stream = io.StringIO()
    now = iter(range(0, 1000, 30))
    lines = sweep.Lines(stream, now=lambda: next(now))
    runs = Runs(points, failing={points[2].name})
    sweep.run_sweep(points, tmp_path, launch=runs, lines=lines)

    said = stream.getvalue().splitlines()
    assert said[0] == "3 points, 0 of them finished before"
    assert said[1].startswith("1/3  optimizer.lr-0.01  running") and "left" not in said[1]
    assert said[2] == "1/3  optimizer.lr-0.01  finished after 0:30, held-out loss 3.000  1:00 left"
    assert said[6].startswith(
        "3/3  optimizer.lr-0.03  failed after 0:30: the gradient is not finite"
    )
    assert "sweep.png" in said[-1]


PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("ready", flush=True)
if sys.argv[1] == "fail":
    print("error: " + "no such file"); sys.exit(2)
if sys.argv[1] == "killed":
    signal.raise_signal(signal.SIGKILL)
if sys.argv[1] == "wait":
    import os; os.kill(int(sys.argv[2]), signal.SIGTERM)
    time.sleep(60)
"""


def test_launch_keeps_the_output_and_passes_a_signal_on(tmp_path):
    log = tmp_path / "log.txt"
    with StopSignal() as stop:
        assert sweep.launch([sys.executable, "-c", PROGRAM, "done"], log, stop) == 0
        assert sweep.launch([sys.executable, "-c", PROGRAM, "fail"], log, stop) == 2
        assert sweep.error_of(log, 0, 2) == "no such file"
        start = log.stat().st_size
        assert sweep.launch([sys.executable, "-c", PROGRAM, "killed"], log, stop) == -signal.SIGKILL
        assert sweep.error_of(log, start, -9) == "ended by SIGKILL: ready"

        # The program sends SIGTERM to this process, which passes it on.
        wait = [sys.executable, "-c", PROGRAM, "wait", str(os.getpid())]
        assert sweep.launch(wait, log, stop) == 143
        assert stop.exit_code == 143
    assert log.read_text().count("ready") == 4


# Stands in for a run: asked to stop, it saves for a while.
SAVING = """
import pathlib, sys, time
from cramjax.config.cli import make_parser, run_command
from cramjax.stop import StopSignal
def command(args):
    with StopSignal() as stop:
        print("training", flush=True)
        while not stop.requested: time.sleep(0.05)
        time.sleep(1)
        print("saved", flush=True)
    return stop.exit_code
sys.exit(run_command(command, None, make_parser("test", "A command.", "")))
"""
PARENT = """
import pathlib, sys
from cramjax.stop import StopSignal
from cramjax.sweeps import sweep
with StopSignal() as stop:
    sweep.launch([sys.executable, "-c", sys.argv[1]], pathlib.Path(sys.argv[2]), stop)
"""


def test_a_run_ends_with_its_sweep_and_the_next_sweep_waits_for_it(tmp_path, capsys):
    log = tmp_path / "log.txt"
    killed = subprocess.Popen([sys.executable, "-c", PARENT, SAVING, str(log)], cwd=ROOT)
    while not (log.exists() and "training" in log.read_text()):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()

    with StopSignal() as stop:
        assert sweep.launch([sys.executable, "-c", PROGRAM, "done"], log, stop) == 0
    said = log.read_text().splitlines()
    assert said == [
        "training",
        "the command that started this one has ended",
        "saved",
        "ready",
    ]
    assert "is still saving; waiting for its end" in capsys.readouterr().err


def test_a_signal_ends_the_wait_for_a_run_of_a_killed_sweep(tmp_path):
    log = tmp_path / "log.txt"
    with log.open("ab") as theirs, StopSignal() as stop:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        signal.raise_signal(signal.SIGHUP)
        assert sweep.launch([sys.executable, "-c", PROGRAM, "done"], log, stop) == 129
    assert not log.read_text()


def drawn(label, **summary):
    return plots.Drawn(
        label=label,
        summary=summary or None,
        curve=[
            {"elapsed_s": 1.0, "flops": 1e9, "eval_loss": 5.0},
            {"elapsed_s": 2.0, "eval_loss": summary.get("eval_loss", 4)},
        ],
    )


@pytest.mark.parametrize(
    "points",
    [
        [drawn("alone", params=1e6, flops=1e12, elapsed_s=5.0, eval_loss=3.0)],
        # FLOPs that differ by rounding alone.
        [
            drawn(
                f"equal {n}",
                params=10**n,
                flops=1e12 * (1 + n * 1e-9),
                elapsed_s=9e3,
                eval_loss=3.0,
            )
            for n in range(5)
        ],
        [
            drawn(f"many {n}", params=n + 1, flops=1e9 * n, elapsed_s=n, eval_loss=n % 7)
            for n in range(30)
        ],
        [
            drawn("unfinished"),
            drawn("diverged", params=1, flops=0, elapsed_s=0.0, eval_loss=float("nan")),
        ],
        [
            drawn(
                r"$\name$ that is far longer than what fits beside a point",
                params=None,
                eval_loss=1.0,
            )
        ],
    ],
    ids=["one", "equal", "many", "no_loss", "long"],
)
def test_a_picture_is_drawn_of_whatever_there_is(points, tmp_path, recwarn):
    plots.plot(points, "variant", tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not [str(warning.message) for warning in recwarn]


def test_labels_of_close_points_do_not_overlap():
    figure = figures.new_figure(6, 4, dpi=100)
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    figure.draw_without_rendering()
    marks = [(5.0, 5.0 + 0.05 * place, f"label {place}") for place in range(6)]
    labels.place(axes, marks, [])

    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 6
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])


def test_the_sweep_itself_imports_no_jax():
    check = (
        "import sys, tools.sweep, cramjax.sweeps.sweep; "
        "assert not {'jax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, timeout=60)
