"""Task files: what they name is read, and every mistake is one sentence with file and key."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from cramjax.errors import UserError
from cramjax.finetuning.heads import head_of
from cramjax.tasks import catalogue, own, tables

REVIEWS = {
    "head": "classification",
    "train": "train.tsv",
    "validation": "dev.tsv",
    "text": "review",
    "label": "stars",
}
TRAIN = 'stars\treview\n3\ta "good" one\n10\tgreat\n3\tfine\n'


def write(folder, values, files):
    path = folder / "reviews.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(path)


def opened(path, said=None):
    (task,) = catalogue.find([path])
    announce = (said if said is not None else []).append
    return catalogue.open_task(task, None, announce)


def test_a_classification_finds_its_labels(tmp_path):
    values = REVIEWS | {"metric": ["macro_f1", "accuracy"], "name": "my-reviews"}
    path = write(tmp_path, values, {"train.tsv": TRAIN, "dev.tsv": TRAIN})
    said = []
    data = opened(path, said)
    task = data.task
    assert (task.name, task.suite, task.kind) == ("my-reviews", "other", "classification")
    # Numbers are in their order: 10 follows 3.
    assert task.labels == ("3", "10") and task.metrics == ("macro_f1", "accuracy")
    assert data.splits["train"][0] == {"idx": 0, "review": 'a "good" one', "label": 0}
    assert said[0] == "my-reviews: train has 3 rows: 3 67%, 10 33%"
    assert catalogue.noted_task(catalogue.notes(task)).labels == task.labels


def test_pairs_of_csv_and_named_numbers_of_jsonl_and_parquet(tmp_path):
    values = REVIEWS | {"text": ["first", "second"], "label": "y", "labels": ["no", "yes"]}
    values |= {"train": "train.csv.gz", "validation": "dev.jsonl", "test": "test.parquet"}
    path = write(tmp_path, values, {})
    with gzip.open(tmp_path / "train.csv.gz", "wt") as file:
        file.write('first,second,y\n"a, b","c\nd",yes\n')
    (tmp_path / "dev.jsonl").write_text('{"first": "a", "second": 2, "y": 0}\n\n')
    table = pyarrow.Table.from_pylist([{"first": "a", "second": "b", "y": 1}])
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    data = opened(path)
    assert data.splits["train"] == [{"idx": 0, "first": "a, b", "second": "c\nd", "label": 1}]
    assert data.splits["validation"][0] == {"idx": 0, "first": "a", "second": "2", "label": 0}
    assert data.splits["test"][0]["label"] == 1
    assert data.task.splits == ("validation", "test")


def test_the_other_heads(tmp_path):
    path = write(
        tmp_path,
        REVIEWS | {"head": "regression", "metric": "spearman"},
        {"train.tsv": TRAIN, "dev.tsv": TRAIN},
    )
    said = []
    data = opened(path, said)
    assert data.splits["train"][1]["label"] == 10.0 and data.task.headline == ("spearman",)
    assert said[0] == "reviews: train has 3 rows, scores from 3 to 10"

    values = {
        "head": "tags",
        "train": "a.jsonl",
        "validation": "a.jsonl",
        "text": "w",
        "label": "t",
    }
    row = json.dumps({"w": ["Oslo", "is"], "t": ["I-LOC", "O"]})
    data = opened(write(tmp_path, values, {"a.jsonl": row}))
    assert data.task.labels == ("O", "B-LOC")

    values |= {"head": "answers", "text": ["q", "c"], "label": "a"}
    rows = [
        {"q": "who ?", "c": "a cat", "a": "cat", "id": 7},
        {"q": "who ?", "c": "a cat", "a": {"text": ["cat"], "answer_start": [2]}},
        {"q": "who ?", "c": "a cat", "a": {"text": ["cat"], "answer_start": [None]}},
        {"q": "who ?", "c": "a cat", "a": []},
    ]
    data = opened(write(tmp_path, values, {"a.jsonl": "\n".join(map(json.dumps, rows))}), said)
    answers = [row["label"] for row in data.splits["train"]]
    assert answers == [[{"text": "cat", "start": 2}]] * 3 + [[]]
    assert [row["idx"] for row in data.splits["train"]] == ["7", "1", "2", "3"]
    assert said[-1].endswith("4 rows, 1 without an answer")


@pytest.mark.parametrize(
    ("metric", "answers", "metrics"),
    [
        (None, ("cat", []), ("best_f1", "best_exact", "f1", "exact_match")),
        ("exact_match", ("cat", []), ("exact_match", "best_f1", "best_exact", "f1")),
        (None, ("cat", "a"), ("f1", "exact_match")),
    ],
)
def test_questions_without_an_answer_have_their_own_metrics(tmp_path, metric, answers, metrics):
    values = {"head": "answers", "text": ["q", "c"], "label": "a"}
    values |= dict.fromkeys(("train", "validation"), "a.jsonl")
    if metric:
        values["metric"] = metric
    rows = [json.dumps({"q": "who ?", "c": "a cat", "a": answer}) for answer in answers]
    said = []
    data = opened(write(tmp_path, values, {"a.jsonl": "\n".join(rows)}), said)
    assert data.task.metrics == metrics and data.task.headline == metrics[:1]
    # A place that nobody gave is not corrected.
    assert not [line for line in said if "moved" in line]

    # To say that there is no answer is right where there is none.
    found = [{"text": "cat", "no_answer": -1.0}, {"text": "a", "no_answer": 9.0}]
    scores = head_of(data.task).score(data.task, data.splits["validation"], found)
    assert scores["exact_match"] == 100 if [] in answers else 50


def test_metrics_of_unanswered_questions_need_one(tmp_path):
    values = {"head": "answers", "text": ["q", "c"], "label": "a", "metric": "best_f1"}
    values |= dict.fromkeys(("train", "validation"), "a.jsonl")
    row = json.dumps({"q": "who ?", "c": "a cat", "a": "cat"})
    with pytest.raises(UserError, match="metric=best_f1: is for questions without an answer, and"):
        opened(write(tmp_path, values, {"a.jsonl": row}))


def test_an_empty_line_is_a_row_of_one_column_only(tmp_path):
    (tmp_path / "one.csv").write_text("review\nred\n\nblue\n")
    assert [row["review"] for _, row in tables.rows(tmp_path / "one.csv")] == ["red", "", "blue"]
    (tmp_path / "two.tsv").write_text("a\tb\n1\t2\n\n")
    assert [row for _, row in tables.rows(tmp_path / "two.tsv")] == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hed": "x"}, "reviews.yaml: hed: no such key; did you mean head"),
        ({"head": "classes"}, "head='classes' is none of classification, regression"),
        ({"head": "answers"}, "text names 1 columns where answers takes 2"),
        ({"metric": "bleu"}, "metric='bleu': classification has accuracy"),
        ({"label": 1.5}, "label=1.5 is no text"),
        ({"label": None}, "label=None is no text"),
        ({"name": "a/b"}, "name='a/b' must be of letters"),
        ({"name": "rte"}, "name=rte: is another task's"),
        ({"name": "model"}, "name=model: is a key of results.json; give a name"),
        ({"head": "regression", "labels": ["a", "b"]}, "labels: regression has none; leave the"),
        ({"labels": ["x", "y"], "train": "square.tsv"}, "stars='²' in row 1 of square.tsv is none"),
        (
            {"label": "star"},
            r"train.tsv:2: has no 'star', which .*reviews.yaml names \(found: stars",
        ),
        ({"text": "body"}, "has no 'body'"),
        ({"train": "none.tsv"}, "none.tsv: no such file"),
        ({"train": "data.xls"}, "the ending is none of .tsv, .csv, .jsonl, .parquet"),
        ({"validation": "other.tsv"}, "stars='4' in row 1 of other.tsv is none of the labels"),
        ({"validation": "empty.tsv"}, "empty.tsv: has no rows"),
        ({"train": "other.tsv"}, "has one label only"),
        ({"train": "short.tsv"}, "short.tsv:2: 1 columns where the first line has 2"),
        ({"head": "regression", "train": "words.tsv"}, "stars='x' is no number"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, change, message):
    files = {
        "train.tsv": TRAIN,
        "dev.tsv": TRAIN,
        "other.tsv": "stars\treview\n4\tfine\n",
        "empty.tsv": "stars\treview\n",
        "short.tsv": "stars\treview\n4\n",
        "words.tsv": "stars\treview\nx\tfine\n",
        "data.xls": "",
        "square.tsv": "stars\treview\n²\tfine\n",
    }
    path = write(tmp_path, REVIEWS | change, files)
    with pytest.raises(UserError, match=message):
        opened(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "reviews.yaml: not YAML"),
        ("- 1", "holds no keys; it needs head, train"),
        ("head: text", "has no train; it needs"),
        ("head: !!python/object/apply:os.system ['x']", "not YAML"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, text, message):
    (tmp_path / "reviews.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        own.read(str(tmp_path / "reviews.yaml"))
    with pytest.raises(UserError, match="none.yaml: not readable"):
        own.read(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"[1]\n", "a.jsonl:1: not a JSON object"),
        ("a.jsonl", b"{\n", "a.jsonl:1: not a line of JSON"),
        ("a.csv", b"a\n\xff\n", "not UTF-8 text"),
        ("a.tsv.gz", b"no", "not readable"),
        ("a.parquet", b"no", "not readable as Parquet"),
    ],
)
def test_damaged_tables_are_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(tables.rows(tmp_path / name))
