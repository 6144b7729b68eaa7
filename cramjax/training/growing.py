"""Progressive training: the session of each stage, and the program that grows a state.

Both are made in the background while the stage before trains, so that a switch costs a copy of the
state and no compilation.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cramjax.config import stages
from cramjax.config.pairs import PairShape
from cramjax.config.resolve import changed
from cramjax.config.views import Config
from cramjax.data import loader as loaders
from cramjax.data.dataset import TokenDataset
from cramjax.growth.operators import Compound, Depth, Operator, SharedWidth, ZeroWidth, grow
from cramjax.models import kernels, network
from cramjax.parallel import mesh as meshes
from cramjax.training import session, stage_ends
from cramjax.training.evaluate import Evaluator
from cramjax.training.state import TrainState, initial
from cramjax.tuning import devices

Grow = Callable[[TrainState], TrainState]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A stage ready to train.

    Attributes:
        session: of the stage.
        step_fn: the compiled train step.
        evaluator: compiled.
        grow: returns the stage's first state, from the last state of the stage before.
    """

    session: session.Session
    step_fn: Callable[..., Any]
    evaluator: Evaluator
    grow: Grow


class Stages:
    """The stages of a configuration over a dataset."""

    def __init__(self, config: Config, dataset: TokenDataset, announce: Callable[[str], None]):
        """`announce` is told what a search for a microbatch does."""
        self.config, self._dataset, self._announce = config, dataset, announce
        self.stages = stages.of(config)
        self._ends = stage_ends.of(config, dataset)
        self._kernels: kernels.Choices | None = None
        self._background = concurrent.futures.ThreadPoolExecutor(
            1, thread_name_prefix="cramjax-next-stage"
        )

    def __len__(self) -> int:
        return len(self.stages)

    def until(self, number: int) -> float:
        """Returns the share of the budget at which a stage ends."""
        return self._ends[number].until

    def rewarm(self, number: int) -> float:
        """Returns the share of the budget over which a stage's learning rate comes up again."""
        return self._ends[number].rewarm

    def describe_ends(self) -> str | None:
        """Returns one line on ends that are given in steps, or None for those of the budget."""
        config = self.config
        if len(self) == 1 or config.growth.until == "budget":
            return None
        shares = ", ".join(f"{end.until:.1%}" for end in self._ends[:-1])
        steps = ", ".join(f"{stage.until:.1%}" for stage in self.stages[:-1])
        how = " by the FLOPs of their steps" if config.budget.hours is not None else ""
        return f"stages end at {steps} of the steps: {shares} of the budget{how}"

    def config_of(self, number: int, *, whole_sequences: bool = False) -> Any:
        """Returns the configuration of a stage.

        With `whole_sequences` they have the length of the last stage, so that evaluations compare.
        """
        overrides = dict(self.stages[number].overrides)
        if whole_sequences:
            whole = self.stages[-1].overrides
            lengths = ("data.seq_len", "data.target_len")
            overrides |= {key: whole[key] for key in lengths if key in whole}
        return changed(self.config, overrides)

    def open(self, number: int) -> session.Session:
        """Returns the session of a stage."""
        return session.open_session(
            self.config_of(number), self._dataset, self._announce, self._fastest_kernels()
        )

    def check_rows(self, first: int) -> None:
        """Check that the dataset serves all stages from `first` on, before anything is compiled.

        Raises:
            UserError: if it has no sequence of a stage's length, or not the order that is asked.
        """
        config = self.config
        mesh = meshes.make_mesh(**config.mesh.to_dict(), devices=jax.devices())
        precision = devices.resolve_precision(config.precision, jax.devices()[0])
        for number in range(first, len(self)):
            of_stage = self.config_of(number)
            objective = session.build_objective(of_stage, self._dataset, precision, mesh)
            if isinstance(objective.row_shape, PairShape):
                self._announce_rows(objective.row_shape)
            loaders.training_rows(
                self._dataset,
                seq_len=objective.row_shape,
                cls_token=config.data.cls_token,
                order=config.data.order,
            )
            # The last stage has the longest rows, on which all stages are evaluated.
            loaders.heldout_rows(
                self._dataset, seq_len=objective.eval_row_shape, cls_token=config.data.cls_token
            )

    def _announce_rows(self, shape: PairShape) -> None:
        """Says how pairs lie in the rows of a stage."""
        for line in loaders.describe_pairs(self._dataset, shape):
            self._announce(line)

    def _fastest_kernels(self) -> kernels.Choices:
        """Returns those of all stages, timed before the first one trains and the card is busy."""
        if self._kernels is None:
            self._kernels = {}
            for number in range(len(self)):
                self._kernels |= session.fastest_kernels(
                    self.config_of(number), self._dataset, self._announce
                )
        return self._kernels

    def evaluator(self, number: int, of_stage: session.Session) -> Evaluator:
        """Returns the evaluator of a stage, which takes the same sequences in all stages."""
        config = self.config_of(number, whole_sequences=True)
        objective = of_stage.objective
        if config.data.seq_len != of_stage.config.data.seq_len:
            objective = session.build_objective(
                config, self._dataset, of_stage.precision, of_stage.mesh
            )
        batches = loaders.heldout_batches(
            self._dataset,
            seq_len=objective.eval_row_shape,
            batch_size=config.eval.batch_size,
            n_batches=config.eval.batches,
            cls_token=config.data.cls_token,
        )
        return Evaluator(objective, of_stage.mesh, batches)

    def prepare(
        self, number: int, before: session.Session
    ) -> concurrent.futures.Future[Prepared] | None:
        """Prepares stage `number` in the background, to follow the session `before`.

        Returns None after the last stage.
        """
        if number >= len(self):
            return None
        return self._background.submit(self._prepare, number, before)

    def _prepare(self, number: int, before: session.Session) -> Prepared:
        after = self.open(number)
        step_fn, _ = session.compile_train_step(after)
        evaluator = self.evaluator(number, after)
        evaluator.compile(after.abstract.params)
        grow_fn = self._compile_growth(number, before, after)
        return Prepared(session=after, step_fn=step_fn, evaluator=evaluator, grow=grow_fn)

    def _operators(self, number: int, tied_norms: tuple[str, ...]) -> tuple[Operator, ...]:
        """Returns the rules that make a network of stage `number` from one of the stage before."""
        settings = self.config.growth
        small, big = self.stages[number - 1], self.stages[number]
        operators: list[Operator] = [Depth(settings.depth)]
        if big.d_ff != small.d_ff:
            operators.insert(0, SharedWidth(settings.noise, seed=number))
        if big.n_heads != small.n_heads:
            operators.append(ZeroWidth(tied=tied_norms))
        return tuple(operators)

    def _compile_growth(self, number: int, before: session.Session, after: session.Session) -> Grow:
        grown = after.objective.network
        rule = Compound(self._operators(number, grown.unscaled_norms))
        keeps_moments = self.config.growth.moments != "reset"

        def next_state(state: TrainState, seed: jax.Array) -> TrainState:
            key = jax.random.fold_in(jax.random.key(seed), number)
            fresh = initial(after.objective, after.optimizer, after.dynamic_scale, key)
            params, opt_state = grow(
                state.params,
                network.param_axes(grown),
                fresh.params,
                rule,
                opt_state=state.opt_state,
                fresh_state=fresh.opt_state,
            )
            if not keeps_moments:
                opt_state = after.optimizer.init(params)
            return dataclasses.replace(state, params=params, opt_state=opt_state)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, after.abstract)
        jitted = jax.jit(next_state, out_shardings=shardings)
        # An argument, as in the train step: other seeds find the compiled program.
        seed = jax.ShapeDtypeStruct((), np.uint32, sharding=meshes.replicated(after.mesh))
        program = jitted.lower(before.abstract, seed).compile()
        return lambda state: program(state, np.uint32(self.config.seed))

    def close(self) -> None:
        """Lets go of what is still being prepared."""
        self._background.shutdown(wait=False, cancel_futures=True)
