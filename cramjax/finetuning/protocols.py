"""How models are finetuned, by the name of who did it so: all settings of a run, where they come from, and what may change them.

Scores of different protocols do not compare; results carry theirs in full.
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
from cramjax.glue.tasks import find_tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run of one task.

    optimizer, lr, b1, b2, eps, weight_decay, clip_norm: as in `config/schema.py`; clip_norm None: no clipping.
    schedule, warmup, final: shape of the learning rate over the run, share of linear warm-up, share of the peak at the end.
    epochs: passes over the training rows; max_steps: optimizer steps at most. batch_size: examples a step, in parts of microbatch_size.
    max_length: tokens of an input, what is longer is cut, the longer of two texts first; max_target: tokens a T5 generates at most.
    dropout: on embeddings, blocks and head; attention_dropout: on attention probabilities.
    head: of an encoder; "stock": that of the transformers class the network exports to, where there is one, else "pooler": dense and tanh.
    head_width: of a pooler's dense layer, None: that of the encoder. pooling: what a head sees, the first token or the mean of all
    ("mean"). single_as_pair: single sentences have an empty second.
    select: parameters that are scored, those after the last epoch or the best on the evaluation split after any ("best").
    start_from: the task whose finetuned encoder is the start. max_train: training rows, a sample of them if there are more.
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
    final: float = 0.0
    epochs: int = 3
    max_steps: int | None = None
    batch_size: int = 32
    microbatch_size: int | None = None
    max_length: int = 128
    max_target: int = 64
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head: str = "stock"
    head_width: int | None = None
    pooling: str = "first"
    single_as_pair: bool = False
    select: str = "last"
    start_from: str | None = None
    max_train: int | None = None

    def __post_init__(self):
        for name in ("epochs", "batch_size", "max_length", "max_target"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("microbatch_size", "max_steps", "max_train", "head_width"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name}={value}: must be at least 1, or None")
        for name in ("dropout", "attention_dropout", "warmup", "final", "b1", "b2"):
            _require(
                0 <= getattr(self, name) < 1,
                f"{name}={getattr(self, name)}: must be a share below 1",
            )
        _require(self.lr > 0, f"lr={self.lr}: must be over 0")
        _require(self.select in ("last", "best"), f"select={self.select}: must be last or best")
        _require(
            self.pooling in ("first", "mean"), f"pooling={self.pooling}: must be first or mean"
        )
        _require(self.head in ("stock", "pooler"), f"head={self.head}: must be stock or pooler")
        known = ("adamw", "adafactor", "lamb", "lion", "muon")
        _require(
            self.optimizer in known,
            f"optimizer={self.optimizer}: must be one of {', '.join(known)}",
        )
        _require(
            self.microbatch_size is None or self.batch_size % self.microbatch_size == 0,
            f"microbatch_size={self.microbatch_size}: must divide batch_size={self.batch_size}",
        )
        multiplier(self.schedule, 0.5, warmup=self.warmup, final=self.final)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise UserError(f"finetuning setting {problem}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings with what differs by task and what is searched: `grid` maps settings to the values tried, all combinations.

    The point of the grid with the best median over the seeds on the evaluation split is reported, as the paper behind it does.
    """

    name: str
    source: str
    settings: Settings
    by_task: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    n_seeds: int = 5

    def of_task(self, task: str) -> list[dict[str, Any]]:
        """What differs from `settings` at each point of the grid, for `task`; one empty or per-task dict without a grid."""
        own = dict(self.by_task.get(task, {}))
        points = itertools.product(*self.grid.values())
        return [own | dict(zip(self.grid, values, strict=True)) for values in points]

    def changed(self, assignments: Sequence[str], grid: Sequence[str]) -> Protocol:
        """With KEY=VALUE `assignments` for all tasks or TASK.KEY=VALUE for one, and KEY=V1,V2,… in place of the protocol's own `grid`.

        Raises:
            UserError: for an unknown task or setting, or a value of another type.
        """
        values: dict[str, Any] = {}
        by_task = {task: dict(own) for task, own in self.by_task.items()}
        for text in assignments:
            if not _names_task(text):
                key, value = _assignment(text, "--set")
                values[key] = value
                by_task = {
                    task: {k: v for k, v in own.items() if k != key}
                    for task, own in by_task.items()
                }
        for text in filter(
            _names_task, assignments
        ):  # what is said of one task goes before what is said of all
            task, _, rest = text.partition(".")
            key, value = _assignment(rest, "--set")
            by_task.setdefault(find_tasks([task])[0].name, {})[key] = value
        points = {
            key: [_assignment(f"{key}={value}", "--grid")[1] for value in tried.split(",")]
            for key, _, tried in (text.partition("=") for text in grid)
        }
        kept = {} if grid else {key: tried for key, tried in self.grid.items() if key not in values}
        settings = dataclasses.replace(self.settings, **values)
        made = dataclasses.replace(self, settings=settings, by_task=by_task, grid=kept | points)
        for task in [*by_task, ""]:
            for point in made.of_task(task):
                dataclasses.replace(settings, **point)
        return made

    def describe(self) -> dict[str, Any]:
        """All of it, for the results."""
        return {
            "name": self.name,
            "source": self.source,
            "settings": dataclasses.asdict(self.settings),
            "by_task": {task: dict(own) for task, own in self.by_task.items()},
            "grid": {key: list(values) for key, values in self.grid.items()},
        }


_FIELDS = typing.get_type_hints(Settings)


def _names_task(text: str) -> bool:
    return "." in text.partition("=")[0]


def _assignment(text: str, flag: str) -> tuple[str, Any]:
    key, equals, word = text.partition("=")
    if key not in _FIELDS:
        near = difflib.get_close_matches(key, _FIELDS, 1)
        raise UserError(
            f"{flag} {text}: no such setting"
            + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(_FIELDS)}")
        )
    if not equals:
        raise UserError(f"{flag} {text}: a value is missing, as in {flag} {key}=VALUE")
    hint = _FIELDS[key]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        value = word
    if type(value) is int and float in kinds:
        value = float(value)
    if type(value) not in kinds:
        wanted = " or ".join("None" if kind is types.NoneType else kind.__name__ for kind in kinds)
        raise UserError(f"{flag} {text}: must be {wanted}")
    return key, value


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="cramming",
            source="Cramming (arXiv 2212.14034, section 5): the same settings for every task, last epoch, median of 5",
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
            source="BERT (arXiv 1810.04805, section 4.1): 3 epochs of batch 32, the best of four learning rates on dev; last epoch",
            settings=Settings(lr=2e-5, weight_decay=0.01, clip_norm=1.0),
            grid={"lr": (5e-5, 4e-5, 3e-5, 2e-5)},
        ),
        Protocol(
            name="mosaic",
            source="MosaicBERT (arXiv 2312.17482, its code): settings by task; RTE, MRPC and STS-B start from the MNLI model",
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
            source="T5 (arXiv 1910.10683, section 3.1.3): Adafactor at a constant 1e-3, batch 128, best epoch on dev; 10 epochs of each "
            "task by itself in place of 2^18 steps",
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
}
