"""What a compiled step is expected to reach on a GPU, and where its time goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.planning import hlo, kernels, ledger
from cramjax.planning.cards import Card
from cramjax.planning.ledger import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expectation:
    """Seconds of a step by the ledger of its kernels.

    basis: where the efficiencies are from. s_by_kind: seconds by kind of kernel. rows: one a kernel.
    mfu: share of the card's dense peak. tokens, steps, hours: what the budget buys at that rate.
    note: what is wrong with the figures; empty if nothing is known to be.
    """

    basis: str
    step_s: float
    s_by_kind: Mapping[str, float]
    rows: Sequence[Row]
    tokens_per_s: float
    mfu: float
    tokens: float
    steps: float
    hours: float
    note: str = ""

    def entry(self) -> dict[str, Any]:
        """All but the rows, as in the file of `--json`."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "rows"]
        return {f"expected_{name}": getattr(self, name) for name in names}


def no_entry(reason: str) -> dict[str, str | None]:
    """The same keys where nothing is expected, the note with the reason."""
    names = [field.name for field in dataclasses.fields(Expectation) if field.name != "rows"]
    return dict.fromkeys(f"expected_{name}" for name in names) | {"expected_note": reason}


def read(program: str, card: Card, n_microbatches: int) -> tuple[list[Row], str]:
    """The ledger of a program's text on a GPU, and what it leaves out.

    Args:
        n_microbatches: how often the loop over microbatches runs, which only the run knows.
    """
    parsed = hlo.parse(program)
    rows = ledger.rows(kernels.launched(parsed, n_microbatches), card)
    return rows, "without what devices exchange" if kernels.has_collectives(parsed) else ""


def basis(card: Card) -> str:
    """What the figures of a card rest on, in words."""
    if card.name == ledger.MEASURED_ON:
        return "efficiencies measured on an H100"
    return "scaled from an H100"
