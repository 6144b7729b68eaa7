"""The share of a budget that compiling may take."""

from __future__ import annotations

LAYER_S = 4.0
"""Seconds to compile a block's forward and backward pass for a GPU, on a host of few cores.

24 blocks of BERT-large took 44 s on 16 cores beside an H100 and 14 s as a loop over one
(2026-11-26).
"""

SHARE = 0.01
"""Share of the budget's time for compiling blocks one by one.

That gains 10% and more of each step.
"""


def affords_unrolling(n_layers: int, hours: float | None) -> bool:
    """Tells if a budget of `hours` affords to compile `n_layers` blocks one by one.

    A budget without a limit in hours does not.
    """
    return hours is not None and n_layers * LAYER_S <= SHARE * 3600 * hours
