"""Tokenizers: trained on a sample of the corpus or taken from a file, saved so that `transformers` loads them.

All text is encoded by the `tokenizers` library, whatever the algorithm: a SentencePiece model is converted, so that
there is one `tokenizer.json` and one answer. Nothing here reads a corpus.
"""

from __future__ import annotations

import collections
import io
import itertools
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from cramjax.data.clean import cut
from cramjax.errors import UserError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""Role → token of a newly trained tokenizer; their ids are 0 to 4 in this order."""

T5_TOKENS = {"pad": "<pad>", "sep": "</s>", "unk": "<unk>"}
"""The same of one with sentinels, where `sep` ends a sequence; ids 0 to 2. The sentinels are the last entries, the first one last."""

KINDS = ("wordpiece", "unigram", "bpe")

_OTHER_NAMES = {
    "pad": ("<pad>",),
    "unk": ("<unk>",),
    "cls": ("<cls>", "<s>", "<bos>"),
    "sep": ("<sep>", "</s>", "<eos>", "<|endoftext|>"),
    "mask": ("<mask>",),
}
_ALPHABET_LIMIT = 1000
_SENTENCE_CHARS = 1000  # SentencePiece skips lines over 4,192 bytes
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # piece types of SentencePiece's protocol


def train(
    kind: str,
    texts: Iterable[str],
    *,
    vocab_size: int,
    lowercase: bool,
    ascii_only: bool,
    extra_ids: int = 0,
) -> tuple[Tokenizer, bytes | None]:
    """Train a tokenizer of at most `vocab_size` entries; returns it and, for unigram and bpe, the SentencePiece model.

    `wordpiece` is Cramming's (arXiv 2212.14034, section 4.1). With `extra_ids` it is a T5's (arXiv 1910.10683, sections
    2.2 and 3.1.4): special tokens `T5_TOKENS`, and that many of its entries are sentinels, which the SentencePiece model
    does not have. The same texts give the same tokenizer, byte for byte. A small corpus gives a smaller vocabulary.
    """
    normalizer = cramming_normalizer(lowercase=lowercase, ascii_only=ascii_only)
    vocab_size -= extra_ids
    special = T5_TOKENS if extra_ids else SPECIAL_TOKENS
    if kind == "wordpiece":
        return _finish(_train_wordpiece(texts, vocab_size, normalizer, special), extra_ids), None
    rule = "nmt_nfkc_cf" if lowercase else "nmt_nfkc"
    if ascii_only:
        # SentencePiece has no rule that deletes characters at large: the chain stands in tokenizer.json alone.
        texts, rule = map(normalizer.normalize_str, texts), "identity"
    model = _train_sentencepiece(kind, texts, vocab_size, rule, special)
    tokenizer = from_sentencepiece(model, extra_ids)
    if ascii_only:
        tokenizer.normalizer = normalizers.Sequence([normalizer, tokenizer.normalizer])
    return tokenizer, model


def cramming_normalizer(*, lowercase: bool, ascii_only: bool) -> normalizers.Normalizer:
    """Cramming's chain: quotes, NFD (NFKC where accents stay), lowercase, accents, spaces, non-ASCII deleted."""
    steps = [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
        normalizers.NFD() if ascii_only else normalizers.NFKC(),
    ]
    steps += [normalizers.Lowercase()] if lowercase else []
    steps += [normalizers.StripAccents()] if ascii_only else []
    steps += [normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Replace(Regex(r"[^\x00-\x7F]+"), "")] if ascii_only else []
    return normalizers.Sequence(steps)


def _train_wordpiece(
    texts: Iterable[str],
    vocab_size: int,
    normalizer: normalizers.Normalizer,
    special: dict[str, str],
) -> Tokenizer:
    texts = list(texts)
    alphabet = _alphabet(texts, normalizer)[: max(1, (vocab_size - len(special)) // 4)]
    tokenizer = _wordpiece(models.WordPiece(unk_token=special["unk"]), normalizer)
    # The trainer numbers characters in the order of a randomly seeded hash map, and breaks ties by number. Characters
    # given as special tokens have the numbers we choose.
    first = [*special.values(), *alphabet, *("##" + character for character in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=first,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Built anew, so that those characters are ordinary entries again.
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return _wordpiece(models.WordPiece(vocab, unk_token=special["unk"]), normalizer)


def _wordpiece(model: models.WordPiece, normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _alphabet(texts: list[str], normalizer: normalizers.Normalizer) -> list[str]:
    """The commonest characters of the normalised texts, white space excepted, the commonest first."""
    counts = collections.Counter()
    for text in texts:
        counts.update(text)
    # One normalisation for each distinct character instead of one for each text.
    normal = collections.Counter()
    for character, count in counts.items():
        for out in normalizer.normalize_str(character):
            normal[out] += count
    ranked = sorted(normal.items(), key=lambda item: (-item[1], item[0]))
    return [character for character, _ in ranked if not character.isspace()][:_ALPHABET_LIMIT]


def _train_sentencepiece(
    kind: str, texts: Iterable[str], vocab_size: int, rule: str, special: dict[str, str]
) -> bytes:
    import sentencepiece

    sentences = [
        piece
        for text in texts
        for line in text.split("\n")
        for piece in cut(line.strip(), _SENTENCE_CHARS)
    ]
    # SentencePiece's own names for our roles; the ids are their places in `special`.
    roles = {"pad": "pad", "unk": "unk", "cls": "bos", "sep": "eos"}
    ids = {
        f"{name}_id": list(special).index(role) if role in special else -1
        for role, name in roles.items()
    }
    names = {f"{name}_piece": special[role] for role, name in roles.items() if role in special}
    control = [token for role, token in special.items() if role not in roles]
    while True:
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type=kind,
                vocab_size=vocab_size,
                normalization_rule_name=rule,
                control_symbols=control,
                num_threads=8,  # sums are in the order of the threads: a constant keeps training reproducible
                minloglevel=2,
                **ids,
                **names,
            )
            return model.getvalue()
        except RuntimeError as error:
            possible = re.search(r"<= (\d+)", str(error))
            if not possible or int(possible[1]) >= vocab_size:
                raise UserError(
                    f"data.tokenizer={kind}: SentencePiece cannot train {vocab_size} entries on this text ({error}); "
                    "give it more text or lower data.vocab_size"
                ) from error
            vocab_size = int(possible[1])


def from_sentencepiece(model: bytes, extra_ids: int = 0) -> Tokenizer:
    """The `tokenizers` twin of a SentencePiece model (unigram or bpe) given as the bytes of its .model file, with sentinels.

    Raises:
        UserError: for a model of another type.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    # Nine digits hold a float32, and are read back from JSON to the same number.
    pieces = [(piece.piece, float(f"{piece.score:.9g}")) for piece in proto.pieces]
    types = [piece.type for piece in proto.pieces]
    unk_id, has_bytes = proto.trainer_spec.unk_id, _BYTE in types
    if proto.trainer_spec.model_type == 1:
        # Control pieces must not win over others, nor lower the least score, from which that of [UNK] derives.
        least = min(
            score for (_, score), kind in zip(pieces, types, strict=True) if kind == _NORMAL
        )
        scored = [
            (piece, least if kind == _CONTROL else score)
            for (piece, score), kind in zip(pieces, types, strict=True)
        ]
        core = models.Unigram(scored, unk_id=unk_id, byte_fallback=has_bytes)
    elif proto.trainer_spec.model_type == 2:
        vocab = {piece: number for number, (piece, _) in enumerate(pieces)}
        merges = _merges(pieces, types)
        core = models.BPE(
            vocab, merges, unk_token=pieces[unk_id][0], fuse_unk=True, byte_fallback=has_bytes
        )
    else:
        raise UserError("data.tokenizer: a SentencePiece model must be of type unigram or bpe")
    tokenizer = Tokenizer(core)
    tokenizer.normalizer = normalizers.Sequence(_sentencepiece_normalizer(proto.normalizer_spec))
    prefix = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix)
    user = [piece for (piece, _), kind in zip(pieces, types, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in user])
    return _finish(tokenizer, extra_ids)


def _sentencepiece_normalizer(spec: Any) -> list[normalizers.Normalizer]:
    steps = (
        [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    )
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex("^ +| +$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    return steps


def _merges(pieces: list[tuple[str, float]], types: list[int]) -> list[tuple[str, str]]:
    """The merges by which BPE reaches each piece, best score first."""
    known = {piece: number for number, (piece, _) in enumerate(pieces) if types[number] == _NORMAL}
    merges = []
    for piece, number in known.items():
        pairs = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += [
            (-pieces[number][1], known[a], known[b], a, b)
            for a, b in pairs
            if a in known and b in known
        ]
    return [(a, b) for *_, a, b in sorted(merges)]


def load(path: str | pathlib.Path, extra_ids: int = 0) -> tuple[Tokenizer, bytes | None]:
    """A tokenizer from a tokenizer.json or a SentencePiece .model (whose bytes come second).

    Special tokens it lacks are added, under BERT's names, and `extra_ids` sentinels.

    Raises:
        UserError: where the file is absent or is neither, or has another number of sentinels.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(
            f"data.tokenizer={path}: no such file; name a tokenizer.json, a .model, or one of {', '.join(KINDS)}"
        )
    content = path.read_bytes()
    try:
        if path.suffix == ".model":
            return from_sentencepiece(content, extra_ids), content
        return _finish(Tokenizer.from_str(content.decode("utf-8")), extra_ids), None
    except UserError:
        raise
    except Exception as error:  # both libraries raise bare Exception for a malformed file
        raise UserError(
            f"data.tokenizer={path}: not a readable tokenizer.json or .model ({error})"
        ) from error


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens by role: pad, unk, cls, sep, mask; where there are sentinels, at least pad, unk and sep."""
    return {role: tokenizer.token_to_id(token) for role, token in special_tokens(tokenizer).items()}


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens by role: BERT's name where the tokenizer has it, else another usual one, else BERT's."""
    found, roles = {}, T5_TOKENS if count_extra_ids(tokenizer) else SPECIAL_TOKENS
    for role, name in SPECIAL_TOKENS.items():
        candidates = (name, *_OTHER_NAMES[role])
        present = [token for token in candidates if tokenizer.token_to_id(token) is not None]
        if present or role in roles:
            found[role] = present[0] if present else name
    return found


def count_extra_ids(tokenizer: Tokenizer) -> int:
    """Sentinels `<extra_id_0>`, `<extra_id_1>`, … at the top of the vocabulary, the first one last."""
    top = max(tokenizer.get_vocab().values())
    numbers = itertools.takewhile(
        lambda n: tokenizer.token_to_id(_sentinel(n)) == top - n, itertools.count()
    )
    return sum(1 for _ in numbers)


def _sentinel(number: int) -> str:
    return f"<extra_id_{number}>"


def _finish(tokenizer: Tokenizer, extra_ids: int = 0) -> Tokenizer:
    """Special tokens known as such, sentinels, and where there is no template [CLS] $A [SEP], or T5's $A </s>."""
    if extra_ids and not count_extra_ids(tokenizer):
        if tokenizer.token_to_id(_sentinel(0)) is not None:
            raise UserError(
                "data.tokenizer: has <extra_id_0>, but not as its last entry, where data.extra_ids puts it"
            )
        _add_special(tokenizer, [role for role in T5_TOKENS if role not in _present(tokenizer)])
        names = [_sentinel(number) for number in reversed(range(extra_ids))]
        tokenizer.add_special_tokens(
            [AddedToken(name, special=True, normalized=False) for name in names]
        )
    found = count_extra_ids(tokenizer)
    if extra_ids and found != extra_ids:
        raise UserError(
            f"data.extra_ids={extra_ids}: the tokenizer has {found} sentinels already; set it to that"
        )
    names = special_tokens(tokenizer)
    _add_special(tokenizer, list(names))
    if tokenizer.post_processor is None:
        before, sep = [] if found else [names["cls"]], names["sep"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*before, "$A", sep]),
            pair=" ".join([*before, "$A", sep, "$B:1", f"{sep}:1"]),
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in (*before, sep)],
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _present(tokenizer: Tokenizer) -> set[str]:
    return {
        role
        for role, token in special_tokens(tokenizer).items()
        if tokenizer.token_to_id(token) is not None
    }


def _add_special(tokenizer: Tokenizer, roles: list[str]) -> None:
    """Make the tokens of `roles` special ones, adding those that are no entries."""
    added = {
        token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special
    }
    missing = [
        token for token in (special_tokens(tokenizer)[role] for role in roles) if token not in added
    ]
    if missing:
        tokenizer.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in missing]
        )


def save(
    tokenizer: Tokenizer,
    directory: pathlib.Path,
    model: bytes | None = None,
    *,
    types: bool = True,
    max_length: int = int(1e30),
) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and, for SentencePiece, tokenizer.model.

    `types`: whether the model of `transformers` that it is for reads token types; `max_length`: tokens where it is told to cut.
    """
    directory.mkdir(parents=True, exist_ok=True)
    extra_ids = count_extra_ids(tokenizer)
    special = special_tokens(tokenizer)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if extra_ids:  # a T5 knows one token that ends a sequence, and no types
        special["eos"] = special.pop("sep")
    if extra_ids or not types:
        inputs.remove("token_type_ids")
    names = {f"{role}_token": token for role, token in special.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": inputs,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    (directory / "tokenizer.json").write_text(canonical_json(tokenizer), encoding="utf-8")
    if extra_ids:
        settings["extra_ids"] = extra_ids
    for name, content in (
        ("tokenizer_config.json", settings | names),
        ("special_tokens_map.json", names),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if model is not None:
        (directory / "tokenizer.model").write_bytes(model)


def with_empty_second(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that encodes a text as the pair of it and an empty one; `tokenizer` itself where its template is none of this library's."""
    content = json.loads(tokenizer.to_str())
    template = content["post_processor"]
    if not template or template["type"] != "TemplateProcessing":
        return tokenizer
    template["single"] = [
        part for part in template["pair"] if part.get("Sequence", {}).get("id") != "B"
    ]
    return Tokenizer.from_str(json.dumps(content))


def canonical_json(tokenizer: Tokenizer) -> str:
    """tokenizer.json as text, the same for equal tokenizers."""
    content = json.loads(tokenizer.to_str())
    special = content["post_processor"].get("special_tokens") if content["post_processor"] else None
    if isinstance(special, dict):  # a hash map in the library, in random order
        content["post_processor"]["special_tokens"] = dict(sorted(special.items()))
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def library_versions(kind: str) -> str:
    """The versions of what trains a tokenizer of this kind."""
    versions = f"tokenizers {tokenizers.__version__}"
    if kind not in ("unigram", "bpe") and not kind.endswith(".model"):
        return versions
    import sentencepiece

    return f"{versions}, sentencepiece {sentencepiece.__version__}"
