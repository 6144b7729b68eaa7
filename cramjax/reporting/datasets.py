"""The section about a prepared dataset: what is in it, what was dropped, its vocabulary.

It reads manifest.json, the counts of tokens, the offsets of documents and the tokenizer, and
believes none of them: what does not fit is left out.
"""

from __future__ import annotations

import collections
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cramjax.reporting.blocks import Bars, Block, Cell, Section, Table
from cramjax.reporting.reading import read_object
from cramjax.reporting.words import is_number, large

MOST_DOCUMENTS = 2_000_000
"""Documents whose lengths are counted; a larger dataset shows those of its first shards."""

_FACTS = (
    "source", "language", "documents", "tokens", "train_tokens", "heldout_tokens", "vocab_size",
)  # fmt: skip
_SHARES = {
    "unknown_token_share": "unknown tokens ([UNK])",
    "unknown_character_share": "unknown characters",
    "deleted_character_share": "deleted characters",
}
_N_TOKENS = 25
# Tokens of a shard; more would be damage.
_MOST_TOKENS = 1 << 40
# The least shares of tokens that a script needs for a bar of its own.
_LEAST_SHARE = 0.001


def section(
    name: str, folder: pathlib.Path, users: Sequence[str], place: int, problems: list[str]
) -> Section | None:
    """Returns the section about the dataset in `folder`, None if it is not there.

    Args:
        name: of its folder.
        folder: of the dataset.
        users: names of the runs that read it.
        place: of the section among its kind.
        problems: gets sentences on what could not be read.
    """
    manifest = read_object(folder / "manifest.json", problems)
    if not manifest:
        return None

    blocks: list[Block] = [_facts(folder, manifest)]
    blocks += _dropped(manifest)
    blocks += _lengths(folder, manifest)
    blocks += _vocabulary(folder, problems)
    intro = f"Read by {', '.join(users)}." if users else ""
    return Section(
        name=f"dataset-{place}",
        title=f"Dataset {name}",
        blocks=blocks,
        intro=intro,
    )


def _facts(folder: pathlib.Path, manifest: Mapping[str, Any]) -> Table:
    rows = [[Cell(text="folder"), Cell(text=str(folder))]]
    for key in _FACTS:
        value = manifest.get(key)
        if is_number(value):
            rows.append([Cell(text=key), Cell(text=f"{value:,}", value=value)])
        elif value is not None:
            rows.append([Cell(text=key), Cell(text=str(value))])
    for key, label in _SHARES.items():
        value = manifest.get(key)
        if is_number(value):
            rows.append([Cell(text=label), Cell(text=f"{value:.3%}", value=value)])
    filters = manifest.get("filters")
    for key, value in (filters if isinstance(filters, dict) else {}).items():
        rows.append([Cell(text=f"filter {key}"), Cell(text=str(value))])
    return Table(title="The dataset", columns=["", "value"], rows=rows)


def _dropped(manifest: Mapping[str, Any]) -> list[Block]:
    dropped = manifest.get("dropped")
    if not isinstance(dropped, dict):
        return []
    counts = {str(reason): count for reason, count in dropped.items() if is_number(count)}
    kept = manifest.get("documents")
    if not counts or not is_number(kept):
        return []
    listed = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
    return [
        Bars(
            title="Documents kept and dropped",
            about=f"Kept {kept:,}; dropped: {listed}.",
            label="documents",
            names=["kept", *counts],
            parts={"documents": [kept, *counts.values()]},
        )
    ]


def _lengths(folder: pathlib.Path, manifest: Mapping[str, Any]) -> list[Block]:
    """Returns the chart of the lengths of training documents, in powers of two."""
    counts = np.zeros(40, np.int64)
    n_documents = 0
    n_tokens = 0
    shards = manifest.get("shards")
    for entry in shards if isinstance(shards, list) else []:
        if not isinstance(entry, dict) or entry.get("split") != "train":
            continue
        lengths = _lengths_of(folder, entry)
        if lengths is None or n_documents > MOST_DOCUMENTS:
            continue
        n_documents += len(lengths)
        n_tokens += int(lengths.sum())
        counts += np.bincount(np.log2(lengths).astype(np.int64), minlength=40)[:40]

    present = np.flatnonzero(counts)
    if not present.size:
        return []
    places = range(int(present[0]), int(present[-1]) + 1)
    mean = n_tokens / n_documents
    return [
        Bars(
            title="Lengths of documents",
            about=f"{n_documents:,} training documents, {mean:,.0f} tokens each on average.",
            label="documents",
            names=[f"{large(2**place)} to {large(2 * 2**place - 1)} tokens" for place in places],
            parts={"documents": [int(counts[place]) for place in places]},
        )
    ]


def _lengths_of(folder: pathlib.Path, entry: Mapping[str, Any]) -> np.ndarray | None:
    """Returns the lengths of a shard's documents, int64 [documents]; None if they cannot be had."""
    name = entry.get("boundaries")
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
        return None
    starts = _array(folder / name)
    n_tokens = entry.get("tokens")
    if starts is None or starts.dtype != np.uint64 or type(n_tokens) is not int:
        return None
    if not 0 < n_tokens < _MOST_TOKENS:
        return None
    edges = np.append(starts[:MOST_DOCUMENTS].astype(np.int64), 0)
    edges[-1] = n_tokens if len(starts) <= MOST_DOCUMENTS else edges[-2] + 1
    lengths = np.diff(edges)
    is_sound = lengths.size > 0 and lengths.min() > 0 and lengths.max() < _MOST_TOKENS
    return lengths if is_sound else None


def _array(path: pathlib.Path) -> np.ndarray | None:
    """Maps a .npy file with one dimension; None if it is missing or damaged."""
    try:
        if not path.is_file():
            return None
        # Only this format: `np.load` would open archives and pickles as well.
        array = np.lib.format.open_memmap(path, mode="r")
    # The header is a Python literal, which fails in many ways.
    except Exception:
        return None
    return array if array.ndim == 1 else None


def _vocabulary(folder: pathlib.Path, problems: list[str]) -> list[Block]:
    """Returns the charts of the vocabulary: scripts, and the most frequent tokens."""
    entries = _entries(read_object(folder / "tokenizer" / "tokenizer.json", problems))
    counts = _array(folder / "unigram.npy")
    if not entries or counts is None or counts.dtype != np.int64:
        return []
    n_tokens = int(counts.sum())
    if n_tokens <= 0 or max(entries.values()) >= len(counts):
        return []

    of_vocabulary: collections.Counter[str] = collections.Counter()
    of_tokens: collections.Counter[str] = collections.Counter()
    for token, number in entries.items():
        script = script_of(token)
        of_vocabulary[script] += 1
        of_tokens[script] += int(counts[number])

    scripts = []
    for script, count in of_tokens.most_common():
        share = max(count / n_tokens, of_vocabulary[script] / len(entries))
        if share >= _LEAST_SHARE:
            scripts.append(script)
    shares = {
        "share of the tokens": [round(of_tokens[s] / n_tokens, 5) for s in scripts],
        "share of the vocabulary": [round(of_vocabulary[s] / len(entries), 5) for s in scripts],
    }
    said = ", ".join(f"{script} {of_tokens[script] / n_tokens:.1%}" for script in scripts[:6])
    return [
        Bars(
            title="Scripts",
            about=f"Of the training tokens: {said}.",
            label="share",
            names=scripts,
            parts=shares,
            is_stacked=False,
        ),
        _most_frequent(entries, counts, n_tokens),
    ]


def _entries(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Returns token → id of a tokenizer.json, whatever its model is."""
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # unigram: [token, score] in the order of ids
        tokens = [pair[0] for pair in vocab if isinstance(pair, list) and pair]
        return {token: number for number, token in enumerate(tokens) if isinstance(token, str)}
    if not isinstance(vocab, dict):
        return {}
    return {token: number for token, number in vocab.items() if type(number) is int and number >= 0}


def _most_frequent(entries: Mapping[str, int], counts: np.ndarray, n_tokens: int) -> Table:
    by_count = sorted(entries.items(), key=lambda entry: -int(counts[entry[1]]))
    rows = []
    for token, number in by_count[:_N_TOKENS]:
        count = int(counts[number])
        cells = [Cell(text=token), Cell(text=f"{count:,}", value=count)]
        rows.append([*cells, Cell(text=f"{count / n_tokens:.2%}", value=count / n_tokens)])
    n_unused = int((counts == 0).sum())
    return Table(
        title=f"The {len(rows)} most frequent tokens; {n_unused:,} entries never occur in training",
        columns=["token", "count", "share"],
        rows=rows,
        is_folded=True,
    )


def script_of(token: str) -> str:
    """Returns the script of a token's first letter, as Unicode names it; else its kind."""
    kind = "signs"
    # The mark of a word's beginning or of its middle is no part of the text.
    for character in token.removeprefix("##").lstrip("▁Ġ"):
        if character.isalpha():
            return unicodedata.name(character, "unnamed").split()[0].split("-")[0].capitalize()
        if character.isdigit():
            kind = "digits"
    return kind
