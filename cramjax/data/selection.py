"""Which documents of the corpus are taken: up to the source's share of `max_mb`, and none that came before.

Works on the records of `spool.py`, in corpus order, without the text; run again over the same records it decides the
same, which is how an interrupted preparation gets its memory back.
"""

from __future__ import annotations

import collections

import numpy as np

from cramjax.data import dedup


class Selection:
    """Remembers what was taken so far, of all sources. `share_bytes`: for each source, None where all is taken.

    `taken_bytes` (of each source) and `n_taken` (documents) count what was within the share, duplicates too.
    """

    def __init__(self, share_bytes: list[float | None], *, exact: bool, near: float | None):
        self.share_bytes = share_bytes
        self.taken_bytes = [0] * len(share_bytes)
        self.n_taken = 0
        self._seen = dedup.SeenHashes() if exact else None
        self._near = dedup.NearDuplicates(near) if near is not None else None
        self._last_kept = False

    @property
    def needs_signatures(self) -> bool:
        """Whether `select` has to be given MinHash signatures."""
        return self._near is not None

    def is_full(self, source: int) -> bool:
        """Whether the source's share is taken."""
        share = self.share_bytes[source]
        return share is not None and self.taken_bytes[source] >= share

    def select(
        self,
        source: int,
        rows: np.ndarray,
        signatures: np.ndarray | None,
        dropped: collections.Counter,
    ) -> np.ndarray:
        """Which of the next `rows` (`spool.ROW` [n]) are kept; duplicates among the others are counted in `dropped`.

        Returns bool [m], m <= n: shorter than the rows where the share ends among them.

        `signatures`: uint16 [d, N_HASHES], of the d documents that begin among the rows. A cut document's pieces
        share the fate of its first.
        """
        taken = self._take(source, rows["n_bytes"])
        rows = rows[:taken]
        heads = np.flatnonzero(rows["piece"] == 0)
        self.n_taken += len(heads)
        keep = np.ones(len(heads), bool)
        for reason, find_new in (
            ("duplicate", self._new_exactly),
            ("near_duplicate", self._new_nearly),
        ):
            still = np.flatnonzero(keep)
            new = find_new(
                rows["hash"][heads[still]], None if signatures is None else signatures[still]
            )
            keep[still] = new
            if n_old := int((~new).sum()):
                dropped[reason] += n_old
        fates = np.concatenate([[self._last_kept], keep])
        kept = fates[np.cumsum(rows["piece"] == 0)]
        self._last_kept = bool(fates[-1])
        return kept

    def _take(self, source: int, n_bytes: np.ndarray) -> int:
        """How many of the next pieces are within the share; the one that reaches it is."""
        before = self.taken_bytes[source] + np.concatenate(
            [[0], np.cumsum(n_bytes.astype(np.int64))]
        )
        share = self.share_bytes[source]
        n_taken = len(n_bytes) if share is None else int((before[:-1] < share).sum())
        self.taken_bytes[source] = int(before[n_taken])
        return n_taken

    def _new_exactly(self, hashes: np.ndarray, signatures: np.ndarray | None) -> np.ndarray:
        return np.ones(len(hashes), bool) if self._seen is None else self._seen.add(hashes)

    def _new_nearly(self, hashes: np.ndarray, signatures: np.ndarray | None) -> np.ndarray:
        return np.ones(len(hashes), bool) if self._near is None else self._near.add(signatures)
