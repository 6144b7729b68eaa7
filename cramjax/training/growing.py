"""Progressive training: the session of each stage, and the program that turns the state of one into that of the next.

Both are made in the background while the stage before trains, so that a switch costs a copy of the state and no compilation.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from cramjax.config import stages
from cramjax.config.resolve import changed
from cramjax.data import loader as loaders
from cramjax.data.dataset import TokenDataset
from cramjax.growth.operators import Compound, Depth, SharedWidth, ZeroWidth, grow
from cramjax.models import kernels
from cramjax.training import session
from cramjax.training.evaluate import Evaluator
from cramjax.training.state import TrainState, initial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A stage ready to train: its session, step and evaluator, compiled, and from the state of the stage before to its own."""

    session: session.Session
    step_fn: Callable[..., Any]
    evaluator: Evaluator
    grow: Callable[[TrainState], TrainState]


class Stages:
    """The stages of a configuration over a dataset."""

    def __init__(self, config: Any, dataset: TokenDataset, announce: Callable[[str], None]):
        """`announce` is told what a search for a microbatch does."""
        self.config, self._dataset, self._announce = config, dataset, announce
        self.stages = stages.of(config)
        self._kernels: kernels.Choices | None = None
        self._background = concurrent.futures.ThreadPoolExecutor(
            1, thread_name_prefix="cramjax-next-stage"
        )

    def __len__(self) -> int:
        return len(self.stages)

    def until(self, number: int) -> float:
        """Share of the budget at which a stage ends."""
        return self.stages[number].until

    def config_of(self, number: int, *, whole_sequences: bool = False) -> Any:
        """The configuration of a stage; with `whole_sequences` at the length the last one has, for evaluations that compare."""
        overrides = dict(self.stages[number].overrides)
        if whole_sequences:
            overrides["data.seq_len"] = self.stages[-1].seq_len
        return changed(self.config, overrides)

    def open(self, number: int) -> session.Session:
        """The session of a stage."""
        return session.open_session(
            self.config_of(number), self._dataset, self._announce, self._fastest_kernels()
        )

    def _fastest_kernels(self) -> kernels.Choices:
        """Those of all stages, timed before the first one trains: later the card is busy."""
        if self._kernels is None:
            self._kernels = {}
            for number in range(len(self)):
                self._kernels |= session.fastest_kernels(
                    self.config_of(number), self._dataset, self._announce
                )
        return self._kernels

    def evaluator(self, number: int, made: session.Session) -> Evaluator:
        """What evaluates a stage, on the same sequences in all stages."""
        config = self.config_of(number, whole_sequences=True)
        is_whole = config.data.seq_len == made.config.data.seq_len
        task = (
            made.task
            if is_whole
            else session.build_task(config, self._dataset, made.precision, made.mesh)
        )
        batches = loaders.heldout_batches(
            self._dataset,
            seq_len=task.eval_row_tokens,
            batch_size=config.eval.batch_size,
            n_batches=config.eval.batches,
            cls_token=config.data.cls_token,
        )
        return Evaluator(task, made.mesh, batches)

    def prepare(
        self, number: int, before: session.Session
    ) -> concurrent.futures.Future[Prepared] | None:
        """Stage `number` in the background, to follow the session `before`; None where there is no such stage."""
        if number >= len(self):
            return None
        return self._background.submit(self._prepare, number, before)

    def _prepare(self, number: int, before: session.Session) -> Prepared:
        made = self.open(number)
        step_fn, _ = session.compile_train_step(made)
        evaluator = self.evaluator(number, made)
        evaluator.compile(made.abstract.params)
        grow_fn = self._compile_growth(number, before, made)
        return Prepared(session=made, step_fn=step_fn, evaluator=evaluator, grow=grow_fn)

    def _compile_growth(
        self, number: int, before: session.Session, made: session.Session
    ) -> Callable[[TrainState], TrainState]:
        settings = self.config.growth
        small, big = self.stages[number - 1], self.stages[number]
        operators = [SharedWidth(settings.noise, seed=number)] if big.d_ff != small.d_ff else []
        operators += [Depth(settings.depth)]
        if big.n_heads != small.n_heads:
            tied = self.config.model.family == "t5" and self.config.model.tie_embeddings
            operators += [ZeroWidth(tied=("decoder/final_norm",) if tied else ())]

        def next_state(state: TrainState) -> TrainState:
            key = jax.random.fold_in(jax.random.key(self.config.seed), number)
            fresh = initial(made.task, made.optimizer, made.dynamic_scale, key)
            moments = {"opt_state": state.opt_state, "fresh_state": fresh.opt_state}
            params, opt_state = grow(
                state.params, made.task.axes, fresh.params, Compound(tuple(operators)), **moments
            )
            if settings.moments == "reset":
                opt_state = fresh.opt_state
            return dataclasses.replace(state, params=params, opt_state=opt_state)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, made.abstract)
        return jax.jit(next_state, out_shardings=shardings).lower(before.abstract).compile()

    def close(self) -> None:
        """Let go of what is still being prepared."""
        self._background.shutdown(wait=False, cancel_futures=True)
