"""A finetuning as a whole, in this process: files, resuming, failures, limits, starting models."""

import dataclasses
import json
import shutil
import zipfile

import jax
import numpy as np
import pytest

from cramjax.errors import UserError
from cramjax.finetuning import results, run, training
from cramjax.finetuning.protocols import PROTOCOLS, Protocol, Settings, choose_protocol
from cramjax.finetuning.request import FinetuneRequest, choose_tasks
from cramjax.glue.published import GLUE
from cramjax.glue.tasks import SUITES
from cramjax.inference import load
from tests.finetuning import grammar

QUICK = Settings(lr=2e-3, epochs=1, batch_size=16, dropout=0.1, attention_dropout=0.0)
PROTOCOL = Protocol(name="quick", source="tests", settings=QUICK, n_seeds=2)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return grammar.write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def model():
    return grammar.model()


def finetune(model, glue, out, tasks=("cola",), protocol=PROTOCOL, **options):
    said = []
    options = {"n_seeds": protocol.n_seeds} | options
    request = FinetuneRequest(
        checkpoint="a/model", tasks=tasks, data_dir=str(glue), out=out, protocol=protocol, **options
    )
    return run.Finetuning(request, model, said.append).run(), said


def test_results_are_what_the_contract_says(model, glue, tmp_path):
    tasks = ("rte", "cola", "STS-B")
    found, said = finetune(model, glue, tmp_path, tasks, submit=True, compare=True)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))
    entries = [name for name, value in found.items() if isinstance(value, dict)]
    assert [name for name in entries if "n_eval" in found[name]] == ["cola", "stsb", "rte"]

    metrics = "cola matthews, stsb pearson, stsb spearman, rte accuracy"
    for task, metric in (pair.split() for pair in metrics.split(", ")):
        spread = found[task][metric]
        assert {"median", "mean", "std", "min", "max", "seeds"} <= spread.keys()
        assert len(spread["seeds"]) == 2
        assert spread["min"] <= spread["median"] <= spread["max"]

    assert found["cola"]["n_train"] == 48
    assert found["cola"]["n_eval"] == 24

    numbers = [found["cola"]["matthews"], found["stsb"]["pearson"], found["rte"]["accuracy"]]
    assert abs(found["average"] - np.mean([entry["median"] for entry in numbers])) < 0.01
    assert "sst2 accuracy" in found["average_missing"]
    assert found["protocol"]["settings"]["lr"] == 2e-3

    page = (tmp_path / "results.md").read_text()
    places = [page.index(head) for head in ("CoLA MCC", "STS-B Pearson", "RTE acc", "average")]
    assert places == sorted(places)
    assert "lr=0.002" in page
    assert "BERT-base, fully trained" in page
    assert "8,551 were published" in page
    assert any("8,551" in line for line in said)

    lines = (tmp_path / "predictions" / "cola.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction\tlabel"
    assert len(lines) == 25
    assert lines[1].endswith("\tunacceptable")

    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == ["CoLA.tsv"]
        assert len(archive.read("CoLA.tsv").splitlines()) == 11


def test_a_second_time_only_what_is_missing_is_done(model, glue, tmp_path, monkeypatch):
    first, _ = finetune(model, glue, tmp_path, ("cola", "rte"))
    (tmp_path / "runs" / "rte" / "point-0" / "seed-1.json").unlink()
    trained = []
    train = training.train

    def noting_seeds(feed, objective, settings, params, seeds, **options):
        trained.append(seeds)
        return train(feed, objective, settings, params, seeds, **options)

    monkeypatch.setattr(training, "train", noting_seeds)
    again, _ = finetune(model, glue, tmp_path, ("cola", "rte"))
    assert trained == [[1]]

    for entry in (first["rte"], again["rte"]):
        entry.pop("seconds_per_seed")

    assert first["rte"] == again["rte"]
    assert first["cola"] == again["cola"]


@pytest.mark.slow
def test_seeds_that_were_trained_together_are_redone_together(model, glue, tmp_path, monkeypatch):
    first, said = finetune(model, glue, tmp_path, together=2)
    assert any("seed 0, 1" in line for line in said)
    (tmp_path / "runs" / "cola" / "point-0" / "seed-0.json").unlink()
    again, _ = finetune(model, glue, tmp_path, together=2)
    assert first["cola"]["matthews"] == again["cola"]["matthews"]


def test_a_folder_of_another_protocol_or_model_is_left_alone(model, glue, tmp_path):
    finetune(model, glue, tmp_path)
    other = dataclasses.replace(PROTOCOL, settings=dataclasses.replace(QUICK, lr=1e-4))
    with pytest.raises(UserError, match="another protocol"):
        finetune(model, glue, tmp_path, protocol=other)
    with pytest.raises(UserError, match="another model"):
        finetune(model, glue, tmp_path, untrained=True)


def test_the_best_point_of_a_grid_is_shown_and_all_are_listed(model, glue, tmp_path):
    protocol = dataclasses.replace(PROTOCOL, grid={"lr": (1e-8, 2e-2)}, n_seeds=1)
    protocol = dataclasses.replace(protocol, settings=dataclasses.replace(QUICK, epochs=12))
    found, _ = finetune(model, glue, tmp_path, protocol=protocol)
    medians = [point["median"] for point in found["cola"]["grid"]]

    assert found["cola"]["matthews"]["median"] == max(medians)
    assert medians[1] > medians[0]
    assert found["cola"]["point"] == {"lr": 2e-2}
    # A model that gives one answer for everything has failed, and is counted.
    assert found["cola"]["grid"][0]["failed"] == 1


def test_the_clock_stops_new_runs_and_says_so(model, glue, tmp_path):
    found, _ = finetune(model, glue, tmp_path, ("cola", "rte"), hours=1e-9)
    assert found["average"] is None
    assert set(found["unfinished"]) == {"cola", "rte"}
    found, _ = finetune(model, glue, tmp_path, ("cola",))
    assert found["unfinished"] == {}
    assert found["cola"]["n_eval"] == 24


def test_a_task_can_start_from_the_model_of_another(model, glue, tmp_path):
    protocol = dataclasses.replace(PROTOCOL, by_task={"cola": {"start_from": "rte"}}, n_seeds=1)
    with pytest.raises(UserError, match="add rte"):
        finetune(model, glue, tmp_path / "alone", protocol=protocol)
    found, said = finetune(model, glue, tmp_path / "both", ("cola", "rte"), protocol=protocol)

    assert [line.split()[0] for line in said if "examples" in line] == ["RTE", "CoLA"]

    # The model is made again if it is needed again, and only then.
    shutil.rmtree(tmp_path / "both" / "models")
    _, said = finetune(model, glue, tmp_path / "both", ("cola", "rte"), protocol=protocol)
    assert not [line for line in said if "examples" in line]
    (tmp_path / "both" / "runs/cola/point-0/seed-0.json").unlink()
    _, said = finetune(model, glue, tmp_path / "both", ("cola", "rte"), protocol=protocol)
    assert "RTE seed 0: the result is there, the model not; training again" in said
    assert [line.split()[0] for line in said if "examples" in line] == ["RTE", "CoLA"]

    alone, _ = finetune(
        model, glue, tmp_path / "plain", ("cola",), dataclasses.replace(PROTOCOL, n_seeds=1)
    )
    with_start, without = (
        json.loads((tmp_path / name / "runs/cola/point-0/seed-0.json").read_text())
        for name in ("both", "plain")
    )

    assert with_start["loss"] != without["loss"]
    assert found["cola"]["seeds"] == [0]


def test_a_saved_model_is_a_folder_like_a_run(model, glue, tmp_path):
    finetune(model, glue, tmp_path, save=True)
    saved = load(tmp_path / "models" / "cola" / "point-0" / "seed-1")
    assert saved.params["classifier"]["out"]["kernel"].shape == (32, 3)
    assert saved.config == dataclasses.replace(model.config, unroll=saved.config.unroll)

    moved = jax.tree.map(
        lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))),
        saved.params["encoder"],
        model.params["encoder"],
    )

    assert any(jax.tree.leaves(moved))


def test_what_is_asked_for_later_is_made_for_results_that_are_there(model, glue, tmp_path):
    options = {"tasks": ("cola",), "n_seeds": 1}
    first, _ = finetune(model, glue, tmp_path, **options)

    # CoLA has a test set, RTE has none.
    _, said = finetune(model, glue, tmp_path, submit=True, **options)
    lacking = "the predictions for the test set"
    assert f"CoLA seed 0: the result is there, {lacking} not; training again" in said
    assert (tmp_path / "submission.zip").is_file()

    second, said = finetune(model, glue, tmp_path, save=True, **options)
    assert "CoLA seed 0: the result is there, the model not; training again" in said
    load(tmp_path / "models" / "cola" / "point-0" / "seed-0")
    assert second["cola"]["matthews"] == first["cola"]["matthews"]

    # Each kept what the other had made.
    _, said = finetune(model, glue, tmp_path, save=True, submit=True, **options)
    assert not [line for line in said if "training again" in line or "examples" in line]


def test_a_pooler_is_where_a_head_of_its_width_starts(model):
    pooler = {"kernel": np.full((32, 32), 0.5, np.float32), "bias": np.zeros(32, np.float32)}
    for width, taken in ((None, True), (48, False)):
        objective = grammar.classifying(model.config, head_width=width)
        params = objective.init(jax.random.key(0), model.params | {"pooler": pooler})
        assert bool(np.all(np.asarray(params["classifier"]["dense"]["kernel"]) == 0.5)) is taken
        assert set(params) == {"encoder", "classifier"}


@pytest.mark.parametrize(
    "published", [row for row in GLUE if len(row.scores["mnli"]) == 2], ids=lambda row: row.model
)
def test_the_average_is_the_one_the_published_rows_have(published):
    entries = {}
    for task in SUITES["glue"]:
        names = zip(task.headline, published.scores.get(task.name, ()), strict=False)
        entries[task.name] = {name: {"median": value} for name, value in names}
    average, missing = results.average(SUITES["glue"], entries)

    assert abs(average - published.average) < 0.11
    assert missing == []


def test_unknown_protocols_and_diagnostics_alone_are_refused(glue):
    with pytest.raises(UserError, match="there are cramming, bert, 24hbert, mosaic, t5"):
        choose_protocol("crammed", False, [], [])
    assert choose_protocol(None, True, [], []) == PROTOCOLS["t5"]
    with pytest.raises(UserError, match="add rte"):
        choose_tasks(["axb"], str(glue))


def test_diagnostics_are_answered_by_the_model_of_rte(model, tmp_path):
    rows = []
    for i in range(8):
        label = ("entailment", "not_entailment")[i % 2]
        rows.append({"idx": i, "premise": "the red dog", "hypothesis": "the dog", "label": label})
    for folder, name, extra in (
        ("RTE", "train", {}),
        ("RTE", "val", {}),
        ("AX-g", "AX-g", {"pair_id": 551646}),
    ):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row | extra) for row in rows]
        (tmp_path / "data" / folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")

    found, _ = finetune(model, tmp_path / "data", tmp_path / "out", ("rte", "axg"))

    assert found["suite"] == "superglue"
    assert found["axg"]["gender_parity"]["median"] == 100
    assert found["axg"]["n_eval"] == 8
    assert (tmp_path / "out" / "predictions" / "axg.tsv").is_file()
    assert found["average"] == found["rte"]["accuracy"]["median"]
