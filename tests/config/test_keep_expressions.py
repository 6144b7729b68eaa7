"""The filter `data.keep`: what it takes, what it refuses, and that nothing is executed."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.config.keep import Keep, problem

RECORD = {
    "score": 3.5,
    "lang": "en",
    "n": 0,
    "meta": {"lang": "de", "tags": ["a", "b"]},
    "no": None,
}


@pytest.mark.parametrize(
    "expression, expected",
    [
        ("score >= 3", True),
        ("score>=3.5 and lang == 'en'", True),
        ("3 < score < 3.5", False),
        ("lang in ['de', 'en']", True),
        ("lang not in ('de', 'en')", False),
        ("'a' in meta.tags", True),
        ("meta.lang == 'de' or score > 100", True),
        ("not score < 3", True),
        ("score == -3.5", False),
        ("score", True),
        ("not n", True),
        ("no == None", True),
        # What cannot be told is not kept, and neither is its opposite.
        ("absent > 3", False),
        ("not absent > 3", False),
        ("absent > 3 or lang == 'en'", True),
        ("absent > 3 and lang == 'en'", False),
        ("lang > 3", False),
        ("not lang > 3", False),
        ("score.deeper == 1", False),
        ("no > 1", False),
    ],
)
def test_an_expression_keeps_the_records_it_is_true_of(expression, expected):
    assert problem(expression) is None
    keep = pickle.loads(pickle.dumps(Keep(expression)))
    assert keep.accepts(RECORD) is expected


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "score >",
        "score = 3",
        "3 > 2",
        "len(text) > 3",
        "__import__('os')",
        "score + 1 > 3",
        "text[0] == 'a'",
        "(lambda: score)() > 1",
        "[x for x in score]",
        "score if lang else n",
        "score is None",
        "lang in [score]",
        "f'{score}' == 'a'",
        "(" * 500,
        "not " * 3000 + "a",
        "a.b" * 400,
    ],
)
def test_another_expression_is_refused_with_an_example(expression):
    assert "score >= 3" in problem(expression) or "at most" in problem(expression)


@given(st.text(max_size=40))
def test_no_text_whatever_breaks_the_check(expression):
    if problem(expression) is None:
        assert Keep(expression).accepts({}) in (True, False)


def test_the_fields_are_those_of_the_record():
    assert Keep("meta.lang == 'a' and (score > 1 or not meta.tags)").fields == ("meta", "score")
