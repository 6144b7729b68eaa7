"""Normalisation, bounds and cutting, on hostile text too."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cramjax.data.clean import CleanRules, clean, cut, normalize

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
RULES = CleanRules(normalize=True, min_chars=0, max_chars=None)


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("\ufeffone\r\ntwo\tthree", "one two three"),
        ("one\n\n  \n two \u00a0 three\n", "one\ntwo three"),
        ("nul\x00byte and \ud800 surrogate", "nulbyte and surrogate"),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zero width"),
        ("\u200fמשהו\u202b", "משהו"),
        ("cafe\u0301", "caf\u00e9"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # spelling needs the joiner
        (" \x00 \n\n ", ""),
    ],
)
def test_normalize(raw, expected):
    assert normalize(raw) == expected


@settings(deadline=None)
@given(ANY_TEXT)
@example("one\n\ntwo")
def test_normalized_text_is_clean_and_its_paragraphs_stay_as_they_are(text):
    once = normalize(text)
    assert once.encode("utf-8").decode("utf-8") == once
    # Not the whole: a newline parts paragraphs of what comes out, an empty line those of what goes
    # in.
    paragraphs = once.split("\n")
    assert [normalize(paragraph) for paragraph in paragraphs] == paragraphs
    assert unicodedata.is_normalized("NFC", once)
    assert "  " not in once and once == once.strip() and not set("\x00\r\t\ufeff") & set(once)


@settings(deadline=None)
@given(ANY_TEXT, st.integers(1, 40))
def test_cut_pieces_are_short_and_concatenate(text, max_chars):
    pieces = cut(text, max_chars)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= max_chars for piece in pieces) or text == ""


def test_cut_goes_on_where_a_piece_begins_with_white_space():
    assert cut("a b\nc", 1) == ["a", " ", "b", "\n", "c"]


def test_cut_spares_words():
    assert cut("aaaa bbbb cccc dddddddddddd", 10) == ["aaaa bbbb", " cccc", " ddddddddd", "ddd"]


def rules(*, normalize=True, min_chars=0, max_chars=None):
    return CleanRules(normalize=normalize, min_chars=min_chars, max_chars=max_chars)


@pytest.mark.parametrize(
    "text, rules, expected",
    [
        ("", RULES, ([], "empty", 0)),
        ("\u200b \n", RULES, ([], "empty", 0)),
        ("a  short  one", rules(min_chars=12), ([], "min_chars", 0)),
        ("a\x00  short  one", rules(min_chars=11), (["a short one"], None, 1)),
        ("as  it\x00 is \ud801", rules(normalize=False), (["as  it\x00 is "], None, 1)),
        ("four more words here", rules(max_chars=10), (["four more", " words", " here"], None, 0)),
    ],
)
def test_clean(text, rules, expected):
    assert clean(text, rules) == expected


def test_a_long_line_of_one_word_is_no_trouble():
    text = "x" * 3_000_000 + "\n" * 100_000 + " " * 100_000
    assert clean(text, RULES) == (["x" * 3_000_000], None, 0)


def test_cut_spares_clauses_where_there_are_no_spaces():
    assert cut("一二三四，五六七八九十", 8) == ["一二三四，", "五六七八九十"]
