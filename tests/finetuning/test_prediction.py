"""Finetuned models predict files: each head, in order, in little memory, as they were scored."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from cramjax.errors import UserError
from cramjax.finetuning import learning, prediction, prediction_files, run, training
from cramjax.finetuning.protocols import Protocol, Settings
from cramjax.finetuning.request import FinetuneRequest
from cramjax.glue.tasks import find_tasks
from cramjax.hub import directory
from cramjax.inference import load
from cramjax.publishing.export import Options, export
from tests.finetuning import grammar, reading
from tools import predict

SETTINGS = Settings(
    lr=3e-3, epochs=1, batch_size=16, dropout=0.0, attention_dropout=0.0, max_length=24, stride=8
)
PROTOCOL = Protocol(name="quick", source="tests", settings=SETTINGS, n_seeds=1)
OWN = {
    "name": "animals",
    "head": "classification",
    "train": "own.tsv",
    "validation": "own.tsv",
    "text": ["first", "second"],
    "label": "animal",
    "metric": ["accuracy", "macro_f1"],
}


@pytest.fixture(scope="module")
def model():
    return grammar.model()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    reading.write_conll(folder)
    lines = ["first\tsecond\tanimal"]
    for number in range(40):
        animal = ("cat", "dog", "bird", "none")[number % 4]
        lines.append(f"the {animal}\ta boat {number}\t{animal}")
    grammar.write_lines(folder / "own.tsv", lines)
    (folder / "animals.yaml").write_text(json.dumps(OWN))
    return reading.write_squad(folder)


@pytest.fixture(scope="module")
def finetuned(model, data, tmp_path_factory):
    """Folder of the finetuning of three heads, with their models."""
    out = tmp_path_factory.mktemp("finetuned")
    request = FinetuneRequest(
        checkpoint="a/model",
        tasks=("conll", "squad2", str(data / "animals.yaml")),
        data_dir=str(data),
        out=out,
        protocol=PROTOCOL,
        n_seeds=1,
        save=True,
    )
    run.Finetuning(request, model, lambda _: None).run()
    return out


def place(finetuned, task):
    return finetuned / "models" / task / "point-0" / "seed-0"


def predicted(finetuned, task, source, out, *flags):
    command = ["--checkpoint", str(place(finetuned, task)), "--input", str(source)]
    assert predict.main([*command, "--out", str(out), *flags]) == 0
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text().splitlines()]
    return out.read_text().splitlines()


def noted(finetuned, task):
    run_file = finetuned / "runs" / task / "point-0" / "seed-0.json"
    return json.loads(run_file.read_text())["predictions"][task]["validation"]


def test_classes_are_those_of_the_finetuning(finetuned, data, tmp_path, monkeypatch):
    # Small chunks, so that a file is several of them.
    monkeypatch.setattr(prediction, "CHUNK", 16)
    opened = []
    open_task = learning.open_task

    def noting(*arguments):
        opened.append(arguments)
        return open_task(*arguments)

    # A tokenizer is as large as its vocabulary, so it is made ready once.
    monkeypatch.setattr(learning, "open_task", noting)
    found = predicted(finetuned, "animals", data / "own.tsv", tmp_path / "out.jsonl")
    assert len(opened) == 1
    labels = load(place(finetuned, "animals")).finetuned["labels"]
    assert sorted(labels) == labels == ["bird", "cat", "dog", "none"]
    assert [row["label"] for row in found] == [labels[n] for n in noted(finetuned, "animals")]
    assert all(0.25 <= row["score"] <= 1 for row in found)

    header, *lines = predicted(finetuned, "animals", data / "own.tsv", tmp_path / "out.tsv")
    assert header == "label\tscore"
    assert [line.split("\t")[0] for line in lines] == [row["label"] for row in found]


def test_tags_are_those_of_the_finetuning(finetuned, data, tmp_path):
    rows = []
    for block in (data / "dev.conll").read_text().strip().split("\n\n"):
        rows.append({"words": [line.split("\t")[0] for line in block.splitlines()]})
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = predicted(finetuned, "conll", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert [row["tags"] for row in found] == noted(finetuned, "conll")

    (tmp_path / "in.txt").write_text('"the cat, (dog)."\n\nold\n')
    header, first, second, _ = predicted(
        finetuned, "conll", tmp_path / "in.txt", tmp_path / "out.tsv"
    )
    assert header == "words\ttags" and second == "\t"
    assert first.split("\t")[0] == '" the cat , ( dog ) . "'


def test_answers_are_those_of_the_finetuning(finetuned, data, tmp_path):
    rows = []
    for paragraph in json.loads((data / "dev-v2.0.json").read_text())["data"][0]["paragraphs"]:
        for qa in paragraph["qas"]:
            rows.append({"q": qa["question"], "c": paragraph["context"]})
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = ("--columns", "q,c")
    found = predicted(finetuned, "squad2", tmp_path / "in.jsonl", tmp_path / "o.jsonl", *names)
    expected = noted(finetuned, "squad2")
    assert [row["answer"] for row in found] == [row["text"] for row in expected]
    np.testing.assert_allclose(
        [row["no_answer"] for row in found], [row["no_answer"] for row in expected], atol=1e-4
    )
    names = (*names, "--threshold=-1e9")
    found = predicted(finetuned, "squad2", tmp_path / "in.jsonl", tmp_path / "o.jsonl", *names)
    assert {row["answer"] for row in found} == {""}


def test_an_export_predicts_the_same(finetuned, tmp_path, monkeypatch):
    """The stock directory of each head, read back by us, once."""
    opened = []
    open_weights = directory.open_weights

    def noting(path):
        opened.append(path)
        return open_weights(path)

    inputs = {
        "animals": {"first": "the cat", "second": "a boat"},
        "conll": {"words": ["the", "cat", "is", "red"]},
        "squad2": {"question": "the red ?", "context": "a big red boat " * 9},
    }
    for task, row in inputs.items():
        ours = prediction.load_finetuned(place(finetuned, task))
        (expected,) = prediction.Predictor(ours).predict([row])
        export(place(finetuned, task), tmp_path / task, tell=lambda _: None)
        with monkeypatch.context() as patch:
            patch.setattr(directory, "open_weights", noting)
            theirs = prediction.load_finetuned(tmp_path / task)
        assert opened.pop() == tmp_path / task and not opened
        theirs = dataclasses.replace(theirs, precision=ours.precision)
        n_texts = None
        if task == "animals":
            n_texts = 2
            row = {"text": row["first"], "text_pair": row["second"]}
        (found,) = prediction.Predictor(theirs, n_texts).predict([row])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, float):
                np.testing.assert_allclose(found[key], value, atol=1e-4)
            else:
                assert found[key] == value


@pytest.mark.slow
@pytest.mark.parametrize("task", ["conll", "squad2"])
def test_torch_gives_the_same_scores_of_tokens(finetuned, task, tmp_path):
    pytest.importorskip("transformers")
    export(place(finetuned, task), tmp_path / "out", Options(verify=True), tell=lambda _: None)
    page = (tmp_path / "out" / "README.md").read_text()
    use = {"conll": "token-classification", "squad2": "question-answering"}[task]
    assert f"pipeline_tag: {use}" in page and f"finetuned from model on {task}" in page


def test_from_python(finetuned):
    animals = load(place(finetuned, "animals"))
    pairs = [("the cat", "a boat"), ("a dog", "a boat")]
    assert [sorted(found) for found in prediction.classify(animals, pairs)] == [
        ["label", "score"]
    ] * 2
    with pytest.raises(UserError, match="1 columns, but a row of animals has 2 texts"):
        prediction.classify(animals, ["the cat"])
    with pytest.raises(UserError, match="entities: this model is finetuned for animals"):
        prediction.entities(animals, "a")

    context = "the old boat is red , the young dog is blue ."
    squad = load(place(finetuned, "squad2"))
    assert prediction.answer(squad, "the red ?", context)["answer"] in context
    text = "The red (cat), the\tBLUE dog."
    for found in prediction.entities(load(place(finetuned, "conll")), text):
        assert text[found["start"] : found["end"]] == found["text"]
        assert found["type"] in ("color", "animal")


def test_words_of_a_text():
    text = ' "Anna\'s (red) cat", she said... --'
    words = prediction.words_of(text)
    assert [text[start : start + len(word)] for word, start in words] == [w for w, _ in words]
    assert [word for word, _ in words] == [
        *('"', "Anna's", "(", "red", ")", "cat", '"', ","),
        *("she", "said", ".", ".", ".", "-", "-"),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--input=none.tsv", "--out=x.tsv"), "--input none.tsv: no such file"),
        (("--input=own.tsv", "--out=x.txt"), "must end in .tsv or .jsonl"),
        (("--input=own.tsv", "--out=x.tsv", "--columns=first,b"), "has no 'b' (found: first, sec"),
        (("--input=own.tsv", "--out=x.tsv", "--columns=first"), "1 columns, but a row of animals"),
        (("--input=text.txt", "--out=x.tsv"), "animals reads first and second; give .tsv"),
        (("--input=text.txt", "--out=x.tsv", "--columns=a,b"), "has no columns; leave --columns"),
        (
            ("--input=own.tsv", "--out=x.tsv", "--threshold=-1"),
            '--threshold: this model of animals gives no score of "no answer"; leave',
        ),
    ],
)
def test_mistakes_are_one_sentence(finetuned, data, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(data)
    pathlib.Path("text.txt").write_text("a cat\n")
    assert predict.main(["--checkpoint", str(place(finetuned, "animals")), *flags]) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and len(said) == 1
    assert not list(data.glob("x.*"))


def test_a_model_without_a_head_is_refused(tmp_path, model):
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no head that predicts; give a model whose class"):
        prediction.load_finetuned(tmp_path)
    config["architectures"] = ["BertForTokenClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"1": "x"}}))
    with pytest.raises(UserError, match="id2label does not name outputs"):
        directory.read_head(tmp_path)
    with pytest.raises(UserError, match="not finetuned"):
        prediction.Predictor(model)
    notes = {"task": "wic", "suite": "superglue", "settings": dataclasses.asdict(SETTINGS)}
    with pytest.raises(UserError, match="a model of wic reads more than texts"):
        prediction.Predictor(dataclasses.replace(model, finetuned=notes | {"seed": 0}))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (find_tasks(["stsb"])[0], {"score": None}),
        (find_tasks(["rte"])[0], {"label": None}),
        (prediction.catalogue.SQUAD2, {"answer": ""}),
    ],
    ids=["stsb", "rte", "squad2"],
)
def test_a_t5_has_no_scores(task, expected, monkeypatch):
    model = grammar.model("t5")
    model = dataclasses.replace(model, finetuned=learning.describe(task, SETTINGS, 0))
    predictor = prediction.Predictor(model)
    assert not predictor.has_odds

    def nothing(objective, params, batches):
        return [np.full((len(batch["tokens"]), 4), model.special["sep"]) for batch in batches]

    monkeypatch.setattr(training, "predict", nothing)
    row = dict.fromkeys(task.fields, "the cat")
    assert list(predictor.predict([row, row])) == [expected] * 2


def test_rows_are_read_one_after_the_other(tmp_path, model):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"txt": "c"}\n')
    task = dataclasses.replace(prediction.catalogue.CONLL, kind="text", fields=("text",))
    rows = prediction_files.rows(path, task, None)
    assert [next(rows), next(rows)] == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(UserError, match="a.jsonl:3: has no 'text'"):
        next(rows)
