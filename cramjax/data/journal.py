"""The record of packed parts, from which an interrupted preparation goes on.

Each line of `journal.jsonl` says that a part is packed, how long each shard is after it, and
what was dropped. To go on, the shards are cut back to the last line, and the parts after it are
packed.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from cramjax.data.spool import Damaged


class Journal:
    """The packed parts, in a file of JSON lines.

    Attributes:
        entries: (source, part number) → the part's line: "part", "writers" (split → state of its
            `ShardWriter`) and "dropped" (reason → count).
    """

    def __init__(self, path: pathlib.Path):
        """Read what an earlier process wrote, and cut off a line that a kill left unfinished.

        Raises:
            Damaged: if a finished line is not an entry.
        """
        self._path = path
        self.entries: dict[tuple[int, int], dict[str, Any]] = {}

        content = path.read_bytes() if path.exists() else b""
        finished = content[: content.rfind(b"\n") + 1]
        if finished != content:
            path.write_bytes(finished)

        try:
            for line in finished.splitlines():
                entry = json.loads(line)
                source, number = entry["part"]
                self.entries[source, number] = entry
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(str(path)) from error

    def append(self, entry: dict[str, Any]) -> None:
        """Write the line of one more part to the file."""
        with self._path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def last_state(self, source: int) -> dict[str, list[int]]:
        """Return split → state of its writer after the last part of `source`, empty before it."""
        numbers = [number for owner, number in self.entries if owner == source]
        if not numbers:
            return {}
        return self.entries[source, max(numbers)]["writers"]
