"""A pair of texts as one document: the source, a sign that no text has, and the target.

So a pair goes through the stages of a preparation like any document: it is counted, compared,
held out and drawn as a whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cramjax.data.source import Drop

SIGN = "\x1f"
"""The unit separator of ASCII. `PairForm` takes it out of the texts."""

MAX_SIDE_CHARS = 1 << 20
"""A longer text is no side of a pair that anybody trains on."""

_MISSING = object()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairForm:
    """The way from records to pairs.

    Attributes:
        source_field: Field of a record with the source; dots reach into records.
        target_field: Field with the target.
        prefix: Text before every source.
    """

    source_field: str
    target_field: str
    prefix: str = ""

    @property
    def cures(self) -> dict[str, str]:
        """Field → what to do if no record has it."""
        cure = "set --config.data.source_field and --config.data.target_field"
        return {self.source_field: cure, self.target_field: cure}

    def joined(self, source: str, target: str, where: str, drop: Drop) -> str | None:
        """Return the document of a pair; None, after a call of `drop`, if a side is empty."""
        if not source.strip() or not target.strip():
            drop("empty_side", where)
            return None
        if max(len(source), len(target)) > MAX_SIDE_CHARS:
            drop("pair_too_long", where)
            return None
        source, target = source.replace(SIGN, " "), target.replace(SIGN, " ")
        return f"{self.prefix}{source}{SIGN}{target}"

    def of_record(self, record: Any, where: str, drop: Drop) -> str | None:
        """Return the document of a record; None, after a call of `drop`, if it has no pair."""
        source, target = _lookup(record, self.source_field), _lookup(record, self.target_field)
        if source is _MISSING or target is _MISSING:
            drop("no_pair_field", where)
            return None
        if not isinstance(source, str) or not isinstance(target, str):
            drop("text_not_a_string", where)
            return None
        return self.joined(source, target, where, drop)


def has_field(record: Any, field: str) -> bool:
    """Return whether a record has a field; dots reach into records."""
    return _lookup(record, field) is not _MISSING


def _lookup(record: Any, field: str) -> Any:
    """Return the value of a field; a name with dots is one field, or fields of fields."""
    if not isinstance(record, Mapping):
        return _MISSING
    if field in record:
        return record[field]
    outer, dot, inner = field.partition(".")
    return _lookup(record.get(outer), inner) if dot else _MISSING


def sides_of(document: str) -> tuple[str, str]:
    """Return source and target of a document that `PairForm` has made."""
    source, _, target = document.partition(SIGN)
    return source, target
