"""Tokenizers: trained on a sample of the corpus or read from a file, and saved for `transformers`.

All text is encoded by the `tokenizers` library, whatever the algorithm: SentencePiece models are
converted, so that there is one `tokenizer.json` and one answer. Nothing here reads a corpus.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from types import NoneType
from typing import Any

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors

from cramjax.config import languages
from cramjax.data import normalization
from cramjax.data.adoption import complete_decoder
from cramjax.data.sentencepiece_model import to_tokenizer, train_sentencepiece
from cramjax.data.wordpiece import train_wordpiece
from cramjax.errors import UserError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Role → token of a newly trained tokenizer; their ids are 0 to 4 in this order."""

T5_TOKENS = {"pad": "<pad>", "sep": "</s>", "unk": "<unk>"}
"""Role → token of a newly trained tokenizer of a T5; their ids are 0 to 2 in this order.

`sep` ends a sequence. The sentinels are the last entries, the first one last.
"""

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
"""The files that `save` writes; the last one for a SentencePiece model alone."""

KINDS = languages.TOKENIZERS
"""The kinds of tokenizer that can be trained."""

# Names under which tokenizer files have special tokens, besides BERT's.
_OTHER_NAMES = {
    "pad": ("<pad>",),
    "unk": ("<unk>",),
    "cls": ("<cls>", "<s>", "<bos>"),
    "sep": ("<sep>", "</s>", "<eos>", "<|endoftext|>"),
    "mask": ("<mask>",),
}
# Lowercase → SentencePiece's rule.
_RULES = {True: "nmt_nfkc_cf", False: "nmt_nfkc"}
# What `transformers` takes for "no limit".
_NO_MAX_LENGTH = int(1e30)


def train(
    kind: str,
    texts: Iterable[str],
    *,
    vocab_size: int,
    lowercase: bool,
    ascii_only: bool,
    language: str | None = None,
    extra_ids: int = 0,
    of_t5: bool = False,
) -> tuple[Tokenizer, bytes | None]:
    """Train a tokenizer; the same texts give the same one, byte for byte.

    A T5's has `T5_TOKENS` (arXiv 1910.10683, sections 2.2 and 3.1.4).

    Args:
        kind: One of `KINDS`.
        texts: The sample.
        vocab_size: The most entries; a small corpus gives fewer.
        lowercase: Lowercase all text.
        ascii_only: Strip accents and delete other characters.
        language: See `config.languages`.
        extra_ids: How many of the entries are a T5's sentinels.
        of_t5: It is a T5's, also without sentinels.

    Returns:
        The tokenizer, and for unigram and bpe the SentencePiece model, which has no sentinels.

    Raises:
        UserError: if SentencePiece cannot train on this text.
    """
    wishes = languages.language_of(language)
    normalizer = normalization.normalizer(
        lowercase=lowercase, ascii_only=ascii_only, language=language
    )
    special = T5_TOKENS if extra_ids or of_t5 else SPECIAL_TOKENS
    if kind == "wordpiece":
        tokenizer = train_wordpiece(list(texts), vocab_size - extra_ids, normalizer, special)
        model = None
    else:
        # SentencePiece has no rule for these: the chain is in tokenizer.json alone.
        has_own_chain = ascii_only or languages.with_own_chain(language) is not None
        rule = "identity" if has_own_chain else _RULES[lowercase]
        if has_own_chain:
            texts = map(normalizer.normalize_str, texts)
        model = train_sentencepiece(
            kind,
            list(texts),
            vocab_size - extra_ids,
            rule,
            special,
            keeps_white_space=wishes.keeps_white_space,
            n_reserved=extra_ids,
        )
        tokenizer = to_tokenizer(model)
        if has_own_chain:
            tokenizer.normalizer = normalizers.Sequence([normalizer, tokenizer.normalizer])

    _decode_pictures(tokenizer, wishes)
    return _finish(tokenizer, extra_ids, of_t5), model


def _decode_pictures(tokenizer: Tokenizer, wishes: languages.Language) -> None:
    """Let the pictures of white space become white space again in decoded text."""
    if not wishes.keeps_white_space:
        return
    pictures = normalization.PICTURES.items()
    spaces = [decoders.Replace(picture, space) for space, picture in pictures]
    tokenizer.decoder = decoders.Sequence([tokenizer.decoder, *spaces])


def load(
    path: str | pathlib.Path, extra_ids: int = 0, of_t5: bool | None = None
) -> tuple[Tokenizer, bytes | None]:
    """Load a tokenizer.json or a SentencePiece .model.

    Missing special tokens are added under BERT's names, and a decoder if there is none.

    Args:
        path: The file.
        extra_ids: Sentinels to add, unless the tokenizer has that many.
        of_t5: A tokenizer without sentinels is a T5's, and needs no [CLS] and [MASK]. None: if it
            looks like one (`is_of_t5`).

    Returns:
        The tokenizer, and the bytes of a .model file or None.

    Raises:
        UserError: if the file is missing or neither of these, or has another number of sentinels.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(
            f"data.tokenizer={path}: no such file; name a tokenizer.json, a .model, or one of "
            f"{', '.join(KINDS)}"
        )

    content = path.read_bytes()
    model = None
    try:
        if path.suffix == ".model":
            tokenizer = to_tokenizer(content)
            model = content
        else:
            tokenizer = Tokenizer.from_str(content.decode("utf-8"))
    except UserError as error:
        raise UserError(f"data.tokenizer={path}: {error}") from error
    except Exception as error:  # both libraries raise bare Exception for a malformed file
        raise UserError(
            f"data.tokenizer={path}: not a readable tokenizer.json or .model ({error})"
        ) from error
    complete_decoder(tokenizer)
    return _finish(tokenizer, extra_ids, of_t5), model


def is_of_t5(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer is a T5's: it has sentinels, or T5's special tokens alone."""
    if count_extra_ids(tokenizer):
        return True
    names = list(T5_TOKENS.values())
    others = [SPECIAL_TOKENS["cls"], *_OTHER_NAMES["cls"]]
    others += [SPECIAL_TOKENS["mask"], *_OTHER_NAMES["mask"]]
    has = [tokenizer.token_to_id(name) is not None for name in names]
    return all(has) and all(tokenizer.token_to_id(name) is None for name in others)


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the special tokens by role.

    The roles are pad, unk, cls, sep and mask; with sentinels at least pad, unk and sep. Tokenizers
    of this module have them all; a role that another tokenizer has no token for is left out.
    """
    ids = {}
    for role, token in special_tokens(tokenizer).items():
        token_id = tokenizer.token_to_id(token)
        if token_id is not None:
            ids[role] = token_id
    return ids


def special_tokens(tokenizer: Tokenizer, of_t5: bool | None = None) -> dict[str, str]:
    """Return the special tokens by role.

    Each is BERT's name if the tokenizer has it, else another usual name, else BERT's for a token
    that is missing. `of_t5` is as for `load`.
    """
    needed = T5_TOKENS if _is_taken_for_t5(tokenizer, of_t5) else SPECIAL_TOKENS
    tokens = {}
    for role, name in SPECIAL_TOKENS.items():
        candidates = (name, *_OTHER_NAMES[role])
        present = [token for token in candidates if tokenizer.token_to_id(token) is not None]
        if present:
            tokens[role] = present[0]
        elif role in needed:
            tokens[role] = name
    return tokens


def _is_taken_for_t5(tokenizer: Tokenizer, of_t5: bool | None) -> bool:
    """Return whether a tokenizer is a T5's: by its sentinels, as it is told, or by its looks."""
    if of_t5 is None or count_extra_ids(tokenizer):
        return is_of_t5(tokenizer)
    return of_t5


def count_extra_ids(tokenizer: Tokenizer) -> int:
    """Count the sentinels `<extra_id_0>`, `<extra_id_1>`, … at the top of the vocabulary."""
    top = max(tokenizer.get_vocab().values())
    count = 0
    while tokenizer.token_to_id(_sentinel(count)) == top - count:
        count += 1
    return count


def _sentinel(number: int) -> str:
    return f"<extra_id_{number}>"


def _finish(tokenizer: Tokenizer, extra_ids: int = 0, of_t5: bool | None = None) -> Tokenizer:
    """Mark the special tokens, add sentinels, and set a template if there is none.

    The template is [CLS] $A [SEP], or T5's $A </s>.
    """
    if extra_ids and not count_extra_ids(tokenizer):
        _add_sentinels(tokenizer, extra_ids)
    n_sentinels = count_extra_ids(tokenizer)
    if extra_ids and n_sentinels != extra_ids:
        raise UserError(
            f"data.extra_ids={extra_ids}: the tokenizer has {n_sentinels} sentinels already; set "
            "it to that"
        )

    # Before tokens are added, which change its looks.
    of_t5 = _is_taken_for_t5(tokenizer, of_t5)
    special = special_tokens(tokenizer, of_t5)
    _mark_special(tokenizer, list(special.values()))
    # ByteLevel only moves offsets, which nothing here reads.
    if isinstance(tokenizer.post_processor, (NoneType, processors.ByteLevel)):
        sep = special["sep"]
        before = [] if of_t5 else [special["cls"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*before, "$A", sep]),
            pair=" ".join([*before, "$A", sep, "$B:1", f"{sep}:1"]),
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (*before, sep)],
        )

    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _add_sentinels(tokenizer: Tokenizer, extra_ids: int) -> None:
    """Add a T5's missing special tokens, and above them the sentinels, the first one last."""
    if tokenizer.token_to_id(_sentinel(0)) is not None:
        raise UserError(
            "data.tokenizer: has <extra_id_0>, but not as its last entry, where data.extra_ids "
            "puts it"
        )

    special = special_tokens(tokenizer)
    needed = [special[role] for role in T5_TOKENS]
    _mark_special(tokenizer, [token for token in needed if tokenizer.token_to_id(token) is None])
    names = [_sentinel(number) for number in reversed(range(extra_ids))]
    _add_special(tokenizer, names)


def _mark_special(tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Make `tokens` special; those that are no entries are added."""
    added_tokens = tokenizer.get_added_tokens_decoder().values()
    marked = {token.content for token in added_tokens if token.special}
    _add_special(tokenizer, [token for token in tokens if token not in marked])


def _add_special(tokenizer: Tokenizer, tokens: list[str]) -> None:
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens]
    )


def save(
    tokenizer: Tokenizer,
    directory: pathlib.Path,
    model: bytes | None = None,
    *,
    types: bool = True,
    max_length: int = _NO_MAX_LENGTH,
) -> None:
    """Write the files from which `transformers` loads a tokenizer.

    They are tokenizer.json, tokenizer_config.json, special_tokens_map.json and, with a
    SentencePiece model, tokenizer.model.

    Args:
        tokenizer: The tokenizer.
        directory: Where they go; it is created if it does not exist.
        model: The bytes of the SentencePiece model.
        types: The model of `transformers` that it is for reads token types.
        max_length: Tokens after which it cuts if it is told to.
    """
    extra_ids = count_extra_ids(tokenizer)
    of_t5 = is_of_t5(tokenizer)
    special = special_tokens(tokenizer)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if of_t5:  # a T5 has one token that ends a sequence, and no types
        special["eos"] = special.pop("sep")
    if of_t5 or not types:
        inputs.remove("token_type_ids")

    names = {f"{role}_token": token for role, token in special.items()}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": inputs,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    if extra_ids:
        settings["extra_ids"] = extra_ids

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(canonical_json(tokenizer), encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", settings | names)
    _write_json(directory / "special_tokens_map.json", names)
    if model is not None:
        (directory / "tokenizer.model").write_bytes(model)


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def with_empty_second(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer so that it encodes a text as the pair of it and an empty text.

    Returns:
        The copy, or `tokenizer` itself if its template is not one of this library's.
    """
    content = json.loads(tokenizer.to_str())
    template = content["post_processor"]
    if not template or template["type"] != "TemplateProcessing":
        return tokenizer
    template["single"] = [
        piece for piece in template["pair"] if piece.get("Sequence", {}).get("id") != "B"
    ]
    return Tokenizer.from_str(json.dumps(content))


def canonical_json(tokenizer: Tokenizer) -> str:
    """Return the text of tokenizer.json, the same for equal tokenizers."""
    content = json.loads(tokenizer.to_str())
    template = content["post_processor"]
    special = template.get("special_tokens") if template else None
    if isinstance(special, dict):  # a hash map in the library, in random order
        template["special_tokens"] = dict(sorted(special.items()))
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def library_versions(kind: str) -> str:
    """Return the versions of the libraries that make a tokenizer of this kind or file."""
    versions = f"tokenizers {tokenizers.__version__}"
    if kind not in ("unigram", "bpe") and not kind.endswith(".model"):
        return versions
    import sentencepiece

    return f"{versions}, sentencepiece {sentencepiece.__version__}"
