"""The record of packed parts, from which an interrupted preparation goes on.

Each line of `journal.jsonl` says that a part is packed, how long each shard is after it, the
digests of the shards, and what was dropped. To go on, the shards are cut back to the last line,
and the parts after it are packed.
"""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from cramjax.data.sealed import seal, unseal

_LOG = logging.getLogger("cramjax")


class Journal:
    """The packed parts, in a file of sealed JSON lines.

    Attributes:
        path: The file.
        entries: (source, part number) → the part's line: "part", "writers" (split → states of the
            shards that the part was written to) and "dropped" (reason → count).
    """

    def __init__(self, path: pathlib.Path):
        """Read what an earlier process wrote, and cut off what is not whole.

        A kill leaves an unfinished last line. A line that is damaged is said, and the parts from
        it on are packed again.
        """
        self.path = path
        self.entries: dict[tuple[int, int], dict[str, Any]] = {}

        content = path.read_bytes() if path.exists() else b""
        n_whole = 0
        for line in content.splitlines(keepends=True):
            try:
                entry = unseal(line)
                source, number = entry["part"]
            except (ValueError, KeyError, TypeError):
                if line.endswith(b"\n"):
                    _LOG.warning(
                        "%s: damaged after %d parts; going on from there", path, len(self.entries)
                    )
                break
            if not line.endswith(b"\n"):
                break
            self.entries[source, number] = entry
            n_whole += len(line)
        if n_whole < len(content):
            os.truncate(path, n_whole)

    def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """Write the lines of more parts to the disk."""
        with self.path.open("ab") as file:
            for entry in entries:
                file.write(seal(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Forget all parts."""
        self.entries.clear()
        self.path.unlink(missing_ok=True)

    def shard_states(self, source: int, split: str) -> list[list[Any]]:
        """Return the last state of each shard of a source and split, in their order."""
        states: dict[int, list[Any]] = {}
        for (owner, _), entry in self.entries.items():
            if owner == source:
                for state in entry["writers"][split]:
                    states[state[0]] = state
        return [states[number] for number in sorted(states)]
