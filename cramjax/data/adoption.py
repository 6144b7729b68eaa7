"""Makes tokenizers from outside ready: what they lose in silence, and what they lack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cramjax.errors import UserError

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACE = "▁"


def check_unknown(tokenizer: Tokenizer, where: str) -> None:
    """Check that a tokenizer has an id for characters that it does not know.

    Args:
        tokenizer: The tokenizer.
        where: Its key and file, the beginning of the error's sentence.

    Raises:
        UserError: if it would fail at the first of them, or leave it out.
    """
    problem = _unknown_problem(tokenizer)
    if problem:
        raise UserError(f"{where}: {problem}; add it, or name another tokenizer")


def _unknown_problem(tokenizer: Tokenizer) -> str | None:
    model = tokenizer.model
    if isinstance(model, models.BPE) and _knows_all_bytes(tokenizer):
        return None
    unknown = getattr(model, "unk_token", None)
    if unknown is not None and model.token_to_id(unknown) is None:
        return f"its unknown token {unknown!r} is no entry of its vocabulary"

    try:
        # No alphabet has this character. The normaliser could delete it, so the model alone is
        # asked.
        tokens = model.tokenize("\U0010fffd")
    except Exception as error:  # the library raises nothing else
        return f"it has no unknown token: a character that it does not know is an error ({error})"
    if not tokens:
        return "it has no unknown token, and characters that it does not know would vanish"
    return None


def _knows_all_bytes(tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer falls back to bytes, and each of them is an entry."""
    model = tokenizer.model
    if "ByteLevel" in _steps_before(tokenizer):
        entries = pre_tokenizers.ByteLevel.alphabet()
    elif model.byte_fallback:
        entries = _BYTES
    else:
        return False
    return all(model.token_to_id(entry) is not None for entry in entries)


def complete_decoder(tokenizer: Tokenizer) -> None:
    """Give a tokenizer the decoder that turns its ids into text, as far as it lacks one."""
    model = tokenizer.model
    decoder = tokenizer.decoder
    if decoder is None:
        decoder = _missing_decoder(tokenizer)
    elif isinstance(model, models.WordPiece) and isinstance(decoder, decoders.WordPiece):
        if decoder.prefix != model.continuing_subword_prefix:
            decoder = decoders.WordPiece(prefix=model.continuing_subword_prefix)

    # Until 0.2 our own conversion of a SentencePiece model with bytes left their decoder out.
    types = set(_types(decoder))
    has_bytes = model.token_to_id(_BYTES[0xC3]) is not None
    if has_bytes and not types & {"ByteFallback", "ByteLevel"}:
        decoder = decoders.Sequence([decoders.ByteFallback(), decoder or decoders.Fuse()])
    if decoder is not None:
        tokenizer.decoder = decoder


def _missing_decoder(tokenizer: Tokenizer) -> decoders.Decoder | None:
    """Return the decoder that undoes what is done before and by the model; None for words."""
    model = tokenizer.model
    before = _steps_before(tokenizer)
    prefix = getattr(model, "continuing_subword_prefix", None)
    suffix = getattr(model, "end_of_word_suffix", None)

    if "ByteLevel" in before:
        return decoders.ByteLevel()
    if "Metaspace" in before:
        step = before["Metaspace"]
        return decoders.Metaspace(step["replacement"], prepend_scheme=step["prepend_scheme"])
    if model.token_to_id(_SPACE) is not None:  # a normaliser puts it in the place of spaces
        return decoders.Metaspace(_SPACE)
    if prefix:
        return decoders.WordPiece(prefix=prefix)
    if suffix:
        return decoders.BPEDecoder(suffix=suffix)
    return None


def _steps_before(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the steps before the model: type → its settings."""
    return _types(tokenizer.normalizer) | _types(tokenizer.pre_tokenizer)


def _types(part: Any) -> dict[str, Any]:
    """Return the steps of a part of a tokenizer, or of None: type → its settings."""
    if part is None:
        return {}
    return {step["type"]: step for step in _flat(json.loads(part.__getstate__()))}


def _flat(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a step and the steps within it."""
    yield step
    for key in ("normalizers", "pretokenizers", "decoders"):
        for inner in step.get(key, ()):
            yield from _flat(inner)
