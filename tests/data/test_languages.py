"""Real text in seven scripts: next to nothing of it is unknown, whatever the tokenizer."""

import gzip
import json

import pytest

from cramjax.config import languages
from cramjax.data import tokenizers
from cramjax.data.clean import CleanRules, clean
from cramjax.data.encode import Encoder

SCRIPTS = ("en", "de", "zh", "ru", "th", "ar", "hi")
RULES = CleanRules(normalize=True, min_chars=0, max_chars=None)


def paragraphs(root, language):
    """The 240 paragraphs of a language; skips where the corpus is not at hand."""
    path = root.parent / "shared" / "data" / "qa" / f"xquad.{language}.json.gz"
    if not path.exists():
        pytest.skip("no corpus here")
    texts = []
    for article in json.loads(gzip.decompress(path.read_bytes()))["data"]:
        for paragraph in article["paragraphs"]:
            texts += clean(paragraph["context"], RULES).pieces
    return texts


def shares(root, language, kind, code):
    texts = paragraphs(root, language)
    tokenizer, _ = tokenizers.train(
        kind, texts, vocab_size=8192, lowercase=False, ascii_only=False, language=code
    )
    return Encoder(tokenizer).encode(texts)[1]


@pytest.mark.parametrize("language", SCRIPTS)
def test_the_tokenizer_of_a_language_knows_its_text(root, language):
    tally = shares(root, language, languages.LANGUAGES[language].tokenizer, language)
    assert tally.unknown_token_share < 0.005 and tally.unknown_character_share < 0.005
    assert tally.deleted_character_share < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", tokenizers.KINDS)
@pytest.mark.parametrize("language", SCRIPTS)
def test_every_kind_knows_text_of_no_particular_language(root, language, kind):
    tally = shares(root, language, kind, None)
    assert tally.unknown_token_share < 0.005 and tally.deleted_character_share < 0.001


def test_every_language_decides_every_key():
    for code, language in languages.LANGUAGES.items():
        assert language.tokenizer in tokenizers.KINDS and language.practice
        assert languages.problem_of(code) is None
        # The paper's own chain alone loses accents.
        assert language.ascii_only == (code == "cramming")


@pytest.mark.parametrize(
    "code, hint", [("klingon", "as in de"), ("DE", "mean de?"), ("zh-Hans", "mean zh?"), ("", "")]
)
def test_another_code_is_refused(code, hint):
    problem = languages.problem_of(code)
    assert problem is not None and "ISO 639-1" in problem and hint in problem
