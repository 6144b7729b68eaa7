"""Heads on tokens as whole finetunings: losses, files, resuming, models that are loaded again."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.errors import UserError
from cramjax.finetuning import learning
from cramjax.finetuning.protocols import Protocol, Settings, choose_protocol
from cramjax.inference import load
from cramjax.tasks import catalogue
from tests.finetuning import grammar, reading

QUICK = Settings(
    lr=3e-3,
    epochs=2,
    batch_size=16,
    dropout=0.0,
    attention_dropout=0.0,
    max_length=24,
    stride=8,
)
PROTOCOL = Protocol(name="quick", source="tests", settings=QUICK, n_seeds=2)
finetune = functools.partial(grammar.finetune, protocol=PROTOCOL)


@pytest.fixture(scope="module")
def model():
    return grammar.model()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    reading.write_conll(folder)
    return reading.write_squad(folder)


def opened(model, data, task):
    task_data = catalogue.open_task(task, str(data), lambda _: None)
    return learning.open_task(model, task_data.task, task_data.splits, QUICK, print)


def test_tags_are_trained_together_scored_saved_and_not_done_twice(model, data, tmp_path):
    protocol = dataclasses.replace(PROTOCOL, settings=dataclasses.replace(QUICK, epochs=5))
    options = {"protocol": protocol, "n_seeds": 2, "together": 2, "save": True}
    found, said = finetune(model, data, tmp_path, "conll", **options)
    entry = found["conll"]
    assert found["suite"] == "other" and found["average"] == entry["f1"]["median"]
    assert {"precision", "recall", "accuracy", "f1:animal", "recall_test:color"} <= entry.keys()
    assert found.keys() - {"conll"} == catalogue.RESULT_KEYS
    # The tags follow from the words.
    assert entry["f1"]["median"] > 60 and len(entry["f1"]["seeds"]) == 2
    assert "CoNLL F1" in (tmp_path / "results.md").read_text()

    lines = (tmp_path / "predictions" / "conll.tsv").read_text().splitlines()
    assert len(lines) == 21
    for line in lines[1:]:
        _, predicted, label = line.split("\t")
        assert len(predicted.split()) == len(label.split())

    # The folder is older than some settings.
    path = tmp_path / "setup.json"
    setup = json.loads(path.read_text())
    for name in ("max_question", "n_best", "max_answer"):
        del setup["protocol"]["settings"][name]
    path.write_text(json.dumps(setup))
    _, said = finetune(model, data, tmp_path, "conll", **options)
    assert not [line for line in said if "examples" in line]
    saved = load(tmp_path / "models" / "conll" / "point-0" / "seed-1")
    assert saved.finetuned["head"] == "token"
    assert saved.finetuned["labels"] == ["O", "B-animal", "B-color"]


@pytest.mark.slow
def test_answers_are_written_in_the_official_form(model, data, tmp_path):
    found, _ = finetune(model, data, tmp_path, "squad2")
    gold = json.loads((data / "dev-v2.0.json").read_text())["data"][0]["paragraphs"]
    ids = [qa["id"] for paragraph in gold for qa in paragraph["qas"]]
    texts = json.loads((tmp_path / "predictions" / "squad2.json").read_text())
    odds = json.loads((tmp_path / "predictions" / "squad2_null_odds.json").read_text())
    assert list(texts) == list(odds) == ids
    threshold = json.loads((tmp_path / "runs/squad2/point-0/seed-0.json").read_text())
    threshold = threshold["metrics"]["squad2"]["best_f1_threshold"]
    contexts = {qa["id"]: paragraph["context"] for paragraph in gold for qa in paragraph["qas"]}
    for key, text in texts.items():
        assert text in contexts[key] and bool(text) <= (odds[key] <= threshold)
    assert found["squad2"]["n_eval"] == 18
    assert found["average"] == found["squad2"]["best_f1"]["median"]


def test_the_loss_of_a_span_is_that_of_each_window_alone(model, data):
    feed, objective = opened(model, data, catalogue.SQUAD2)
    plan = feed.plan(range(11))
    batch = feed.arrays(plan, plan.need, 16)
    scores = np.random.default_rng(0).normal(size=(*batch["tokens"].shape, 2)) * 9
    total, weight = objective.losses(jnp.asarray(scores, jnp.float32), batch)

    nats = []
    flat = scores.reshape(-1, 2)
    for number in range(11):
        length = len(feed.sequences("train")[number].ids)
        own = flat[batch["first"][number] :][:length]
        normal = np.log(np.exp(own).sum(axis=0))
        for side, name in enumerate(("starts", "ends")):
            nats.append(normal[side] - flat[batch[name][number], side])
    np.testing.assert_allclose(float(total), sum(nats) / 2, rtol=1e-5)
    assert weight == 11

    # No example gives no gradient, and numbers all the same.
    gradient = jax.grad(lambda scores: objective.losses(scores, batch)[0])
    assert np.isfinite(gradient(jnp.asarray(scores, jnp.float32))).all()
    empty = batch | {"weights": np.zeros(16, np.float32)}
    assert objective.losses(jnp.asarray(scores, jnp.float32), empty)[0] == 0


def test_the_loss_of_tags_counts_words(model, data):
    feed, objective = opened(model, data, catalogue.CONLL)
    plan = feed.plan(range(5))
    batch = feed.arrays(plan, plan.need, 8)
    scores = jnp.zeros((*batch["tokens"].shape, 3))
    total, weight = objective.losses(scores, batch)
    assert float(weight) == (batch["labels"] >= 0).sum() > 0
    np.testing.assert_allclose(float(total / weight), np.log(3), rtol=1e-6)


def test_settings_follow_from_the_kind_of_task():
    tasks = catalogue.find(["squad", "conll"])
    protocol = choose_protocol("cramming", False, ["conll.epochs=9"], (), tasks)
    lengths = [protocol.settings_at(protocol.points(t.name)[0]).max_length for t in tasks]
    assert lengths == [384, 128]
    assert protocol.settings_at(protocol.points("conll")[0]).epochs == 9
    protocol = choose_protocol("cramming", False, ["max_length=200"], (), tasks)
    assert protocol.settings_at(protocol.points("squad")[0]).max_length == 200
    # A protocol's name does not say which model reads the rows.
    protocol = choose_protocol("t5", False, (), (), tasks)
    assert protocol.settings_at(protocol.points("squad")[0]).max_length == 384
    assert "max_length" not in choose_protocol("bert", True, (), (), tasks).points("squad")[0]
    with pytest.raises(UserError, match="stride=0: must be at least 1"):
        choose_protocol("bert", False, ["stride=0"], (), tasks)


@pytest.mark.slow
def test_a_t5_has_no_tags_and_answers_in_words(data, tmp_path):
    model = grammar.model("t5")
    with pytest.raises(UserError, match="conll: is one of tags; a T5 has none"):
        finetune(model, data, tmp_path, "conll")
    protocol = dataclasses.replace(PROTOCOL, settings=dataclasses.replace(QUICK, epochs=1))
    grammar.write_lines(tmp_path / "words.tsv", ["text\tword", *["the red cat\tred"] * 8])
    values = {"head": "text", "text": "text", "label": "word"}
    values |= dict.fromkeys(("train", "validation"), str(tmp_path / "words.tsv"))
    own = tmp_path / "words.yaml"
    own.write_text(json.dumps(values))
    out = tmp_path / "out"
    found, _ = finetune(model, data, out, "squad2", str(own), protocol=protocol)
    assert found["squad2"]["n_train"] == 60
    assert found["words"]["exact_match"]["seeds"] and found["words"]["n_eval"] == 8
    with pytest.raises(UserError, match="words: its answers are free text; take a T5"):
        finetune(grammar.model(), data, tmp_path / "encoder", str(own))
    assert json.loads((out / "predictions" / "squad2.json").read_text()).keys()
