"""Makes the metadata of a model card: the YAML block that the Hugging Face Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cramjax.glue.tasks import OTHER, SUITES, TITLES
from cramjax.publishing.facts import Facts, task_names
from cramjax.reporting import outcomes
from cramjax.tasks import catalogue, metric_names

_METRIC_TYPES = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
_DATASETS = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue"}
# Tasks of no suite whose dataset is known.
_OWN_DATASETS = {
    "squad": ("rajpurkar/squad", "plain_text"),
    "squad2": ("rajpurkar/squad_v2", "squad_v2"),
    "sts": ("nyu-mll/glue", "stsb"),
}
# Kind of a task → the Hub's name for it; the other kinds are scores of texts.
_TASK_TYPES = {
    "tags": "token-classification",
    "span": "question-answering",
    "embeddings": "sentence-similarity",
    "text": "text2text-generation",
}
# Ending of a class → the Hub's name for its use.
_USES = {
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForPreTraining": "feature-extraction",
}

# The Hub's name of a metric → (key in summary.json, its title on the card).
_HELD_OUT = {
    "loss": ("eval_loss", "held-out cross-entropy in nats per predicted token"),
    "accuracy": ("eval_accuracy", "held-out accuracy"),
}

_DETECTED = {"accuracy": ("detection_accuracy", "held-out tokens judged replaced or original")}


def metadata(
    facts: Facts, raw: Mapping[str, Any], *, model_name: str, license: str, language: str
) -> ModelCardData:
    """Returns the metadata of a model card.

    Args:
        facts: about the model.
        raw: the content of its config.json.
        model_name: its name without the owner.
        license: the Hub's name of a license.
        language: the code of the text's language.
    """
    subject = facts.finetuned["task"] if facts.finetuned else "pretraining"
    tags = ["cramjax", raw["model_type"], subject]
    library = "transformers"
    if pipeline_tag(facts, raw) == "sentence-similarity":
        library = "sentence-transformers"
        tags += [library, "sentence-similarity", "feature-extraction"]

    return ModelCardData(
        language=language,
        license=license,
        library_name=library,
        pipeline_tag=pipeline_tag(facts, raw),
        tags=tags,
        datasets=_datasets(facts) or None,
        model_name=model_name,
        eval_results=list(_evaluations(facts, raw)) or None,
    )


def pipeline_tag(facts: Facts, raw: Mapping[str, Any]) -> str:
    """Returns the Hub's name for the use of a model with the class in its config.json."""
    (architecture,) = raw["architectures"]
    if architecture.endswith("Model"):
        return "sentence-similarity" if facts.finetuned else "feature-extraction"
    for ending, use in _USES.items():
        if architecture.endswith(ending):
            return use
    return "text2text-generation"


def sources(facts: Facts) -> list[str]:
    """Returns the sources of the training text, as data.source names them; [] without a run."""
    return outcomes.sources_of(facts.config)


def task_scores(facts: Facts) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Yields (suite, task, metric, its spread over seeds) from results.json.

    A finetuned model has the rows of its own task.
    """
    if not facts.results:
        return
    suite = facts.results["suite"]
    only = facts.finetuned["task"] if facts.finetuned else None
    for task in task_names(facts.results):
        if task not in facts.results or only not in (None, task):
            continue
        for metric, spread in facts.results[task].items():
            # Beside the metrics stand n_train and n_eval.
            if isinstance(spread, dict) and "median" in spread:
                yield suite, task, metric, spread


def _datasets(facts: Facts) -> list[str]:
    """Returns the ids of datasets on the Hub."""
    if facts.finetuned:
        known, _ = _dataset(facts.finetuned["suite"], facts.finetuned["task"])
        return [known] if known else []
    matches = [re.match(r"hf:([^:@]+)", source) for source in sources(facts)]
    return [match[1] for match in matches if match]


def _evaluations(facts: Facts, raw: Mapping[str, Any]) -> Iterator[EvalResult]:
    if facts.spent.get("eval_loss") is not None:
        # The loss of replaced-token detection is its generator's, which is not exported.
        measured = _DETECTED if "detection_accuracy" in facts.spent else _HELD_OUT
        for metric, (key, title) in measured.items():
            yield EvalResult(
                task_type=pipeline_tag(facts, raw),
                dataset_type=(_datasets(facts) or ["text"])[0],
                dataset_name="held-out documents of the training corpus",
                metric_type=metric,
                metric_name=title,
                metric_value=round(facts.spent[key], 4),
            )

    if facts.finetuned:
        suite, task = facts.finetuned["suite"], facts.finetuned["task"]
        kind = catalogue.noted_task(facts.finetuned).kind
        for metric, value in facts.scores.items():
            if metric_names.is_percent(metric):
                yield _task_result(suite, task, metric, value, kind)
    else:
        for suite, task, metric, spread in task_scores(facts):
            if metric_names.is_percent(metric):
                kind = catalogue.kind_in(facts.results or {}, task)
                yield _task_result(suite, task, metric, spread["median"], kind)


def _dataset(suite: str, task: str) -> tuple[str | None, str | None]:
    """Returns a task's dataset on the Hub and its configuration; None for somebody's own."""
    if suite == OTHER:
        return _OWN_DATASETS.get(task, (None, None))
    return _DATASETS[suite], task


def _task_result(suite: str, task: str, metric: str, value: float, kind: str) -> EvalResult:
    first = "validation"
    for known in SUITES.get(suite, ()):
        if known.name == task:
            first = known.splits[0]
    name = task if suite == OTHER else f"{TITLES[suite]} {task}"
    dataset, config = _dataset(suite, task)
    return EvalResult(
        task_type=_TASK_TYPES.get(kind, "text-classification"),
        dataset_type=dataset or task,
        dataset_name=name,
        dataset_config=config,
        dataset_split=metric_names.split_of(metric, first),
        metric_type=_METRIC_TYPES.get(metric, metric),
        metric_name=metric,
        metric_value=round(value, 2),
    )
