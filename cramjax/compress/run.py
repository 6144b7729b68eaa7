"""A compression from checkpoints to pareto.json: every share of pruning, every number of bits, every seed that is missing."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax import inference
from cramjax.checkpoints import packed, pretrained
from cramjax.compress import matrices, pareto, prune, quantize
from cramjax.compress.quantize import Quantizer
from cramjax.compress.subjects import Subject, TaskSubject, TextSubject, settings_of
from cramjax.errors import UserError
from cramjax.files import write_json
from cramjax.finetuning import learning
from cramjax.finetuning.protocols import Protocol, Settings
from cramjax.finetuning.run import choose_protocol
from cramjax.finetuning.store import Store, digest
from cramjax.glue import rows
from cramjax.glue.tasks import Task, find_tasks
from cramjax.models.int8 import Int8, is_faster

WHOLE = 32
RESULT = "result.json"
Announce = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to each model; the flags of `tools/compress.py` say what each one means.

    Raises:
        UserError: for a share or bits that there are not.
    """

    shares: tuple[float, ...]
    bits: tuple[int, ...]
    scope: str = "global"
    structured: bool = False
    prune_embeddings: bool = False
    granularity: str = "channel"
    group_size: int = 64
    epochs: int = 1
    qat_epochs: int = 0
    n_seeds: int = 1

    def __post_init__(self):
        for share in self.shares:
            prune.check_share(share)
        if self.scope not in prune.SCOPES:
            raise UserError(f"--scope {self.scope}: must be one of {', '.join(prune.SCOPES)}")
        for bits in self.bits:
            self.quantizer(bits)
        for name in ("shares", "bits"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(
                    f"--{'prune' if name == 'shares' else name}: a value stands there twice; leave one out"
                )

    def quantizer(self, bits: int) -> Quantizer | None:
        """The quantiser of so many bits; None for 32."""
        if bits == WHOLE:
            return None
        return Quantizer(bits=bits, granularity=self.granularity, group_size=self.group_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for: checkpoints, a task with its data where there is one, settings of its finetuning, and the `plan`."""

    checkpoints: Sequence[str]
    task: str | None
    data_dir: str | None
    out: pathlib.Path
    plan: Plan
    protocol: str | None = None
    assignments: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to be compressed: its `name` in results, and what judges it."""

    name: str
    model: inference.LoadedModel
    subject: Subject
    about: Mapping[str, Any]


def candidates(request: Request, announce: Announce) -> list[Candidate]:
    """The models of a request with their subjects.

    Raises:
        UserError: where a model, a task or its data are missing, or a model is finetuned for another task.
    """
    found: list[Candidate] = []
    data: dict[str, rows.TaskData] = {}
    for checkpoint, name in zip(request.checkpoints, _names(request.checkpoints), strict=True):
        model = inference.load(checkpoint, dequantize=True)
        task = _task(request, checkpoint, model)
        if task is None:
            subject: Subject = _text_subject(checkpoint, model, request.plan, announce)
            about: dict[str, Any] = {"task": None}
        else:
            if task.name not in data:
                data[task.name] = rows.open_task(task, request.data_dir, announce)
            settings = _settings(request, model, task)
            subject = TaskSubject(model, task, data[task.name].splits, settings, announce)
            about = {
                "task": learning.describe(task, settings, 0) | {"rows": _sizes(data[task.name])}
            }
        found.append(Candidate(name=name, model=model, subject=subject, about=about))
    return found


def _sizes(data: rows.TaskData) -> dict[str, int]:
    return {split: len(found) for split, found in data.splits.items()}


def _names(checkpoints: Sequence[str]) -> list[str]:
    """For each path its last parts, as few as tell it from the others; of a finetuned model in its folder that folder and the task."""
    paths = [pathlib.Path(checkpoint).resolve().parts for checkpoint in checkpoints]
    finetuned = [
        re.search(r"([^/]+)/models/([^/]+)/point-\d+/seed-\d+$", "/".join(path)) for path in paths
    ]
    known = ["-".join(match.groups()) for match in finetuned if match]
    if len(set(known)) == len(paths):
        return known
    if len(set(paths)) < len(paths):
        raise UserError("--checkpoint: the same folder twice; leave one out")
    n = next(n for n in range(1, 99) if len({path[-n:] for path in paths}) == len(paths))
    return ["-".join(path[-n:]).strip("/-") for path in paths]


def _task(request: Request, checkpoint: str, model: inference.LoadedModel) -> Task | None:
    finetuned = model.finetuned
    wanted = request.task or (finetuned["task"] if finetuned else None)
    if wanted is None:
        return None
    (task,) = find_tasks([wanted], prefer=finetuned["suite"] if finetuned else None)
    if finetuned and task.name != finetuned["task"]:
        raise UserError(
            f"--task {request.task}: {checkpoint} is finetuned for {finetuned['task']}; leave --task out, or name the run before that"
        )
    if request.data_dir is None:
        raise UserError(f"--data_dir: give the folder with the data of {task.name}, or tfds")
    return task


def _settings(request: Request, model: inference.LoadedModel, task: Task) -> Settings:
    """Those of the model's own finetuning, or of the protocol, with what --set changes."""
    if model.finetuned:
        own = Protocol(name="own", source="", settings=settings_of(model.finetuned))
        protocol = own.changed(request.assignments, ())
    else:
        protocol = choose_protocol(request.protocol, model.is_t5, request.assignments, ())
    return dataclasses.replace(protocol.settings, **protocol.of_task(task.name)[0])


def _text_subject(
    checkpoint: str, model: inference.LoadedModel, plan: Plan, announce: Announce
) -> TextSubject:
    workdir = pretrained.locate(checkpoint)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(
            f"{checkpoint}: is neither finetuned nor a run with its text; give --task and --data_dir"
        )
    if plan.structured or plan.qat_epochs:
        flag = "--structured" if plan.structured else "--qat_epochs"
        raise UserError(
            f"{flag}: {checkpoint} is not finetuned and nothing would repair it; give --task and --data_dir"
        )
    if any(plan.shares):
        announce(
            f"{checkpoint} is not finetuned: pruned without finetuning in between, and judged by held-out loss"
        )
    return TextSubject(model, workdir)


class Compression:
    """One request carried out; `run` does what is missing and returns the content of pareto.json."""

    def __init__(self, request: Request, models: Sequence[Candidate], announce: Announce):
        """Raises UserError where the folder holds results of another request."""
        self.request, self.plan, self.announce = request, request.plan, announce
        self.models = models
        if len({candidate.about["task"] is None for candidate in models}) > 1:
            raise UserError(
                "--checkpoint: some models are judged by a task and some by held-out text; give --task"
            )
        shared = dataclasses.asdict(self.plan)
        for key in ("shares", "bits", "n_seeds"):  # these may grow
            del shared[key]
        for candidate in models:
            setup = {"model": digest(candidate.model.params), "plan": shared, **candidate.about}
            Store(request.out / candidate.name, setup)  # refuses results of another setup

    def run(self) -> list[dict[str, Any]]:
        """Do what is missing, write pareto.json and pareto.png after every model and seed, and return the entries."""
        points = [
            (self._folder(candidate, seed, share, bits), share)
            for candidate in self.models
            for seed in range(self.plan.n_seeds)
            for share in self.plan.shares
            for bits in {WHOLE, *self.plan.bits}
        ]
        self._n_missing, self._n_done = sum(not self._is_done(*point) for point in points), 0
        self._started = time.monotonic()
        for seed in range(self.plan.n_seeds):
            for candidate in self.models:
                self._compress(candidate, seed)
                self._write()
        return self._write()

    def _folder(self, candidate: Candidate, seed: int, share: float, bits: int) -> pathlib.Path:
        return self.request.out / candidate.name / f"seed-{seed}" / f"prune-{share:g},bits-{bits}"

    def _compress(self, candidate: Candidate, seed: int) -> None:
        """All points of a model and a seed: shares in ascending order, each from the one before."""
        reached: tuple[Any, Any] | None = None
        for share in sorted(self.plan.shares):
            folder = self._folder(candidate, seed, share, WHOLE)
            if not self._is_done(folder, share):
                reached = self._pruned(
                    candidate, seed, share, reached or self._before(candidate, seed, share)
                )
                self._keep(candidate, folder, *reached, share, WHOLE)
            else:
                reached = None
            for bits in self.plan.bits:
                folder = self._folder(candidate, seed, share, bits)
                if bits == WHOLE or self._is_done(folder, share):
                    continue
                reached = reached or self._read(self._folder(candidate, seed, share, WHOLE))
                config, params = reached
                if self.plan.qat_epochs:
                    quantizer = self.plan.quantizer(bits)
                    params = candidate.subject.recover(
                        config, params, seed, self.plan.qat_epochs, quantizer
                    )
                self._keep(candidate, folder, config, params, share, bits)

    def _path(self, share: float) -> list[float]:
        """The shares that lead to one: what comes before makes it another model."""
        return [other for other in sorted(self.plan.shares) if other <= share]

    def _is_done(self, folder: pathlib.Path, share: float) -> bool:
        """Whether there is a result of the same shares before it."""
        result = folder / RESULT
        return result.is_file() and json.loads(result.read_text())["path"] == self._path(share)

    def _before(self, candidate: Candidate, seed: int, share: float) -> tuple[Any, Any]:
        """The network that is pruned to `share`: that of the share before, or the uncompressed one."""
        *earlier, _ = self._path(share)
        if earlier:
            return self._read(self._folder(candidate, seed, earlier[-1], WHOLE))
        return candidate.model.config, candidate.subject.start(seed)

    def _read(self, folder: pathlib.Path) -> tuple[Any, Any]:
        found = pretrained.read(folder)
        return found.config, jax.device_put(found.params)

    def _pruned(
        self, candidate: Candidate, seed: int, share: float, before: tuple[Any, Any]
    ) -> tuple[Any, Any]:
        config, params = before
        if not share:
            return before
        subject = candidate.subject
        if self.plan.structured:
            # Shares are of the whole network, whatever is gone of it.
            whole = candidate.model.config
            left = {name: prune.n_left(getattr(whole, name), share) for name in ("n_heads", "d_ff")}
            config, params = prune.shrink(config, params, subject.axes(config), **left)
        else:
            paths = matrices.find(subject.axes(config), embeddings=self.plan.prune_embeddings)
            params = prune.prune(params, paths, share, self.plan.scope)
        if self.plan.epochs:
            params = subject.recover(config, params, seed, self.plan.epochs, None)
        return config, params

    def _keep(
        self,
        candidate: Candidate,
        folder: pathlib.Path,
        config: Any,
        params: Any,
        share: float,
        bits: int,
    ) -> None:
        """Write a compressed model, read it again, and note what it is worth as it lies there."""
        flat = flatten_dict(params, sep="/")
        paths = matrices.find(candidate.subject.axes(config))
        stored = quantize.quantize(flat, paths, self.plan.quantizer(bits))
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / "tokenizer").mkdir(parents=True)
        candidate.model.tokenizer.save(str(temporary / "tokenizer" / "tokenizer.json"))
        model = dataclasses.replace(candidate.model, config=config)
        task = candidate.about["task"]
        size = packed.write(
            temporary,
            stored,
            network=model.description(),
            max_length=candidate.subject.max_length,
            finetuned={key: task[key] for key in task if key != "rows"} if task else None,
            compression={"prune": share, "bits": bits}
            | {
                k: v
                for k, v in dataclasses.asdict(self.plan).items()
                if k not in ("shares", "bits")
            },
        )
        _, again = packed.read(temporary)
        counted = packed.values(again).values()
        # As it will run: whole numbers where the device is faster with them.
        values = packed.values(
            again, whole=is_faster(jax.devices()[0], model.precision.matmul_dtype)
        )
        is_int8 = any(isinstance(leaf, Int8) for leaf in values.values())
        values = jax.device_put(unflatten_dict(values, sep="/"))
        score = candidate.subject.score(config, values)
        write_json(
            temporary / RESULT,
            {
                "path": self._path(share),
                "bytes": size,
                "metric": score.metric,
                "value": score.value,
                "loss": score.loss,
                "params": sum(leaf.size for leaf in counted),
                "nonzero": sum(int((leaf != 0).sum()) for leaf in counted),
                "int8": is_int8,
                "latency": candidate.subject.latency(config, values),
            },
        )
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        self._n_done += 1
        self.announce(
            f"{self._n_done}/{self._n_missing}  {candidate.name} prune {share:g}, {bits} bits: {score.metric} {score.value:.3f}, "
            f"{size / 1e6:.2f} MB  {self._left()} left"
        )

    def _left(self) -> str:
        """Time for the points left at the mean of those done."""
        mean_s = (time.monotonic() - self._started) / self._n_done
        minutes, seconds = divmod(round(mean_s * (self._n_missing - self._n_done)), 60)
        return f"{minutes}:{seconds:02}"

    def _entries(self) -> Iterator[dict[str, Any]]:
        """An entry for each model, share and bits with a result: medians over the seeds."""
        for candidate in self.models:
            for share in sorted(self.plan.shares):
                for bits in self.plan.bits:
                    folders = [
                        self._folder(candidate, seed, share, bits)
                        for seed in range(self.plan.n_seeds)
                    ]
                    done = [folder for folder in folders if self._is_done(folder, share)]
                    if done:
                        runs = [json.loads((folder / RESULT).read_text()) for folder in done]
                        yield self._entry(candidate.name, share, bits, done[0], runs)

    def _entry(
        self,
        name: str,
        share: float,
        bits: int,
        folder: pathlib.Path,
        runs: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        median = {
            key: statistics.median(run[key] for run in runs)
            for key in ("bytes", "value", "params", "nonzero")
        }
        losses = [run["loss"] for run in runs if run["loss"] is not None]
        return {
            "model": name,
            "prune": share,
            "bits": bits,
            **median,
            "metric": runs[0]["metric"],
            "values": [run["value"] for run in runs],
            "loss": statistics.median(losses) if losses else None,
            "structured": self.plan.structured,
            "granularity": None if bits == WHOLE else self.plan.granularity,
            "int8": runs[0].get("int8", False),
            "latency": {
                batch: {
                    key: statistics.median(run["latency"][batch][key] for run in runs)
                    for key in found
                }
                for batch, found in runs[0]["latency"].items()
            },
            "folder": str(folder.relative_to(self.request.out)),
        }

    def _write(self) -> list[dict[str, Any]]:
        entries = list(self._entries())
        for cost in (*pareto.COSTS, "latency"):
            for entry, on in zip(entries, pareto.front(entries, cost), strict=True):
                entry[f"pareto_{cost}"] = on
        write_json(self.request.out / "pareto.json", entries)
        pareto.plot(entries, self.request.out / "pareto.png")
        return entries
