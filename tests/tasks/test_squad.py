"""SQuAD's files are read, and answers stand where they are said to stand."""

import gzip
import json

import pytest

from cramjax.errors import UserError
from cramjax.finetuning.request import choose_tasks
from cramjax.tasks import catalogue, squad


def article(context, *questions):
    qas = []
    for number, (text, start) in enumerate(questions):
        answers = [{"text": text, "answer_start": start}] if text else []
        qas.append({"id": f"q{number}", "question": "who ?", "answers": answers})
        if not text:
            qas[-1]["is_impossible"] = True
    return {"title": "x", "paragraphs": [{"context": context, "qas": qas}]}


def of_values(**changed):
    """Returns a file of one question with other values."""
    values = {"context": "a cat", "question": "who ?", "text": "cat", "answer_start": 2} | changed
    answer = {key: values[key] for key in ("text", "answer_start")}
    qa = {"id": "q", "question": values["question"], "answers": [answer]}
    paragraph = {"context": values["context"], "qas": [qa]}
    return json.dumps({"data": [{"paragraphs": [paragraph]}]})


def test_answers_are_placed(tmp_path):
    content = {"data": [article("a cat, a cat", ("cat", 2), ("cat", 8), ("dog", 0), ("", 0))]}
    with gzip.open(tmp_path / "dev.json.gz", "wt") as file:
        json.dump(content, file)
    said = []
    rows = squad.read(tmp_path / "dev.json.gz", said.append)
    assert [row["label"] for row in rows] == [
        [{"text": "cat", "start": 2}],
        [{"text": "cat", "start": 9}],
        [{"text": "dog", "start": -1}],
        [],
    ]
    assert "1 answers moved" in said[0] and "1 answers are not in their context" in said[1]
    assert [row["idx"] for row in rows] == ["q0", "q1", "q2", "q3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "no file of SQuAD"),
        ('{"data": [{}]}', "no file of SQuAD"),
        (of_values(context=None), "no file of SQuAD .TypeError: context=None is no text"),
        (of_values(question=None), "question=None is no text"),
        (of_values(text=5), "text=5 is no text"),
        (of_values(answer_start=float("inf")), "no file of SQuAD .OverflowError"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "train-v1.1.json").write_text(text)
    with pytest.raises(UserError, match=message):
        catalogue.open_task(catalogue.SQUAD, str(tmp_path), print)
    with pytest.raises(UserError, match="train-v2.0.json: no such file"):
        catalogue.open_task(catalogue.SQUAD2, str(tmp_path), print)


def test_tasks_are_found_by_name():
    assert [task.name for task in catalogue.find(["SQuAD", "conll"])] == ["squad", "conll"]
    with pytest.raises(UserError, match="rte is of a suite and squad is not"):
        catalogue.find(["squad", "rte"])
    with pytest.raises(UserError, match="--data_dir: give the folder with the data of squad"):
        choose_tasks(["squad"], None)
    with pytest.raises(UserError, match="unknown; the tasks are cola.*others are conll, squad"):
        catalogue.find(["squadd"])
    noted = json.loads(json.dumps(catalogue.notes(catalogue.SQUAD2)))
    assert catalogue.noted_task(noted).metrics == catalogue.SQUAD2.metrics
    with pytest.raises(UserError, match="have no fields"):
        catalogue.noted_task(noted | {"fields": 3})
