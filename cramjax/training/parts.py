"""The parts of a run that stay the same from its start to its end."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Self

from cramjax import start
from cramjax.budget.clock import Clock
from cramjax.checkpoints.checkpoint import Checkpoints
from cramjax.config.views import Config
from cramjax.console import Progress
from cramjax.data.dataset import TokenDataset
from cramjax.parallel import processes
from cramjax.parallel.coordinator import Coordinator
from cramjax.training.growing import Stages
from cramjax.training.records import Spent
from cramjax.training.scoring import Scorer, open_scorer
from cramjax.training.session import Session
from cramjax.training.workdir import Workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run's parts; a context that waits at its end for the checkpoint being written.

    Attributes:
        config: the configuration, with its tokenizer.
        workdir: the folder of the run.
        folder: its lock; None in all processes but process 0.
        dataset: the prepared text.
        progress: the display; silent in all processes but process 0.
        coordinator: clock and request to stop of all processes.
        clock: the budget's clock.
        spent: seconds of the budget that were no training steps.
        stages: the stages of the configuration.
        checkpoints: the checkpoints in the workdir.
        scorer: scores what the network writes; None if nobody asks for it.
        compiler: threads that compile.
        started: `time.monotonic()` when the command started.
    """

    config: Config
    workdir: pathlib.Path
    folder: Workdir | None
    dataset: TokenDataset
    progress: Progress
    coordinator: Coordinator
    clock: Clock
    spent: Spent
    stages: Stages
    checkpoints: Checkpoints
    scorer: Scorer | None
    compiler: Executor
    started: float

    def identity(self, session: Session) -> dict[str, Any]:
        """Returns what a checkpoint and the run that restores it must agree on, beside shapes."""
        return {
            "tokenizer_sha256": self.dataset.manifest["tokenizer_sha256"],
            "model": session.objective.description,
            "optimizer": self.config.optimizer.name,
        }

    def dataset_note(self) -> dict[str, Any]:
        """Returns what a checkpoint and environment.json say of the dataset."""
        return {
            "directory": str(self.dataset.directory.resolve()),
            "fingerprint": self.dataset.manifest.get("fingerprint"),
        }

    def since_start_s(self) -> float:
        """Returns the seconds since the command started."""
        return time.monotonic() - self.started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.compiler.shutdown(wait=False, cancel_futures=True)
        self.stages.close()
        self.checkpoints.close()


def open_run(
    config: Config,
    workdir: pathlib.Path,
    dataset: TokenDataset,
    *,
    folder: Workdir | None,
    progress: Progress,
    coordinator: Coordinator,
    started: float,
) -> Run:
    """Make the parts of a run; see `Run` for the arguments."""
    # On few cores a compilation of the evaluation would delay that of the step, so it comes second.
    # Several processes share their autotuning, so they must compile in the same order.
    few_cores = start.n_cores() <= start.FEW_CORES
    n_workers = 1 if few_cores or processes.count() > 1 else 2

    return Run(
        config=config,
        workdir=workdir,
        folder=folder,
        dataset=dataset,
        progress=progress,
        coordinator=coordinator,
        clock=Clock(**config.budget.to_dict(), time_source=coordinator.now),
        spent=Spent(),
        stages=Stages(config, dataset, progress.announce),
        checkpoints=Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep),
        scorer=open_scorer(config, dataset, progress.announce),
        compiler=ThreadPoolExecutor(n_workers, thread_name_prefix="cramjax-compiler"),
        started=started,
    )
