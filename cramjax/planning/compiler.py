"""Compiles train steps for a device that is not here, as the device itself would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from cramjax.planning.cards import Card
from cramjax.training.session import Session, compile_train_step
from cramjax.tuning import microbatch

_GENERATED = {"xla_gpu_enable_triton_gemm": True}
# Ampere is the first generation for which XLA generates kernels of products.
_FIRST_CAPABILITY = (8, 0)


class Compiler:
    """Train steps of one session by microbatch; each is compiled once.

    On a card XLA generates kernels for many products and chooses their tiles by timing. Here
    nothing can be timed, so `environment` turns generated products off. They are tried first all
    the same: most programs compile with them, and are then nearer to the card's.

    Attributes:
        note: says that generated products failed; else empty.
    """

    def __init__(self, session: Session, card: Card, announce: Callable[[str], None]):
        self.note = ""
        self._generates = card.gpu is not None and card.gpu.capability >= _FIRST_CAPABILITY
        self._session = session
        self._card = card
        self._announce = announce
        self._steps: dict[int, jax.stages.Compiled] = {}

    def step(self, size: int) -> jax.stages.Compiled:
        """Returns the train step with `size` sequences a pass.

        Raises:
            jax.errors.JaxRuntimeError: if the compiler refuses it, also for lack of memory.
        """
        if size not in self._steps:
            self._say(f"compiling the train step for {size} sequence(s) a pass…")
            self._steps[size] = self._compile(size)
        return self._steps[size]

    def _compile(self, size: int) -> jax.stages.Compiled:
        session = dataclasses.replace(self._session, microbatch_size=size)
        if self._generates:
            try:
                return compile_train_step(session, _GENERATED)[0]
            except jax.errors.JaxRuntimeError as error:
                if microbatch.is_out_of_memory(error):
                    raise
            self._generates = False
            self.note = (
                "compiled with libraries' products alone, which take longer than "
                "what the card itself compiles"
            )
            self._say(
                "some product has no tile that fits without the card to choose it; "
                "compiling again with libraries' products alone…"
            )
        return compile_train_step(session)[0]

    def _say(self, text: str) -> None:
        self._announce(f"{self._card.name}: {text}")
