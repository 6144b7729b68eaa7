"""Finetuning protocols: settings of a run, their source, and what the command line may change.

A protocol has the name of the paper that used it. Scores of different protocols do not compare,
so results carry their protocol in full.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import itertools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.budget.schedules import multiplier
from cramjax.errors import UserError
from cramjax.glue.tasks import OTHER, Task, find_tasks

_OPTIMIZERS = ("adamw", "adafactor", "lamb", "lion", "muon")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one run of one task.

    Attributes:
        optimizer, lr, b1, b2, eps, weight_decay: as in `config/schema.py`.
        clip_norm: as in `config/schema.py`; None turns clipping off.
        schedule: shape of the learning rate over the run.
        warmup: share of the run with linear warm-up.
        warmup_steps: optimizer steps with linear warm-up, in place of `warmup`; None for the share.
        final: learning rate at the end, as a share of the peak.
        epochs: passes over the training rows.
        max_steps: upper limit on optimizer steps.
        batch_size: examples in an optimizer step.
        microbatch_size: examples in a forward pass; None means the whole batch.
        group_by_length: puts examples of like length into a batch, as the Trainer of `transformers`
            does by this name. Less is computed for padding, but batches are no fair draw.
        max_length: tokens of an input; longer inputs are cut, the longer of two texts first.
        stride: tokens that neighbouring windows of a text share, where a head reads a text in
            windows ("tags", "span"); at most half a window.
        max_question: tokens of a question in front of a context; longer questions are cut.
        max_answer: tokens of an answer.
        n_best: starts and ends of a window that are tried, and answers that are kept.
        max_target: upper limit on the tokens a T5 generates.
        dropout: rate on embeddings, blocks and head.
        attention_dropout: rate on attention probabilities.
        head: an encoder's head. "stock" is the head of the transformers class the network exports
            to, or "pooler" if there is no such class. "pooler" is a dense layer and tanh.
        head_width: width of a pooler's dense layer; None means the encoder's width.
        pooling: input of the head, or an embedding: the "first" token, or the "mean" of all.
        scale: what the cosine of two embeddings is multiplied by before the softmax.
        single_as_pair: gives single sentences an empty second sentence.
        select: parameters that are scored: after the "last" epoch, or after the epoch with the
            "best" score on the evaluation split.
        start_from: task whose finetuned encoder is the start.
        max_train: training rows; a larger training set is sampled.
    """

    optimizer: str = "adamw"
    lr: float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: str = "linear"
    warmup: float = 0.1
    warmup_steps: int | None = None
    final: float = 0.0
    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 32
    microbatch_size: int | None = None
    group_by_length: bool = False
    max_length: int = 128
    stride: int = 128
    max_question: int = 64
    max_answer: int = 30
    n_best: int = 20
    max_target: int = 64
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head: str = "stock"
    head_width: int | None = None
    pooling: str = "first"
    scale: float = 20.0
    single_as_pair: bool = False
    select: str = "last"
    start_from: str | None = None
    max_train: int | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_choice("select", ("last", "best"))
        self._check_choice("pooling", ("first", "mean"))
        self._check_choice("head", ("stock", "pooler"))
        self._check_choice("optimizer", _OPTIMIZERS)

        size = self.microbatch_size
        _require(
            size is None or self.batch_size % size == 0,
            f"microbatch_size={size}: must divide batch_size={self.batch_size}",
        )
        # Raises UserError for an unknown schedule, or numbers that do not fit it.
        multiplier(self.schedule, 0.5, warmup=self.warmup, final=self.final)

    def _check_numbers(self) -> None:
        least_one = ("epochs", "batch_size", "max_length", "max_target")
        for name in (*least_one, "max_question", "max_answer", "n_best", "stride"):
            value = getattr(self, name)
            _require(value >= 1, f"{name}={value}: must be at least 1")

        for name in ("microbatch_size", "max_steps", "max_train", "head_width", "warmup_steps"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name}={value}: must be at least 1, or None")

        for name in ("dropout", "attention_dropout", "warmup", "final", "b1", "b2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"{name}={value}: must be a share below 1")

        for name in ("lr", "scale"):
            value = getattr(self, name)
            _require(value > 0, f"{name}={value}: must be over 0")

    def learning_rate(self, step: int, n_steps: int) -> float:
        """Returns the learning rate of a step, counted from 1, of a run of `n_steps`."""
        warmup = self.warmup
        if self.warmup_steps is not None:
            warmup = min(1.0, self.warmup_steps / n_steps)
        share = multiplier(self.schedule, step / n_steps, warmup=warmup, final=self.final)
        return self.lr * share

    def fitting(self, max_positions: int | None) -> int:
        """Returns the tokens of an input for a model of so many positions; None is no limit."""
        return min(self.max_length, max_positions or self.max_length)

    def describe(self) -> dict[str, Any]:
        """Returns the settings as plain values, for the results."""
        return dataclasses.asdict(self)

    def _check_choice(self, name: str, choices: Sequence[str]) -> None:
        value = getattr(self, name)
        if len(choices) == 2:
            wanted = " or ".join(choices)
        else:
            wanted = f"one of {', '.join(choices)}"
        _require(value in choices, f"{name}={value}: must be {wanted}")


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise UserError(f"finetuning setting {problem}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings, with changes by task and a grid to search.

    Attributes:
        by_task: task name → settings that differ for it.
        grid: setting → values to try. A run tries all combinations and reports the point with the
            best median over seeds on the evaluation split, as the paper behind it does.
        n_seeds: seeds of each point, unless the command line says another number.
    """

    name: str
    source: str
    settings: Settings
    by_task: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    n_seeds: int = 5

    def points(self, task: str) -> list[dict[str, Any]]:
        """Returns what differs from `settings` at each point of the grid, for `task`.

        Without a grid the list has one entry, which may be empty.
        """
        task_settings = dict(self.by_task.get(task, {}))
        combinations = itertools.product(*self.grid.values())
        return [
            task_settings | dict(zip(self.grid, values, strict=True)) for values in combinations
        ]

    def settings_at(self, point: Mapping[str, Any]) -> Settings:
        """Returns the full settings of a point of the grid."""
        return dataclasses.replace(self.settings, **point)

    def changed(
        self, assignments: Sequence[str], grid: Sequence[str], tasks: Sequence[Task] = ()
    ) -> Protocol:
        """Returns the protocol with other values.

        Args:
            assignments: KEY=VALUE changes a setting of all tasks, TASK.KEY=VALUE of one.
            grid: KEY=V1,V2,… each; together they replace the protocol's own grid.
            tasks: of no suite, which an assignment may name.

        Raises:
            UserError: for an unknown task or setting, or a value of another type.
        """
        values = dict(_assignment(text, "--set") for text in assignments if not _has_task(text))
        for_tasks = [text for text in assignments if _has_task(text)]
        by_task = self._by_task(values, for_tasks, {task.name.lower(): task for task in tasks})

        if grid:
            points = dict(_tried_values(text) for text in grid)
        else:
            # A setting that is given a value is no longer searched.
            points = {key: tried for key, tried in self.grid.items() if key not in values}

        protocol = dataclasses.replace(
            self,
            settings=dataclasses.replace(self.settings, **values),
            by_task=by_task,
            grid=points,
        )
        protocol._check()
        return protocol

    def _by_task(
        self,
        values: Mapping[str, Any],
        task_assignments: Sequence[str],
        tasks: Mapping[str, Task],
    ) -> dict[str, dict[str, Any]]:
        """Returns the settings by task after both kinds of assignments."""
        by_task: dict[str, dict[str, Any]] = {}
        for name, settings in self.by_task.items():
            by_task[name] = {key: value for key, value in settings.items() if key not in values}

        # An assignment for one task wins over one for all, so it comes second.
        for text in task_assignments:
            name, _, assignment = text.partition(".")
            key, value = _assignment(assignment, "--set")
            task = tasks.get(name.lower()) or find_tasks([name])[0]
            by_task.setdefault(task.name, {})[key] = value
        return by_task

    def _check(self) -> None:
        """Raises UserError if the settings of any point are wrong."""
        # No task has the empty name: its points have the settings for all tasks.
        for task in [*self.by_task, ""]:
            for point in self.points(task):
                self.settings_at(point)

    def describe(self) -> dict[str, Any]:
        """Returns the whole protocol as plain values, for the results."""
        return {
            "name": self.name,
            "source": self.source,
            "settings": self.settings.describe(),
            "by_task": {task: dict(settings) for task, settings in self.by_task.items()},
            "grid": {key: list(values) for key, values in self.grid.items()},
        }


_FIELD_TYPES = typing.get_type_hints(Settings)


def _has_task(text: str) -> bool:
    """Returns whether an assignment is TASK.KEY=VALUE."""
    return "." in text.partition("=")[0]


def _tried_values(text: str) -> tuple[str, list[Any]]:
    """Reads KEY=V1,V2,… of --grid."""
    key, _, tried = text.partition("=")
    return key, [_assignment(f"{key}={value}", "--grid")[1] for value in tried.split(",")]


def _assignment(text: str, flag: str) -> tuple[str, Any]:
    """Reads KEY=VALUE and checks the value against the type of the setting."""
    key, equals, word = text.partition("=")
    if key not in _FIELD_TYPES:
        near = difflib.get_close_matches(key, _FIELD_TYPES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_FIELD_TYPES)}"
        raise UserError(f"{flag} {text}: no such setting; {hint}")
    if not equals:
        raise UserError(f"{flag} {text}: a value is missing, as in {flag} {key}=VALUE")

    annotation = _FIELD_TYPES[key]
    is_union = isinstance(annotation, types.UnionType)
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        value = word

    # "1" is a float where a float is wanted, but True is not an int.
    if type(value) is int and float in kinds:
        value = float(value)
    if type(value) not in kinds:
        names = ("None" if kind is types.NoneType else kind.__name__ for kind in kinds)
        raise UserError(f"{flag} {text}: must be {' or '.join(names)}")
    return key, value


_ALL = (
    Protocol(
        name="cramming",
        source="Cramming (arXiv 2212.14034, section 5): the same settings for every task, "
        "last epoch, median of 5",
        settings=Settings(
            lr=4e-5,
            b2=0.98,
            schedule="cosine",
            epochs=5,
            batch_size=16,
            head_width=1024,
            single_as_pair=True,
        ),
    ),
    Protocol(
        name="bert",
        source="BERT (arXiv 1810.04805, section 4.1): 3 epochs of batch 32, the best of four "
        "learning rates on dev; last epoch",
        settings=Settings(lr=2e-5, weight_decay=0.01, clip_norm=1.0),
        grid={"lr": (5e-5, 4e-5, 3e-5, 2e-5)},
    ),
    Protocol(
        name="24hbert",
        source="24hBERT (arXiv 2104.07705, the example in its code's README): 5 epochs of batch 32 "
        "at 5e-5, 50 steps of warm-up, last epoch, median of 5; its paper's search is not at hand",
        # transformers' "polynomial" ends at 1e-7, a share of 0.002.
        settings=Settings(
            lr=5e-5,
            eps=1e-8,
            weight_decay=0.01,
            clip_norm=1.0,
            warmup_steps=50,
            final=0.002,
            epochs=5,
        ),
    ),
    Protocol(
        name="mosaic",
        source="MosaicBERT (arXiv 2312.17482, its code): settings by task; RTE, MRPC and "
        "STS-B start from the MNLI model",
        settings=Settings(
            lr=5e-5, b2=0.98, weight_decay=5e-6, warmup=0.06, final=0.02, max_length=256
        ),
        by_task={
            "mnli": {"batch_size": 48},
            "rte": {"lr": 1e-5, "weight_decay": 1e-5, "batch_size": 16, "start_from": "mnli"},
            "qqp": {"lr": 3e-5, "weight_decay": 3e-6, "batch_size": 16, "epochs": 5},
            "cola": {"epochs": 10},
            "mrpc": {"lr": 8e-5, "weight_decay": 8e-6, "epochs": 10, "start_from": "mnli"},
            "qnli": {"lr": 1e-5, "weight_decay": 1e-6, "batch_size": 16, "epochs": 10},
            "sst2": {"lr": 3e-5, "weight_decay": 3e-6, "batch_size": 16},
            "stsb": {"lr": 3e-5, "weight_decay": 3e-6, "epochs": 10, "start_from": "mnli"},
        },
    ),
    Protocol(
        name="t5",
        source="T5 (arXiv 1910.10683, section 3.1.3): Adafactor at a constant 1e-3, batch 128, "
        "best epoch on dev; 10 epochs of each task by itself in place of 2^18 steps",
        settings=Settings(
            optimizer="adafactor",
            lr=1e-3,
            schedule="constant",
            warmup=0.0,
            epochs=10,
            batch_size=128,
            max_length=512,
            select="best",
        ),
        n_seeds=3,
    ),
)

BY_KIND: Mapping[str, Mapping[str, Any]] = {
    "span": {"max_length": 384},
    "embeddings": {"batch_size": 64, "pooling": "mean", "single_as_pair": False},
}
"""Kind of a task → settings of an encoder that differ in every protocol. Rows of answers are longer
(those of BERT's run_squad.py). The negatives of an embedding are the rest of its batch, and it is
the mean over the tokens of a text by itself, as in Sentence-BERT (arXiv 1908.10084, section 3)."""

PROTOCOLS = {protocol.name: protocol for protocol in _ALL}
"""Protocols by name."""


def choose_protocol(
    name: str | None,
    is_t5: bool,
    assignments: Sequence[str] = (),
    grid: Sequence[str] = (),
    tasks: Sequence[Task] = (),
) -> Protocol:
    """Returns the protocol `name` with changed settings.

    Args:
        name: None means "t5" for a T5 and "cramming" for an encoder.
        assignments, grid: as in `Protocol.changed`.
        tasks: that are finetuned; those of no suite may have settings by their kind.

    Raises:
        UserError: for an unknown protocol or setting.
    """
    default = "t5" if is_t5 else "cramming"
    name = name or default
    if name not in PROTOCOLS:
        raise UserError(f"--protocol {name}: unknown; there are {', '.join(PROTOCOLS)}")

    protocol = PROTOCOLS[name]
    others = [task for task in tasks if task.suite == OTHER]
    if not is_t5:
        by_kind = {task.name: BY_KIND[task.kind] for task in others if task.kind in BY_KIND}
        protocol = dataclasses.replace(protocol, by_task={**by_kind, **protocol.by_task})
    return protocol.changed(assignments, grid, others)
