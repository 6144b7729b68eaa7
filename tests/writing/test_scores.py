"""BLEU and chrF are sacrebleu's, by the words of the references' script."""

import pytest

from cramjax.writing.scores import corpus_scores

ENGLISH = [
    "A man in a blue shirt is standing on a ladder cleaning a window.",
    "Two young, White males are outside near many bushes.",
]


def test_equal_texts_have_a_hundred_and_others_less():
    whole = corpus_scores(ENGLISH, ENGLISH)
    assert whole["bleu"] == pytest.approx(100) and whole["chrf"] == pytest.approx(100)
    assert "tok:13a" in whole["bleu_signature"] and "case:mixed" in whole["bleu_signature"]

    part = corpus_scores([ENGLISH[0], "Two men are outside near bushes."], ENGLISH)
    assert 30 < part["bleu"] < 90
    assert corpus_scores([text.lower() for text in ENGLISH], ENGLISH)["bleu"] < 95
    assert corpus_scores(["", ""], ENGLISH)["bleu"] == 0


@pytest.mark.parametrize(
    "text, changed, tokenizer",
    [
        ("两个年轻人站在外面的灌木丛旁边。", "两个年轻人站在外面的树旁边。", "zh"),
        (
            "男の人が青いシャツを着て窓を拭いています。",
            "男の人が青い服を着て窓を拭いています。",
            "char",
        ),
        ("ผู้ชายสองคนยืนอยู่ข้างนอก", "ผู้ชายสามคนยืนอยู่ข้างนอก", "char"),
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(text, changed, tokenizer):
    scores = corpus_scores([changed] * 3, [text] * 3)
    # As words of 13a the only one would be wrong.
    assert 30 < scores["bleu"] < 100 and f"tok:{tokenizer}" in scores["bleu_signature"]
