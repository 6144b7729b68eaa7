"""Selects the documents of a group: those within a source's share, and no duplicates."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from cramjax.data import duplicates
from cramjax.data.jobs import Files
from cramjax.data.spool import Group


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectJob:
    """Decides which pieces of a group are kept.

    The file `keep` holds a byte for each piece within the share, 1 where it is kept. The record has
    documents within the share, kept_bytes, and dropped (reason → count).

    Attributes:
        group: The group.
        stem: See `Job`.
        comparisons: Stems of all `CompareJob`s.
    """

    group: Group
    stem: pathlib.Path
    comparisons: tuple[pathlib.Path, ...]

    @property
    def name(self) -> str:
        """See `Job`."""
        return self.group.name

    def facts(self) -> list[Any]:
        """See `Job`."""
        return self.group.facts()

    def make(self, files: Files) -> dict[str, Any]:
        """See `Job`."""
        pieces = [rows[["n_bytes", "piece"]] for rows in self.group.blocks()]
        n_bytes = np.concatenate([np.empty(0, np.int64), *(rows["n_bytes"] for rows in pieces)])
        is_head = np.concatenate([np.empty(0, bool), *(rows["piece"] == 0 for rows in pieces)])
        n_documents = int(is_head.sum())

        place = (self.group.number, n_documents, self.comparisons)
        is_exact = duplicates.dropped_in(*place, "exact")
        # Whatever is both counts as exact.
        is_near = duplicates.dropped_in(*place, "near") & ~is_exact
        # The pieces of a cut document share the fate of the whole.
        keep = ~(is_exact | is_near)[np.cumsum(is_head) - 1]

        files.open("keep").write(keep.tobytes())
        return {
            "documents": n_documents,
            "kept_bytes": int(n_bytes[keep].sum()),
            "dropped": {"duplicate": int(is_exact.sum()), "near_duplicate": int(is_near.sum())},
        }


def read_keep(stem: pathlib.Path) -> np.ndarray:
    """Return which pieces a finished `SelectJob` keeps, bool [n]."""
    return np.fromfile(stem.with_name(f"{stem.name}.keep"), bool)
