"""Trains SentencePiece models, and converts them to the `tokenizers` library.

SentencePiece is imported late: wordpiece tokenizers do without it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from cramjax.data import alphabet
from cramjax.data.clean import cut
from cramjax.errors import UserError

# SentencePiece skips lines over 4,192 bytes.
_SENTENCE_CHARS = 1000
# Sums are in the order of the threads: a constant number keeps training reproducible.
_N_THREADS = 8
# SentencePiece's names for our roles.
_ROLE_NAMES = {"pad": "pad", "unk": "unk", "cls": "bos", "sep": "eos"}
_WHITE_SPACE_SETTINGS: dict[str, Any] = {
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
}
# Types of pieces and of models in SentencePiece's protocol.
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6
_UNIGRAM, _BPE = 1, 2


def train_sentencepiece(
    kind: str,
    texts: Sequence[str],
    vocab_size: int,
    rule: str,
    special: dict[str, str],
    *,
    keeps_white_space: bool = False,
    n_reserved: int = 0,
) -> bytes:
    """Train a SentencePiece model; a small corpus gives fewer entries.

    Args:
        kind: "unigram" or "bpe".
        texts: The sample.
        vocab_size: The most entries, special tokens included.
        rule: Name of SentencePiece's normalisation rule.
        special: Role → special token; their ids are 0, 1, … in this order.
        keeps_white_space: Runs of spaces are tokens, and digits stand apart.
        n_reserved: Entries that the caller adds; messages count them.

    Returns:
        The bytes of the .model file.

    Raises:
        UserError: if SentencePiece cannot train on this text.
    """
    sentences = []
    for text in texts:
        for line in text.split("\n"):
            if not keeps_white_space:
                line = line.strip()
            sentences += cut(line, _SENTENCE_CHARS)

    settings = _special_settings(special)
    counts = alphabet.count(texts, normalizers.NFKC())
    settings["character_coverage"] = alphabet.coverage(counts, vocab_size - len(special))
    if keeps_white_space:
        settings |= _WHITE_SPACE_SETTINGS

    while True:
        try:
            return _train_once(kind, sentences, vocab_size, rule, settings)
        except RuntimeError as error:
            # The messages say how many entries this text allows, and how many it needs.
            needed = re.search(r"required_chars\D*\d+ vs (\d+)", str(error))
            if needed:
                raise UserError(
                    f"data.vocab_size={vocab_size + n_reserved}: the text has more different "
                    f"characters; raise it to at least {int(needed[1]) + n_reserved}"
                ) from error
            possible = re.search(r"<= (\d+)", str(error))
            if not possible or int(possible[1]) >= vocab_size:
                raise UserError(
                    f"data.tokenizer={kind}: SentencePiece cannot train {vocab_size} entries on "
                    f"this text ({error}); give it more text or lower data.vocab_size"
                ) from error
            vocab_size = int(possible[1])


def _special_settings(special: dict[str, str]) -> dict[str, Any]:
    """Return SentencePiece's settings for the special tokens: ids, names and control symbols."""
    settings: dict[str, Any] = {}
    roles = list(special)
    for role, name in _ROLE_NAMES.items():
        settings[f"{name}_id"] = roles.index(role) if role in special else -1
        if role in special:
            settings[f"{name}_piece"] = special[role]
    settings["control_symbols"] = [
        token for role, token in special.items() if role not in _ROLE_NAMES
    ]
    return settings


def _train_once(
    kind: str, sentences: list[str], vocab_size: int, rule: str, settings: dict[str, Any]
) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=kind,
        vocab_size=vocab_size,
        normalization_rule_name=rule,
        num_threads=_N_THREADS,
        minloglevel=2,
        **settings,
    )
    return model.getvalue()


def to_tokenizer(model: bytes) -> Tokenizer:
    """Convert a SentencePiece model to a tokenizer that gives the same ids.

    Args:
        model: The bytes of a .model file of type unigram or bpe.

    Raises:
        UserError: for a model of another type.
    """
    # The module makes its classes when it is imported.
    from sentencepiece.sentencepiece_model_pb2 import (
        ModelProto,  # pyright: ignore[reportAttributeAccessIssue]
    )

    proto = ModelProto.FromString(model)
    tokenizer = Tokenizer(_core(proto))
    tokenizer.normalizer = normalizers.Sequence(_normalizer_steps(proto.normalizer_spec))
    prefix = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix)
    if _BYTE in {piece.type for piece in proto.pieces}:
        # Bytes become characters again before spaces do.
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), tokenizer.decoder])

    user_defined = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in user_defined])
    return tokenizer


def _core(proto: Any) -> models.Model:
    """Convert the pieces and their scores."""
    # Nine digits hold a float32, and are read back from JSON to the same number.
    pieces = [(piece.piece, float(f"{piece.score:.9g}")) for piece in proto.pieces]
    types = [piece.type for piece in proto.pieces]
    unk_id = proto.trainer_spec.unk_id
    has_bytes = _BYTE in types

    if proto.trainer_spec.model_type == _UNIGRAM:
        # Control pieces must not win over others, nor lower the least score, from which the
        # library derives the score of [UNK].
        typed = list(zip(pieces, types, strict=True))
        least = min(score for (_, score), kind in typed if kind == _NORMAL)
        scored = [(piece, least if kind == _CONTROL else score) for (piece, score), kind in typed]
        return models.Unigram(scored, unk_id=unk_id, byte_fallback=has_bytes)

    if proto.trainer_spec.model_type == _BPE:
        vocab = {piece: number for number, (piece, _) in enumerate(pieces)}
        return models.BPE(
            vocab,
            _merges(pieces, types),
            unk_token=pieces[unk_id][0],
            fuse_unk=True,
            byte_fallback=has_bytes,
        )

    raise UserError("data.tokenizer: a SentencePiece model must be of type unigram or bpe")


def _normalizer_steps(spec: Any) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex("^ +| +$"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    return steps


def _merges(pieces: list[tuple[str, float]], types: list[int]) -> list[tuple[str, str]]:
    """List the merges by which BPE reaches each piece, best score first."""
    ids = {piece: number for number, (piece, _) in enumerate(pieces) if types[number] == _NORMAL}
    ranked = []
    for piece, number in ids.items():
        score = pieces[number][1]
        for middle in range(1, len(piece)):
            left, right = piece[:middle], piece[middle:]
            if left in ids and right in ids:
                ranked.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]
