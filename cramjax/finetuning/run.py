"""A finetuning from checkpoint to results: every task, point of the grid and seed that is missing, then the tables."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cramjax import console
from cramjax.checkpoints.checkpoint import Checkpoints
from cramjax.console import Announce
from cramjax.errors import RunFailed, UserError
from cramjax.files import write_json
from cramjax.finetuning import learning, results, submission, training
from cramjax.finetuning.protocols import PROTOCOLS, Protocol, Settings
from cramjax.finetuning.store import Store, digest
from cramjax.glue import local_files, rows
from cramjax.glue.tasks import SUITES, Task, find_tasks
from cramjax.inference import LoadedModel, untrained
from cramjax.tuning import devices

# Seeds are trained together up to this many training rows: a larger task fills the device by itself.
SMALL_TASK = 20_000
# Parameters, gradients, two moments, an update, and as much again for activations: float32 numbers a parameter.
NUMBERS_A_PARAMETER = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; the flags of `tools/finetune.py` say what each one means."""

    checkpoint: str
    tasks: Sequence[str]
    data_dir: str
    out: pathlib.Path
    protocol: Protocol
    n_seeds: int
    hours: float | None = None
    together: int | None = None
    untrained: bool = False
    save: bool = False
    submit: bool = False
    compare: bool = False


def choose_protocol(
    name: str | None, is_t5: bool, assignments: Sequence[str], grid: Sequence[str]
) -> Protocol:
    """The protocol by name ("cramming" for an encoder and "t5" for a T5 if None) with changed settings.

    Raises:
        UserError: for an unknown name or setting.
    """
    name = name or ("t5" if is_t5 else "cramming")
    if name not in PROTOCOLS:
        raise UserError(f"--protocol {name}: unknown; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name].changed(assignments, grid)


def choose_tasks(names: Sequence[str], data_dir: str) -> tuple[Task, ...]:
    """The tasks asked for; diagnostics (AX-b, AX-g) of a whole suite only where their data are, and never alone."""
    prefer = None if data_dir == "tfds" else local_files.suite_of("RTE", pathlib.Path(data_dir))
    tasks = find_tasks(names, prefer)
    asked = {name.lower() for name in names}
    chosen = [
        task
        for task in tasks
        if not (task.first and asked & set(SUITES) and not rows.has_data(task, data_dir))
    ]
    for task in chosen:
        if task.first and all(other.name != task.first for other in chosen):
            raise UserError(
                f"--task {task.name}: is answered by the model of {task.first}; add {task.first}"
            )
    return tuple(chosen)


class Finetuning:
    """One request carried out; `run` does what is missing and returns the content of results.json."""

    def __init__(self, request: Request, model: LoadedModel, announce: Announce):
        self.request, self.announce = request, announce
        self.model = untrained(model) if request.untrained else model
        self.protocol = request.protocol
        self.seeds = list(range(request.n_seeds))
        all_tasks = choose_tasks(request.tasks, request.data_dir)
        self.tasks = [task for task in all_tasks if not task.first]
        self.diagnostics = [task for task in all_tasks if task.first]
        self._check_starts()
        # A task whose model others start from is done before them.
        starts = {point.get("start_from") for task in self.tasks for point in self._points(task)}
        self.tasks.sort(key=lambda task: task.name not in starts)
        self.suite = self.tasks[0].suite
        self.data = {
            task.name: rows.open_task(task, request.data_dir, announce, test=request.submit)
            for task in all_tasks
        }
        setup = {
            "model": digest(self.model.params),
            "protocol": self.protocol.describe(),
            "data": {
                name: {split: len(found) for split, found in data.splits.items()}
                for name, data in self.data.items()
            },
            "precision": str(self.model.precision.matmul_dtype),
        }
        # Tasks may be added to a folder, so the data of each are checked by themselves.
        data = setup.pop("data")
        self.store = Store(request.out, setup)
        self.stores = {
            task.name: Store(request.out / "runs" / task.name, {"data": data[task.name]})
            for task in self.tasks
        }
        self._deadline = time.monotonic() + request.hours * 3600 if request.hours else None

    def _points(self, task: Task) -> list[dict[str, Any]]:
        return self.protocol.of_task(task.name)

    def _settings(self, point: dict[str, Any]) -> Settings:
        return dataclasses.replace(self.protocol.settings, **point)

    def _check_starts(self) -> None:
        names = {task.name for task in self.tasks}
        for task in self.tasks:
            for point in self._points(task):
                start = self._settings(point).start_from
                if start == task.name or (
                    start
                    and start not in {other.name for suite in SUITES.values() for other in suite}
                ):
                    raise UserError(f"finetuning setting start_from={start}: must be another task")
                if start and start not in names:
                    raise UserError(
                        f"--protocol {self.protocol.name}: {task.name} starts from the model of {start}; add {start} to --task, or "
                        "--set start_from=None"
                    )
                if start and self.model.is_t5:
                    raise UserError(
                        f"finetuning setting start_from={start}: is for encoders; give --set start_from=None"
                    )

    def run(self) -> dict[str, Any]:
        """Do what is missing, write results after every task, and return them.

        Raises:
            RunFailed: if no run of any task finished.
        """
        unfinished: dict[str, str] = {}
        for task in self.tasks:
            for index, point in enumerate(self._points(task)):
                for group in self._groups(task, self._settings(point)):
                    if all(self.store.read(task.name, index, seed) for seed in group):
                        continue
                    if self._deadline and time.monotonic() > self._deadline:
                        unfinished[task.name] = f"the {self.request.hours:g} hours were over"
                        continue
                    self._run_group(task, index, point, group)
            self._write(unfinished)
        return self._write(unfinished)

    def _groups(self, task: Task, settings: Settings) -> list[list[int]]:
        """Seeds that are trained together; always the same ones, so that a resumed run gives the same numbers."""
        size = self.request.together or self._seeds_together(task, settings)
        return [self.seeds[start : start + size] for start in range(0, len(self.seeds), size)]

    def _seeds_together(self, task: Task, settings: Settings) -> int:
        device = jax.devices()[0]
        n_train = min(len(self.data[task.name].splits["train"]), settings.max_train or sys.maxsize)
        limit = devices.memory_bytes(device)
        # On CPU one seed keeps the cores busy, and several gain nothing (docs/benchmarks.md).
        if device.platform == "cpu" or n_train > SMALL_TASK or limit is None:
            return 1
        n_params = sum(leaf.size for leaf in jax.tree.leaves(self.model.params))
        return max(1, min(len(self.seeds), int(limit / (4 * NUMBERS_A_PARAMETER * n_params))))

    def _run_group(
        self, task: Task, index: int, point: dict[str, Any], seeds: Sequence[int]
    ) -> None:
        settings = self._settings(point)
        feed, learner = self._opened(task, settings)
        extra = [
            (other, *self._opened(other, settings))
            for other in self.diagnostics
            if other.first == task.name
        ]
        trained = self._start(settings)
        shown = ", ".join(f"{key}={value}" for key, value in point.items())
        self.announce(
            f"{task.folder} seed {', '.join(map(str, seeds))}{f' ({shown})' if shown else ''}: {feed.n_train:,} examples"
        )
        start = time.monotonic()
        found = training.train(
            feed,
            learner,
            settings,
            trained,
            seeds,
            dynamic_scale=self.model.precision.matmul_dtype == np.float16,
            headline=lambda _, params: results.headline(
                task, self._scored(task, feed, learner, params)[0]
            ),
            report=StepReport(task.folder, len(seeds) * settings.batch_size, self.announce),
            compiling=lambda: self.announce(f"  {task.folder}: compiling…"),
        )
        for number, seed in enumerate(seeds):
            params = training.of_seed(found.params, number, len(seeds))
            scores, predictions = self._scored(task, feed, learner, params)
            run = {
                "task": task.name,
                "seed": seed,
                "point": point,
                "metrics": {task.name: scores},
                "predictions": {task.name: predictions},
                "status": "diverged" if found.diverged[number] else "ok",
                "constant": results.is_constant(predictions[task.splits[0]]),
                "illegal": dict(getattr(feed, "n_illegal", {})),
                "loss": found.losses[number],
                "epoch": found.epoch[number],
                "n_steps": found.n_steps,
            }
            for other, other_feed, other_learner in extra:
                run["metrics"][other.name], run["predictions"][other.name] = self._scored(
                    other, other_feed, other_learner, params
                )
            if self.request.save or self._is_start(task):
                self._save(task, index, seed, learner, params)
            run["seconds"] = (time.monotonic() - start) / len(seeds)
            self.store.write(run, index)
            shown = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
            self.announce(
                f"{task.folder} seed {seed}: {shown} ({run['seconds']:.1f} s, loss {run['loss']:.3f})"
            )

    def _opened(self, task: Task, settings: Settings) -> tuple[Any, Any]:
        return learning.open_task(
            self.model, task, self.data[task.name].splits, settings, self.announce
        )

    def _scored(
        self, task: Task, feed: Any, learner: Any, params: Any
    ) -> tuple[dict[str, float], dict[str, list[Any]]]:
        return learning.score(task, self.data[task.name].splits, feed, learner, params)

    def _is_start(self, task: Task) -> bool:
        return any(
            self._settings(point).start_from == task.name
            for other in self.tasks
            for point in self._points(other)
        )

    def _start(self, settings: Settings) -> Any:
        """Parameters to finetune: the model's, or its encoder after another task (of its first seed, as MosaicBERT's code does)."""
        if settings.start_from is None:
            return self.model.params | {
                name: self.model.extra[name] for name in ("pooler",) if name in self.model.extra
            }
        folder = self._saved(settings.start_from, 0, 0)
        if not (folder / "checkpoints").is_dir():
            raise RunFailed(
                f"{folder}: the model of {settings.start_from} is missing, which others start from; remove its runs to redo it"
            )
        checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
        params, _ = checkpoints.restore_params()
        checkpoints.close()
        return params

    def _saved(self, task: str, index: int, seed: int) -> pathlib.Path:
        return self.request.out / "models" / task / f"point-{index}" / f"seed-{seed}"

    def _save(self, task: Task, index: int, seed: int, learner: Any, params: Any) -> None:
        """A finetuned model as a folder of its own: checkpoint, tokenizer, config.json."""
        folder = self._saved(task.name, index, seed)
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        self.model.tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
        finetuned = learning.describe(task, self._settings(self._points(task)[index]), seed)
        precision = str(self.model.precision.matmul_dtype)
        write_json(folder / "config.json", {"precision": precision, "finetuned": finetuned})
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        sidecar = {"model": self.model.description(), "finetuned": finetuned}
        checkpoints.save(1, {"params": params}, sidecar, block=True)
        checkpoints.close()

    def _finished(self, task: Task) -> list[tuple[int, dict[str, Any], list[dict[str, Any]]]]:
        """(number, settings, runs) of the points with finished runs."""
        found = []
        for index, point in enumerate(self._points(task)):
            runs = [
                run
                for run in (self.store.read(task.name, index, seed) for seed in self.seeds)
                if run
            ]
            if runs:
                found.append((index, point, runs))
        return found

    def _write(self, unfinished: dict[str, str]) -> dict[str, Any]:
        """results.json, results.md, predictions and where asked for the submission, of what is finished."""
        out, entries, server = self.request.out, {}, {}
        for task in self.tasks:
            points = self._finished(task)
            if not points:
                continue
            for shown in [task, *(other for other in self.diagnostics if other.first == task.name)]:
                entry = results.summarize(shown, [(point, runs) for _, point, runs in points])
                data = self.data[shown.name]
                n_train = min(
                    len(self.data[task.name].splits["train"]),
                    self._settings(entry["point"]).max_train or sys.maxsize,
                )
                entry |= {
                    "n_train": n_train,
                    "n_eval": sum(
                        len(data.splits[split]) for split in shown.splits if split in data.splits
                    ),
                }
                entry["data_differences"] = list(data.differences)
                entries[shown.name] = entry
                runs = next(runs for _, point, runs in points if point == entry["point"])
                median = sorted(
                    runs, key=lambda run: results.headline(shown, run["metrics"][shown.name])
                )[(len(runs) - 1) // 2]
                predictions = median["predictions"][shown.name]
                submission.write_predictions(out / "predictions", shown, predictions, data.splits)
                for split, name in submission.file_names(shown).items():
                    if split in predictions:
                        server[name] = submission.server_lines(
                            shown, data.splits[split], predictions[split]
                        )
        value, missing = results.average(self.suite, entries)
        ordered = {
            task.name: entries[task.name] for task in SUITES[self.suite] if task.name in entries
        }
        summary = ordered | {
            "average": value,
            "average_missing": missing,
            "suite": self.suite,
            "protocol": self.protocol.describe(),
            "model": pathlib.Path(self.request.checkpoint).name
            + (" (untrained)" if self.request.untrained else ""),
            "unfinished": unfinished,
            "command": shlex.join(["python", "-m", "tools.finetune", *sys.argv[1:]]),
        }
        write_json(out / "results.json", summary)
        text = results.markdown(self.suite, summary, compare=self.request.compare)
        (out / "results.md").write_text(text, encoding="utf-8")
        if self.request.submit and server:
            path, lacking = submission.write_submission(out, self.suite, server)
            self.announce(
                f"{path}: {len(server)} files"
                + (f"; the server wants {', '.join(lacking)} as well" if lacking else "")
            )
        return summary


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
