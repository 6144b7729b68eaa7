"""Real text in seven scripts: next to nothing of it is unknown, whatever the tokenizer."""

import pytest

from cramjax.config import languages
from cramjax.data import tokenizers
from cramjax.data.clean import CleanRules, clean
from cramjax.data.encode import Encoder
from tests.data.xquad import paragraphs

SCRIPTS = ("en", "de", "zh", "ru", "th", "ar", "hi")
RULES = CleanRules(normalize=True, min_chars=0, max_chars=None)


def shares(root, language, kind, code):
    texts = []
    for text in paragraphs(root, language):
        texts += clean(text, RULES).pieces
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
