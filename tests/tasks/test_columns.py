"""Sentences with tags are read from columns, JSON lines and Parquet, whatever their scheme."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from cramjax.errors import UserError
from cramjax.tasks import catalogue, columns

TABS = "# a comment\nNew York\tNNP\tB-place\nis\tVB\tO\n\nIt\tPR\tO\n"
SPACES = "-DOCSTART- -X- O\n\nNew NNP I-place\nYork NNP I-place\n\nIt PR O\n\n\n"


def read(path, text):
    path.write_text(text)
    return columns.read(path)


def test_columns_with_tabs_and_with_spaces(tmp_path):
    first, second = read(tmp_path / "train.tsv", TABS)
    assert (first["words"], first["label"]) == (["New York", "is"], ["B-place", "O"])
    assert second == {"idx": 1, "words": ["It"], "label": ["O"]}

    rows = read(tmp_path / "dev.txt", SPACES.replace("\n", "\r\n"))
    assert [row["words"] for row in rows] == [["New", "York"], ["It"]]
    said = []
    rows = columns.as_iob2(tmp_path / "dev.txt", rows, said.append)
    assert rows[0]["label"] == ["B-place", "I-place"]
    assert said == [f"{tmp_path}/dev.txt: tags are IOB1, read as IOB2"]


def test_repairs_are_said(tmp_path):
    rows = read(tmp_path / "x.conll", "a B-x\nb O\nc I-x\n")
    said = []
    assert columns.as_iob2(tmp_path, rows, said.append)[0]["label"] == ["B-x", "O", "B-x"]
    assert "1 tags I- without a beginning" in said[0]


def test_lists_of_the_hub(tmp_path):
    row = {"tokens": ["New", "York"], "ner_tags": [1, 2]}
    names = {"feature": {"names": ["O", "B-LOC", "I-LOC"], "_type": "ClassLabel"}}
    info = {"info": {"features": {"ner_tags": names}}}
    table = pyarrow.Table.from_pylist([row])
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    assert columns.read(tmp_path / "train.parquet")[0]["label"] == ["B-LOC", "I-LOC"]

    (tmp_path / "dev.jsonl").write_text('{"words": ["a"], "tags": ["B-LOC"]}\n')
    assert columns.read(tmp_path / "dev.jsonl")[0]["label"] == ["B-LOC"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.conll", "word\n", "a.conll:1: 1 columns where 2 are wanted"),
        ("a.conll", "a b O\nc O\n", "a.conll:2: 2 columns where 3 are wanted"),
        ("a.jsonl", '{"tokens": ["a"], "tags": []}', "1 words and 0 tags"),
        ("a.jsonl", '{"tokens": ["a"]}', "has no tags or ner_tags or labels"),
        ("a.jsonl", '{"tokens": "a", "tags": []}', "tokens is no list"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, text)


def test_files_are_found_by_the_name_of_the_split(tmp_path):
    for name in ("wnut17.train.conll", "eng.testa", "README.md", "testset.txt"):
        (tmp_path / name).write_text("a O\n")
    assert columns.file_of(tmp_path, "train").name == "wnut17.train.conll"
    assert columns.file_of(tmp_path, "validation").name == "eng.testa"
    with pytest.raises(UserError, match="no file for test"):
        columns.file_of(tmp_path, "test")
    (tmp_path / "dev.tsv").write_text("a O\n")
    with pytest.raises(UserError, match=r"several files for validation \(dev.tsv, eng.testa\)"):
        columns.file_of(tmp_path, "validation")


def test_a_task_of_tags_has_the_labels_of_its_data(tmp_path):
    (tmp_path / "train.txt").write_text("a I-x\nb O\n")
    (tmp_path / "dev.txt").write_text("a B-y\nb B-x\n")
    data = catalogue.open_task(catalogue.CONLL, str(tmp_path), lambda _: None)
    assert data.task.labels == ("O", "B-x", "B-y")
    assert data.task.headline == ("f1",)

    for name in ("train", "dev"):
        (tmp_path / f"{name}.txt").write_text("a NN\nb VB\n")
    data = catalogue.open_task(catalogue.CONLL, str(tmp_path), lambda _: None)
    assert (data.task.labels, data.task.headline) == (("NN", "VB"), ("accuracy",))
