"""Finds duplicates among all documents of a corpus, of any amount, in bounded memory.

A document has keys: the hash of its text and, for near duplicates, the bands of its MinHash
signature (locality-sensitive hashing). Only documents with an equal key are compared.

1. `IndexJob` sorts the keys of each group of parts.
2. `CompareJob` takes a range of keys out of the indexes of all groups. What it says of a document
   depends on the documents alone, not on the ranges.
3. `dropped_in` gathers what was said of one group.

The rule, key by key: the documents with this key stand in reading order. The first stays. For a
text's hash all others are duplicates. For a band, another one is a near duplicate if its signature
agrees with that of an earlier one that stays, of the first `_MAX_LEADERS` with this key. A document
is dropped if one of its keys says so. So near duplicates are those of exact duplicates too, and
both can be looked for at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cramjax.data import dedup
from cramjax.data.jobs import Files
from cramjax.data.spool import Group

# Documents that are sorted together. A document has 12 bytes for each of its keys on the disk.
_RUN_DOCUMENTS = 1 << 20
# Documents of a range of keys, 40 bytes of memory each.
_RANGE_DOCUMENTS = 1 << 21
# Documents whose signatures are in memory together, 400 bytes each.
_COMPARED_DOCUMENTS = 1 << 18
# Documents of one key with which later ones are compared. Boilerplate gives many documents that
# are no near duplicates the same key; true ones meet under many other keys as well.
_MAX_LEADERS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexJob:
    """Sorts the keys of a group's documents.

    The file `index` has runs of at most `_RUN_DOCUMENTS` documents. A run has its keys (uint64),
    sorted for each kind of key, and then the documents' numbers in the group (uint32) in the same
    order. `signatures` (uint16 [n, N_HASHES]) is in the order of the documents. The record has
    documents and bytes within the share, and the runs' documents.

    Attributes:
        group: The group.
        stem: See `Job`.
        exact: Documents have their text's hash as a key.
        near: Threshold of near duplicates; documents have the bands for it as keys. None: no bands.
    """

    group: Group
    stem: pathlib.Path
    exact: bool
    near: float | None

    @property
    def name(self) -> str:
        """See `Job`."""
        return self.group.name

    def facts(self) -> list[Any]:
        """See `Job`."""
        return self.group.facts()

    def make(self, files: Files) -> dict[str, Any]:
        """See `Job`."""
        index = files.open("index")
        signature_file = files.open("signatures")
        n_documents = 0
        n_bytes = 0
        runs = []
        for hashes, signatures, run_bytes in self._runs():
            n_bytes += run_bytes
            numbers = np.arange(n_documents, n_documents + len(hashes), dtype="<u4")
            n_documents += len(hashes)
            runs.append(len(hashes))

            orders = []
            for keys in self._keys(hashes, signatures):
                order = np.argsort(keys, kind="stable")
                index.write(keys[order].astype("<u8").tobytes())
                orders.append(numbers[order])
            for sorted_numbers in orders:
                index.write(sorted_numbers.tobytes())
            if signatures is not None:
                signature_file.write(signatures.astype("<u2").tobytes())
        return {"documents": n_documents, "bytes": n_bytes, "runs": runs}

    def _runs(self) -> Iterator[tuple[np.ndarray, np.ndarray | None, int]]:
        """Yield hashes uint64 [n], signatures uint16 [n, N_HASHES] or None, and bytes."""
        signer = _Signatures(self.group) if self.near is not None else None
        hashes: list[np.ndarray] = []
        n_bytes = 0
        for rows in itertools.chain(self.group.blocks(), [None]):
            if rows is not None:
                hashes.append(rows["hash"][rows["piece"] == 0])
                n_bytes += int(rows["n_bytes"].sum())
            n_documents = sum(map(len, hashes))
            if n_documents >= _RUN_DOCUMENTS or (rows is None and n_documents):
                signatures = signer.take(n_documents) if signer else None
                yield np.concatenate(hashes), signatures, n_bytes
                hashes = []
                n_bytes = 0

    def _keys(self, hashes: np.ndarray, signatures: np.ndarray | None) -> Iterator[np.ndarray]:
        """Yield the keys of each kind, uint64 [n]."""
        if self.exact:
            yield hashes
        if signatures is not None:
            assert self.near is not None
            yield from dedup.band_keys(signatures, self.near)


class _Signatures:
    """Hands out the signatures of a group's documents, in order."""

    def __init__(self, group: Group):
        self._blocks = group.signatures(_RUN_DOCUMENTS)
        self._waiting = np.empty((0, dedup.N_HASHES), np.uint16)

    def take(self, n_documents: int) -> np.ndarray:
        """Return the next signatures, uint16 [n_documents, N_HASHES]."""
        while len(self._waiting) < n_documents:
            self._waiting = np.concatenate([self._waiting, next(self._blocks)])
        taken = self._waiting[:n_documents]
        self._waiting = self._waiting[n_documents:]
        return taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """The files of a finished `IndexJob`.

    Attributes:
        number: Number of the group.
        stem: Path of the files, without their endings.
        runs: Documents of each run.
    """

    number: int
    stem: pathlib.Path
    runs: tuple[int, ...]


def n_ranges(n_documents: int) -> int:
    """Return into how many ranges the keys of so many documents are cut."""
    return max(1, -(-n_documents // _RANGE_DOCUMENTS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareJob:
    """Compares the documents that have a key in one range.

    The files `exact` and `near` hold the dropped documents: uint64, the group's number << 32 | the
    document's number in it, sorted. Exact duplicates may stand in both.

    Attributes:
        number: Number of the range.
        n_ranges: Number of ranges.
        indexes: Those of all groups, in reading order.
        stem: See `Job`.
        exact: See `IndexJob`.
        near: See `IndexJob`.
    """

    number: int
    n_ranges: int
    indexes: tuple[Index, ...]
    stem: pathlib.Path
    exact: bool
    near: float | None

    @property
    def name(self) -> str:
        """See `Job`."""
        return f"comparison {self.number + 1} of {self.n_ranges}"

    def facts(self) -> list[Any]:
        """See `Job`."""
        n_documents = [sum(index.runs) for index in self.indexes]
        return [self.number, self.n_ranges, n_documents]

    def make(self, files: Files) -> dict[str, Any]:
        """See `Job`."""
        first_key = self.number * 2**64 // self.n_ranges
        last_key = (self.number + 1) * 2**64 // self.n_ranges - 1
        n_kinds = int(self.exact)
        if self.near is not None:
            n_kinds += dedup.n_bands(self.near)
        runs = _open_runs(self.indexes, n_kinds)
        signatures = _SignatureFiles(self.indexes)

        exact = np.empty(0, np.uint64)
        near = np.empty(0, np.uint64)
        for kind in range(n_kinds):
            chunks = _chunks(runs, kind, first_key, last_key)
            if self.exact and kind == 0:
                exact = _sorted_set(_exact_duplicates(chunks))
            else:
                assert self.near is not None
                found = _near_duplicates(chunks, signatures, self.near)
                near = _sorted_set(itertools.chain([near], found))

        files.open("exact").write(exact.astype("<u8").tobytes())
        files.open("near").write(near.astype("<u8").tobytes())
        return {"exact": len(exact), "near": len(near)}


def dropped_in(
    group: int, n_documents: int, stems: Sequence[pathlib.Path], ending: str
) -> np.ndarray:
    """Gather what the comparisons say of one group.

    Args:
        group: Its number.
        n_documents: Documents in it.
        stems: Those of all comparisons.
        ending: "exact" or "near".

    Returns:
        bool [n_documents], true where a document is a duplicate.
    """
    is_dropped = np.zeros(n_documents, bool)
    for stem in stems:
        path = stem.with_name(f"{stem.name}.{ending}")
        # An empty file cannot be mapped.
        if path.stat().st_size:
            documents = np.memmap(path, "<u8", "r")
            bounds = np.array([group << 32, (group + 1) << 32], np.uint64)
            first, last = np.searchsorted(documents, bounds).tolist()
            is_dropped[documents[first:last] & np.uint64(0xFFFFFFFF)] = True
    return is_dropped


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """A run of an index, mapped into memory: keys uint64 and documents uint32, [n_kinds, n]."""

    group: int
    keys: np.ndarray
    numbers: np.ndarray


def _open_runs(indexes: Sequence[Index], n_kinds: int) -> list[_Run]:
    runs = []
    for index in indexes:
        if not index.runs:
            continue
        content = np.memmap(index.stem.with_name(f"{index.stem.name}.index"), np.uint8, "r")
        start = 0
        for n_documents in index.runs:
            middle = start + n_kinds * n_documents * 8
            end = middle + n_kinds * n_documents * 4
            keys = content[start:middle].view("<u8").reshape(n_kinds, n_documents)
            numbers = content[middle:end].view("<u4").reshape(n_kinds, n_documents)
            runs.append(_Run(group=index.number, keys=keys, numbers=numbers))
            start = end
    return runs


_Chunk = tuple[np.ndarray, np.ndarray]
"""Keys, sorted, and their documents in reading order, uint64 [n] both."""


def _chunks(runs: list[_Run], kind: int, first_key: int, last_key: int) -> Iterator[_Chunk]:
    """Yield the documents with a key in a range, ordered by key and place, in bounded chunks.

    The documents of a key are in one chunk, or alone in several.
    """
    bounds = np.array([first_key, last_key], np.uint64)
    places = []
    for run in runs:
        first = int(np.searchsorted(run.keys[kind], bounds[0], "left"))
        last = int(np.searchsorted(run.keys[kind], bounds[1], "right"))
        places.append((run, first, last))
    n_documents = sum(last - first for _, first, last in places)

    # Keys are hashes, so halves are about equal, unless many documents have the same.
    if n_documents > _RANGE_DOCUMENTS * 5 // 4 and first_key < last_key:
        middle = (first_key + last_key) // 2
        yield from _chunks(runs, kind, first_key, middle)
        yield from _chunks(runs, kind, middle + 1, last_key)
        return
    if first_key < last_key:
        yield _load(places, kind)
        return
    for run, first, last in places:
        for start in range(first, last, _RANGE_DOCUMENTS):
            yield _load([(run, start, min(start + _RANGE_DOCUMENTS, last))], kind)


def _load(places: list[tuple[_Run, int, int]], kind: int) -> _Chunk:
    keys = [np.empty(0, np.uint64)]
    documents = [np.empty(0, np.uint64)]
    for run, first, last in places:
        keys.append(run.keys[kind, first:last].astype(np.uint64))
        numbers = run.numbers[kind, first:last].astype(np.uint64)
        documents.append(numbers + np.uint64(run.group << 32))

    all_keys = np.concatenate(keys)
    # Stable: documents of equal keys stay in the order of the runs, which is that of reading.
    order = np.argsort(all_keys, kind="stable")
    return all_keys[order], np.concatenate(documents)[order]


def _exact_duplicates(chunks: Iterator[_Chunk]) -> Iterator[np.ndarray]:
    """Yield the documents whose key an earlier one has."""
    latest: np.ndarray | None = None
    for keys, documents in chunks:
        if not len(keys):
            continue
        is_same = np.zeros(len(keys), bool)
        is_same[1:] = keys[1:] == keys[:-1]
        is_same[0] = latest is not None and keys[0] == latest
        latest = keys[-1]
        yield documents[is_same]


def _near_duplicates(
    chunks: Iterator[_Chunk], signatures: _SignatureFiles, threshold: float
) -> Iterator[np.ndarray]:
    """Yield the documents that resemble an earlier one with the same key."""
    # The latest key, which may go on, and its leaders.
    latest: np.ndarray | None = None
    leaders = np.empty(0, np.uint64)
    for keys, documents in _shared(chunks):
        n_before = 0
        if latest is not None and keys[0] == latest:
            n_before = len(leaders)
            keys = np.concatenate([np.repeat(latest, n_before), keys])
            documents = np.concatenate([leaders, documents])
        is_dropped, is_leader = _compare(keys, signatures.read(documents), threshold)

        latest = keys[-1]
        leaders = documents[is_leader & (keys == latest)]
        yield documents[is_dropped]


def _shared(chunks: Iterator[_Chunk]) -> Iterator[_Chunk]:
    """Yield the documents that may share their key, at most `_COMPARED_DOCUMENTS` at a time.

    The documents of a key come together, or alone.
    """
    latest: np.ndarray | None = None
    for keys, documents in chunks:
        if not len(keys):
            continue
        is_same = keys[1:] == keys[:-1]
        is_shared = np.zeros(len(keys), bool)
        is_shared[1:] = is_same
        is_shared[:-1] |= is_same
        # The first and the last key may stand in the chunk before and in the next one.
        is_shared[-1] = True
        is_shared |= latest is not None and keys == latest
        latest = keys[-1]

        keys = keys[is_shared]
        documents = documents[is_shared]
        start = 0
        while start < len(keys):
            end = min(start + _COMPARED_DOCUMENTS, len(keys))
            if end < len(keys) and keys[end] == keys[end - 1]:
                key_start = int(np.searchsorted(keys, keys[end]))
                end = key_start if key_start > start else end
            yield keys[start:end], documents[start:end]
            start = end


def _compare(
    keys: np.ndarray, signatures: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compare documents with the leaders of their key.

    Args:
        keys: uint64 [n], sorted; within a key documents are in reading order.
        signatures: uint16 [n, N_HASHES].
        threshold: Share of equal values from which a document is a near duplicate.

    Returns:
        bool [n] each: the near duplicates, and the leaders.
    """
    is_dropped = np.zeros(len(keys), bool)
    is_leader = np.zeros(len(keys), bool)
    undecided = np.arange(len(keys))
    for _ in range(_MAX_LEADERS):
        if not len(undecided):
            break
        # The first undecided document of each key resembles no leader: it becomes one.
        own_keys = keys[undecided]
        is_first = np.concatenate([[True], own_keys[1:] != own_keys[:-1]])
        new_leaders = undecided[is_first]
        is_leader[new_leaders] = True

        leader_of = new_leaders[np.cumsum(is_first) - 1][~is_first]
        others = undecided[~is_first]
        agreement = (signatures[others] == signatures[leader_of]).mean(axis=1)
        is_dropped[others[agreement >= threshold]] = True
        undecided = others[agreement < threshold]
    return is_dropped, is_leader


class _SignatureFiles:
    """Reads signatures of documents of all groups."""

    def __init__(self, indexes: Sequence[Index]):
        self._stems = {index.number: index.stem for index in indexes}
        self._files: dict[int, np.ndarray] = {}

    def read(self, documents: np.ndarray) -> np.ndarray:
        """Return uint16 [n, N_HASHES].

        Args:
            documents: Group number << 32 | document number, uint64 [n].
        """
        signatures = np.empty((len(documents), dedup.N_HASHES), np.uint16)
        # In the order of the files, so that a page is read once.
        order = np.argsort(documents)
        groups = (documents[order] >> np.uint64(32)).astype(np.int64)
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        for start, end in itertools.pairwise([*starts.tolist(), len(groups)]):
            chosen = order[start:end]
            numbers = documents[chosen] & np.uint64(0xFFFFFFFF)
            signatures[chosen] = self._open(int(groups[start]))[numbers]
        return signatures

    def _open(self, group: int) -> np.ndarray:
        if group not in self._files:
            stem = self._stems[group]
            values = np.memmap(stem.with_name(f"{stem.name}.signatures"), "<u2", "r")
            self._files[group] = values.reshape(-1, dedup.N_HASHES)
        return self._files[group]


def _sorted_set(documents: Iterator[np.ndarray]) -> np.ndarray:
    """Returns all documents once, sorted, uint64 [n]."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *documents]))
