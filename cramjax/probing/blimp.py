"""BLiMP (arXiv 1912.00582): pairs of sentences, one of them grammatical, by paradigm."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

from cramjax.errors import UserError

_KEYS = {
    "good": "sentence_good",
    "bad": "sentence_bad",
    "field": "field",
    "term": "linguistics_term",
    "paradigm": "UID",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A minimal pair; `paradigm` belongs to a `term` (a phenomenon) and that to a `field`; `where` is its file and line."""

    good: str
    bad: str
    field: str
    term: str
    paradigm: str
    where: str = ""


def read(data_dir: str | pathlib.Path, limit: int | None = None) -> list[Pair]:
    """The pairs of all *.jsonl files in a folder, of each the first `limit`, in the order of their names.

    Raises:
        UserError: for a folder that is absent or without pairs, and for lines that are none of BLiMP, with file and line.
    """
    folder = pathlib.Path(data_dir)
    if not folder.is_dir():
        raise UserError(
            f"--data_dir {folder}: no such folder; name the one with BLiMP's 67 .jsonl files"
        )
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise UserError(
            f"--data_dir {folder}: holds no .jsonl files; name the folder with BLiMP's 67"
        )
    pairs = []
    for path in paths:
        try:
            with path.open("rb") as file:
                pairs += [
                    _pair(line, f"{path}:{n}")
                    for n, line in enumerate(itertools.islice(file, limit), 1)
                ]
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not pairs:
        raise UserError(f"--data_dir {folder}: its .jsonl files are empty; fetch BLiMP's again")
    return pairs


def _pair(line: bytes, where: str) -> Pair:
    wanted = f"a line of BLiMP has {', '.join(_KEYS.values())}"
    try:
        raw = json.loads(line)
    except ValueError as error:  # of JSON, or of UTF-8
        raise UserError(f"{where}: not a line of JSON ({getattr(error, 'msg', error)})") from error
    if not isinstance(raw, dict):
        raise UserError(f"{where}: not a JSON object; {wanted}")
    for key in _KEYS.values():
        if key not in raw:
            raise UserError(f"{where}: has no {key}; {wanted}")
        if not isinstance(raw[key], str) or not raw[key].strip():
            raise UserError(f"{where}: {key} is {raw[key]!r}; it has to be text")
    pair = Pair(**{name: raw[key] for name, key in _KEYS.items()}, where=where)
    # The files spell one field in two ways.
    return dataclasses.replace(pair, field=pair.field.replace("_", "/"))
