"""A finetuning from checkpoint to results: runs each missing (task, point of the grid, seed)."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cramjax import console
from cramjax.console import Announce
from cramjax.finetuning import heads, learning, results, submission, training
from cramjax.finetuning.feed import Feed
from cramjax.finetuning.outputs import FinishedTask, write_outputs
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.request import FinetuneRequest, check_starts, choose_tasks
from cramjax.finetuning.saved import SavedModels
from cramjax.finetuning.store import Store, digest
from cramjax.finetuning.t5_feed import check_labels, check_rows
from cramjax.glue.tasks import OTHER, Task
from cramjax.inference import LoadedModel, untrained
from cramjax.objectives.objective import FinetuningObjective
from cramjax.tasks import catalogue
from cramjax.tuning import devices

SMALL_TASK = 20_000
"""Training rows of a task whose seeds are trained together; a larger task fills a device alone."""

RESULT = "the result"
MODEL = "the model"
"""What a run may lack. A result stays if its model is deleted."""

NUMBERS_PER_PARAMETER = 10
"""float32 numbers in memory for each parameter: the parameter, its gradient, two moments and an
update, and as many again for activations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OpenTask:
    """A task as the model reads it, with the functions that learn it."""

    task: Task
    splits: learning.Splits
    feed: Feed
    objective: FinetuningObjective

    def score(self, params: Any) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """Returns metrics in percent, and predictions by split."""
        return learning.score(self.task, self.splits, self.feed, self.objective, params)


class Finetuning:
    """Carries out a request. `run` does what is missing and returns the content of results.json."""

    def __init__(self, request: FinetuneRequest, model: LoadedModel, announce: Announce):
        """Opens the data and the folder of the results.

        Raises:
            UserError: for a request that cannot be carried out, or a folder with other results.
        """
        self.request = request
        self.announce = announce
        self.model = untrained(model) if request.untrained else model
        self.protocol = request.protocol
        self.seeds = list(range(request.n_seeds))

        chosen = choose_tasks(request.tasks, request.data_dir)
        check_starts([task for task in chosen if not task.first], self.protocol, self.model.is_t5)
        self.data = {}
        for task in chosen:
            heads.check(task, self.model.is_t5)
            self.data[task.name] = catalogue.open_task(
                task, request.data_dir, announce, test=request.submit
            )
        # The data say which labels there are.
        all_tasks = [self.data[task.name].task for task in chosen]
        self.all_tasks = all_tasks
        self.tasks = [task for task in all_tasks if not task.first]
        self.diagnostics = [task for task in all_tasks if task.first]
        if self.model.is_t5:
            for task in all_tasks:
                check_labels(task, self.model.tokenizer, self.model.special["sep"])
        # A task whose model others start from comes before them.
        self.tasks = sorted(self.tasks, key=lambda task: not self._is_start(task))

        if self.model.is_t5:
            for task in all_tasks:
                labelled = self.data[task.name].splits.get("validation", [])
                check_rows(task, labelled, self.model.tokenizer, announce)
        self.store = self._open_store()
        self.saved_models = SavedModels(request.out / "models", self.model)

        self._deadline = None
        if request.hours:
            self._deadline = time.monotonic() + request.hours * 3600

    def _open_store(self) -> Store:
        """Open the folder of the results; it must hold results of the same model and data only."""
        protocol = self.protocol.describe()
        others = {task.name: task for task in self.all_tasks if task.suite == OTHER}
        # A task of no suite may be added too, so its settings stand in its own setup.
        for name in others:
            protocol["by_task"].pop(name, None)
        store = Store(
            self.request.out,
            {
                "model": digest(self.model.params),
                "protocol": protocol,
                "precision": str(self.model.precision.matmul_dtype),
            },
        )

        # Tasks may be added to a folder, so each has a setup of its own with the sizes of its data.
        for task in self.tasks:
            splits = self.data[task.name].splits
            # The test sets are not part of it: a later --submission adds them.
            sizes = {
                split: len(splits[split]) for split in ("train", *task.splits) if split in splits
            }
            setup: dict[str, Any] = {"data": sizes}
            if task.name in others:
                setup["task"] = catalogue.notes(task)
                setup["settings"] = dict(self.protocol.by_task.get(task.name, {}))
            Store(self.request.out / "runs" / task.name, setup)
        return store

    def _is_start(self, task: Task) -> bool:
        """Returns whether any task starts from the model of `task`."""
        for other in self.tasks:
            for point in self.protocol.points(other.name):
                if self.protocol.settings_at(point).start_from == task.name:
                    return True
        return False

    def run(self) -> dict[str, Any]:
        """Do what is missing, write results after every task, and return them.

        Raises:
            RunFailed: if a model that another task starts from is missing.
        """
        unfinished: dict[str, str] = {}
        for task in self.tasks:
            for index, point in enumerate(self.protocol.points(task.name)):
                for group in self._seed_groups(task, self.protocol.settings_at(point)):
                    # A group is redone as a whole: a seed that is trained alone would differ by
                    # the rounding of another program.
                    lacking = {self._lacking(task, index, seed) for seed in group} - {""}
                    if lacking and self._deadline and time.monotonic() > self._deadline:
                        unfinished[task.name] = f"the {self.request.hours:g} hours were over"
                    elif lacking:
                        self._announce_again(task, group, lacking)
                        self._run_group(task, index, point, group)
            self._write(unfinished)
        return self._write(unfinished)

    def _lacking(self, task: Task, index: int, seed: int) -> str:
        """Returns what a run lacks of what this command needs, or ""."""
        lacking = self._lacking_itself(task, index, seed)
        if lacking or (index, seed) != SavedModels.START:
            return lacking
        if not self.saved_models.has(task.name, index, seed) and self._is_start_of_missing(task):
            return MODEL
        return ""

    def _lacking_itself(self, task: Task, index: int, seed: int) -> str:
        """Returns what a run lacks of what the user asks for, or ""."""
        run = self.store.read(task.name, index, seed)
        if run is None:
            return RESULT
        if self.request.save and not self.saved_models.has(task.name, index, seed):
            return MODEL
        if self.request.submit and not self._has_tests(task, run):
            return "the predictions for the test set"
        return ""

    def _is_start_of_missing(self, task: Task) -> bool:
        """Returns whether a run that lacks something starts from the model of `task`."""
        for other in self.tasks:
            for index, point in enumerate(self.protocol.points(other.name)):
                if self.protocol.settings_at(point).start_from != task.name:
                    continue
                if any(self._lacking_itself(other, index, seed) for seed in self.seeds):
                    return True
        return False

    def _announce_again(self, task: Task, seeds: Sequence[int], lacking: set[str]) -> None:
        """Say why runs with results are trained again."""
        if RESULT not in lacking:
            self.announce(
                f"{task.folder} seed {_shown(seeds)}: the result is there, "
                f"{' and '.join(sorted(lacking))} not; training again"
            )

    def _has_tests(self, task: Task, run: dict[str, Any]) -> bool:
        """Returns whether a run has predictions for all test rows that are present."""
        answered = [other for other in self.diagnostics if other.first == task.name]
        for shown in (task, *answered):
            predictions = run["predictions"].get(shown.name, {})
            splits = self.data[shown.name].splits
            for split in submission.file_names(shown):
                if split in splits and len(predictions.get(split, ())) != len(splits[split]):
                    return False
        return True

    def _seed_groups(self, task: Task, settings: Settings) -> list[list[int]]:
        """Returns the seeds that are trained together.

        The groups are the same after a restart, so a resumed run gives the same numbers.
        """
        size = self.request.together or self._seeds_together(task, settings)
        return [self.seeds[start : start + size] for start in range(0, len(self.seeds), size)]

    def _seeds_together(self, task: Task, settings: Settings) -> int:
        """Returns how many seeds of a task the device trains at once."""
        device = jax.devices()[0]
        memory = devices.memory_bytes(device)
        n_train = min(len(self.data[task.name].splits["train"]), settings.max_train or sys.maxsize)

        # On a CPU one seed keeps the cores busy, and several gain nothing (docs/benchmarks.md).
        if device.platform == "cpu" or n_train > SMALL_TASK or memory is None:
            return 1
        n_params = sum(leaf.size for leaf in jax.tree.leaves(self.model.params))
        n_fitting = int(memory / (4 * NUMBERS_PER_PARAMETER * n_params))
        return max(1, min(len(self.seeds), n_fitting))

    def _run_group(
        self, task: Task, index: int, point: dict[str, Any], seeds: Sequence[int]
    ) -> None:
        """Train `seeds` at a point of the grid together, then score and store each."""
        settings = self.protocol.settings_at(point)
        opened = self._open(task, settings)
        diagnostics = [
            self._open(other, settings) for other in self.diagnostics if other.first == task.name
        ]
        pretrained = self.saved_models.start(settings)

        shown_point = ", ".join(f"{key}={value}" for key, value in point.items())
        if shown_point:
            shown_point = f" ({shown_point})"
        self.announce(
            f"{task.folder} seed {_shown(seeds)}{shown_point}: {opened.feed.n_train:,} examples"
        )

        started = time.monotonic()
        trained = self._train(opened, settings, pretrained, seeds)
        for number, seed in enumerate(seeds):
            params = training.of_seed(trained.params, number, len(seeds))
            run = {"task": task.name, "seed": seed, "point": point}
            run |= _outcome(opened, diagnostics, trained, number, params)
            # Other tasks start from saved models, whether --save is given or not.
            if self.request.save or self._is_start(task):
                self.saved_models.save(task, index, seed, settings, params)

            earlier = self.store.read(task.name, index, seed)
            if earlier:
                # Test sets are predicted with --submission only, and what is there is kept.
                for name, splits in run["predictions"].items():
                    run["predictions"][name] = earlier["predictions"].get(name, {}) | splits

            run["seconds"] = (time.monotonic() - started) / len(seeds)
            self.store.write(run, index)
            self._announce_run(task, run)

    def _open(self, task: Task, settings: Settings) -> _OpenTask:
        splits = self.data[task.name].splits
        feed, objective = learning.open_task(self.model, task, splits, settings, self.announce)
        return _OpenTask(task=task, splits=splits, feed=feed, objective=objective)

    def _train(
        self, opened: _OpenTask, settings: Settings, params: Any, seeds: Sequence[int]
    ) -> training.Trained:
        task = opened.task

        def headline(_: int, seed_params: Any) -> float:
            return results.headline(task, opened.score(seed_params)[0])

        return training.train(
            opened.feed,
            opened.objective,
            settings,
            params,
            seeds,
            dynamic_scale=self.model.precision.matmul_dtype == np.float16,
            headline=headline,
            report=StepReport(task.folder, len(seeds) * settings.batch_size, self.announce),
            compiling=lambda: self.announce(f"  {task.folder}: compiling…"),
        )

    def _announce_run(self, task: Task, run: dict[str, Any]) -> None:
        scores = ", ".join(
            f"{name} {value:.1f}"
            for name, value in run["metrics"][task.name].items()
            # Those of every type of entities would fill the screen.
            if task.suite != OTHER or name in task.metrics
        )
        self.announce(
            f"{task.folder} seed {run['seed']}: {scores} "
            f"({run['seconds']:.1f} s, loss {run['loss']:.3f})"
        )

    def _write(self, unfinished: dict[str, str]) -> dict[str, Any]:
        """Write the files of all finished runs, and return the content of results.json."""
        finished = []
        for task in self.tasks:
            points = self._finished_points(task)
            if not points:
                continue
            n_train = len(self.data[task.name].splits["train"])
            answered = [other for other in self.diagnostics if other.first == task.name]
            for shown in (task, *answered):
                data = self.data[shown.name]
                finished.append(FinishedTask(task=shown, data=data, n_train=n_train, points=points))
        return write_outputs(self.request, self.all_tasks, finished, unfinished, self.announce)

    def _finished_points(self, task: Task) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Returns (settings that differ, runs) of the points with finished runs."""
        points = []
        for index, point in enumerate(self.protocol.points(task.name)):
            stored = [self.store.read(task.name, index, seed) for seed in self.seeds]
            runs = [run for run in stored if run]
            if runs:
                points.append((point, runs))
        return points


def _shown(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _outcome(
    opened: _OpenTask,
    diagnostics: Sequence[_OpenTask],
    trained: training.Trained,
    number: int,
    params: Any,
) -> dict[str, Any]:
    """Returns what `Store` keeps of a run: metrics, predictions and how training went.

    Args:
        opened: the task that was trained.
        diagnostics: tasks that the same model answers.
        trained: the seeds that were trained together.
        number: index of the seed among them.
        params: its parameters.
    """
    task = opened.task
    scores, predictions = opened.score(params)
    outcome: dict[str, Any] = {
        "metrics": {task.name: scores},
        "predictions": {task.name: predictions},
        "status": "diverged" if trained.diverged[number] else "ok",
        "constant": heads.is_constant(task, predictions[task.splits[0]]),
        # The feed counts outputs that are no answer while it reads predictions.
        "illegal": dict(opened.feed.n_illegal),
        "loss": trained.losses[number],
        "epoch": trained.epoch[number],
        "n_steps": trained.n_steps,
    }

    for other in diagnostics:
        name = other.task.name
        outcome["metrics"][name], outcome["predictions"][name] = other.score(params)
    return outcome


class StepReport:
    """Announces the progress of one training now and then, with rate and time left.

    Args:
        name: the task's folder name.
        batch_size: examples in a step, over all seeds.
        announce: prints a line that stays.
    """

    def __init__(self, name: str, batch_size: int, announce: Announce):
        self._name = name
        self._batch_size = batch_size
        # Plain lines also on a terminal: the lines of a task stay above its scores.
        self._meter = console.Meter(announce, interval_s=10.0, has_bar=False)
        self._pace = console.Pace()

    def __call__(self, step: int, n_steps: int, loss: float) -> None:
        """Take in a report of `training.train`."""
        left_s = self._pace.left_s(step, n_steps)
        if step == n_steps or left_s is None:
            return

        rate = self._pace.rate(step) * self._batch_size
        self._meter.update(
            f"  {self._name} {step / n_steps:4.0%}  step {step:,}  loss {loss:.3f}  "
            f"{rate:,.0f} examples/s  {console.time_left(left_s)}"
        )
