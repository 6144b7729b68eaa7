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
    """A minimal pair of sentences.

    Attributes:
        good, bad: the grammatical and the ungrammatical sentence.
        field: field of linguistics; it has several terms.
        term: phenomenon; it has several paradigms.
        where: file and line.
    """

    good: str
    bad: str
    field: str
    term: str
    paradigm: str
    where: str = ""


def read(data_dir: str | pathlib.Path, limit: int | None = None) -> list[Pair]:
    """Read the pairs of all *.jsonl files in a folder, in the order of their names.

    Args:
        limit: pairs to read of each file; None means all.

    Raises:
        UserError: for a folder that is missing or has no pairs, and, with file and line, for a line
            that is not in the form of BLiMP.
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

    pairs: list[Pair] = []
    for path in paths:
        # A pipe would be waited for.
        if not path.is_file():
            raise UserError(f"{path}: cannot be read (no regular file); fetch BLiMP's again")
        try:
            with path.open("rb") as file:
                for number, line in enumerate(itertools.islice(file, limit), start=1):
                    pairs.append(_pair(line, f"{path}:{number}"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not pairs:
        raise UserError(f"--data_dir {folder}: its .jsonl files are empty; fetch BLiMP's again")
    return pairs


def _pair(line: bytes, where: str) -> Pair:
    """Reads one line; `where` is its file and line, for messages."""
    form = f"a line of BLiMP has {', '.join(_KEYS.values())}"
    try:
        content = json.loads(line)
    # ValueError: of JSON, or of UTF-8; RecursionError: nested thousands of times
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of JSON ({getattr(error, 'msg', error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a JSON object; {form}")

    for key in _KEYS.values():
        if key not in content:
            raise UserError(f"{where}: has no {key}; {form}")
        text = content[key]
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: {key} is {text!r:.80}; it has to be text")

    fields = {name: content[key] for name, key in _KEYS.items()}
    # The files spell one field in two ways.
    fields["field"] = fields["field"].replace("_", "/")
    return Pair(**fields, where=where)
