"""Loads the models to be compressed, each with the subject that judges it."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax import inference
from cramjax.checkpoints import pretrained
from cramjax.compress.plan import CompressionPlan, CompressionRequest
from cramjax.compress.subjects import Subject, TaskSubject, TextSubject, settings_of
from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.finetuning import learning
from cramjax.finetuning.protocols import Protocol, Settings, choose_protocol
from cramjax.glue import rows
from cramjax.glue.tasks import Task
from cramjax.tasks import catalogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to be compressed.

    Attributes:
        name: its name in the results, and its folder.
        subject: trains and judges it.
        about: {"task": description of the task and its data, or None for held-out text}.
    """

    name: str
    model: inference.LoadedModel
    subject: Subject
    about: Mapping[str, Any]


def load_candidates(request: CompressionRequest, announce: Announce) -> list[Candidate]:
    """Load the models of a request with their subjects.

    Raises:
        UserError: if a model, a task or its data are missing, or if a model is finetuned for
            another task or for other labels.
    """
    candidates: list[Candidate] = []
    opened: dict[str, rows.TaskData] = {}
    names = _names(request.checkpoints)
    for checkpoint, name in zip(request.checkpoints, names, strict=True):
        model = inference.load(checkpoint, dequantize=True)
        task = _task(request, checkpoint, model)
        if task is None:
            subject: Subject = _text_subject(checkpoint, model, request.plan, announce)
            about: dict[str, Any] = {"task": None}
        else:
            # Models of one task share its data.
            if task.name not in opened:
                opened[task.name] = catalogue.open_task(task, request.data_dir, announce)
            task = opened[task.name].task
            _check_labels(checkpoint, model, task)
            splits = opened[task.name].splits
            settings = _settings(request, model, task)
            subject = TaskSubject(model, task, splits, settings, announce)
            sizes = {split: len(examples) for split, examples in splits.items()}
            about = {"task": learning.describe(task, settings, 0) | {"rows": sizes}}
        candidates.append(Candidate(name=name, model=model, subject=subject, about=about))

    subjects = [candidate.subject for candidate in candidates]
    if len({subject.metric for subject in subjects if isinstance(subject, TextSubject)}) > 1:
        raise UserError(
            "--checkpoint: some runs are scored by BLEU (eval.bleu) and some are not; compress "
            "them one by one"
        )
    if len({candidate.about["task"] is None for candidate in candidates}) > 1:
        raise UserError(
            "--checkpoint: some models are judged by a task and some by held-out text; give --task"
        )
    return candidates


def _names(checkpoints: Sequence[str]) -> list[str]:
    """Returns a name for each path: its last parts, as few as tell it from the others.

    A finetuned model in the folder of its finetuning is named by that folder and the task.
    """
    paths = [pathlib.Path(checkpoint).resolve().parts for checkpoint in checkpoints]
    finetuned = []
    for path in paths:
        match = re.search(r"([^/]+)/models/([^/]+)/point-\d+/seed-\d+$", "/".join(path))
        if match:
            finetuned.append("-".join(match.groups()))
    if len(set(finetuned)) == len(paths):
        return finetuned

    if len(set(paths)) < len(paths):
        raise UserError("--checkpoint: the same folder twice; leave one out")
    # The paths differ, so some number of parts tells them apart.
    n_parts = 1
    while len({path[-n_parts:] for path in paths}) < len(paths):
        n_parts += 1
    return ["-".join(path[-n_parts:]).strip("/-") for path in paths]


def _task(
    request: CompressionRequest, checkpoint: str, model: inference.LoadedModel
) -> Task | None:
    """Returns the task that judges a model, or None for held-out text."""
    finetuned = model.finetuned
    if finetuned is None:
        if request.task is None:
            return None
        (task,) = catalogue.find([request.task])
        return task

    if request.task is None:
        try:
            (task,) = catalogue.find([finetuned["task"]], prefer=finetuned["suite"])
        except UserError:
            # A task file says where its data are; the task's name alone does not.
            raise UserError(
                f"--task: {checkpoint} is finetuned for {finetuned['task']}; name its task file"
            ) from None
    else:
        (task,) = catalogue.find([request.task], prefer=finetuned["suite"])
    if task.name != finetuned["task"]:
        raise UserError(
            f"--task {request.task}: {checkpoint} is finetuned for {finetuned['task']}; leave "
            "--task out, or name the run before that"
        )
    return task


def _check_labels(checkpoint: str, model: inference.LoadedModel, task: Task) -> None:
    """Raises UserError if the data have other labels than those that a model was finetuned for.

    Its outputs would get the wrong names, and be scored by them.
    """
    if model.finetuned is None:
        return
    noted = ", ".join(model.finetuned["labels"] or ("none",))
    found = ", ".join(task.labels or ("none",))
    if noted != found:
        raise UserError(
            f"{checkpoint}: is finetuned for the labels {noted:.200}, and the data of {task.name} "
            f"have {found:.200}; give the data that it was finetuned on"
        )


def _settings(request: CompressionRequest, model: inference.LoadedModel, task: Task) -> Settings:
    """Returns the settings of finetuning, with the changes of --set.

    They are those a finetuned model was made with, or else the protocol's.
    """
    if model.finetuned:
        own = Protocol(name="own", source="", settings=settings_of(model.finetuned))
        protocol = own.changed(request.assignments, (), [task])
    else:
        protocol = choose_protocol(request.protocol, model.is_t5, request.assignments, tasks=[task])
    # The first point, should the protocol search a grid.
    return protocol.settings_at(protocol.points(task.name)[0])


def _text_subject(
    checkpoint: str, model: inference.LoadedModel, plan: CompressionPlan, announce: Announce
) -> TextSubject:
    """Returns the held-out text of the run behind `checkpoint`.

    Raises:
        UserError: if there is no such run, or if the plan needs training.
    """
    workdir = pretrained.locate(checkpoint)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(
            f"{checkpoint}: is neither finetuned nor a run with its text; give --task and "
            "--data_dir"
        )

    # Without a task nothing is trained: what needs training to recover is refused.
    if plan.structured or plan.qat_epochs:
        flag = "--structured" if plan.structured else "--qat_epochs"
        raise UserError(
            f"{flag}: {checkpoint} is not finetuned and nothing would repair it; give --task and "
            "--data_dir"
        )

    if any(plan.shares):
        announce(
            f"{checkpoint} is not finetuned: pruned without finetuning in between, and judged by "
            "its held-out text"
        )
    return TextSubject(model, workdir)
