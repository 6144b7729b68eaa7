"""Normalises text inside a tokenizer: case, accents, dashes, and what a language wants."""

from __future__ import annotations

from tokenizers import Regex, normalizers

from cramjax.config.languages import language_of

# Characters that a reader takes for ASCII ones. The rest of punctuation and symbols becomes a
# space, so that no two words grow together.
_ASCII = {
    "-": "‐-―−⁃﹘﹣－",
    '"': "“-‟«»„〝-〟＂″",
    "'": "‘-‛‹›′＇ʼ",
}
PICTURES = {"\n": "\u240a", "\t": "\u2409"}
"""White space → the picture that stands for it in entries, because SentencePiece knows no lines."""

_NO_LETTER = r"[^\p{L}\p{M}\p{N}\x00-\x7F]+"
# Arabic's short vowels and the stroke that lengthens a word.
_VOWEL_MARKS = "[\u0640\u064b-\u0652\u0670]"
_SPACES = r"[\s\x{200B}\x{FEFF}]{2,}|[\n\t\x{200B}\x{FEFF}]"


def normalizer(
    *, lowercase: bool, ascii_only: bool, language: str | None = None
) -> normalizers.Normalizer:
    """Return the chain of normalisations of a newly trained tokenizer.

    Without `ascii_only` it is NFKC, and what the language wants. With it, it is Cramming's (arXiv
    2212.14034, section 4.1): quotes, lowercase, no accents, ASCII alone. But dashes, quotes and
    other signs become ASCII or a space instead of nothing: "1990–1995" is not "19901995".

    Args:
        lowercase: Lowercase all text.
        ascii_only: Strip accents, and delete letters that are not ASCII.
        language: See `config.languages`.
    """
    wishes = language_of(language)
    if wishes.keeps_white_space and not ascii_only:
        steps: list[normalizers.Normalizer] = [normalizers.Replace("\r\n", "\n")]
        for space, picture in PICTURES.items():
            steps.append(normalizers.Replace(space, picture))
        if lowercase:
            steps.append(normalizers.Lowercase())
        return normalizers.Sequence(steps)

    steps = [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
    ]
    if ascii_only:
        steps.append(normalizers.NFKD())
        for ascii_form, others in _ASCII.items():
            steps.append(normalizers.Replace(Regex(f"[{others}]"), ascii_form))
    else:
        steps.append(normalizers.NFKC())
    if wishes.drops_vowel_marks:
        steps.append(normalizers.Replace(Regex(_VOWEL_MARKS), ""))
    if lowercase:
        steps.append(normalizers.Lowercase())
    if ascii_only:
        steps.append(normalizers.StripAccents())
        steps.append(normalizers.Replace(Regex(_NO_LETTER), " "))
        steps.append(normalizers.Replace(Regex(r"[^\x00-\x7F]+"), ""))
    steps.append(normalizers.Replace(Regex(_SPACES), " "))
    return normalizers.Sequence(steps)
