"""Reads sentences with a tag for each word: CoNLL's columns, JSON lines and Parquet."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.glue.tasks import Row
from cramjax.tasks import tables, tags

COLUMN_SUFFIXES = (".conll", ".txt", ".tsv")

# Split → the words that name its files. CoNLL-2003 calls them eng.testa and eng.testb.
_WORDS = {
    "train": ("train",),
    "validation": ("dev", "valid", "validation", "val", "testa"),
    "test": ("test", "testb"),
}
_WORD_KEYS = ("words", "tokens")
_TAG_KEYS = ("tags", "ner_tags", "labels")
_DOCUMENT = "-DOCSTART-"


def file_of(folder: pathlib.Path, split: str, *, required: bool = True) -> pathlib.Path | None:
    """Returns the file of a split: its name has the split's as a part, as in "wnut17.train.conll".

    Args:
        folder: of the files.
        split: "train", "validation" or "test".
        required: raise an error if there is none, else return None.

    Raises:
        UserError: if there is no such file, or several.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    known = (*COLUMN_SUFFIXES, ".jsonl", ".parquet")
    found = []
    for name in names:
        *parts, last = re.split(r"[._-]", name.lower().removesuffix(".gz"))
        is_named = any(part in _WORDS[split] for part in parts)
        if (is_named and f".{last}" in known) or last in _WORDS[split]:
            found.append(name)
    if len(found) == 1:
        return folder / found[0]
    if not found and not required:
        return None

    wanted = " or ".join(_WORDS[split])
    if found:
        raise UserError(f"{folder}: several files for {split} ({', '.join(found)}); keep one there")
    raise UserError(
        f"{folder}: no file for {split} (there: {', '.join(names)}); name it {wanted} with "
        f"{', '.join(known)}"
    )


def read(
    path: pathlib.Path,
    words: Sequence[str] = _WORD_KEYS,
    tag_keys: Sequence[str] = _TAG_KEYS,
    names: Sequence[str] | None = None,
) -> list[Row]:
    """Returns rows with "idx", "words" and "label", the tags as they stand in the file.

    Args:
        path: columns of words and tags with an empty line between sentences, or JSON lines or
            Parquet with lists.
        words: keys of the list of words; the first that a row has is taken.
        tag_keys: keys of the list of tags, likewise.
        names: the tags behind whole numbers; None where the file says, or has names itself.

    Raises:
        UserError: for a damaged file, or a sentence without a tag for each word.
    """
    if tables.suffix_of(path) in (".jsonl", ".parquet"):
        return list(_from_lists(path, words, tag_keys, names))
    with tables.reading(path):
        return list(_from_columns(path))


def _from_columns(path: pathlib.Path) -> Iterator[Row]:
    with tables.opened(path) as file:
        lines = file.read().split("\n")
    # Words of a file with tabs may hold spaces.
    has_tabs = any("\t" in line for line in lines[:1000])
    n_columns = 0
    n_sentences = 0
    sentence: list[list[str]] = []

    for number, line in enumerate([*lines, ""], start=1):
        line = line.rstrip("\r")
        is_comment = has_tabs and line.startswith("# ") and "\t" not in line
        if is_comment or line.startswith(_DOCUMENT):
            continue
        if not line.strip():
            if sentence:
                yield _sentence(n_sentences, sentence)
                n_sentences += 1
            sentence = []
            continue

        cells = line.split("\t") if has_tabs else line.split()
        n_columns = n_columns or len(cells)
        if len(cells) < 2 or len(cells) != n_columns:
            raise UserError(
                f"{path}:{number}: {len(cells)} columns where {max(2, n_columns)} are wanted, the "
                "word first and the tag last"
            )
        sentence.append(cells)


def _sentence(number: int, lines: Sequence[Sequence[str]]) -> Row:
    return {
        "idx": number,
        "words": [cells[0] for cells in lines],
        "label": [cells[-1].strip() for cells in lines],
    }


def _from_lists(
    path: pathlib.Path,
    word_keys: Sequence[str],
    tag_keys: Sequence[str],
    names: Sequence[str] | None,
) -> Iterator[Row]:
    for number, (where, values) in enumerate(tables.rows(path)):
        words = _list(values, word_keys, where)
        key = _present(values, tag_keys, where)
        given = _list(values, tag_keys, where)
        if names is None and number == 0 and tables.suffix_of(path) == ".parquet":
            names = tables.names_of(path, key)
        if len(words) != len(given):
            raise UserError(f"{where}: {len(words)} words and {len(given)} tags; give as many")
        written = [_tag(tag, names, f"{where}: {key}") for tag in given]
        yield {"idx": number, "words": [str(word) for word in words], "label": written}


def _tag(value: Any, names: Sequence[str] | None, where: str) -> str:
    if isinstance(value, int) and names is not None:
        if not 0 <= value < len(names):
            raise UserError(f"{where} has {value}, but there are {len(names)} names")
        return names[value]
    return str(value)


def _present(values: dict[str, Any], keys: Sequence[str], where: str) -> str:
    for key in keys:
        if key in values:
            return key
    raise UserError(f"{where}: has no {' or '.join(keys)} (found: {', '.join(values):.200})")


def _list(values: dict[str, Any], keys: Sequence[str], where: str) -> list[Any]:
    key = _present(values, keys, where)
    if not isinstance(values[key], list):
        raise UserError(f"{where}: {key} is no list")
    return values[key]


def as_iob2(path: pathlib.Path, rows: Sequence[Row], announce: Announce) -> list[Row]:
    """Returns the rows with tags of entities in IOB2; other tags stay as they are.

    Args:
        path: the file, for messages.
        rows: as from `read`.
        announce: receives a line about what was changed.
    """
    sentences = [row["label"] for row in rows]
    if not tags.are_entities(tag for sentence in sentences for tag in sentence):
        return list(rows)
    scheme = tags.scheme(sentences)
    n_repaired = tags.n_repaired(sentences)
    if scheme != "IOB2":
        announce(f"{path}: tags are {scheme}, read as IOB2")
    elif n_repaired:
        announce(f"{path}: {n_repaired} tags I- without a beginning, repaired to B-")
    return [row | {"label": tags.as_iob2(row["label"])} for row in rows]
