"""Judges how much of the text a preparation loses, and says why and which key cures it.

Over a hundredth is a warning. Over a fifth is refused, unless `data.allow_loss` or the key of the
filter itself says that it is meant. Duplicates are no loss: one copy stays.
"""

from __future__ import annotations

import dataclasses
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.config.views import DataConfig
from cramjax.data import tokenizers
from cramjax.data.tally import Tally
from cramjax.errors import UserError

_LOG = logging.getLogger("cramjax")
WARN = 0.01
"""Share from which a loss is said."""

REFUSE = 0.2
"""Share from which a loss is refused."""

# The share of unknown characters in one part, over that of the rest, from which it is named.
_STANDS_OUT = 4.0

# WordPiece tokenizers from elsewhere give up at longer words.
_LONG_WORD = 100
_FILES_CURE = "see the warnings above for file and line"
# Reason → what happened to the documents, and the cure.
_REASONS = {
    "empty": ("hold no text", "check data.text_field"),
    "min_chars": ("are shorter than data.min_chars", "lower data.min_chars"),
    "compressibility": (
        "have too many tokens for their characters (data.compressibility={compressibility:g})",
        "set data.compressibility=None, or data.language to the language of the text",
    ),
    "duplicate": ("came before", "set data.dedup_exact=False to keep them"),
    "near_duplicate": ("are near duplicates", "set data.dedup_near=None to keep them"),
    "keep": ("are left out by data.keep", "loosen data.keep"),
    "invalid_utf8_repaired": ("are not valid UTF-8", "convert the files to UTF-8"),
    "not_json": ("are not JSON", _FILES_CURE),
    "no_text_field": ("lack the field data.text_field={text_field}", "set data.text_field"),
    "empty_side": ("have an empty source or target", _FILES_CURE),
    "no_pair_field": (
        "lack the fields {source_field} and {target_field}",
        "set data.source_field and data.target_field",
    ),
    "not_two_columns": ("have no source, tab and target", _FILES_CURE),
    "pair_too_long": ("have a side that is far too long", _FILES_CURE),
    "text_not_a_string": ("have no string as their text", "set data.text_field"),
}
# Losses that one asks for by setting a key; a duplicate is none at all.
_MEANT = ("duplicate", "near_duplicate", "keep", "min_chars")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """One way in which text is lost.

    Attributes:
        kind: "deleted", "unknown", or the reason for which documents are dropped.
        share: Share of the text, in [0, 1].
        sentence: What is lost, why, and what to do.
        is_meant: A key says that it is meant.
    """

    kind: str
    share: float
    sentence: str
    is_meant: bool = False


def judge(losses: Sequence[Loss], config: DataConfig, said: set[str]) -> None:
    """Warn of each loss that counts, once for each kind.

    Args:
        losses: What is lost as far as is known.
        config: The `data` part of the configuration.
        said: Kinds of losses that were said; those that are said now are added.

    Raises:
        UserError: if one is too large; lists all that are.
    """
    refused = []
    for loss in losses:
        is_allowed = loss.is_meant or config.allow_loss
        if loss.share > REFUSE and not is_allowed:
            refused.append(loss.sentence)
        elif loss.share > WARN and loss.kind not in said:
            said.add(loss.kind)
            _LOG.warning("data: %s", loss.sentence)

    if refused:
        listed = "; ".join(refused)
        raise UserError(
            f"data: {listed}; or set data.allow_loss=True if that is meant, and the same command "
            "goes on"
        )


def of_documents(dropped: Mapping[str, int], n_kept: int, config: DataConfig) -> list[Loss]:
    """Return the documents that were dropped or repaired, a loss for each reason.

    Args:
        dropped: Reason → count.
        n_kept: Documents that were not dropped.
        config: The `data` part of the configuration.
    """
    n_read = n_documents_read(dropped, n_kept)
    losses = []
    for reason, count in dropped.items():
        what, cure = _why_dropped(reason, config)
        share = count / max(1, n_read)
        losses.append(
            Loss(
                kind=reason,
                share=share,
                sentence=f"{share:.1%} of the documents ({count:,}) {what}; {cure}",
                is_meant=reason in _MEANT,
            )
        )
    return losses


def _why_dropped(reason: str, config: DataConfig) -> tuple[str, str]:
    if reason == "no_tokens":
        if config.ascii_only:
            return "have no ASCII character (data.ascii_only)", _ascii_cure()
        return "give no token", "set data.language to the language of the text"
    what, cure = _REASONS.get(reason, (f"are lost ({reason})", _FILES_CURE))
    named = ("compressibility", "text_field", "source_field", "target_field")
    return what.format_map({key: config[key] for key in named}), cure


def of_characters(parts: Sequence[tuple[str, Tally]], config: DataConfig) -> list[Loss]:
    """Return the characters that are deleted, and those that become [UNK].

    Args:
        parts: (name, tally) of each part of the text.
        config: The `data` part of the configuration.
    """
    total = sum((tally for _, tally in parts), Tally())
    deleted = total.deleted_character_share
    unknown = max(total.unknown_character_share, total.unknown_token_share)
    cause, cure = _why_unknown(total, config)

    return [
        Loss(
            kind="deleted",
            share=deleted,
            sentence=f"{deleted:.1%} of the characters are deleted, such as "
            f"{_named(total.deleted)}; {_why_deleted(config)}",
        ),
        Loss(
            kind="unknown",
            share=unknown,
            sentence=f"{total.unknown_token_share:.1%} of the tokens are [UNK], with "
            f"{total.unknown_character_share:.1%} of the characters, such as "
            f"{_named(total.unknown)}{_where(parts)}: {cause}; {cure}",
        ),
    ]


def rows(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a prepared dataset lost: (name, share) of each kind of loss.

    Args:
        manifest: Of the dataset; earlier versions counted documents alone.
    """
    table = []
    for name in ("unknown_token", "unknown_character", "deleted_character"):
        if f"{name}_share" in manifest:
            table.append((name.replace("_", " ") + "s", f"{manifest[f'{name}_share']:.2%}"))

    dropped = manifest["dropped"]
    n_read = n_documents_read(dropped, manifest["documents"])
    for reason, count in dropped.items():
        share = count / max(1, n_read)
        table.append((f"dropped: {reason}", f"{count:,} ({share:.2%} of documents)"))
    return table


def n_documents_read(dropped: Mapping[str, int], n_kept: int) -> int:
    """Return the documents that were read: those that are kept, and those that were dropped."""
    return n_kept + sum(dropped.values()) - dropped.get("invalid_utf8_repaired", 0)


def _why_deleted(config: DataConfig) -> str:
    if config.ascii_only:
        return f"data.ascii_only keeps ASCII alone; {_ascii_cure()}"
    return "set data.normalize=False if they belong to the text"


def _ascii_cure() -> str:
    return (
        "set data.language to the language of the text (such as de, zh), or data.ascii_only=False"
    )


def _why_unknown(total: Tally, config: DataConfig) -> tuple[str, str]:
    """Return the cause of unknown tokens, and the cure."""
    if config.tokenizer not in tokenizers.KINDS and total.longest_unknown > _LONG_WORD:
        return (
            f"data.tokenizer={config.tokenizer} takes no words of over {_LONG_WORD} characters",
            "take data.tokenizer=bpe or unigram for text without spaces, or another tokenizer",
        )
    if config.tokenizer not in tokenizers.KINDS:
        return (
            f"data.tokenizer={config.tokenizer} has no entries for them",
            "train a tokenizer on this text (data.tokenizer=wordpiece), or name another one",
        )
    return (
        f"they are not in the alphabet that data.vocab_size={config.vocab_size} has room for",
        "raise data.vocab_size, or set data.language to the language of the text",
    )


def _where(parts: Sequence[tuple[str, Tally]]) -> str:
    """Name the part in which the unknown text is, if it stands out from the rest."""
    if len(parts) < 2:
        return ""
    name, worst = max(parts, key=lambda part: part[1].unknown_characters)
    rest = sum((tally for other, tally in parts if other != name), Tally())
    is_alone = worst.unknown_character_share > _STANDS_OUT * rest.unknown_character_share
    return f", most of it in {name}" if is_alone else ""


def _named(examples: Sequence[str]) -> str:
    """Return examples, those that print nothing by their Unicode names."""
    words = []
    for text in examples[:3]:
        word = repr(text)
        if len(text) == 1 and not text.isalnum():
            word = unicodedata.name(text, ascii(text))
        words.append(word)
    return ", ".join(words) or "none"
