"""The checkpoints of a run that are published beside its last one: `checkpoint.at_hours`."""

from __future__ import annotations

import dataclasses
import pathlib

from cramjax.checkpoints import sealing
from cramjax.errors import UserError

MAIN = "main"
"""The name of the last checkpoint's folder, and of the Hub's first branch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revision:
    """A checkpoint to publish.

    Attributes:
        name: of its folder and branch, as "12h"; `MAIN` for the last checkpoint.
        step: of the checkpoint; None for the newest.
    """

    name: str
    step: int | None

    @property
    def branch(self) -> str | None:
        """The branch on the Hub, None for the main one."""
        return None if self.name == MAIN else self.name


def revisions(checkpoint: str | pathlib.Path) -> list[Revision]:
    """Returns the last checkpoint of a run and those that its hours keep, in this order.

    The last one comes first, so that a new repository on the Hub has a model in its main branch.

    Raises:
        UserError: if no checkpoint is kept for an hour.
    """
    marked = sealing.marked(pathlib.Path(checkpoint) / "checkpoints")
    if not marked:
        raise UserError(
            f"{checkpoint}: no checkpoint is kept for an hour of the run; train with "
            "--config.checkpoint.at_hours='[6, 12]', or export one by --step"
        )
    found = [Revision(name=MAIN, step=None)]
    for step, hours in marked.items():
        found += [Revision(name=f"{mark:g}h", step=step) for mark in hours]
    return found
