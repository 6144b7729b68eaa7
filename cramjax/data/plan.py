"""Plans a preparation: which parts are read, in which order, and under which name the result lies.

The plan depends only on the configuration and on the listing of the sources; no text is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from cramjax.config import languages, mixing, pairs
from cramjax.config.views import DataConfig
from cramjax.data import tokenizers
from cramjax.data.adoption import check_unknown
from cramjax.data.heldout import HeldOut, rule
from cramjax.data.manifest import FORMAT
from cramjax.data.pair_source import DOCSTRINGS
from cramjax.data.source import Part, TextSource
from cramjax.errors import UserError

FINGERPRINT_CHARS = 12
"""The end of a dataset's name is so much of its fingerprint."""

# The keys of `data` on which the content of a prepared dataset depends.
_FINGERPRINTED = (
    "vocab_size", "tokenizer", "tokenizer_sample_mb", "lowercase", "ascii_only", "text_field",
    "max_mb", "normalize", "min_chars", "max_chars", "compressibility", "dedup_exact",
    "dedup_near", "heldout_fraction", "max_shard_tokens",
)  # fmt: skip

# Those of pairs alone.
_OF_PAIRS = ("source_field", "target_field", "source_prefix")

# Changes when the same settings give another text or tokenizer.
_NORMALIZATION = 2

# Those of them that say how much text is taken, and into how many files it goes.
_AMOUNTS = ("max_mb", "tokenizer_sample_mb", "max_shard_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparationPlan:
    """The input of one preparation, and the name of its output.

    Attributes:
        config: The `data` part of the configuration.
        sources: The sources of the mixture.
        parts: The parts of each source, in the order in which they are read.
        share_bytes: Bytes of cleaned text to take from each source, or None for all of it.
        heldout: How long documents are held out.
        fingerprint: SHA-256 of everything on which the dataset depends.
        name: Name of the dataset's directory, which ends in the fingerprint's beginning.
    """

    config: DataConfig
    sources: Sequence[TextSource]
    parts: list[list[Part]]
    share_bytes: list[float | None]
    heldout: HeldOut
    fingerprint: str
    name: str


def plan_preparation(config: DataConfig, sources: Sequence[TextSource]) -> PreparationPlan:
    """Order the parts of each source by a hash of their names, and fingerprint everything.

    The order by hash makes the beginning of a source a fair sample of it, which `max_mb` takes.

    Raises:
        UserError: if a source has no parts, or the tokenizer's file is unusable.
    """
    parts = [sorted(source.parts(), key=_reading_order) for source in sources]
    for source, source_parts in zip(sources, parts, strict=True):
        if not source_parts:
            raise UserError(f"data.source={source.spec}: nothing to read there")

    fingerprint = _fingerprint(config, sources, parts)
    return PreparationPlan(
        config=config,
        sources=sources,
        parts=parts,
        share_bytes=_shares(config, sources),
        heldout=_heldout_rule(config, parts),
        fingerprint=fingerprint,
        name=_directory_name(config, sources, fingerprint),
    )


def _shares(config: DataConfig, sources: Sequence[TextSource]) -> list[float | None]:
    """Returns the bytes of text to take from each source; a held-out one is taken whole."""
    total_weight = sum(source.weight for source in sources)
    shares: list[float | None] = []
    for source in sources:
        share = None
        if config.max_mb is not None and source.weight:
            share = config.max_mb * 1e6 * source.weight / total_weight
        shares.append(share)
    return shares


def _heldout_rule(config: DataConfig, parts: Sequence[Sequence[Part]]) -> HeldOut:
    """Returns how documents are held out; where a source is held out, they are whole."""
    if config.heldout is not None:
        return HeldOut()
    if pairs.are_prepared(config):
        # A pair is held out whole.
        return HeldOut(fraction=config.heldout_fraction)
    return rule(config.heldout_fraction, _corpus_bytes(config, parts))


def text_settings(config: DataConfig) -> dict[str, Any]:
    """Returns the keys of `data` that say which text a dataset holds, and in which form.

    Those are left out that only say how much text to take.
    """
    names = {"source", "heldout", "extra_ids", "keep", *_OF_PAIRS, *_FINGERPRINTED}
    names -= set(_AMOUNTS)
    settings = {name: getattr(config, name) for name in sorted(names)}
    return settings | {"language": languages.with_own_chain(config.language)}


def all_settings(config: DataConfig) -> dict[str, Any]:
    """Returns `text_settings`, and the keys that say how much text, in which files and orders."""
    amounts = {name: getattr(config, name) for name in _AMOUNTS}
    return text_settings(config) | amounts | {"order": sentence_order_length(config)}


def sentence_order_length(config: DataConfig) -> int | None:
    """Tokens of text in a training sequence if `order` is "sentence_length", else None.

    Only that order needs the length when data are prepared; the [CLS] token is not text.
    """
    if config.order != "sentence_length":
        return None
    return config.seq_len - int(config.cls_token)


def _reading_order(part: Part) -> tuple[bytes, str]:
    digest = hashlib.blake2b(part.name.encode("utf-8", "surrogateescape")).digest()
    return digest, part.name


def _corpus_bytes(config: DataConfig, parts: Sequence[Sequence[Part]]) -> float | None:
    """Returns how much text is taken at most, in bytes, as it lies on the disk; None if unknown."""
    n_bytes = 0.0
    for source_parts in parts:
        for part in source_parts:
            if part.n_bytes is None:
                return None
            n_bytes += part.n_bytes
    return n_bytes if config.max_mb is None else min(n_bytes, config.max_mb * 1e6)


def _fingerprint(
    config: DataConfig, sources: Sequence[TextSource], parts: Sequence[Sequence[Part]]
) -> str:
    """Hash the settings, the libraries' versions and the parts' keys into 64 hexadecimal digits."""
    settings = {key: getattr(config, key) for key in _FINGERPRINTED}
    # Keys that came later are left out at their defaults, so that older datasets are still found.
    if config.extra_ids:
        settings["extra_ids"] = config.extra_ids
    if config.keep is not None:
        settings["keep"] = config.keep
    if pairs.are_prepared(config):
        # A source of a mixture may have a prefix of its own.
        forms = [getattr(source, "form", None) for source in sources]
        settings["pairs"] = [form and dataclasses.astuple(form) for form in forms]
    if mixing.is_by_size(config.source):
        settings["by_size"] = True
    if config.heldout is not None:
        # Its content is told by the sources.
        settings["heldout"] = True
    if (length := sentence_order_length(config)) is not None:
        settings["order"] = [config.order, length]

    if config.tokenizer not in tokenizers.KINDS:
        # Loaded only to report a mistake now instead of after hours of reading.
        of_t5 = pairs.are_prepared(config)
        tokenizer = tokenizers.load(config.tokenizer, config.extra_ids, of_t5)[0]
        check_unknown(tokenizer, f"data.tokenizer={config.tokenizer}")
        content = pathlib.Path(config.tokenizer).read_bytes()
        settings["tokenizer"] = hashlib.sha256(content).hexdigest()
    elif language := languages.with_own_chain(config.language):
        settings["language"] = language

    part_keys = []
    for source_parts in parts:
        part_keys.append([part.key for part in source_parts])
    everything = {
        "format": FORMAT,
        "normalization": _NORMALIZATION,
        "libraries": tokenizers.library_versions(config.tokenizer),
        "data": settings,
        "sources": [[_identity(source), source.weight, source.revision] for source in sources],
        "parts": part_keys,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _identity(source: TextSource) -> str:
    """Return what of a source's name tells its content.

    Local files are told by their names within the folder and their contents, which are in the keys
    of the parts: they may be moved, and named by another path.
    """
    scheme, _, address = source.spec.partition(":")
    if scheme in ("text", *mixing.TASK_SCHEMES) or (scheme == "pairs" and address != DOCSTRINGS):
        return f"{scheme}:"
    return source.spec


def _directory_name(config: DataConfig, sources: Sequence[TextSource], fingerprint: str) -> str:
    """Name a dataset by its sources, tokenizer, vocabulary size and fingerprint."""
    specs = [re.sub(r"[^A-Za-z0-9]+", "_", source.spec).strip("_")[-40:] for source in sources]
    readable = "+".join(specs)[:60]
    tokenizer = pathlib.Path(config.tokenizer).stem
    return f"{readable}-{tokenizer}{config.vocab_size}-{fingerprint[:FINGERPRINT_CHARS]}"
