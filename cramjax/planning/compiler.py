"""Compiles the train steps of a session for a device that is not here, as the device itself would where that works."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from cramjax.planning.cards import Card
from cramjax.training import session
from cramjax.training.session import Session
from cramjax.tuning import microbatch

_GENERATED = {"xla_gpu_enable_triton_gemm": True}
_FIRST_CAPABILITY = (8, 0)


class Compiler:
    """Train steps of one session by microbatch, each compiled once.

    On a card XLA generates kernels for many products, and timing chooses their tiles; so `environment`
    turns that off. It is tried first all the same: most programs compile, and are then nearer to the
    card's. `note` says it where one did not, and is empty elsewhere.
    """

    def __init__(self, made: Session, card: Card, announce: Callable[[str], None]) -> None:
        self.note = ""
        self._generated = card.gpu is not None and card.gpu.capability >= _FIRST_CAPABILITY
        self._made, self._card, self._announce = made, card, announce
        self._steps: dict[int, jax.stages.Compiled] = {}

    def step(self, size: int) -> jax.stages.Compiled:
        """The train step with `size` sequences a pass.

        Raises:
            jax.errors.JaxRuntimeError: where the compiler refuses it, for lack of memory as well.
        """
        if size not in self._steps:
            self._announce(
                f"{self._card.name}: compiling the train step for {size} sequence(s) a pass…"
            )
            self._steps[size] = self._compile(size)
        return self._steps[size]

    def _compile(self, size: int) -> jax.stages.Compiled:
        made = dataclasses.replace(self._made, microbatch_size=size)
        if self._generated:
            try:
                return session.compile_train_step(made, _GENERATED)[0]
            except jax.errors.JaxRuntimeError as error:
                if microbatch.is_out_of_memory(error):
                    raise
                self._generated = False
                self.note = "compiled with libraries' products alone, which takes longer than what the card itself compiles"
                self._announce(
                    f"{self._card.name}: some product has no tile that fits without the card to choose it; "
                    "compiling again with libraries' products alone…"
                )
        return session.compile_train_step(made)[0]
