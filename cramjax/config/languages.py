"""Chooses how text is prepared, by the language in `data.language`.

Keys of `data` at "auto" get the values that the field's models of that language have. A key that a
recipe or the command line sets stays. The choices are conventions, each with a model that set them.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from cramjax.config.fields import AUTO
from cramjax.config.views import DataConfig

KEYS = ("lowercase", "ascii_only", "normalize", "tokenizer", "compressibility")
"""The keys of `data` that may be "auto"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """The decisions of a language.

    Attributes:
        practice: The models whose choices these are, for the line that a preparation prints.
        lowercase: Lowercase all text.
        ascii_only: Strip accents, and delete what is not ASCII.
        normalize: Normalise Unicode and white space.
        tokenizer: Kind of tokenizer.
        compressibility: Keep a document if it has fewer tokens than this share of its characters.
        keeps_joiners: Zero-width joiners and non-joiners are part of the spelling.
        drops_vowel_marks: Arabic's optional vowel marks and its lengthening stroke are left out.
        keeps_white_space: Indentation and line breaks are part of the text, and digits stand apart.
    """

    practice: str
    lowercase: bool = False
    ascii_only: bool = False
    normalize: bool = True
    tokenizer: str = "wordpiece"
    compressibility: float | None = None
    keeps_joiners: bool = False
    drops_vowel_marks: bool = False
    keeps_white_space: bool = False


TOKENIZERS = ("wordpiece", "unigram", "bpe")
"""Kinds of tokenizer that can be trained; any other value names a file."""

_SMALL_VOCABULARY = 8192

_CASED = Language(practice="cased with accents, as multilingual BERT and GBERT (arXiv 2010.10906)")
_JOINERS = Language(
    practice="vowel signs and joiners kept, as MuRIL (arXiv 2103.10730)", keeps_joiners=True
)
_NO_SPACES = Language(
    practice="SentencePiece finds words without spaces, as WangchanBERTa (arXiv 2101.09635) and "
    "mT5 (arXiv 2010.11934)",
    tokenizer="unigram",
    keeps_joiners=True,
)

_SPECIAL = {
    "cramming": Language(
        practice="Cramming's chain for English (arXiv 2212.14034, section 4.1)",
        lowercase=True,
        ascii_only=True,
        compressibility=0.25,
    ),
    "en": Language(
        practice="uncased, as BERT (arXiv 1810.04805)",
        lowercase=True,
        compressibility=0.25,
    ),
    "ar": Language(
        practice="vowel marks and tatweel left out, as AraBERT (arXiv 2003.00104)",
        keeps_joiners=True,
        drops_vowel_marks=True,
    ),
    "zh": Language(practice="each Han character apart, as BERT and RoBERTa-wwm (arXiv 1906.08101)"),
    "code": Language(
        practice="white space kept and digits apart, as StarCoder (arXiv 2305.06161); BPE of its "
        "own, as CodeT5 (arXiv 2109.00859)",
        normalize=False,
        tokenizer="bpe",
        keeps_white_space=True,
    ),
    "dna": Language(
        practice="BPE over bases in one case, as DNABERT-2 (arXiv 2306.15006)",
        lowercase=True,
        tokenizer="bpe",
    ),
}
_WITH_JOINERS = "fa ur ps sd ug ku hi mr ne sa bn as gu pa or ta te kn ml si ks dv"
_WITHOUT_SPACES = "ja th km lo my bo dz"
_ISO_639_1 = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy "
    "da de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu "
    "hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb "
    "lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om "
    "or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv "
    "sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)

LANGUAGES: dict[str, Language] = (
    dict.fromkeys(_ISO_639_1.split(), _CASED)
    | dict.fromkeys(_WITH_JOINERS.split(), _JOINERS)
    | dict.fromkeys(_WITHOUT_SPACES.split(), _NO_SPACES)
    | _SPECIAL
)
"""Code → language: ISO 639-1, "code", "dna", and "cramming" for the paper's ASCII chain."""


def language_of(code: str | None) -> Language:
    """Returns the language of a code; text in no particular language keeps everything."""
    return LANGUAGES[code] if code else _CASED


def with_own_chain(code: str | None) -> str | None:
    """Returns the code of a language that changes text beyond the keys of `data`, else None."""
    language = language_of(code)
    has_wishes = language.keeps_joiners or language.drops_vowel_marks or language.keeps_white_space
    return code if has_wishes else None


def problem_of(code: str | None) -> str | None:
    """Returns what is wrong with a value of `data.language`, or None."""
    if code is None or code in LANGUAGES:
        return None
    near = difflib.get_close_matches(code.lower().partition("-")[0], LANGUAGES, 1)
    hint = f"did you mean {near[0]}?" if near else "as in de, zh, ar, code, dna or cramming"
    return f"must be an ISO 639-1 code, code, dna or cramming; {hint}"


def choices(data: Any) -> dict[str, Any]:
    """Returns the values of the keys that are "auto" in the section `data`."""
    language = language_of(data.language)
    chosen = {}
    for key in KEYS:
        if data[key] == AUTO:
            chosen[key] = getattr(language, key)

    # The limit holds for 32,768 entries; 1,024 take twice the tokens.
    if chosen.get("compressibility") and data.vocab_size < _SMALL_VOCABULARY:
        chosen["compressibility"] *= 2
    return chosen


def describe(data: DataConfig) -> str:
    """Returns a line that says how the text of a resolved configuration is prepared."""
    if data.tokenizer not in TOKENIZERS:
        return f"data.tokenizer={data.tokenizer}: text is normalised as that tokenizer does it"
    case = "lower case" if data.lowercase else "case kept"
    characters = "all characters"
    if data.ascii_only:
        characters = "ASCII alone (data.ascii_only)"
    words = f"{data.tokenizer} tokenizer, {case}, {characters}"
    if data.compressibility is not None:
        words += f", documents of under {data.compressibility:g} tokens a character"
    practice = language_of(data.language).practice
    return f"data.language={data.language}: {words} ({practice})"
