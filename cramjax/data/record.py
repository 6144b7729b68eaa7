"""The fields of a record: its text, and those that `data.keep` asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NoReturn

from cramjax.config.keep import Keep
from cramjax.data.source import Drop
from cramjax.errors import UserError

# Records and fields that are looked at to say which fields there are.
_LISTED = 10


class FieldCheck:
    """Notices which fields the records of a file have."""

    def __init__(self, path: str, field: str, keep: Keep | None):
        """Start with no record.

        Args:
            path: The file.
            field: Field of a record that holds its text.
            keep: Which records are kept, or None for all.
        """
        self._path = path
        self._missing = [field, *(keep.fields if keep else ())]
        self._text_field = field
        self._found: dict[str, None] = {}

    def see(self, record: dict[str, Any]) -> None:
        """Look at one more record."""
        if self._missing:
            self._missing = [name for name in self._missing if name not in record]
            if self._missing and len(self._found) < _LISTED:
                self._found |= dict.fromkeys(list(record)[:_LISTED])

    def refuse_missing(self, end: int | None = None) -> None:
        """Raise a UserError if there were records and none of them has a field.

        Args:
            end: Bytes of the file that were read, or None for all.
        """
        if self._missing and self._found:
            where = self._path if end is None else f"{self._path}, the first {end >> 20} MiB"
            refuse_field(where, self._missing[0], self._found, self._text_field)


def refuse_field(where: str, name: str, found: Iterable[str], text_field: str) -> NoReturn:
    """Raise the UserError of a file in which no record has the field `name`."""
    listed = ", ".join(sorted(map(str, found))[:_LISTED]) or "none"
    cure = "set --config.data.text_field"
    if name != text_field:
        cure = "change --config.data.keep"
    raise UserError(f"{where}: no record has a field {name!r} (found: {listed}); {cure}")


def check_columns(path: str, names: Collection[str], field: str, keep: Keep | None) -> None:
    """Check that a table has the columns that are read, each once.

    Raises:
        UserError: if it has not.
    """
    columns = list(names)
    for name in (field, *(keep.fields if keep else ())):
        if name not in columns:
            refuse_field(path, name, columns, field)
        if columns.count(name) > 1:
            raise UserError(
                f"{path}: has {columns.count(name)} columns called {name!r}; rename one, or set "
                f"--config.data.{'text_field' if name == field else 'keep'}"
            )


def text_of(record: Any, field: str, where: str, drop: Drop) -> str | None:
    """Return the text of a record; None, after a call of `drop`, if it has none."""
    if not isinstance(record, dict) or field not in record:
        drop("no_text_field", where)
        return None
    if not isinstance(record[field], str):
        drop("text_not_a_string", where)
        return None
    return record[field]
