"""Expected speed of a compiled step on a GPU, and where its time goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.planning import hlo, kernels, ledger
from cramjax.planning.cards import Card
from cramjax.planning.ledger import KernelRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expectation:
    """Expected times of a step, by the ledger of its kernels.

    Attributes:
        basis: where the efficiencies come from.
        step_s: seconds of a step.
        s_by_kind: seconds of a step by kind of kernel.
        rows: the ledger, a row a kernel.
        tokens_per_s: the rate at `step_s`.
        mfu: share of the card's dense peak.
        tokens: what the budget buys at that rate; likewise `steps` and `hours`.
        note: known flaws of the figures; else empty.
    """

    basis: str
    step_s: float
    s_by_kind: Mapping[str, float]
    rows: Sequence[KernelRow]
    tokens_per_s: float
    mfu: float
    tokens: float
    steps: float
    hours: float
    note: str = ""

    def entry(self) -> dict[str, Any]:
        """Returns all fields but the rows, named as in the file of `--json`."""
        return {f"expected_{name}": getattr(self, name) for name in _entry_names()}


def _entry_names() -> list[str]:
    return [field.name for field in dataclasses.fields(Expectation) if field.name != "rows"]


def no_entry(reason: str) -> dict[str, str | None]:
    """Returns the keys of an entry without values; the note says why there are none."""
    keys = [f"expected_{name}" for name in _entry_names()]
    return {**dict.fromkeys(keys), "expected_note": reason}


def read(program: str, card: Card, n_microbatches: int) -> tuple[list[KernelRow], str]:
    """Returns the ledger of a GPU program's text, and a note on what it leaves out.

    Args:
        program: optimised HLO text.
        card: the GPU that the program is compiled for.
        n_microbatches: how often the loop over microbatches runs, which only the run knows.
    """
    parsed = hlo.parse(program)
    rows = ledger.rows(kernels.launched(parsed, n_microbatches), card)
    note = "without what devices exchange" if kernels.has_collectives(parsed) else ""
    return rows, note


def basis(card: Card) -> str:
    """Returns in words where the figures of a card come from."""
    if card.name == ledger.MEASURED_ON:
        return "efficiencies measured on an H100"
    return "scaled from an H100"
