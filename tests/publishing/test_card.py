"""The card of a finetuned model names its task, its splits and its metrics as the Hub does."""

import json

import pytest
from huggingface_hub import ModelCard

from cramjax.glue.tasks import SUITES, Task
from cramjax.publishing import card
from cramjax.publishing.facts import Facts
from cramjax.tasks import catalogue

T5 = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
BERT = {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
SETTINGS = {"lr": 1e-4}
TASKS = [task for suite in SUITES.values() for task in suite if not task.first]


def written(folder, raw, *, task: Task | None = None, scores=None, results=None):
    finetuned = None
    if task:
        finetuned = catalogue.notes(task) | {"settings": SETTINGS, "seed": 0}
    facts = Facts(
        folder=folder,
        config={},
        environment={},
        spent={},
        finetuned=finetuned,
        results=results,
        scores=scores or {},
    )
    card.write(folder, facts, raw, name="me/x", license="mit", language="en")
    page = (folder / "README.md").read_text()
    return page, ModelCard(page).data


@pytest.mark.parametrize(
    "task", [*TASKS, catalogue.SQUAD], ids=lambda task: f"{task.suite}-{task.name}"
)
def test_the_example_of_a_t5_is_as_it_reads_the_task(tmp_path, task):
    page, _ = written(tmp_path, T5, task=task)
    if task.kind == "span":
        assert "question: Where does Anna live? context: Anna lives in Oslo." in page
    elif task.name == "wsc":
        assert "wsc: Anna sang because *she* was glad." in page
    else:
        assert f'tokenizer("{task.name} ' in page
        assert all(f"{field}: " in page for field in task.fields)


def test_splits_thresholds_and_uses_are_those_of_the_task(tmp_path):
    scores = {"best_f1": 70.0, "best_f1_threshold": -1.5, "f1": 60.0, "f1_test": 50.0}
    bert = BERT | {"architectures": ["BertForQuestionAnswering"]}
    page, data = written(tmp_path, bert, task=catalogue.SQUAD2, scores=scores)
    found = {result.metric_name: result for result in data.eval_results}
    assert found.keys() == {"best_f1", "f1", "f1_test"}
    assert found["f1"].dataset_split == "validation" and found["f1_test"].dataset_split == "test"
    assert {result.task_type for result in found.values()} == {"question-answering"}
    assert "in percent: best_f1 70.0, f1 60.0, f1_test 50.0." in page
    assert "left unanswered: best_f1_threshold -1.500." in page
    assert "benchmark" not in page and "few examples" not in page


def test_results_of_a_run_have_the_use_of_each_task(tmp_path):
    spread = {"median": 61.0, "std": 1.0, "seeds": [61.0]}
    entries = {
        "conll": {"f1:person": spread, "n_eval": 3},
        "squad2": {"best_f1": spread, "best_f1_threshold": spread, "n_eval": 3},
        "mine": {"f1": spread, "n_eval": 3, "kind": "tags"},
        "words": {"f1": spread, "n_eval": 3},
        "sts": {"spearman": spread, "n_eval": 3, "kind": "embeddings"},
    }
    protocol = {"name": "bert", "source": "a paper"}
    results = entries | {"suite": "other", "model": "x", "protocol": protocol}
    page, data = written(tmp_path, BERT, results=json.loads(json.dumps(results)))
    found = {result.dataset_name: result.task_type for result in data.eval_results}
    assert found == {
        "conll": "token-classification",
        "squad2": "question-answering",
        "mine": "token-classification",
        "words": "text-classification",
        "sts": "sentence-similarity",
    }
    read = {result.dataset_name: result for result in data.eval_results}
    assert (read["sts"].dataset_type, read["sts"].dataset_config) == ("nyu-mll/glue", "stsb")
    assert (read["mine"].dataset_type, read["mine"].dataset_config) == ("mine", None)
    assert "threshold" not in page and "| conll | f1:person | 61.0 |" in page


def test_the_second_split_of_mnli_has_its_name(tmp_path):
    spread = {"median": 61.0, "std": 1.0, "seeds": [61.0]}
    entry = {"accuracy": spread, "accuracy_mm": spread, "n_eval": 3}
    protocol = {"name": "bert", "source": "a paper"}
    results = {"mnli": entry, "suite": "glue", "model": "x", "protocol": protocol}
    _, data = written(tmp_path, BERT, results=results)
    assert {result.metric_name: result.dataset_split for result in data.eval_results} == {
        "accuracy": "validation_matched",
        "accuracy_mm": "validation_mismatched",
    }
