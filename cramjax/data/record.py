"""The fields of a record: its text, and those that `data.keep` asks for."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn

from cramjax.config.keep import Keep
from cramjax.data.source import Drop
from cramjax.errors import UserError

# Records and fields that are looked at to say which fields there are.
_LISTED = 10


def text_cures(field: str, keep: Keep | None) -> dict[str, str]:
    """Return field → what to do if no record has it, of the fields that are read for texts."""
    return with_keep({field: "set --config.data.text_field"}, keep)


def with_keep(cures: Mapping[str, str], keep: Keep | None) -> dict[str, str]:
    """Return `cures` with those of the fields that `keep` asks for, beside its own."""
    fields = keep.fields if keep else ()
    of_keep = dict.fromkeys(fields, "change --config.data.keep")
    # The order is that in which fields are missed; a field of both has its own cure.
    return {**cures, **of_keep, **cures}


class FieldCheck:
    """Notices which fields the records of a file have."""

    def __init__(
        self,
        path: str,
        cures: Mapping[str, str],
        has: Callable[[Mapping[str, Any], str], bool] = operator.contains,
    ):
        """Start with no record.

        Args:
            path: The file, by its name for people.
            cures: Field that is read → what to do if no record has it.
            has: Returns whether a record has a field.
        """
        self._path = path
        self._cures = cures
        self._has = has
        self._missing = list(cures)
        self._found: dict[str, None] = {}

    def see(self, record: dict[str, Any]) -> None:
        """Look at one more record."""
        if self._missing:
            self._missing = [name for name in self._missing if not self._has(record, name)]
            if self._missing and len(self._found) < _LISTED:
                self._found |= dict.fromkeys(list(record)[:_LISTED])

    def refuse_missing(self, end: int | None = None) -> None:
        """Raise a UserError if there were records and none of them has a field.

        Args:
            end: Bytes of the file that were read, or None for all.
        """
        if self._missing and self._found:
            where = self._path if end is None else f"{self._path}, the first {end >> 20} MiB"
            name = self._missing[0]
            refuse_field(where, name, self._found, self._cures[name])


def refuse_field(where: str, name: str, found: Iterable[str], cure: str) -> NoReturn:
    """Raise the UserError of a file in which no record has the field `name`."""
    listed = ", ".join(sorted(map(str, found))[:_LISTED]) or "none"
    raise UserError(f"{where}: no record has a field {name!r} (found: {listed}); {cure}")


def check_columns(path: str, names: Collection[str], cures: Mapping[str, str]) -> None:
    """Check that a table has the columns that are read, each once.

    Args:
        path: The file, by its name for people.
        names: The columns of the table.
        cures: Column that is read → what to do if there is no such one.

    Raises:
        UserError: if it has not.
    """
    columns = list(names)
    for name, cure in cures.items():
        if name not in columns:
            refuse_field(path, name, columns, cure)
        if columns.count(name) > 1:
            raise UserError(
                f"{path}: has {columns.count(name)} columns called {name!r}; rename one, or {cure}"
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
