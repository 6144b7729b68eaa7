"""Trains SentencePiece models, and converts them to the `tokenizers` library.

SentencePiece is imported late: wordpiece tokenizers do without it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from cramjax.data import alphabet
from cramjax.data.charsmap import charsmap_steps
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
_NORMAL, _UNKNOWN, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 4, 5, 6
_UNIGRAM, _BPE, _CHAR = 1, 2, 4
# What a space is in pieces.
_SPACE = "▁"
# Characters that no text has (Unicode: "noncharacters, intended for internal use").
_STAND_INS = [chr(number) for number in range(0xFDD0, 0xFDF0)]


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

    Two things differ: the library computes scores in float64 where SentencePiece takes float32, so
    near ties may end otherwise; and the name of a control symbol in a text can be that symbol.

    Args:
        model: The bytes of a .model file of type unigram, bpe or char.

    Raises:
        UserError: for a model with an option that the library cannot follow, by its name.
    """
    # The module makes its classes when it is imported.
    from sentencepiece.sentencepiece_model_pb2 import (
        ModelProto,  # pyright: ignore[reportAttributeAccessIssue]
    )

    proto = ModelProto.FromString(model)
    _check_options(proto)
    user_defined = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    tokenizer = Tokenizer(_core(proto))
    tokenizer.normalizer = _normalizer(proto, user_defined)
    tokenizer.pre_tokenizer = _pre_tokenizer(proto, user_defined)
    tokenizer.decoder = _decoder(proto)
    return tokenizer


def _check_options(proto: Any) -> None:
    """Raise UserError for an option that changes ids or text and that the library lacks."""
    types = {piece.type for piece in proto.pieces}
    kind = proto.trainer_spec.model_type
    problem = None
    if kind not in (_UNIGRAM, _BPE, _CHAR):
        problem = "model_type=word is none of unigram, bpe and char"
    elif _UNKNOWN not in types:
        problem = "unk_id is no piece of type UNKNOWN"
    elif not proto.normalizer_spec.escape_whitespaces:
        problem = "escape_whitespaces=False keeps spaces as they are"
    elif proto.denormalizer_spec.precompiled_charsmap:
        problem = "denormalization_rule_tsv changes the text that it writes"
    elif _UNUSED in types:
        problem = "some pieces are of type UNUSED"
    if problem:
        raise UserError(
            f"{problem}, which cannot be read exactly; name a SentencePiece model without that"
        )


def _core(proto: Any) -> models.Model:
    """Convert the pieces and their scores."""
    # Nine digits hold a float32, and are read back from JSON to the same number.
    pieces = [(piece.piece, float(f"{piece.score:.9g}")) for piece in proto.pieces]
    types = [piece.type for piece in proto.pieces]
    unk_id = types.index(_UNKNOWN)
    has_bytes = _BYTE in types

    if proto.trainer_spec.model_type != _BPE:
        scored = _scores(pieces, types)
        return models.Unigram(scored, unk_id=unk_id, byte_fallback=has_bytes)

    settings: dict[str, Any] = {
        "unk_token": pieces[unk_id][0],
        "fuse_unk": True,
        "byte_fallback": has_bytes,
    }
    vocab = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = _merges(pieces, types)
    bpe = models.BPE(vocab, merges, **settings)
    long_symbols = [
        piece
        for (piece, _), kind in zip(pieces, types, strict=True)
        if kind == _USER_DEFINED and len(piece) > 1
    ]
    if not long_symbols:
        return bpe

    # No merge gives these symbols: words that are entries are taken whole, which is right if
    # merges reach each other entry too.
    for (piece, _), kind in zip(pieces, types, strict=True):
        if kind == _NORMAL and len(bpe.tokenize(piece)) != 1:
            raise UserError(
                f"user_defined_symbols has {long_symbols[0]!r}, and the merges of this bpe model "
                f"do not give its piece {piece!r}, which tokenizer.json cannot say; train a "
                "unigram model"
            )
    return models.BPE(vocab, merges, ignore_merges=True, **settings)


def _scores(pieces: list[tuple[str, float]], types: list[int]) -> list[tuple[str, float]]:
    """Return the pieces with scores for the library, which looks for all of them in a text.

    SentencePiece looks for normal and user-defined ones only.
    """
    normal = [pair for pair, kind in zip(pieces, types, strict=True) if kind == _NORMAL]
    least = min((score for _, score in normal), default=0.0)
    # The least score gives that of [UNK], which decides nothing where all characters of pieces are
    # pieces. Then the others get less than their characters have.
    names = {piece for piece, _ in normal}
    alphabet = set("".join(piece for piece, _ in normal))
    never = least
    if alphabet <= names:
        never = min(least, -1.0) * (1 + max(len(piece) for piece, _ in pieces))

    scored = []
    for (piece, score), kind in zip(pieces, types, strict=True):
        if kind == _USER_DEFINED:
            score = 0.1 * (len(piece.encode()) - 1)  # as in SentencePiece
        elif kind != _NORMAL:
            score = never
        scored.append((piece, score))
    return scored


def _normalizer(proto: Any, user_defined: list[str]) -> normalizers.Normalizer:
    """Return SentencePiece's normalisation, except for the space before or after the text."""
    spec = proto.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps = charsmap_steps(spec.name, spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    steps.append(normalizers.Replace(" ", _SPACE))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{_SPACE}+\z"), ""))

    # User-defined symbols stay as they are: a noncharacter takes the place of one in the meantime.
    plain = normalizers.Sequence(steps)
    changed = []
    for symbol in sorted(user_defined, key=len, reverse=True):
        composes = spec.precompiled_charsmap and symbol[-1].isalpha()
        if composes or plain.normalize_str(f"a{symbol}a") != f"a{symbol}a".replace(" ", _SPACE):
            changed.append(symbol)
    if len(changed) > len(_STAND_INS):
        raise UserError(
            f"user_defined_symbols has {len(changed)} symbols that the normalisation would change, "
            f"and tokenizer.json can keep {len(_STAND_INS)}; train the SentencePiece model with "
            "fewer"
        )
    pairs = list(zip(changed, _STAND_INS, strict=False))
    before = [normalizers.Replace(symbol, stand_in) for symbol, stand_in in pairs]
    after = [normalizers.Replace(stand_in, symbol) for symbol, stand_in in pairs]
    if _is_suffix(proto):
        after.append(normalizers.Replace(Regex(r"(?<=[\s\S])\z"), _SPACE))
    return normalizers.Sequence([*before, *steps, *after])


def _is_suffix(proto: Any) -> bool:
    """Return whether a space is added after the text, not before it."""
    return proto.trainer_spec.treat_whitespace_as_suffix and proto.normalizer_spec.add_dummy_prefix


def _pre_tokenizer(proto: Any, user_defined: list[str]) -> pre_tokenizers.PreTokenizer:
    """Return the steps that add the first space and split a text where no piece can span it."""
    spec = proto.normalizer_spec
    suffix = proto.trainer_spec.treat_whitespace_as_suffix
    steps: list[pre_tokenizers.PreTokenizer] = []
    if spec.add_dummy_prefix and not suffix:
        # The text has no " " any more, so that one is added whatever the text begins with. After
        # a special token within a text, spaces stay only if extra ones are not removed.
        scheme = "always" if spec.remove_extra_whitespaces else "first"
        first = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme=scheme, split=False)
        steps.append(first)
    steps.append(pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False))

    if user_defined and proto.trainer_spec.model_type == _BPE:
        longest_first = sorted(user_defined, key=len, reverse=True)
        pattern = Regex("|".join(_escaped(symbol) for symbol in longest_first))
        steps.append(pre_tokenizers.Split(pattern, "isolated"))
    # Words are cached by the library. Unknown characters on both sides of a space that is a piece
    # are two tokens, otherwise one.
    pieces = [piece.piece for piece in proto.pieces if piece.type in (_NORMAL, _USER_DEFINED)]
    inner = slice(None, -1) if suffix else slice(1, None)
    if _SPACE in pieces and not any(_SPACE in piece[inner] for piece in pieces):
        behavior = "merged_with_previous" if suffix else "merged_with_next"
        steps.append(pre_tokenizers.Split(_SPACE, behavior))
    return pre_tokenizers.Sequence(steps)


def _escaped(symbol: str) -> str:
    """Return a regular expression of Oniguruma for exactly `symbol`."""
    return "".join(rf"\x{{{ord(character):x}}}" for character in symbol)


def _decoder(proto: Any) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(_SPACE, " ")]
    if _BYTE in {piece.type for piece in proto.pieces}:
        # Bytes become characters again before tokens become one text.
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if proto.normalizer_spec.add_dummy_prefix:
        place = r"\A +" if proto.normalizer_spec.remove_extra_whitespaces else r"\A "
        if proto.trainer_spec.treat_whitespace_as_suffix:
            place = r" \z"
        steps.append(decoders.Replace(Regex(place), ""))
    return decoders.Sequence(steps)


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
