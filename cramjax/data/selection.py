"""Selects documents of the corpus: up to a source's share of `max_mb`, and no duplicates.

Selection works on the records of `spool.py` in corpus order, without the text. The same records
give the same decisions again, which is how an interrupted preparation gets its memory back.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np

from cramjax.data import dedup
from cramjax.data.spool import SpooledPart, read_text

_BATCH_CHARS = 1 << 21


class Selection:
    """Remembers what was taken from all sources so far.

    Attributes:
        share_bytes: Bytes to take from each source, or None for all of it.
        taken_bytes: Bytes of each source within its share so far, duplicates included.
        n_taken: Documents within the shares so far, duplicates included.
    """

    def __init__(self, share_bytes: list[float | None], *, exact: bool, near: float | None):
        """Start with nothing taken.

        Args:
            share_bytes: See the attribute.
            exact: Drop exact duplicates.
            near: Drop documents of at least this Jaccard similarity to an earlier one, or None.
        """
        self.share_bytes = share_bytes
        self.taken_bytes = [0] * len(share_bytes)
        self.n_taken = 0
        self._seen = dedup.SeenHashes() if exact else None
        self._near = dedup.NearDuplicates(near) if near is not None else None
        # Whether the latest document was kept: its later pieces may be in the next rows.
        self._last_kept = False

    @property
    def needs_signatures(self) -> bool:
        """True if `select` needs MinHash signatures."""
        return self._near is not None

    def is_full(self, source: int) -> bool:
        """True if the source's share is taken."""
        share = self.share_bytes[source]
        return share is not None and self.taken_bytes[source] >= share

    def select(
        self,
        source: int,
        rows: np.ndarray,
        signatures: np.ndarray | None,
        dropped: collections.Counter[str],
    ) -> np.ndarray:
        """Decide which of the next rows of a source are kept.

        The pieces of a cut document share the fate of its first piece.

        Args:
            source: Index of the source.
            rows: Records `spool.ROW` [n].
            signatures: uint16 [d, N_HASHES] of the d documents that begin among the rows; None
                unless `needs_signatures`.
            dropped: Reason → count; duplicates are added to it.

        Returns:
            bool [m], true where a row is kept; m < n if the share ends among the rows.
        """
        n_within_share = self._take(source, rows["n_bytes"])
        rows = rows[:n_within_share]
        is_head = rows["piece"] == 0
        heads = np.flatnonzero(is_head)
        self.n_taken += len(heads)

        keep = np.ones(len(heads), bool)
        if self._seen is not None:
            keep = self._seen.add(rows["hash"][heads])
            dropped["duplicate"] += int((~keep).sum())

        # Near duplicates are looked for only among documents that are no exact ones.
        if self._near is not None:
            assert signatures is not None
            candidates = np.flatnonzero(keep)
            is_new = self._near.add(signatures[candidates])
            keep[candidates] = is_new
            dropped["near_duplicate"] += int((~is_new).sum())

        # Rows before the first head are pieces of the latest document of the rows before.
        fates = np.concatenate([[self._last_kept], keep])
        self._last_kept = bool(fates[-1])
        return fates[np.cumsum(is_head)]

    def _take(self, source: int, n_bytes: np.ndarray) -> int:
        """Count the next pieces that are within the share; the piece that reaches it is included.

        Args:
            source: Index of the source; its `taken_bytes` grows.
            n_bytes: Size of each piece, [n].
        """
        sizes = n_bytes.astype(np.int64)
        before = self.taken_bytes[source] + np.concatenate([[0], np.cumsum(sizes)])
        share = self.share_bytes[source]
        n_taken = len(sizes)
        if share is not None:
            n_taken = int((before[:-1] < share).sum())
        self.taken_bytes[source] = int(before[n_taken])
        return n_taken


def kept_texts(
    part: SpooledPart, selection: Selection, source: int, dropped: collections.Counter[str]
) -> Iterator[tuple[np.void, str]]:
    """Yield the record and the text of each piece of a part that `selection` keeps."""
    with part.open_text() as file:
        for rows, signatures in part.blocks(selection.needs_signatures):
            keep = selection.select(source, rows, signatures, dropped)

            # Texts that are dropped are read too: the file is compressed and has no index.
            within_share = rows[: len(keep)]
            for row, is_kept in zip(within_share, keep.tolist(), strict=True):
                text = read_text(file, int(row["n_bytes"]))
                if is_kept:
                    yield row, text

            if len(keep) < len(rows):  # the share ends here
                return


def kept_batches(
    part: SpooledPart, selection: Selection, source: int, dropped: collections.Counter[str]
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield `kept_texts` in batches of about 2 million characters: records [n] and n texts."""
    rows: list[np.void] = []
    texts: list[str] = []
    n_chars = 0
    for row, text in kept_texts(part, selection, source, dropped):
        rows.append(row)
        texts.append(text)
        n_chars += len(text)
        if n_chars >= _BATCH_CHARS:
            yield np.array(rows), texts
            rows, texts, n_chars = [], [], 0

    if texts:
        yield np.array(rows), texts
