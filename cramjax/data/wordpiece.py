"""Trains WordPiece tokenizers, reproducibly."""

from __future__ import annotations

import collections

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

_ALPHABET_LIMIT = 1000


def train_wordpiece(
    texts: list[str],
    vocab_size: int,
    normalizer: normalizers.Normalizer,
    special: dict[str, str],
) -> Tokenizer:
    """Train a tokenizer of at most `vocab_size` entries.

    The library's trainer numbers characters in the order of a randomly seeded hash map, and breaks
    ties by number. Characters that are given as special tokens have the numbers we choose, so the
    same texts give the same tokenizer.

    Args:
        texts: The sample.
        vocab_size: The most entries, special tokens included.
        normalizer: Applied to every text.
        special: Role → special token; their ids are 0, 1, … in this order.
    """
    # A quarter of the entries, because each character takes two: alone, and after "##".
    n_characters = max(1, (vocab_size - len(special)) // 4)
    alphabet = _alphabet(texts, normalizer)[:n_characters]
    continuing = ["##" + character for character in alphabet]

    tokenizer = _wordpiece(models.WordPiece(unk_token=special["unk"]), normalizer)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special.values(), *alphabet, *continuing],
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
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
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _alphabet(texts: list[str], normalizer: normalizers.Normalizer) -> list[str]:
    """List the commonest characters of the normalised texts, commonest first, without spaces."""
    raw_counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        raw_counts.update(text)

    # One normalisation for each distinct character instead of one for each text.
    counts: collections.Counter[str] = collections.Counter()
    for character, count in raw_counts.items():
        for normalized in normalizer.normalize_str(character):
            counts[normalized] += count

    # By character among equals, so that the order is always the same.
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [character for character, _ in ranked if not character.isspace()][:_ALPHABET_LIMIT]
