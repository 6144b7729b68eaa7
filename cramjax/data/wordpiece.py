"""Trains WordPiece tokenizers, reproducibly."""

from __future__ import annotations

import re

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from cramjax.data import alphabet

# The search for pieces takes the square of a word's length, so that longer ones are cut. Joiners
# are part of a word.
_WORD_CHARS = 100
_WORDS = rf"[\w\x{{200C}}\x{{200D}}]{{1,{_WORD_CHARS}}}|[^\w\s]{{1,{_WORD_CHARS}}}"
# The ideographs that BERT sets apart.
_HAN = re.compile(
    "[㐀-䶿一-鿿豈-﫿\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)


def train_wordpiece(
    texts: list[str],
    vocab_size: int,
    normalizer: normalizers.Normalizer,
    special: dict[str, str],
) -> Tokenizer:
    """Train a tokenizer of at most `vocab_size` entries.

    Each Han character is a word, as BERT has it.

    The library's trainer numbers characters in the order of a randomly seeded hash map, and breaks
    ties by number. Characters that are given as special tokens have the numbers we choose, so the
    same texts give the same tokenizer.

    Args:
        texts: The sample.
        vocab_size: The most entries, special tokens included.
        normalizer: Applied to every text.
        special: Role → special token; their ids are 0, 1, … in this order.
    """
    apart = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    normalizer = normalizers.Sequence([normalizer, apart])

    # A character takes two entries, alone and after "##"; one that always stands apart takes one.
    counts = alphabet.count(texts, normalizer)
    costs = [1 if _HAN.match(character) else 2 for character, _ in counts]
    characters = alphabet.choose(counts, costs, vocab_size - len(special))
    continuing = ["##" + character for character in characters if not _HAN.match(character)]

    tokenizer = _wordpiece(models.WordPiece(unk_token=special["unk"]), normalizer)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special.values(), *characters, *continuing],
        limit_alphabet=len(characters),
        initial_alphabet=characters,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)

    # Built anew, so that those characters are ordinary entries again.
    vocab = dict(sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]))
    return _wordpiece(models.WordPiece(vocab, unk_token=special["unk"]), normalizer)


def _wordpiece(model: models.WordPiece, normalizer: normalizers.Normalizer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer
