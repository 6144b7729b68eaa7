"""Predictions in the form the servers of GLUE and SuperGLUE take."""

import json
import zipfile

import pytest

from cramjax.finetuning import submission
from cramjax.finetuning.heads import head_of
from cramjax.glue.tasks import SUITES, find_tasks
from cramjax.tasks.catalogue import SQUAD2


def lines(name, rows, predictions, suite=None):
    (task,) = find_tasks([name], suite)
    return submission.server_lines(task, rows, predictions)


ROWS = [{"idx": 0}, {"idx": 1}, {"idx": 2}]


@pytest.mark.parametrize(
    ("name", "predictions", "expected"),
    [
        ("cola", [1, 0, None], ["0\t1", "1\t0", "2\t0"]),
        ("rte", [1, 0, None], ["0\tnot_entailment", "1\tentailment", "2\tentailment"]),
        ("mnli", [2, 1, 0], ["0\tcontradiction", "1\tneutral", "2\tentailment"]),
        ("stsb", [5.7, -1.0, 2.25], ["0\t5.000", "1\t0.000", "2\t2.250"]),
        ("wnli", [1, 0, 1], ["0\t1", "1\t0", "2\t1"]),
    ],
)
def test_glue(name, predictions, expected):
    assert lines(name, ROWS, predictions) == ["index\tprediction", *expected]


@pytest.mark.parametrize(
    ("name", "predictions", "labels"),
    [
        ("boolq", [1, 0], ["true", "false"]),
        ("cb", [1, 2], ["contradiction", "neutral"]),
        ("copa", [1, 0], [1, 0]),
        ("wsc", [0, None], ["false", "false"]),
        ("axb", [0, 1], ["entailment", "not_entailment"]),
    ],
)
def test_superglue(name, predictions, labels):
    found = [json.loads(line) for line in lines(name, ROWS[:2], predictions)]
    assert found == [{"idx": number, "label": label} for number, label in enumerate(labels)]


def test_answers_of_a_t5_have_no_odds(tmp_path):
    rows = [{"idx": "p", "label": []}, {"idx": "q", "label": [{"text": "cat"}]}]
    found = [{"text": "x"}, {"text": ""}]
    assert head_of(SQUAD2).score(SQUAD2, rows, found)["best_f1"] == 0
    submission.write_answers(tmp_path, SQUAD2, rows, found, None)
    assert [path.name for path in tmp_path.iterdir()] == ["squad2.json"]
    assert json.loads((tmp_path / "squad2.json").read_text()) == {"p": "x", "q": ""}

    found = [{"text": "x", "no_answer": 2.0}, {"text": "cat", "no_answer": 1.0}]
    submission.write_answers(tmp_path, SQUAD2, rows, found, 1.0)
    assert json.loads((tmp_path / "squad2.json").read_text()) == {"p": "", "q": "cat"}
    assert json.loads((tmp_path / "squad2_null_odds.json").read_text()) == {"p": 2.0, "q": 1.0}


def test_multirc_is_nested_and_record_is_by_query():
    rows = [{"idx": idx} for idx in ((0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3))]
    found = [json.loads(line) for line in lines("multirc", rows, [1, 0, 1, 0])]
    assert found[0] == {
        "idx": 0,
        "passage": {
            "questions": [
                {"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]},
                {"idx": 1, "answers": [{"idx": 2, "label": 1}]},
            ]
        },
    }
    assert found[1]["passage"]["questions"][0]["answers"] == [{"idx": 3, "label": 0}]
    assert json.loads(lines("record", [{"idx": (4, 7)}], ["Ann"])[0]) == {"idx": 7, "label": "Ann"}


def test_the_zip_is_in_the_servers_order_and_the_same_for_the_same_predictions(tmp_path):
    files = {
        "RTE.tsv": ["index\tprediction"],
        "CoLA.tsv": ["index\tprediction"],
        "MNLI-mm.tsv": ["index\tprediction"],
    }
    path, missing = submission.write_submission(tmp_path, "glue", files)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["CoLA.tsv", "MNLI-mm.tsv", "RTE.tsv"]

    missing_names = "SST-2.tsv MRPC.tsv STS-B.tsv QQP.tsv MNLI-m.tsv QNLI.tsv WNLI.tsv"
    assert missing == missing_names.split()

    files = dict(reversed(files.items()))
    path, _ = submission.write_submission(tmp_path, "glue", files)
    assert path.read_bytes() == content


def test_every_task_has_files_of_its_own():
    for tasks in SUITES.values():
        names = []
        for task in tasks:
            names += submission.file_names(task).values()
        # GLUE has nine tasks, and two files for MNLI; SuperGLUE has eight and two diagnostics.
        assert len(names) == len(set(names)) == 10
