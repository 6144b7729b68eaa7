"""A compression as the command line asks for it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from cramjax.compress import prune
from cramjax.compress.quantize import Quantizer
from cramjax.errors import UserError

WHOLE = 32
"""Bits of a weight that is not quantised."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionPlan:
    """The treatment of each model; the help of `tools/compress.py` explains each field.

    Fields have the names of the command line's arguments (`dest`).

    Raises:
        UserError: for an unknown scope, or shares or bits that are impossible or given twice.
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

    def __post_init__(self) -> None:
        for share in self.shares:
            prune.check_share(share)
        prune.check_scope(self.scope)
        # A Quantizer checks its fields.
        for bits in self.bits:
            self.quantizer(bits)
        for flag, values in (("--prune", self.shares), ("--bits", self.bits)):
            if len(set(values)) < len(values):
                raise UserError(f"{flag}: a value stands there twice; leave one out")

    def quantizer(self, bits: int) -> Quantizer | None:
        """Returns the quantiser for so many bits, or None for 32."""
        if bits == WHOLE:
            return None
        return Quantizer(bits=bits, granularity=self.granularity, group_size=self.group_size)

    def path(self, share: float) -> list[float]:
        """Returns the shares that lead to `share`, itself included.

        A model is pruned to each in turn, so another path makes another model.
        """
        return [other for other in sorted(self.shares) if other <= share]

    def describe(self, *without: str) -> dict[str, Any]:
        """Returns the fields as plain values, except those named in `without`."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in without}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionRequest:
    """Models to compress, and the task that judges them.

    Attributes:
        task: name of the task; None means a finetuned model's own task, or held-out text.
        data_dir: folder with the data of the task.
        protocol: name of the finetuning protocol.
        assignments: KEY=VALUE changes to the settings of finetuning.
    """

    checkpoints: Sequence[str]
    task: str | None
    data_dir: str | None
    out: pathlib.Path
    plan: CompressionPlan
    protocol: str | None = None
    assignments: Sequence[str] = ()
