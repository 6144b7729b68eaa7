"""Scores of written texts against references, by sacrebleu (arXiv 1804.08771): BLEU and chrF."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

# Scripts that put no space between words, by the first words of the names of their characters;
# sacrebleu has a tokenizer for the first.
_CHINESE = ("CJK UNIFIED",)
_SPACELESS = ("HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
# The share of a reference's letters from which on its script decides.
_SHARE = 0.3


def corpus_scores(written: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Returns the scores of `written` texts, one for each of `references`.

    Returns:
        "bleu" and "chrf" in percent, and "bleu_signature", which says how the first was computed.
        BLEU compares words: those of sacrebleu's default, or characters where the script of the
        references has no spaces.
    """
    # A second that only those pay who score.
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu = BLEU(tokenize=_tokenizer(references))
    return {
        "bleu": bleu.corpus_score(list(written), [list(references)]).score,
        "chrf": CHRF().corpus_score(list(written), [list(references)]).score,
        "bleu_signature": str(bleu.get_signature()),
    }


def _tokenizer(references: Sequence[str]) -> str:
    """Returns the name of sacrebleu's tokenizer for the script of `references`."""
    letters = [sign for text in references[:1000] for sign in text if sign.isalpha()]
    names = [unicodedata.name(letter, "") for letter in letters]
    n_chinese = sum(name.startswith(_CHINESE) for name in names)
    n_spaceless = sum(name.startswith(_SPACELESS) for name in names)
    # Japanese has both.
    if n_spaceless > _SHARE * len(names):
        return "char"
    return "zh" if n_chinese > _SHARE * len(names) else "13a"
