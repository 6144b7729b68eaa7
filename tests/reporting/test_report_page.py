"""The data of a page: figures of the files, whatever is missing, damaged, partial or hostile."""

import hashlib
import json
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.errors import UserError
from cramjax.reporting import (
    curves,
    datasets,
    markdown,
    outcomes,
    page,
    reading,
    spending,
    subjects,
    words,
)
from cramjax.tasks import own, retrieval
from tests.reporting import workdirs
from tools import report


def made(*paths, price=None):
    """The data of the page about `paths`, as the page's script reads them."""
    return json.loads(page.data(page.make(subjects.find(paths), price=price)))


def blocks(content, kind):
    for section in content["sections"]:
        yield from (block for block in section["blocks"] if block["kind"] == kind)


def titled(content, title):
    (block,) = (b for s in content["sections"] for b in s["blocks"] if b.get("title") == title)
    return block


def texts(table):
    rows = []
    for row in table["rows"]:
        rows.append([cell["text"] for cell in row])
    return rows


def test_the_figures_are_those_of_the_summary(tmp_path):
    workdir = workdirs.run(tmp_path)
    summary = json.loads((workdir / "summary.json").read_text())
    table = titled(made(workdir), "Figures, named as in summary.json")
    shown = {row[0]["text"]: row[1]["value"] for row in table["rows"]}
    assert {key: shown[key] for key in summary if key in shown and shown[key] is not None} == {
        key: value for key, value in summary.items() if key in shown and key != "stop_reason"
    }
    assert len(shown) >= 15


def test_curves_are_those_of_the_metrics(tmp_path):
    content = made(workdirs.run(tmp_path))
    loss = titled(content, "Loss")
    train, held_out, unigram = loss["series"]
    assert len(train["y"]) == 20 and len(held_out["y"]) == 4
    assert unigram["style"] == "level" and unigram["y"] == [7.0]
    assert content["xs"][held_out["x"]]["flops"] == [5e6, 10e6, 15e6, 20e6]
    assert content["xs"][train["x"]]["step"] == list(range(1, 21))
    assert [axis["key"] for axis in loss["x"]] == ["tokens", "elapsed_s", "flops", "step"]


def test_runs_stand_side_by_side_and_what_differs_is_marked(tmp_path):
    first = workdirs.run(tmp_path, name="a")
    second = workdirs.run(tmp_path, name="b", config={"seed": 1, "data": {"seq_len": 64}})
    table = titled(made(first, second), "Keys that differ")
    assert table["columns"] == ["", "a", "b"]
    assert texts(table) == [["seed", "0", "1"], ["data.seq_len", "(no such key)", "64"]]
    assert all(cell["mark"] for row in table["rows"] for cell in row[1:])


def test_equal_names_get_their_folders(tmp_path):
    first = workdirs.run(tmp_path / "x", name="run")
    second = workdirs.run(tmp_path / "y", name="run")
    content = made(first, second, first)
    assert [run["name"] for run in content["runs"]] == ["x/run", "y/run"]


def test_seconds_and_costs_add_up(tmp_path):
    content = made(workdirs.run(tmp_path), price=3600.0)
    table = titled(content, "Seconds by kind, and cost at 3600 an hour")
    row = [cell["value"] for cell in table["rows"][0]]
    by_name = dict(zip(table["columns"], row, strict=True))
    assert by_name["steps"] == 30.0 and by_name["evaluation"] == 2.0 and by_name["all"] == 40.0
    assert by_name["cost"] == 40.0 and by_name["of it, steps"] == 30.0
    assert sum(row[1 : table["columns"].index("all")]) == pytest.approx(40.0)


def test_a_run_that_goes_on_has_its_steps_from_the_rates(tmp_path):
    workdir = workdirs.run(tmp_path, is_finished=False)
    content = made(workdir)
    bars = titled(content, "Where the seconds went")
    assert bars["parts"] == {"steps": [25.0], "other": [15.0]}
    assert "goes on, or was stopped" in content["runs"][0]["note"]


def test_the_latest_evaluation_of_a_run_that_goes_on_says_where_its_seconds_went(tmp_path):
    lines = workdirs.metrics(20, evaluations=2)  # at steps 10 and 20, of two seconds each
    noted = {"compile_s": 4.0, "eval_s": 2.0, "save_s": 1.0, "growth_s": 0.0, "data_wait_s": 0.5}
    place = next(place for place, line in enumerate(lines) if "eval_loss" in line)
    lines[place] |= noted
    workdir = workdirs.run(tmp_path, lines=lines[:-1], is_finished=False)
    parts = titled(made(workdir), "Where the seconds went")["parts"]
    # Of the first 20 seconds 12.5 are left. Then come 10 steps of 1.25 seconds at this rate.
    assert parts == {
        "steps": [25.0], "compilation": [4.0], "evaluation": [2.0], "saving": [1.0],
        "waiting for data": [0.5], "other": [7.5],
    }  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(workdirs.SECONDS)), st.floats(0, 100)), st.booleans())
def test_seconds_by_kind_add_up_to_the_time_of_a_run_that_goes_on(noted, is_whole):
    lines = workdirs.metrics(20, evaluations=2)
    place = next(place for place, line in enumerate(lines) if "eval_loss" in line)
    scale = 20.0 / max(20.0, sum(noted.values()))
    lines[place] |= {key: scale * value for key, value in noted.items()}
    if is_whole:
        lines[place] = dict.fromkeys(workdirs.SECONDS, 0.0) | lines[place]
    spent = spending.seconds({"elapsed_s": 40.0}, lines)
    assert sum(spent.values()) == pytest.approx(40.0)
    assert min(spent.values()) >= 0


def test_an_earlier_summary_of_a_run_that_goes_on_is_left_aside(tmp_path):
    workdir = workdirs.run(tmp_path)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(workdirs.metrics(21)[-1] | {"eval_loss": 3.5}) + "\n")
    content = made(workdir)
    shown = {
        row[0]["text"]: row[1]["value"]
        for row in titled(content, "Figures, named as in summary.json")["rows"]
    }
    assert shown["eval_loss"] == 3.5 and "goodput" not in shown


@pytest.mark.parametrize(
    "name, text",
    [
        ("metrics.jsonl", '{"step": 1, "loss"'),
        ("metrics.jsonl", ""),
        ("metrics.jsonl", '[]\n{"step": "x"}\n\x00\n{"step": 1, "loss": null, "tokens": true}\n'),
        ("summary.json", "{"),
        ("summary.json", "[1]"),
        ("config.json", '{"growth": {"stages": [3, {"until": "x"}]}, "optimizer": [1]}'),
        ("environment.json", '{"devices": 3, "packages": [], "dataset": "\\u0000"}'),
        ("history.jsonl", '{"step": 0, "changes": [1]}\n{"step": 2, "changes": {"a": 1}}\n'),
        ("samples.jsonl", '{"step": 1, "texts": [[{"truth": 1}], 3, "x"]}\n'),
    ],
)
def test_damaged_and_partial_files_are_borne(tmp_path, name, text):
    workdir = workdirs.run(tmp_path)
    (workdir / name).write_text(text)
    assert made(workdir)["sections"]
    (workdir / name).unlink()
    assert made(workdir)["sections"]


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**30], ids=["large", "low", "long"])
def test_numbers_beyond_every_measure_are_borne(tmp_path, number):
    def swollen(value):
        """A copy in which every number is replaced."""
        if isinstance(value, dict):
            return {key: swollen(item) for key, item in value.items()}
        if isinstance(value, list):
            return [swollen(item) for item in value]
        return value if isinstance(value, str | bool) else number

    lines = workdirs.metrics()
    lines += [line | {"step": 99 + place} for place, line in enumerate(map(swollen, lines))]
    paths = [workdirs.run(tmp_path, lines=lines), workdirs.finetuning(tmp_path)]
    paths += [workdirs.compression(tmp_path), workdirs.plan(tmp_path), workdirs.dataset(tmp_path)]
    for path in paths[1:]:
        for file in [path] if path.is_file() else path.glob("*.json"):
            workdirs.write(file, swollen(json.loads(file.read_text())))
    for name in ("summary.json", "environment.json", "config.json"):
        workdirs.write(paths[0] / name, swollen(json.loads((paths[0] / name).read_text())))
    assert page.render(page.make(subjects.find(paths), price=1.0))

    # A figure alone among sound ones.
    workdir = workdirs.run(tmp_path, name="one", lines=workdirs.metrics(5))
    for key in ("eval_loss", "lr", "tokens", "elapsed_s", "step"):
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(workdirs.metrics(6, evaluations=6)[-1] | {key: number}) + "\n")
    summary = json.loads((workdir / "summary.json").read_text())
    for key in summary:
        workdirs.write(workdir / "summary.json", summary | {key: number})
        assert page.render(page.make(subjects.find([workdir])))


def test_what_is_no_regular_file_is_said_and_neither_waited_for_nor_left_open(tmp_path):
    workdir = workdirs.run(tmp_path / "study")
    sweep = workdirs.sweep(tmp_path / "study")
    for path in (tmp_path / "study" / "report.md", workdir / "history.jsonl"):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    (workdir / "samples.jsonl").mkdir()
    before = os.listdir("/proc/self/fd")
    shown = page.make(subjects.find([tmp_path / "study"]))
    assert os.listdir("/proc/self/fd") == before
    assert {section.title for section in shown.sections} >= {f"Sweep {sweep.name}", "Loss"}
    said = "\n".join(shown.problems)
    assert all(name in said for name in ("report.md: is no", "history.jsonl: is no", "samples.j"))


def test_damaged_lines_are_counted_and_the_one_being_written_is_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n{"step": 2}\n{"step": 3, "lo')
    problems = []
    lines = reading.read_lines(path, problems)
    assert [line["step"] for line in lines] == [1, 2]
    assert len(problems) == 1 and "1 damaged line(s)" in problems[0]


def test_markup_in_every_text_stays_text(tmp_path):
    evil = workdirs.HOSTILE
    pieces = ["before ", {"truth": evil, "guess": evil}]
    samples = [{"step": 1, "eval_loss": 3.0, "texts": [pieces]}]
    workdir = workdirs.run(
        tmp_path, name="<b>run<", samples=samples, config={evil: evil, "data": {"source": evil}}
    )
    paths = [workdir, workdirs.sweep(tmp_path), workdirs.finetuning(tmp_path)]
    paths += [workdirs.compression(tmp_path), workdirs.plan(tmp_path), workdirs.dataset(tmp_path)]
    text = page.render(page.make(subjects.find(paths)))
    body = text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    assert not re.search("[<>&\u2028]", body)
    head = text.partition("<body>")[0]
    assert "<title>sweep, &lt;b&gt;run&lt;" in head and "<b>" not in head
    assert workdirs.HOSTILE not in text
    # What the script reads is what stood in the files.
    said = json.dumps(json.loads(body), ensure_ascii=False)
    assert json.dumps(evil, ensure_ascii=False)[1:-1] in said


@given(st.recursive(st.text() | st.none() | st.floats(), lambda inner: st.lists(inner, max_size=3)))
def test_any_value_is_safe_in_the_script_and_comes_back(value):
    shown = page.Page(title="t", runs=[], sections=[], problems=[str(value)])
    text = page.data(shown)
    assert not re.search("[<>&\u2028\u2029]", text) and text.isascii()
    assert json.loads(text)["problems"] == [str(value)]


def test_a_long_run_is_thinned_and_the_page_stays_small(tmp_path):
    lines = workdirs.metrics(9000, evaluations=9000)
    lines[7001]["grad_norm"] = lines[7000]["grad_norm"] = 99.0
    content = made(workdirs.run(tmp_path, lines=lines))
    train, held_out, _ = titled(content, "Loss")["series"]
    for series in (train, held_out):
        assert len(series["y"]) <= 2000 and content["xs"][series["x"]]["step"][-1] == 9000
    assert "9000 evaluations" in titled(content, "Loss")["about"]
    assert max(titled(content, "Gradient norm")["series"][0]["y"]) == 99.0


def test_eight_long_runs_make_a_small_page(tmp_path):
    random = np.random.default_rng(0)
    paths = []
    for number in range(8):
        lines = workdirs.metrics(3000, evaluations=3000)
        for line, value in zip(lines, random.lognormal(size=len(lines)), strict=True):
            floats = {key: item * value for key, item in line.items() if key != "step"}
            line |= floats | {"noise_scale": value, "flops": floats["flops"] * 1e12}
            line["tokens"] = 10**9 + 10_007 * line["step"]
            if "eval_loss" in line:
                line |= {"bleu": value, "chrf": value}
        paths.append(workdirs.run(tmp_path, name=f"run-{number}", lines=lines))
    shown = page.make(subjects.find(paths))
    assert len(shown.runs) == 8
    assert len(page.render(shown).encode()) < 3e6


@given(st.integers(1, 300), st.integers(1, 50))
def test_thinned_lines_end_where_the_run_ends(n_lines, most):
    lines = [{"step": number, "loss": 1.0, "tokens": number} for number in range(n_lines)]
    thin = curves.thinned(lines, most)
    assert len(thin) <= most and thin[-1]["step"] == n_lines - 1
    assert all(line["loss"] == 1.0 for line in thin)


def test_old_train_lines_get_their_flops_from_the_evaluations():
    lines = workdirs.metrics(20)
    for line in lines:
        if "loss" in line:
            del line["flops"]
    train, _ = curves.split(lines)
    assert [line["flops"] for line in train] == pytest.approx([1e6 * n for n in range(1, 21)])


def test_growth_is_marked_where_it_happened(tmp_path):
    stages = [[["until", 0.5], ["depth", 0.5]]]  # as a frozen configuration has them
    content = made(workdirs.run(tmp_path, config={"growth": {"stages": stages}}))
    (mark,) = titled(content, "Loss")["marks"]
    assert mark["x"]["step"] == 11
    rows = texts(titled(content, "Stages"))
    assert rows[0][1:] == ["50% of the budget", "depth=0.5"]
    assert rows[1][1:] == ["the end", "the whole network"]


@pytest.mark.parametrize(
    "budget, is_finished, marked",
    [({"steps": 20}, False, [16]), ({"tokens": 9}, True, [16]), ({"tokens": 9}, False, [])],
)
def test_growth_in_shares_of_the_steps_is_marked_by_the_steps(
    tmp_path, budget, is_finished, marked
):
    """The first steps are cheap: three quarters of the steps are 56% of the budget."""
    lines = workdirs.metrics(20)
    for line in lines:
        if "progress" in line:
            line["progress"] = line["step"] ** 2 / 400
    growth = {"until": "steps", "stages": [{"until": 0.75, "depth": 0.5}]}
    config = {"growth": growth, "budget": budget}
    workdir = workdirs.run(tmp_path, lines=lines, config=config, is_finished=is_finished)
    content = made(workdir)
    assert [mark["x"]["step"] for mark in titled(content, "Loss")["marks"]] == marked
    assert texts(titled(content, "Stages"))[0][1] == "75% of the steps"


def test_scores_of_what_a_network_writes_are_shown(tmp_path):
    lines = workdirs.metrics(20)
    signature = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1"
    for place, line in enumerate([line for line in lines if "eval_loss" in line]):
        keys = ("step", "elapsed_s", "tokens", "flops")
        scores = {"bleu": 10.0 + place, "chrf": 30.0 + place}
        lines.append({key: line[key] for key in keys} | scores)
    lines.sort(key=lambda line: line["step"])
    workdir = workdirs.run(tmp_path, lines=lines, is_finished=False)
    content = made(workdir)
    (series,) = titled(content, "BLEU")["series"]
    assert series["y"] == [10.0, 11.0, 12.0, 13.0]
    assert content["xs"][series["x"]]["flops"] == [5e6, 10e6, 15e6, 20e6]
    rows = {row[0]: row[1] for row in texts(titled(content, "Figures, named as in summary.json"))}
    assert rows["bleu"] == "13.00" and rows["chrf"] == "33.00"
    assert "BLEU 13.00" in content["sections"][0]["intro"]

    summary = workdirs.summary(workdirs.metrics(20)) | {"bleu": 14.5, "bleu_signature": signature}
    workdirs.write(workdir / "summary.json", summary)
    table = texts(titled(made(workdir), "Figures, named as in summary.json"))
    assert {row[0]: row[1] for row in table}["bleu_signature"] == signature
    assert {row[0]: row[1] for row in table}["bleu"] == "14.50"


@pytest.mark.parametrize("n_lines", [1, 6, 7, 40])
def test_texts_are_shown_from_the_first_evaluation_to_the_last(tmp_path, n_lines):
    samples = [{"step": step, "texts": [["a"], ["b"]]} for step in range(1, n_lines + 1)]
    (block,) = blocks(made(workdirs.run(tmp_path, samples=samples)), "samples")
    assert len(block["texts"]) == 2
    labels = [reading["label"] for reading in block["texts"][0]]
    assert labels[0] == "step 1" and labels[-1] == f"step {n_lines}"
    assert len(labels) == min(n_lines, 6)


def test_a_sweep_has_its_grid_its_fronts_and_its_failures(tmp_path):
    content = made(workdirs.sweep(tmp_path))
    (grid,) = blocks(content, "parallel")
    assert [axis["label"] for axis in grid["axes"]] == ["lr", "seed", "held-out loss"]
    assert grid["rows"] == [["0.001", "0", 5.0], ["0.01", "0", 6.0], ["0.1", "0", 7.0]]
    by_flops = titled(content, "Held-out loss against training FLOPs")
    front = by_flops["clouds"][-1]
    assert [point["x"] for point in front["points"]] == [1e6]
    by_time = titled(content, "Held-out loss against seconds of training")
    assert [point["y"] for point in by_time["clouds"][-1]["points"]] == [7.0, 6.0, 5.0]
    assert len(titled(content, "All points")["rows"]) == 4


def test_a_study_is_its_sweeps_and_its_tables(tmp_path):
    workdirs.sweep(tmp_path)
    (tmp_path / "report.md").write_text(
        "# Growth\n\n## Equal\n\n| arm | loss |\n|---|---|\n| a | **1.5** |\n\nA *text*.\n"
    )
    content = made(tmp_path)
    assert content["sections"][0]["title"] == f"Study {tmp_path.name}"
    assert titled(content, "Equal")["rows"][0][1] == {"text": "1.5", "value": None, "mark": True}
    assert any(section["title"] == "Sweep sweep" for section in content["sections"])


def test_markdown_of_studies_is_read():
    (note,) = markdown.blocks("# a\n\ntext | with a `bar`\n\n![a picture](bleu.png)\n")
    assert note.text == "text | with a bar"


def test_a_study_has_its_compressions_and_its_curves_by_setting(tmp_path):
    sweep = workdirs.sweep(tmp_path / "study")
    for name, score in (("lr-0.001", 20.0), ("lr-0.01", 30.0)):
        lines = workdirs.metrics(20)
        lines += [{"step": 20, "elapsed_s": 40.0, "tokens": 20000, "flops": 2e7, "bleu": score}]
        config = {"budget": {"hours": 0.1}}
        workdirs.run(sweep, name=name, lines=lines, config=config, is_finished=False)
    workdirs.compression(tmp_path / "study", name="bleu")
    other = workdirs.compression(tmp_path, name="another")
    content = made(tmp_path / "study", other)
    titles = [section["title"] for section in content["sections"]]
    assert titles[:2] == ["Sweep sweep", "Compression bleu"]
    assert titles.index("Compression another") > titles.index("Results")
    assert content["along"] == "elapsed_s"
    chart = titled(content, "BLEU by setting")
    assert chart["groups"] == ["lr=0.001", "lr=0.01"]
    assert [series["group"] for series in chart["series"]] == [0, 1]
    assert [series["y"] for series in chart["series"]] == [[20.0], [30.0]]
    assert content["xs"][chart["series"][1]["x"]]["elapsed_s"] == [40.0]


def test_a_track_is_its_staircase_and_its_entries(tmp_path):
    folder = workdirs.track(tmp_path)
    for number, name in enumerate(("control", "x", "average")):
        out = workdirs.sweep(folder, name=f"{number:02d}-{name}")
        for seed in (0, 1):
            workdirs.run(out, name=f"variant-{name},seed-{seed}")
    content = made(folder)
    evil = workdirs.HOSTILE
    chart = titled(content, "Held-out loss of every entry")
    steps, *clouds = chart["clouds"]
    assert [point["y"] for point in steps["points"]] == [4.125, 3.625, 3.625]
    assert chart["x"]["categories"] == ["control", evil, "average"]
    found = {}
    for cloud in clouds:
        found[cloud["name"]] = [(point["x"], point["y"]) for point in cloud["points"]]
    assert found["entry that won"] == [
        ("control", 4.0),
        ("control", 4.25),
        (evil, 3.5),
        (evil, 3.75),
    ]
    assert found["entry that won, mean"] == [("control", 4.125), (evil, 3.625)]
    assert (
        found["entry that did not"] == [("average", 3.5)] and not found["entry that did not, mean"]
    )
    said = clouds[0]["points"][2]["lines"]
    assert said[1:] == ["mean 3.6250 ± 0.1768", "-0.5000 against control", "p = 0.001", said[-1]]

    rows = texts(titled(content, "Entries; costs are medians of the seeds"))
    assert rows[0] == [
        "control", "", "4.1250", "0.1768", "–", "–", "2M", "180", "1e+12", "best"
    ]  # fmt: skip
    assert rows[2][:4] == ["average", evil, "–", "–"] and rows[2][-1] == ""
    assert "The best now" in content["sections"][0]["intro"]
    # One run of each entry, and no page of each entry's sweep.
    assert [run["name"] for run in content["runs"]] == ["00-control", "01-x", "02-average"]
    assert not any(section["name"].startswith("sweep") for section in content["sections"])


def test_an_old_a_damaged_and_a_young_track_are_borne(tmp_path):
    old = tmp_path / "old"
    workdirs.write(old / "track.json", {"seeds": 2})
    assert "No entry is judged yet." in page.data(page.make(subjects.find([old])))
    (old / "report.md").write_text("# Track\n\n| entry | p |\n|---|---|\n| muon | 0.1 |\n")
    assert texts(titled(made(old), "Track")) == [["muon", "0.1"]]

    sound = workdirs.entry("a", [1.0, 2.0], wins=True)
    bad = [3, {}, sound | {"losses": "x"}, sound | {"losses": [True]}, sound | {"name": 3}]
    odd = [sound, sound | {"difference": "x", "p": [1], "tokens": 10**400, "against": {"a": 1}}]
    content = made(workdirs.track(tmp_path, entries=[*odd, sound | {"losses": []}, *bad]))
    assert "5 damaged entries are left out" in content["problems"][0]
    assert titled(content, "Held-out loss of every entry")["x"]["categories"] == [
        "a",
        "a (1)",
        "a (2)",
    ]


def test_of_many_runs_the_page_says_the_range_and_not_a_sentence_each(tmp_path):
    for place in range(6):
        workdirs.run(tmp_path, name=f"r{place}", lines=workdirs.metrics(20, 9.0 + place))
    content = made(tmp_path)
    results = next(s for s in content["sections"] if s["name"] == "results")
    assert results["intro"] == (
        "6 runs, 6 of them finished. Held-out loss from 8.000 nats (r0) to 13.000 (r5)."
    )
    assert {run["note"] for run in content["runs"]} == {""}


def test_the_table_of_the_training_has_the_rows_of_a_model_card(tmp_path):
    data = {"source": "text:/a/b.txt", "tokenizer": "wordpiece", "seq_len": 128}
    config = {"data": data, "objective": {"name": "mlm", "mask_rate": 0.25}, "batch_size": "x"}
    table = texts(titled(made(workdirs.run(tmp_path, config=config)), "The training in words"))
    rows = dict(table)
    assert rows["data"] == "text:/a/b.txt" and rows["tokenizer"] == "wordpiece"
    assert rows["objective"] == "masked language modelling, 25% of the positions predicted"
    assert rows["hardware"] == "1 × cpu (2 CPU cores)" and "20 steps" in rows["spent"]
    assert not rows.keys() & {"batch", "budget", "optimizer"}  # nothing sound says them


def test_a_figure_that_is_no_number_any_more_is_left_out():
    lines = [{"step": 1, "eval_loss": 3.0, "bleu": 2.0}, {"step": 2, "eval_loss": None}]
    assert outcomes.figures(lines, {}) == {"step": 2, "bleu": 2.0, "steps": 2}
    ended = outcomes.figures(lines, {"steps": 2, "eval_accuracy": 0.5})
    assert "bleu" not in ended  # it is not that of the end


def test_every_seed_is_a_point_beside_published_scores(tmp_path):
    content = made(workdirs.finetuning(tmp_path))
    chart = titled(content, "GLUE: every seed")
    own, *published = chart["clouds"]
    assert len(own["points"]) == 6 and len(published) >= 5
    assert chart["x"]["categories"] == ["CoLA matthews", "RTE accuracy"]
    table = titled(content, "Median ± standard deviation over seeds, percent")
    assert [cell["text"] for cell in table["rows"][0]][1:] == ["60.0 ± 1.0", "60.0 ± 1.0", "60.0*"]


def test_tasks_of_no_suite_have_their_scores(tmp_path):
    spread = {"median": 60.0, "std": 1.0, "seeds": [59.0, 61.0]}
    entry = {"seeds": [0, 1], "n_eval": 10, "point": {}, "failed": 0}
    tags = {name: spread for name in ("f1", "precision", "f1_corporation", "f1_person")}
    squad = {name: spread for name in ("best_f1", "best_f1_threshold", "has_answer_f1")}
    results = {"conll": tags | entry, "own <b>": {"pearson": spread} | entry, "average": 60.0}
    results |= {"suite": "other", "model": "m", "protocol": {"name": "own"}, "unfinished": {}}
    workdirs.write(tmp_path / "tags" / "results.json", results)
    workdirs.write(tmp_path / "squad" / "results.json", {"squad2": squad | entry, "suite": "other"})
    workdirs.write(tmp_path / "bad" / "results.json", {"suite": ["x"], "conll": entry, "q": 3})
    content = made(*(tmp_path / name for name in ("tags", "squad", "bad")))
    labels = ["conll f1", "conll precision", "own <b> pearson", "squad2 best_f1"]
    chart = titled(content, "Tasks: every seed")
    assert chart["x"]["categories"] == labels
    assert [len(cloud["points"]) for cloud in chart["clouds"]] == [6, 2, 0]
    table = titled(content, "Median ± standard deviation over seeds, percent")
    assert table["columns"] == ["model", *labels, "average"]
    assert texts(table)[0][1:] == ["60.0 ± 1.0"] * 3 + ["–", "60.0"]
    assert texts(table)[1][1:] == ["–"] * 3 + ["60.0 ± 1.0", "–"]


@pytest.mark.parametrize("head", own._HEADS)
def test_a_metric_that_a_task_reports_first_has_a_column(tmp_path, head):
    spread = {"median": 60.0, "std": 1.0, "seeds": [59.0, 61.0]}
    for metric in {*own._HEADS[head][2], *(retrieval.RANKS if head == "embeddings" else ())}:
        entry = {"seeds": [0, 1], "n_eval": 10, "point": {}, "failed": 0, metric: spread}
        workdirs.write(tmp_path / "q" / "results.json", {"own": entry, "suite": "other"})
        assert titled(made(tmp_path / "q"), "Tasks: every seed")["x"]["categories"] == [
            f"own {metric}"
        ]


def test_a_compression_has_its_fronts(tmp_path):
    content = made(workdirs.compression(tmp_path))
    chart = titled(content, "accuracy against bytes on disk")
    assert [point["x"] for point in chart["clouds"][-1]["points"]] == [500, 1000, 4000]
    assert "1 damaged entries are left out" in content["sections"][0]["intro"]


def test_a_plan_has_memory_and_time_by_kind(tmp_path):
    content = made(workdirs.plan(tmp_path))
    memory = titled(content, "Memory of a step by kind")
    assert memory["parts"]["optimizer"] == [1.0, 1.0] and memory["limits"] == [12.0, 3.0]
    times = titled(content, "Expected time of a step by kind of kernel")
    assert times["parts"] == {"matmul": [400.0, 400.0], "other": [100.0, 100.0]}


def test_a_dataset_has_lengths_scripts_and_drops(tmp_path):
    folder = workdirs.dataset(tmp_path)
    workdir = workdirs.run(tmp_path)
    environment = {"dataset": str(folder)}
    workdirs.write(workdir / "environment.json", environment)
    content = made(workdir)
    lengths = titled(content, "Lengths of documents")
    assert lengths["parts"]["documents"] == [1, 1, 0, 1]  # 10, 20 and 70 tokens
    scripts = titled(content, "Scripts")
    assert dict(zip(scripts["names"], scripts["parts"]["share of the tokens"], strict=True)) == {
        "Latin": 0.71,
        "Cyrillic": 0.25,
        "digits": 0.04,
    }
    assert titled(content, "Documents kept and dropped")["parts"]["documents"] == [3, 7, 2]


def test_a_dataset_stands_once_whatever_paths_lead_to_it(tmp_path, monkeypatch):
    folder = workdirs.dataset(tmp_path)
    other = workdirs.dataset(tmp_path / "other")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    runs = []
    for name, path in (("a", "data"), ("b", str(tmp_path / "link")), ("c", str(other))):
        runs.append(workdirs.run(tmp_path, name=name))
        workdirs.write(runs[-1] / "environment.json", {"dataset": path})
    sections = [s for s in made(*runs, folder)["sections"] if s["name"].startswith("dataset")]
    assert [section["name"] for section in sections] == ["dataset-0", "dataset-1"]
    assert [section["intro"] for section in sections] == ["Read by a, b.", "Read by c."]
    assert sections[0]["title"] != sections[1]["title"]
    (alone,) = made(folder)["sections"]
    assert alone["intro"] == ""


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
def test_a_damaged_dataset_is_borne(tmp_path, content):
    folder = workdirs.dataset(tmp_path)
    for name in ("unigram.npy", "train-0.docs.npy", "tokenizer/tokenizer.json"):
        (folder / name).write_bytes(content)
    assert titled(made(folder), "The dataset")
    np.save(folder / "train-0.docs.npy", np.array([30, 10, 0], np.uint64))
    assert titled(made(folder), "The dataset")


@pytest.mark.parametrize(
    "token, script",
    [("##ing", "Latin"), ("▁книга", "Cyrillic"), ("本", "Cjk"), ("42", "digits"), ("…", "signs")],
)
def test_scripts_are_those_of_unicode(token, script):
    assert datasets.script_of(token) == script


def test_the_command_writes_one_file_that_loads_nothing(tmp_path, capsys):
    out = tmp_path / "pages" / "report.html"
    workdir = workdirs.run(tmp_path)
    assert report.main([str(workdir), "--out", str(out), "--price", "0.5"]) == 0
    assert "report.html: 1." in capsys.readouterr().out
    text = out.read_text()
    assert len(text) < 3e6 and "default-src 'none'" in text and "connect-src" not in text
    head, _, tail = text.partition("<script>")
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", head)
    assert "unsafe-eval" not in head


@pytest.mark.parametrize(
    "words, said",
    [
        (["gone", "--out", "a.html"], "gone: no such folder or file"),
        (["empty", "--out", "a.html"], "empty: is no run, sweep, study"),
        (["run"], "give either --out FILE.html or --serve"),
        (["run", "--out", "empty"], "--out empty: is a folder"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    workdirs.run(tmp_path)
    assert report.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_folder_of_runs_is_its_runs(tmp_path):
    for name in ("b", "a"):
        workdirs.run(tmp_path, name=name)
    (tmp_path / "other").mkdir()
    assert [run["name"] for run in made(tmp_path)["runs"]] == ["a", "b"]
    with pytest.raises(UserError, match="is no run"):
        subjects.find([tmp_path / "other"])


def test_seconds_of_an_old_summary_are_whole():
    values = {"elapsed_s": 100.0, "goodput": 0.5, "compile_s": 10.0}
    spent = spending.seconds(values, [])
    assert sum(spent.values()) == 100.0 and spent["other"] == 40.0


def test_the_library_is_the_one_that_was_released(root):
    record = (root / "docs" / "decisions" / "0036-pages-with-echarts.md").read_text()
    content = (root / "cramjax" / "reporting" / "assets" / "echarts.min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() in record


def test_the_licences_that_the_library_names_go_with_it_and_with_every_page(root):
    assets = root / "cramjax" / "reporting" / "assets"
    (named,) = re.findall(r"See `/(\S+)` for details", (assets / "echarts.LICENSE").read_text())
    text = page.render(page.Page(title="t", runs=[], sections=[]))
    comment = text.partition("<!--")[2].partition("-->")[0]
    for path in (assets / named, assets / "licenses" / "LICENSE-zrender"):
        assert path.read_text().strip() in comment
    assert "Mike Bostock" in comment and "Baidu Inc." in comment


@pytest.mark.parametrize(
    "n_bytes, text",
    [(999, "999 bytes"), (1020 * 2**10, "1,020 KiB"), (2**20, "1 MiB"), (5 * 2**40, "5,120 GiB")],
)
def test_sizes_have_no_exponent(n_bytes, text):
    assert words.size(n_bytes) == text
