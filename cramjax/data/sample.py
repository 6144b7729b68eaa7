"""Samples the text on which a tokenizer is trained, over all of a corpus.

Documents are cut into units, and each unit has a hash. The sample is the units with the smallest
hashes, as many as reach the wanted size: a fair choice from all parts and from all places in a
part, that does not depend on how many processes look for it. `SampleJob` finds the candidates in a
group of parts, and `choose` takes the smallest hashes of all.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cramjax.data.clean import cut
from cramjax.data.jobs import Files
from cramjax.data.sealed import Damaged
from cramjax.data.selection import read_keep
from cramjax.data.spool import Group, compressed, open_compressed

# The most characters in a unit: no single document makes much of a sample.
_UNIT_CHARS = 1 << 14
_UNIT = np.dtype([("hash", "<u8"), ("n_bytes", "<u8")])
# UTF-8 has at most four bytes for a character.
_UNIT_BYTES = 4 * _UNIT_CHARS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleJob:
    """Finds the units of a group that may be in the sample.

    The file `text.zst` holds them one after the other, and `units` their hashes and sizes.

    Attributes:
        group: The group.
        stem: See `Job`.
        selection: Stem of the group's `SelectJob`.
        share: Units with a hash below this share of 2^64 are candidates.
    """

    group: Group
    stem: pathlib.Path
    selection: pathlib.Path
    share: float

    @property
    def name(self) -> str:
        """See `Job`."""
        return self.group.name

    def facts(self) -> list[Any]:
        """See `Job`."""
        return [*self.group.facts(), self.share]

    def make(self, files: Files) -> dict[str, Any]:
        """See `Job`."""
        limit = min(int(self.share * 2.0**64), 2**64 - 1)
        is_wanted = read_keep(self.selection)
        start = 0
        for rows in self.group.blocks():
            # A longer piece has several units. Where it is cut shows in its text.
            is_long = rows["n_chars"] > _UNIT_CHARS
            is_candidate = _unit_hashes(rows["hash"], rows["piece"], 0) <= limit
            is_wanted[start : start + len(rows)] &= is_long | is_candidate
            start += len(rows)

        units = files.open("units")
        with compressed(files.open("text.zst")) as text_file:
            for row, text in self.group.texts(is_wanted):
                pieces = cut(text, _UNIT_CHARS)
                hashes = _unit_hashes(row["hash"], row["piece"], np.arange(len(pieces)))
                for index in np.flatnonzero(hashes <= limit).tolist():
                    content = pieces[index].encode("utf-8")
                    text_file.write(content)
                    units.write(np.array((hashes[index], len(content)), _UNIT).tobytes())
        return {}


def _unit_hashes(hashes: Any, pieces: Any, units: Any) -> np.ndarray:
    """Hash units of text, uint64 [...].

    Args:
        hashes: Hashes of their documents.
        pieces: Numbers of their pieces in the documents.
        units: Their numbers in the pieces.
    """
    # Steele, Lea and Flood's SplitMix64, which makes numbers of a counter look random.
    counter = (np.asarray(pieces, np.uint64) << np.uint64(32)) + np.asarray(units, np.uint64)
    value = np.asarray(hashes, np.uint64) + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def candidate_share(target_bytes: float, kept_bytes: int) -> float:
    """Return the share of units that hold the sample almost surely.

    Args:
        target_bytes: Size of the sample.
        kept_bytes: Size of the text it is taken from.
    """
    # The size of a random choice varies by the root of its number of units.
    n_units = target_bytes / _UNIT_BYTES
    wanted = n_units + 6 * math.sqrt(n_units) + 30
    return min(1.0, wanted * _UNIT_BYTES / max(kept_bytes, 1))


def choose(stems: Sequence[pathlib.Path], target_bytes: float) -> Iterator[str]:
    """Yield the sample out of the candidates, in reading order.

    Args:
        stems: Those of the finished `SampleJob`s.
        target_bytes: Size of the sample. The unit that reaches it is the last one.

    Raises:
        Damaged: if a file is damaged.
    """
    units = [np.fromfile(_path(stem, "units"), _UNIT) for stem in stems]
    candidates = np.concatenate([np.empty(0, _UNIT), *units])
    order = np.argsort(candidates["hash"], kind="stable")
    sizes = candidates["n_bytes"][order].astype(np.int64)
    is_chosen = np.zeros(len(candidates), bool)
    is_chosen[order[np.cumsum(sizes) - sizes < target_bytes]] = True

    start = 0
    for stem, own in zip(stems, units, strict=True):
        with open_compressed(_path(stem, "text.zst")) as file:
            for size, is_wanted in zip(own["n_bytes"], is_chosen[start:], strict=False):
                content = file.read(int(size))
                if len(content) != size:
                    raise Damaged(f"{stem}.text.zst is cut short", _path(stem, "json"))
                if is_wanted:
                    yield content.decode("utf-8")
        start += len(own)


def _path(stem: pathlib.Path, ending: str) -> pathlib.Path:
    return stem.with_name(f"{stem.name}.{ending}")
