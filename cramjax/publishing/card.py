"""The model card, README.md of an export: what the run noted of itself, put in the words and the metadata of the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cramjax.errors import UserError
from cramjax.glue.tasks import SUITES

_UNITS = (("hours", 3600), ("minutes", 60), ("seconds", 1))
PICTURE = "loss.png"
_METRIC_TYPES = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
_TITLES = {"glue": "GLUE", "superglue": "SuperGLUE"}
_DATASETS = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a folder says of the model in it.

    Attributes:
        folder: its path. config, environment: of the run, {} for a finetuned model. spent: figures of the checkpoint, as in summary.json.
        finetuned: task, suite, labels, settings, seed; None for a run. results: of `tools.finetune`, None without.
        scores: metrics of this one finetuned model by name, in percent. compression: of a packed model what was done to it.
    """

    folder: pathlib.Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    spent: Mapping[str, Any]
    finetuned: Mapping[str, Any] | None
    results: Mapping[str, Any] | None
    scores: Mapping[str, float]
    compression: Mapping[str, Any] | None = None


def read_facts(folder: pathlib.Path, results: pathlib.Path | None, step: int | None) -> Facts:
    """The facts of a run's or a finetuned model's `folder`; `results`: a results.json of `tools.finetune` beside it.

    Raises:
        UserError: where `results` is none.
    """
    config = _read(folder / "config.json") or _read(folder / "packed.json") or {}
    finetuned, compression = config.get("finetuned"), config.get("compression")
    found, scores = None, {}
    if results is not None:
        found = _read(results)
        if not found or "protocol" not in found:
            raise UserError(
                f"--results {results}: is no results.json of tools.finetune; name one, or leave --results out"
            )
    elif finetuned:
        found, scores = _finetuning_around(folder.resolve(), finetuned["task"])
    return Facts(
        folder=folder,
        config={} if finetuned or compression else config,
        environment=_read(folder / "environment.json") or {},
        spent={} if finetuned else _spent(folder, step),
        finetuned=finetuned,
        compression=compression,
        results=found,
        scores=scores,
    )


def _finetuning_around(
    folder: pathlib.Path, task: str
) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """results.json and this model's scores where `folder` is still OUT/models/TASK/point-i/seed-n of the OUT it was saved in."""
    if len(folder.parents) < 4 or folder.parents[2].name != "models":
        return None, {}
    out = folder.parents[3]
    run = _read((out / "runs" / folder.relative_to(out / "models")).with_suffix(".json"))
    return _read(out / "results.json"), run["metrics"][task] if run else {}


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _spent(folder: pathlib.Path, step: int | None) -> dict[str, Any]:
    """summary.json; of a checkpoint before the end of the run, what its metrics say up to there."""
    summary = _read(folder / "summary.json")
    if summary and step in (None, summary["steps"]):
        return summary
    spent: dict[str, Any] = {}
    if (folder / "metrics.jsonl").is_file():
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if step is None or entry["step"] <= step:
                spent |= entry
    return {"steps": spent.pop("step", step), "train_loss": spent.pop("loss", None)} | spent


def write(
    directory: pathlib.Path,
    facts: Facts,
    raw: Mapping[str, Any],
    *,
    name: str,
    license: str,
    language: str,
) -> None:
    """Write README.md, and the loss curve if there is one, into `directory`.

    Args:
        raw: content of its config.json. name: what `from_pretrained` is given in the examples. license, language: codes of the Hub.
    """
    if (facts.folder / PICTURE).is_file():
        shutil.copyfile(facts.folder / PICTURE, directory / PICTURE)
    data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag=_pipeline(raw),
        tags=[
            "cramjax",
            raw["model_type"],
            *(["pretraining"] if not facts.finetuned else [facts.finetuned["task"]]),
        ],
        datasets=_datasets(facts) or None,
        model_name=name.rpartition("/")[2],
        eval_results=list(_evaluations(facts, raw)) or None,
    )
    sections = [
        f"# {name.rpartition('/')[2]}",
        _what(facts, raw),
        *_compression(facts),
        *_usage(facts, raw, name),
    ]
    if facts.finetuned or facts.config:
        sections += _finetuning(facts) if facts.finetuned else _pretraining(facts, directory)
    sections += [*_table(facts), *_reproduction(facts), "## Limitations", _limitations(facts)]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    (directory / "README.md").write_text(text, encoding="utf-8")


def _compression(facts: Facts) -> list[str]:
    if not facts.compression:
        return []
    share, bits = facts.compression["prune"], facts.compression["bits"]
    parts = ([f"{share:.0%} of it pruned"] if share else []) + (
        [f"quantised to {bits} bits"] if bits < 32 else []
    )
    return (
        [f"The weights are those of a compressed model ({', '.join(parts)}), written out in full."]
        if parts
        else []
    )


def _pipeline(raw: Mapping[str, Any]) -> str:
    (architecture,) = raw["architectures"]
    if architecture.endswith("ForMaskedLM"):
        return "fill-mask"
    return (
        "text-classification"
        if architecture.endswith("ForSequenceClassification")
        else "text2text-generation"
    )


def _sources(facts: Facts) -> list[str]:
    source = facts.config.get("data", {}).get("source", [])
    return [source] if isinstance(source, str) else [part[0] for part in source]


def _datasets(facts: Facts) -> list[str]:
    """Ids on the Hub."""
    if facts.finetuned:
        return [_DATASETS[facts.finetuned["suite"]]]
    found = [re.match(r"hf:([^:@]+)", source) for source in _sources(facts)]
    return [match[1] for match in found if match]


def _shown(source: str) -> str:
    """A source as others may read it: of local files the names alone."""
    kind, _, rest = source.partition(":")
    return f"{kind}:{pathlib.PurePath(rest).name}" if kind in ("text", "prepared") else source


def _evaluations(facts: Facts, raw: Mapping[str, Any]) -> Iterator[EvalResult]:
    common = {"task_type": _pipeline(raw), "dataset_type": (_datasets(facts) or ["text"])[0]}
    if facts.spent.get("eval_loss") is not None:
        names = {
            "loss": ("eval_loss", "held-out cross-entropy, nats a predicted token"),
            "accuracy": ("eval_accuracy", "held-out accuracy"),
        }
        for metric, (key, title) in names.items():
            yield EvalResult(
                **common,
                dataset_name="held-out documents of the training corpus",
                metric_type=metric,
                metric_name=title,
                metric_value=round(facts.spent[key], 4),
            )
    if facts.finetuned:
        for metric, value in facts.scores.items():
            yield _benchmark(facts.finetuned["suite"], facts.finetuned["task"], metric, value)
        return
    for suite, task, entry in _entries(facts):
        for metric, spread in entry.items():
            if isinstance(spread, dict) and "median" in spread:
                yield _benchmark(suite, task, metric, spread["median"])


def _benchmark(suite: str, task: str, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-classification",
        dataset_type=_DATASETS[suite],
        dataset_name=f"{_TITLES[suite]} {task}",
        dataset_config=task,
        dataset_split="validation",
        metric_type=_METRIC_TYPES.get(metric, metric),
        metric_name=metric,
        metric_value=round(value, 2),
    )


def _entries(facts: Facts) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(suite, task, its entry in results.json), for a finetuned model of its own task."""
    if facts.results:
        suite, own = facts.results["suite"], facts.finetuned and facts.finetuned["task"]
        found = (
            task.name
            for task in SUITES[suite]
            if task.name in facts.results and own in (None, task.name)
        )
        yield from ((suite, name, facts.results[name]) for name in found)


def _what(facts: Facts, raw: Mapping[str, Any]) -> str:
    (architecture,) = raw["architectures"]
    made = "cramjax, JAX code for pretraining within a budget of hours"
    if facts.finetuned:
        task, suite = facts.finetuned["task"], _TITLES[facts.finetuned["suite"]]
        start = f" from {facts.results['model']}" if facts.results else ""
        return f"A `{architecture}` finetuned{start} on {task} of {suite} with {made}."
    n_params = (
        f", {facts.spent['params'] / 1e6:,.1f}M parameters" if "params" in facts.spent else ""
    )
    return f"A `{architecture}`{n_params}, pretrained from scratch with {made}. It loads in stock `transformers`, without remote code."


def _usage(facts: Facts, raw: Mapping[str, Any], name: str) -> list[str]:
    kind = _pipeline(raw)
    if kind == "text2text-generation":
        prompt = (
            f"{facts.finetuned['task']} sentence1: It rains. sentence2: The street is wet."
            if facts.finetuned
            else "A walk in the <extra_id_0> park."
        )
        code = f'''from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSeq2SeqLM.from_pretrained("{name}")
inputs = tokenizer("{prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))'''
    elif kind == "fill-mask":
        code = f'''from transformers import pipeline

fill = pipeline("fill-mask", model="{name}")
for guess in fill(f"The capital of France is {{fill.tokenizer.mask_token}}."):
    print(guess["token_str"], guess["score"])'''
    else:
        code = f'''from transformers import pipeline

classify = pipeline("text-classification", model="{name}")
print(classify({{"text": "It rains.", "text_pair": "The street is wet."}}))'''
        if facts.finetuned and _is_single(facts):
            code = code.replace(
                '{"text": "It rains.", "text_pair": "The street is wet."}', '"It rains."'
            )
    return ["## Use", f"```python\n{code}\n```"]


def _is_single(facts: Facts) -> bool:
    tasks = {task.name: task for task in SUITES[facts.finetuned["suite"]]}
    return len(tasks[facts.finetuned["task"]].fields) == 1


def _pretraining(facts: Facts, directory: pathlib.Path) -> list[str]:
    config, spent = facts.config, facts.spent
    objective, optimizer, budget = config["objective"], config["optimizer"], config["budget"]
    task = f"masked language modelling, {objective['mask_rate']:.0%} of the positions predicted"
    if objective["name"] == "span_corruption":
        task = f"span corruption, {objective['noise_density']:.0%} of the tokens in spans of {objective['mean_span']:g} on average"
    limits = ", ".join(f"{value:g} {unit}" for unit, value in budget.items() if value is not None)
    rows = {
        "data": ", ".join(f"`{_shown(source)}`" for source in _sources(facts)),
        "objective": task,
        "tokenizer": f"`{pathlib.PurePath(config['data']['tokenizer']).name}`, {config['data']['vocab_size']:,} entries",
        "sequence": f"{config['data']['seq_len']} tokens",
        "budget": f"{limits} (learning rate and batch follow the share of it that is spent)",
        "spent": _spent_text(spent),
        "batch": f"up to {config['batch_size']:,} sequences",
        "optimizer": f"{optimizer['name']}, peak learning rate {optimizer['lr']:g}, schedule {config['schedule']['name']}",
        "hardware": _hardware(facts),
        "precision": str(spent.get("precision", config["precision"])),
    }
    sections = [
        "## Training",
        "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items()),
    ]
    if spent.get("eval_loss") is not None:
        unigram = (
            f"; a model that knows word frequencies only has {spent['unigram_loss']:.3f}"
            if "unigram_loss" in spent
            else ""
        )
        sections.append(
            f"Held-out loss {spent['eval_loss']:.3f} nats a predicted token, accuracy {spent['eval_accuracy']:.1%}{unigram}."
        )
    if (directory / PICTURE).is_file():
        sections.append(f"![Training and held-out loss over tokens and over time]({PICTURE})")
    return sections


def _spent_text(spent: Mapping[str, Any]) -> str:
    parts = [f"{spent['steps']:,} steps" if spent.get("steps") is not None else ""]
    parts += [f"{spent['tokens'] / 1e6:,.1f}M tokens" if "tokens" in spent else ""]
    parts += [f"{spent['flops']:.3g} FLOPs" if "flops" in spent else ""]
    if "elapsed_s" in spent:
        unit, seconds = next(
            unit for unit in _UNITS if spent["elapsed_s"] >= unit[1] or unit[1] == 1
        )
        parts += [f"{spent['elapsed_s'] / seconds:.3g} {unit}"]
    return ", ".join(filter(None, parts))


def _hardware(facts: Facts) -> str:
    devices = facts.environment.get("devices", [])
    kinds = ", ".join(f"{devices.count(kind)} × {kind}" for kind in dict.fromkeys(devices))
    return (
        f"{kinds} ({facts.environment['cpus']} CPU cores)" if "cpus" in facts.environment else kinds
    )


def _finetuning(facts: Facts) -> list[str]:
    settings = facts.finetuned["settings"]
    keys = (
        "optimizer",
        "lr",
        "schedule",
        "epochs",
        "batch_size",
        "max_length",
        "dropout",
        "pooling",
    )
    rows = "\n".join(f"| {key} | {settings[key]} |" for key in keys if key in settings)
    scores = ", ".join(f"{name} {value:.1f}" for name, value in facts.scores.items())
    sections = ["## Finetuning", f"| | |\n|---|---|\n| seed | {facts.finetuned['seed']} |\n{rows}"]
    return sections + (
        [f"This model on the validation rows: {scores} (percent)."] if scores else []
    )


def _table(facts: Facts) -> list[str]:
    """Medians of a finetuning over its seeds."""
    rows = []
    for _, task, entry in _entries(facts):
        for metric, spread in entry.items():
            if isinstance(spread, dict) and "median" in spread:
                rows.append(
                    f"| {task} | {metric} | {spread['median']:.1f} | {spread['std']:.1f} | {len(spread['seeds'])} |"
                )
    if not rows:
        return []
    protocol = facts.results["protocol"]
    title = f"## {_TITLES[facts.results['suite']]}"
    text = f"Development sets, in percent, protocol `{protocol['name']}` ({protocol['source']}). Scores of other protocols do not compare."
    return [
        title,
        text,
        "| task | metric | median | std | seeds |\n|---|---|---|---|---|\n" + "\n".join(rows),
    ]


def _reproduction(facts: Facts) -> list[str]:
    commands = []
    if "command" in facts.environment:
        # The interpreter's path is of no use elsewhere.
        commands.append(re.sub(r"^\S*python\S*", "python", facts.environment["command"]))
    if facts.results and facts.results.get("command"):
        commands.append(facts.results["command"])
    if not commands:
        return []
    lines = "\n".join(commands)
    made = (
        f"cramjax at git revision `{facts.environment['git']}`"
        if facts.environment.get("git")
        else ""
    )
    versions = ", ".join(
        f"{name} {version}" for name, version in facts.environment.get("packages", {}).items()
    )
    notes = "; ".join(
        filter(
            None, [made, versions, f"seed {facts.config['seed']}" if "seed" in facts.config else ""]
        )
    )
    return ["## Reproduce", f"```bash\n{lines}\n```", *([notes + "."] if notes else [])]


def _limitations(facts: Facts) -> str:
    if facts.finetuned:
        return (
            "Trained for one benchmark task on few examples; what it says of other kinds of text is not known. It inherits "
            "what its pretraining text says of people and of the world, right or wrong."
        )
    if not facts.config:
        return "Those of the model it was compressed from, and what compression adds to them."
    length = facts.config["data"]["seq_len"]
    case = " Text is read in lower case." if facts.config["data"]["lowercase"] else ""
    return (
        "Trained for a small budget on the text named above and on nothing else: it knows little of the world, repeats what "
        f"that text says of people, right or wrong, and has seen no more than {length} tokens at once.{case} It is a starting "
        "point for finetuning, not a source of facts."
    )
