"""What a compressed model is judged by: a task it is finetuned for, or held-out text where there is none."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np

from cramjax.compress.learner import Compressed
from cramjax.compress.quantize import Quantizer
from cramjax.config import stages
from cramjax.data import loader as loaders
from cramjax.data.dataset import TokenDataset
from cramjax.errors import UserError
from cramjax.finetuning import learning, results, training
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.run import Meter
from cramjax.glue.tasks import Task
from cramjax.inference import LoadedModel
from cramjax.models import network
from cramjax.training import session
from cramjax.training.evaluate import Evaluator

LATENCY_BATCHES = {"batch_1": 1, "batch_32": 32}
"""Name in pareto.json → examples at a time."""

_WARMUP, _REPETITIONS = 3, 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """`value` of the `metric`; `loss`: mean over the evaluation split in nats (of a regression its squared error), None for a T5."""

    metric: str
    value: float
    loss: float | None


class Subject(Protocol):
    """Trains and scores a network whose configuration and parameters are given; `max_length`: tokens of a text."""

    max_length: int

    def start(self, seed: int) -> Any:
        """The parameters before any compression."""

    def axes(self, config: Any) -> Any:
        """Axis names of the parameters."""

    def recover(
        self, config: Any, params: Any, seed: int, epochs: int, quantizer: Quantizer | None
    ) -> Any:
        """Parameters after finetuning on, zeros where they were."""

    def score(self, config: Any, params: Any) -> Score:
        """How good it is."""

    def latency(self, config: Any, params: Any) -> dict[str, dict[str, float]]:
        """Milliseconds for `LATENCY_BATCHES`: p50 and p99."""


class TaskSubject:
    """A task of GLUE or SuperGLUE."""

    def __init__(
        self,
        model: LoadedModel,
        task: Task,
        splits: learning.Splits,
        settings: Settings,
        announce: Callable[[str], None],
    ):
        """`model` is finetuned for `task` by `settings`, or is to be; `announce` is told how far training is.

        Raises:
            UserError: for an optimizer that moves what has no gradient.
        """
        if settings.optimizer == "muon":
            raise UserError(
                "finetuning setting optimizer=muon: moves weights that are pruned; take adamw, adafactor, lamb or lion"
            )
        self.model, self.task, self.splits, self.settings = model, task, dict(splits), settings
        self.max_length, self._announce = settings.max_length, announce
        self._opened: dict[Any, tuple[Any, Any]] = {}

    def _open(self, config: Any) -> tuple[Any, Any]:
        if config not in self._opened:
            model = dataclasses.replace(self.model, config=config)
            self._opened[config] = learning.open_task(
                model, self.task, self.splits, self.settings, self._announce
            )
        return self._opened[config]

    def _train(self, config: Any, learner: Any, params: Any, settings: Settings, seed: int) -> Any:
        feed = self._open(config)[0]
        dynamic_scale = self.model.precision.matmul_dtype == np.float16
        return training.train(
            feed,
            learner,
            settings,
            params,
            [seed],
            dynamic_scale=dynamic_scale,
            report=Meter(self.task.folder, settings.batch_size, self._announce),
            compiling=lambda: self._announce(f"  {self.task.folder}: compiling…"),
        ).params

    def start(self, seed: int) -> Any:
        """The finetuned parameters; of a model that is not finetuned those after finetuning by `seed`."""
        if self.model.finetuned:
            return self.model.params
        extra = {name: self.model.extra[name] for name in ("pooler",) if name in self.model.extra}
        learner = self._open(self.model.config)[1]
        settings = dataclasses.replace(self.settings, select="last")
        return self._train(self.model.config, learner, self.model.params | extra, settings, seed)

    def axes(self, config: Any) -> Any:
        """As of `Subject`."""
        return self._open(config)[1].axes

    def recover(
        self, config: Any, params: Any, seed: int, epochs: int, quantizer: Quantizer | None
    ) -> Any:
        """As of `Subject`; the learning rate starts anew."""
        settings = dataclasses.replace(self.settings, epochs=epochs, max_steps=None, select="last")
        return self._train(
            config, Compressed(self._open(config)[1], quantizer), params, settings, seed
        )

    def score(self, config: Any, params: Any) -> Score:
        """The task's headline in percent."""
        feed, learner = self._open(config)
        found, _ = learning.score(self.task, self.splits, feed, learner, params)
        return Score(
            metric="+".join(self.task.headline),
            value=results.headline(self.task, found),
            loss=None
            if self.model.is_t5
            else _mean_loss(learner, params, feed.eval_batches(self.task.splits[0])),
        )

    def latency(self, config: Any, params: Any) -> dict[str, dict[str, float]]:
        """Of the first training examples, tokenised and packed before."""
        feed, learner = self._open(config)
        predict = training.predictor(learner)
        found = {}
        for name, n in LATENCY_BATCHES.items():
            plan = feed.plan(range(min(n, feed.n_train)))
            batch = jax.device_put(feed.arrays(plan, plan.need, n))
            found[name] = measure(lambda batch=batch: predict(params, batch))
        return found


def _mean_loss(learner: Any, params: Any, batches: Any) -> float:
    total = weight = 0.0
    for batch, scores in zip(batches, training.predict(learner, params, batches), strict=True):
        shifted = scores - scores.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        nats = -np.take_along_axis(logs, batch["labels"][:, None], axis=1)[:, 0]
        errors = np.square(scores[:, 0] - batch["targets"])
        total += float(np.sum(np.where(batch["regression"] > 0, errors, nats) * batch["weights"]))
        weight += float(batch["weights"].sum())
    return total / weight


class TextSubject:
    """The held-out text of the run a model comes from; nothing is trained."""

    def __init__(self, model: LoadedModel, workdir: pathlib.Path):
        """Raises UserError where the text of the run in `workdir` is not there any more."""
        self.model = model
        content = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        content["growth"]["stages"] = stages.frozen(content["growth"]["stages"])
        self._config = ml_collections.FrozenConfigDict(content)
        self.max_length = self._config.data.seq_len
        self._dataset = TokenDataset.open(
            json.loads((workdir / "environment.json").read_text(encoding="utf-8"))["dataset"]
        )
        # Nothing is trained, so no microbatch is looked for.
        self._made = session.session_on(self._config, self._dataset, jax.devices())
        self._batches = loaders.heldout_batches(
            self._dataset,
            seq_len=self._made.objective.eval_row_tokens,
            batch_size=self._config.eval.batch_size,
            n_batches=self._config.eval.batches,
            cls_token=self._config.data.cls_token,
        )
        self._evaluate = Evaluator(self._made.objective, self._made.mesh, self._batches)
        self._program = jax.jit(self._made.objective.evaluate)

    def start(self, seed: int) -> Any:
        """The run's parameters."""
        return self.model.params

    def axes(self, config: Any) -> Any:
        """As of `Subject`."""
        return network.param_axes(self._made.objective.network)

    def recover(
        self, config: Any, params: Any, seed: int, epochs: int, quantizer: Quantizer | None
    ) -> Any:
        """`params` themselves: there is nothing to learn from."""
        return params

    def score(self, config: Any, params: Any) -> Score:
        """Held-out loss in nats a predicted token, as the run's summary has it."""
        loss = self._evaluate(jax.device_put(params)).loss
        return Score(metric="heldout_loss", value=loss, loss=loss)

    def latency(self, config: Any, params: Any) -> dict[str, dict[str, float]]:
        """Of scoring held-out sequences."""
        found = {}
        tokens, weights = self._batches[0]
        for name, n in LATENCY_BATCHES.items():
            rows = np.arange(n, dtype=np.int32) % len(tokens)
            batch = jax.device_put((tokens[rows], rows, weights[rows]))
            found[name] = measure(lambda batch=batch: self._program(params, *batch)["loss"])
        return found


def measure(call: Callable[[], jax.Array]) -> dict[str, float]:
    """Milliseconds of `call`, median and 99th percentile, after it has been compiled."""
    for _ in range(_WARMUP):
        jax.block_until_ready(call())
    times = []
    for _ in range(_REPETITIONS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "p50_ms": round(float(np.percentile(times, 50)), 3),
        "p99_ms": round(float(np.percentile(times, 99)), 3),
    }


def settings_of(finetuned: Mapping[str, Any]) -> Settings:
    """The settings a finetuned model was made with."""
    return Settings(**finetuned["settings"])
