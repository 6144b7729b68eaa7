"""Writes the model card, README.md of an export: the facts of a run or a finetuning in words."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.config import pairs
from cramjax.errors import UserError
from cramjax.files import member
from cramjax.glue import inputs
from cramjax.glue.tasks import OTHER, TITLES, Task
from cramjax.publishing.facts import Facts
from cramjax.publishing.metadata import (
    metadata,
    pipeline_tag,
    sources,
    task_scores,
)
from cramjax.publishing.starts import Start
from cramjax.reporting import outcomes
from cramjax.tasks import catalogue, metric_names

PICTURE = "loss.png"

# A path from the root on, at the start of a word or of a value, up to its last name.
_ABSOLUTE = re.compile(r"(^|[=:,'\"])/(?!/)(?:[^:,'\"]*/)?([^:,/'\"]*)")
_TABLE_HEAD = "| | |\n|---|---|\n"
_SHOWN_SETTINGS = (
    "optimizer",
    "lr",
    "schedule",
    "epochs",
    "batch_size",
    "max_length",
    "dropout",
    "pooling",
)

_FILL_MASK = """from transformers import pipeline

fill = pipeline("fill-mask", model={name})
for guess in fill(f"The capital of France is {{fill.tokenizer.mask_token}}."):
    print(guess["token_str"], guess["score"])"""
_CLASSIFY = """from transformers import pipeline

classify = pipeline("text-classification", model={name})
print(classify({example}))"""
_TAG = """from transformers import pipeline

tag = pipeline("token-classification", model={name}, aggregation_strategy="first")
print(tag("Anna lives in Oslo ."))"""
_ANSWER = """import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForQuestionAnswering.from_pretrained({name})
inputs = tokenizer("Where does Anna live?", "Anna lives in Oslo.", return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))"""
_DETECT = """import torch
from transformers import ElectraForPreTraining, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = ElectraForPreTraining.from_pretrained({name})
inputs = tokenizer("The capital of France is fish.", return_tensors="pt")
with torch.no_grad():
    is_replaced = model(**inputs).logits[0] > 0
print(list(zip(inputs.tokens(), is_replaced.tolist())))"""
_ENCODE = """import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModel.from_pretrained({name})
inputs = tokenizer("It rains.", return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).last_hidden_state.shape)"""
_EMBED = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name})
vectors = model.encode(["It rains.", "The street is wet."])
print(model.similarity(vectors, vectors))"""
_GENERATE = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModelForSeq2SeqLM.from_pretrained({name})
inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))"""


_EXAMPLE_FIELDS = {"question": "Where does Anna live?", "context": "Anna lives in Oslo."}
# Rows of tasks whose texts belong together.
_EXAMPLE_ROWS: dict[str, dict[str, Any]] = {
    "copa": {"premise": "It rains.", "choice1": "The street is wet.", "question": "effect"},
    "record": {
        "query": "@placeholder is a town.",
        "passage": "Anna lives in Oslo.",
        "entities": ["Anna", "Oslo"],
    },
    "wic": {"sentence1": "It rains.", "sentence2": "The street is wet.", "word": "wet"},
    "wsc": {"text": "Anna sang because she was glad.", "span2_text": "she", "span2_index": 3},
}


def write(
    directory: pathlib.Path,
    facts: Facts,
    raw: Mapping[str, Any],
    *,
    name: str,
    license: str,
    language: str,
) -> None:
    """Write README.md into `directory`, and the loss curve if the run has one.

    Args:
        directory: of the export.
        facts: about the model.
        raw: the content of its config.json.
        name: the name that the examples give to `from_pretrained`.
        license: the Hub's name of a license.
        language: the code of the text's language.
    """
    has_picture = _copy_picture(facts.folder, directory)

    title = name.rpartition("/")[2]  # on the Hub the name is OWNER/NAME
    sections = [f"# {_text(title)}", _description(facts, raw)]
    sections += _compression(facts)
    sections += ["## Use", _block("python", _example(facts, raw, name))]
    if facts.finetuned:
        sections += _finetuning(facts.finetuned, facts.scores)
    elif facts.config:
        sections += _pretraining(facts, has_picture)
        sections += _changes(facts.starts)
    sections += _scores(facts)
    sections += _reproduction(facts)
    sections += ["## Limitations", _limitations(facts)]

    data = metadata(facts, raw, model_name=title, license=license, language=language)
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    # A name may hold bytes that are no UTF-8.
    (directory / "README.md").write_text(text, encoding="utf-8", errors="replace")


def _copy_picture(source: pathlib.Path, directory: pathlib.Path) -> bool:
    """Copy the loss curve and return whether there is one; a link out of the folder is none."""
    try:
        picture = member(source, PICTURE, "")
    except UserError:
        return False
    shutil.copyfile(picture, directory / PICTURE)
    return True


def _text(value: Any) -> str:
    """Returns text of others for one line of Markdown: no markup, no HTML, no end of a cell."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*\[\]<>|&#])", r"\\\1", line)


def _code(value: Any) -> str:
    """Returns text of others as a code span, which a table may hold."""
    line = " ".join(str(value).split()).replace("|", "\\|")
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest else ""
    return f"{fence}{space}{line}{space}{fence}"


def _pieces(pieces: Sequence[str]) -> str:
    """Returns the text of a row: names as code, and no markup in the rest."""
    texts = []
    for piece in pieces:
        # `_text` takes away the space between two pieces.
        space = piece[: len(piece) - len(piece.lstrip())], piece[len(piece.rstrip()) :]
        if isinstance(piece, outcomes.Name):
            texts.append(_code(piece))
        else:
            texts.append(_text(piece).join(space))
    return "".join(texts)


def _block(language: str, lines: str) -> str:
    """Returns a block of code that its lines do not end."""
    longest = max(map(len, re.findall("`+", lines)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{lines}\n{fence}"


def _description(facts: Facts, raw: Mapping[str, Any]) -> str:
    (architecture,) = raw["architectures"]
    tool = "cramjax, JAX code for pretraining within a budget of hours"
    if facts.finetuned:
        task = facts.finetuned["task"]
        suite = facts.finetuned["suite"]
        if suite != OTHER:
            task = f"{task} of {TITLES[suite]}"
        start = f" from {_text(facts.results['model'])}" if facts.results else ""
        return f"A `{architecture}` finetuned{start} on {task} with {tool}."

    size = ""
    if "params" in facts.spent:
        size = f" with {facts.spent['params'] / 1e6:,.1f}M parameters"
    if "detection_accuracy" in facts.spent:
        size += " (those of the generator it trained with included)"
    article = "An" if architecture.startswith("Electra") else "A"
    return (
        f"{article} `{architecture}`{size}, pretrained from scratch with {tool}. "
        "It loads in stock `transformers`, without remote code."
    )


def _compression(facts: Facts) -> list[str]:
    if not facts.compression:
        return []
    share, bits = facts.compression["prune"], facts.compression["bits"]
    steps = []
    if share:
        steps.append(f"{share:.0%} of the weights pruned")
    if bits < 32:
        steps.append(f"quantised to {bits} bits")
    if not steps:
        return []
    return [
        f"This model was compressed ({', '.join(steps)}). "
        "The files here hold its weights at full size."
    ]


def _example(facts: Facts, raw: Mapping[str, Any], name: str) -> str:
    """Returns a program that uses the model."""
    use = pipeline_tag(facts, raw)
    name = json.dumps(name, ensure_ascii=False)  # a string of Python too
    if use == "fill-mask":
        return _FILL_MASK.format(name=name)

    if use == "text2text-generation":
        prompt = "A walk in the <extra_id_0> park."
        if facts.config and facts.config["objective"]["name"] == pairs.OBJECTIVE:
            prompt = f"{facts.config['data']['source_prefix']}It rains."
        if facts.finetuned:
            prompt = _prompt(catalogue.noted_task(facts.finetuned))
        return _GENERATE.format(name=name, prompt=json.dumps(prompt))

    if use == "feature-extraction":
        is_detector = raw["architectures"] == ["ElectraForPreTraining"]
        return (_DETECT if is_detector else _ENCODE).format(name=name)
    if use == "token-classification":
        return _TAG.format(name=name)
    if use == "question-answering":
        return _ANSWER.format(name=name)
    if use == "sentence-similarity":
        return _EMBED.format(name=name)
    example = '{"text": "It rains.", "text_pair": "The street is wet."}'
    if facts.finetuned and _reads_one_text(facts.finetuned):
        example = '"It rains."'
    return _CLASSIFY.format(name=name, example=example)


def _prompt(task: Task) -> str:
    """Returns a text as a T5 reads it for a task."""
    row: dict[str, Any] = dict.fromkeys(task.fields, "The street is wet.")
    row |= {task.fields[0]: "It rains."}
    # Some tasks have fields that are no texts of any kind.
    row |= {name: value for name, value in _EXAMPLE_FIELDS.items() if name in row}
    row |= _EXAMPLE_ROWS.get(task.name, {})
    return inputs.source_text(task, row)


def _reads_one_text(finetuned: Mapping[str, Any]) -> bool:
    return len(catalogue.noted_task(finetuned).fields) == 1


def _pretraining(facts: Facts, has_picture: bool) -> list[str]:
    rows = outcomes.rows(
        facts.config,
        facts.spent,
        facts.environment,
        sources=[_public_source(source) for source in sources(facts)],
        n_entries=facts.n_entries,
    )
    lines = [f"| {heading} | {_pieces(pieces)} |" for heading, pieces in rows.items()]
    sections = ["## Training", _TABLE_HEAD + "\n".join(lines)]

    results = outcomes.held_out(facts.spent)
    if results:
        sections.append(results)
    if has_picture:
        sections.append(f"![Training and held-out loss over tokens and over time]({PICTURE})")
    return sections


def _changes(starts: Sequence[Start]) -> list[str]:
    """Returns the table of what changed between the starts of a run; [] if nothing did."""
    rows = []
    for start in starts:
        for key, (before, now) in start.changes.items():
            values = f"{_code(_public(before))} | {_code(_public(now))}"
            rows.append(f"| {start.step:,} | {_code(key)} | {values} |")
    for before, now in itertools.pairwise(starts):
        if before.fingerprint != now.fingerprint and "data.source" not in now.changes:
            rows.append(f"| {now.step:,} | text | | prepared again, with another content |")
    if not rows:
        return []

    text = (
        "The run was stopped and went on with other settings. The table above has the last ones, "
        "this one the step from which each was used."
    )
    head = "| from step | key | before | then |\n|---|---|---|---|\n"
    return ["## Changes during training", text, head + "\n".join(rows)]


def _public(value: Any) -> str:
    """Returns a value of the configuration without the folders of this machine."""
    return _ABSOLUTE.sub(lambda match: match[1] + match[2], str(value))


def _public_source(source: str) -> str:
    """Returns a source without the folders of this machine."""
    kind, _, rest = source.partition(":")
    if kind in ("text", "prepared", "pairs"):
        names = [pathlib.PurePath(file).name for file in rest.split(",")]
        return f"{kind}:{','.join(names)}"
    return source


def _finetuning(finetuned: Mapping[str, Any], scores: Mapping[str, float]) -> list[str]:
    settings = finetuned["settings"]
    # Which settings there are depends on the protocol.
    rows = [f"| seed | {finetuned['seed']} |"]
    rows += [f"| {key} | {_text(settings[key])} |" for key in _SHOWN_SETTINGS if key in settings]
    sections = ["## Finetuning", _TABLE_HEAD + "\n".join(rows)]

    percent = {name: value for name, value in scores.items() if metric_names.is_percent(name)}
    listed = ", ".join(f"{_text(name)} {value:.1f}" for name, value in percent.items())
    if listed:
        sections.append(f"Scores of this model on the validation rows, in percent: {listed}.")
    if any(metric_names.split_of(name, "") == "test" for name in scores):
        sections.append("Those with _test are on the test rows.")
    others = [f"{_text(name)} {scores[name]:.3f}" for name in scores if name not in percent]
    if others:
        sections.append(
            'The score of "no answer" less that of the answer, over which a question is best left '
            f"unanswered: {', '.join(others)}."
        )
    return sections


def _scores(facts: Facts) -> list[str]:
    """Returns the table of a finetuning: medians over its seeds."""
    rows = []
    for _, task, metric, spread in task_scores(facts):
        if not metric_names.is_percent(metric):
            continue
        rows.append(
            f"| {task} | {_text(metric)} | {spread['median']:.1f} | {spread['std']:.1f} "
            f"| {len(spread['seeds'])} |"
        )
    if not rows or not facts.results:
        return []

    protocol = facts.results["protocol"]
    text = (
        f"Scores on the development sets, in percent, by the protocol {_code(protocol['name'])} "
        f"({_text(protocol['source'])}). Scores of other protocols are not comparable."
    )
    if any(metric_names.split_of(metric, "") == "test" for _, _, metric, _ in task_scores(facts)):
        text += " Those with _test are on test sets."
    head = "| task | metric | median | std | seeds |\n|---|---|---|---|---|\n"
    return [f"## {TITLES[facts.results['suite']]}", text, head + "\n".join(rows)]


def _reproduction(facts: Facts) -> list[str]:
    """Returns the commands that made the model, and the versions they ran with."""
    environment = facts.environment
    # A finetuned model is not one run: it has no environment, but a command in its results.
    commands = []
    for start in facts.starts:
        if commands and not start.changes:
            continue  # the same command once more
        if start.step:
            commands.append(f"# stopped, and gone on from step {start.step}:")
        commands.append(_public_command(start.command))
    # Earlier versions noted the last start alone.
    if not commands and environment.get("command"):
        commands.append(_public_command(environment["command"]))
    if facts.results and facts.results.get("command"):
        commands.append(_public_command(facts.results["command"]))
    if not commands:
        return []

    notes = []
    if environment.get("git"):
        notes.append(f"cramjax at git revision {_code(environment['git'])}")
    if environment.get("packages"):
        packages = environment["packages"].items()
        notes.append(", ".join(f"{_text(name)} {_text(version)}" for name, version in packages))
    if "seed" in facts.config:
        notes.append(f"seed {_text(facts.config['seed'])}")

    lines = "\n".join(commands)
    sections = ["## Reproduce", _block("bash", lines)]
    if notes:
        sections.append("; ".join(notes) + ".")
    return sections


def _public_command(command: str) -> str:
    """Returns a command without the folders of this machine, its interpreter's among them."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    public = [_public(word) for word in words]
    if public and public[0].startswith("python"):
        public[0] = "python"
    return shlex.join(public)


def _limitations(facts: Facts) -> str:
    if facts.finetuned:
        return (
            "This model was finetuned for one task, on the examples of that task alone. "
            "Its quality on other kinds of text is unknown. "
            "It repeats what its pretraining text says about people and the world, "
            "right or wrong."
        )
    # A compressed model whose pretraining is not known has no configuration.
    if not facts.config:
        return (
            "This model has the limits of the model it was compressed from, "
            "and compression adds its own errors."
        )

    data = facts.config["data"]
    case = " It reads text in lower case." if data["lowercase"] else ""
    return (
        "This model was trained for a small budget, on the text named above and on nothing else. "
        "It knows little of the world, and repeats what that text says about people, right or "
        f"wrong. It has seen at most {data['seq_len']} tokens at once.{case} "
        "Use it as a starting point for finetuning, not as a source of facts."
    )
