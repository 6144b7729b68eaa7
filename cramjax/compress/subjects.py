"""Subjects: they train and judge compressed models.

A subject is a task that the model is finetuned for, or the held-out text of the model's run.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from cramjax.compress.learner import Compressed
from cramjax.compress.quantize import Quantizer
from cramjax.console import Announce
from cramjax.data import loader as loaders
from cramjax.errors import UserError
from cramjax.finetuning import learning, results, training
from cramjax.finetuning.classification import EncoderObjective
from cramjax.finetuning.feed import Arrays, Feed
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.run import StepReport
from cramjax.finetuning.saved import pretrained_params
from cramjax.glue.tasks import Task
from cramjax.inference import LoadedModel, check_head
from cramjax.models import network
from cramjax.models.network import Network
from cramjax.objectives.objective import FinetuningObjective
from cramjax.training import history, scoring, session
from cramjax.training.evaluate import Evaluator

LATENCY_BATCHES = {"batch_1": 1, "batch_32": 32}
"""Name in pareto.json → examples at a time."""

_N_WARMUP = 3
_N_REPETITIONS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The quality of a network.

    Attributes:
        value: value of `metric`.
        loss: mean over the evaluation split, in nats, or squared error for a regression. None for
            a finetuned T5, and where no answer stands in its context.
    """

    metric: str
    value: float
    loss: float | None


class Subject(Protocol):
    """Trains and scores networks, given by configuration and parameters.

    Attributes:
        max_length: tokens of a text.
    """

    max_length: int

    def start(self, seed: int) -> Any:
        """Returns the parameters before any compression."""
        ...

    def axes(self, config: Network) -> Any:
        """Returns the axis names of the parameters."""
        ...

    def recover(
        self, config: Network, params: Any, seed: int, epochs: int, quantizer: Quantizer | None
    ) -> Any:
        """Returns parameters after more finetuning; zeros stay zeros.

        With a `quantizer` the loss sees quantised weights.
        """
        ...

    def score(self, config: Network, params: Any) -> Score:
        """Returns the quality of a network."""
        ...

    def latency(self, config: Network, params: Any) -> dict[str, dict[str, float]]:
        """Returns milliseconds for each of `LATENCY_BATCHES`: p50_ms and p99_ms."""
        ...


class TaskSubject:
    """Judges by a task, and finetunes for it."""

    def __init__(
        self,
        model: LoadedModel,
        task: Task,
        splits: learning.Splits,
        settings: Settings,
        announce: Announce,
    ):
        """Takes a model that is finetuned for `task`, or is to be.

        Args:
            settings: of finetuning.
            announce: receives the progress of training.

        Raises:
            UserError: for an optimizer that moves weights without a gradient.
        """
        if settings.optimizer == "muon":
            raise UserError(
                "finetuning setting optimizer=muon: moves weights that are pruned; take adamw, "
                "adafactor, lamb or lion"
            )

        self.model = model
        self.task = task
        self.splits = dict(splits)
        self.settings = settings
        self.max_length = settings.max_length
        self._announce = announce
        self._opened: dict[Any, tuple[Feed, FinetuningObjective]] = {}

    def _open(self, config: Network) -> tuple[Feed, FinetuningObjective]:
        """Returns the feed and the objective of a network; equal networks share them."""
        if config not in self._opened:
            model = dataclasses.replace(self.model, config=config)
            self._opened[config] = learning.open_task(
                model, self.task, self.splits, self.settings, self._announce
            )
        return self._opened[config]

    def _train(
        self,
        config: Network,
        objective: FinetuningObjective,
        params: Any,
        settings: Settings,
        seed: int,
    ) -> Any:
        """Returns the parameters after training with the last epoch's."""
        feed, _ = self._open(config)
        return training.train(
            feed,
            objective,
            dataclasses.replace(settings, select="last"),
            params,
            [seed],
            dynamic_scale=self.model.precision.matmul_dtype == np.float16,
            report=StepReport(self.task.folder, settings.batch_size, self._announce),
            compiling=lambda: self._announce(f"  {self.task.folder}: compiling…"),
        ).params

    def start(self, seed: int) -> Any:
        """Returns the finetuned parameters; a model that is not finetuned is finetuned first."""
        if self.model.finetuned:
            return self.model.params
        config = self.model.config
        _, objective = self._open(config)
        return self._train(config, objective, pretrained_params(self.model), self.settings, seed)

    def axes(self, config: Network) -> Any:
        """Returns the axis names of the parameters."""
        _, objective = self._open(config)
        return objective.axes

    def recover(
        self, config: Network, params: Any, seed: int, epochs: int, quantizer: Quantizer | None
    ) -> Any:
        """Returns parameters after `epochs` of finetuning; the learning rate starts anew."""
        _, objective = self._open(config)
        settings = dataclasses.replace(self.settings, epochs=epochs, max_steps=None)
        return self._train(config, Compressed(objective, quantizer), params, settings, seed)

    def score(self, config: Network, params: Any) -> Score:
        """Returns the task's headline in percent."""
        feed, objective = self._open(config)
        metrics, _ = learning.score(self.task, self.splits, feed, objective, params)
        loss = None
        if isinstance(objective, EncoderObjective):
            loss = _mean_loss(objective, params, feed.eval_batches(self.task.splits[0]))
        return Score(
            metric="+".join(self.task.headline),
            value=results.headline(self.task, metrics),
            loss=loss,
        )

    def latency(self, config: Network, params: Any) -> dict[str, dict[str, float]]:
        """Returns milliseconds for the first training examples, which are tokenised before."""
        feed, objective = self._open(config)
        predict = training.predictor(objective)
        times = {}
        for name, n_examples in LATENCY_BATCHES.items():
            plan = feed.plan(range(min(n_examples, feed.n_train)))
            batch = jax.device_put(feed.arrays(plan, plan.need, n_examples))
            times[name] = measure(functools.partial(predict, params, batch))
        return times


def _mean_loss(objective: EncoderObjective, params: Any, batches: Sequence[Arrays]) -> float | None:
    """Returns the mean loss over `batches`; None if no example has a target."""
    evaluate = training.evaluator(objective)
    sums = [evaluate(params, batch) for batch in batches]
    weight = float(sum(weight for _, weight in sums))
    return float(sum(total for total, _ in sums)) / weight if weight else None


class TextSubject:
    """Judges by the held-out text of the run a model comes from. Nothing is trained.

    A run on pairs that was scored by BLEU is judged by it.

    Attributes:
        model: the model of the run.
        metric: "heldout_loss" or "bleu".
        max_length: tokens of a text.
    """

    def __init__(self, model: LoadedModel, workdir: pathlib.Path):
        """Opens the run in `workdir`.

        Raises:
            UserError: if the text of the run is missing, or its model predicts no words.
        """
        check_head(model)
        self.model = model
        config, dataset = history.dataset_of(workdir)
        self.max_length = config.data.seq_len

        # Nothing is trained, so no microbatch is looked for.
        self._session = session.session_on(config, dataset, jax.devices())
        self._batches = loaders.heldout_batches(
            dataset,
            seq_len=self._session.objective.eval_row_shape,
            batch_size=config.eval.batch_size,
            n_batches=config.eval.batches,
            cls_token=config.data.cls_token,
        )
        self._scorer = scoring.open_scorer(config, dataset)
        self.metric = "heldout_loss" if self._scorer is None else "bleu"
        self._evaluate = Evaluator(self._session.objective, self._session.mesh, self._batches)
        self._program = jax.jit(self._session.objective.evaluate)

    def start(self, seed: int) -> Any:
        """Returns the run's parameters."""
        return self.model.params

    def axes(self, config: Network) -> Any:
        """Returns the axis names of the parameters."""
        return network.param_axes(self._session.objective.network)

    def recover(
        self, config: Network, params: Any, seed: int, epochs: int, quantizer: Quantizer | None
    ) -> Any:
        """Returns `params` themselves, because there is nothing to learn from."""
        return params

    def score(self, config: Network, params: Any) -> Score:
        """Returns BLEU if the run was scored by it, or else the held-out loss.

        Both are as in the run's summary, the loss in nats for each predicted token.
        """
        placed = jax.device_put(params)
        loss = self._evaluate(placed).loss
        if self._scorer is None:
            return Score(metric=self.metric, value=loss, loss=loss)
        # What is pruned to no numbers writes nothing.
        value = 0.0
        if np.isfinite(loss):
            scores = self._scorer.score(self._session, placed, lambda: False)
            assert scores is not None  # nobody stops it
            value = scores["bleu"]
        return Score(metric=self.metric, value=value, loss=loss)

    def latency(self, config: Network, params: Any) -> dict[str, dict[str, float]]:
        """Returns milliseconds for scoring held-out sequences."""
        tokens, weights = self._batches[0]
        times = {}
        for name, n_rows in LATENCY_BATCHES.items():
            rows = np.arange(n_rows, dtype=np.int32) % len(tokens)
            batch = jax.device_put((tokens[rows], rows, weights[rows]))
            times[name] = measure(functools.partial(self._program, params, *batch))
        return times


def measure(call: Callable[[], Any]) -> dict[str, float]:
    """Returns milliseconds of `call`, median and 99th percentile, after it has been compiled."""
    for _ in range(_N_WARMUP):
        jax.block_until_ready(call())

    times = []
    for _ in range(_N_REPETITIONS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return {
        "p50_ms": round(float(np.percentile(times, 50)), 3),
        "p99_ms": round(float(np.percentile(times, 99)), 3),
    }


def settings_of(finetuned: Mapping[str, Any]) -> Settings:
    """Returns the settings a finetuned model was made with."""
    return Settings(**finetuned["settings"])
