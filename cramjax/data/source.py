"""The protocol of a source of text: it lists its parts, and reads the documents of one part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

Drop = Callable[[str, str], None]
"""Called with a reason and "file:position" for each record that is left out or repaired.

The position is empty where the user has asked for it: such records are counted, and not named.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The unit of reading and of restarting.

    Attributes:
        source: Index of the source in the mixture.
        name: A name that a person recognises; the order of reading follows from it.
        key: Changes when the content may have changed.
        n_bytes: Size of the part in bytes, or None if it is unknown.
    """

    source: int
    name: str
    key: str
    n_bytes: int | None


class TextSource(Protocol):
    """A corpus in parts. It can be pickled, because worker processes read the parts."""

    @property
    def spec(self) -> str:
        """The specification in `data.source`."""
        ...

    @property
    def weight(self) -> float:
        """Share of the mixture, up to a factor."""
        ...

    @property
    def revision(self) -> str | None:
        """Version of the content, or None if the keys of the parts tell it."""
        ...

    def parts(self) -> Sequence[Part]:
        """List all parts in a fixed order; no text is taken yet."""
        ...

    def read(self, part: Any, drop: Drop) -> Iterator[str]:
        """Yield the documents of a part in order; call `drop` for each record left out or repaired.

        Args:
            part: One of `parts()`.
            drop: Takes a reason and a position.
        """
        ...
