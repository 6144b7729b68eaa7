"""Scores of SQuAD 1.1 and 2.0, as their evaluation scripts count them.

Both compare texts in lower case without punctuation and articles (arXiv 1606.05250, section 6.1).
They differ where nothing is left of both texts: that is right for 2.0 only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cramjax.glue.metrics import exact, normal, word_f1

METRICS_V1 = ("f1", "exact_match")
"""Metrics where every question has an answer; the first is reported."""

METRICS_V2 = ("best_f1", "best_exact", "f1", "exact_match")
"""Metrics where questions may have none."""


def scores_v1(answers: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, float]:
    """Returns exact_match and f1 in percent, against the best of the answers of each question."""
    matches = overlap = 0.0
    for right, text in zip(answers, texts, strict=True):
        matches += max((exact(answer, text) for answer in right), default=0.0)
        overlap += max((word_f1(answer, text) for answer in right), default=0.0)
    n = max(1, len(texts))
    return {"exact_match": 100.0 * matches / n, "f1": 100.0 * overlap / n}


def scores_v2(
    answers: Sequence[Sequence[str]], texts: Sequence[str], odds: Sequence[float] | None
) -> dict[str, float]:
    """Returns the scores of SQuAD 2.0, in percent but for the thresholds.

    "exact_match" and "f1" take a text unless its odds are over 0. "best_exact" and "best_f1" have
    the thresholds with the highest scores on these questions, "…_threshold". Without odds there is
    nothing to choose: the best are the same scores, and there are no thresholds.

    Args:
        answers: of each question; none where it has no answer.
        texts: the best answer that is a text; "" is no answer.
        odds: score of "no answer" less that of the text; None for a model that only writes texts.
    """
    right = [list(filter(normal, known)) for known in answers]
    exacts = []
    overlaps = []
    for known, text in zip(right, texts, strict=True):
        exacts.append(max(exact(answer, text) for answer in known or [""]))
        overlaps.append(max(word_f1(answer, text, empty=1.0) for answer in known or [""]))

    if odds is None:
        scores = _means(right, exacts, "exact_match") | _means(right, overlaps, "f1")
        return {"best_exact": scores["exact_match"], "best_f1": scores["f1"]} | scores

    n = max(1, len(right))
    scores = {}
    for name, values in (("exact", exacts), ("f1", overlaps)):
        best, threshold = best_threshold(right, texts, odds, values)
        scores |= {f"best_{name}": 100.0 * best / n, f"best_{name}_threshold": threshold}

    for name, values in (("exact_match", exacts), ("f1", overlaps)):
        kept = list(values)
        for number, (known, odd) in enumerate(zip(right, odds, strict=True)):
            # Odds over 0 leave the question unanswered.
            if odd > 0:
                kept[number] = float(not known)
        scores |= _means(right, kept, name)
    return scores


def _means(right: Sequence[Sequence[str]], values: Sequence[float], name: str) -> dict[str, float]:
    """Returns the mean of the scores of questions, of those with an answer, and of the others."""
    by_group: dict[bool, list[float]] = {True: [], False: []}
    for known, value in zip(right, values, strict=True):
        by_group[bool(known)].append(value)
    scores = {name: 100.0 * sum(values) / max(1, len(right))}
    for has_answer, group in by_group.items():
        if group:
            prefix = "has_answer" if has_answer else "no_answer"
            scores[f"{prefix}_{name}"] = 100.0 * sum(group) / len(group)
    return scores


def best_threshold(
    answers: Sequence[Sequence[str]],
    texts: Sequence[str],
    odds: Sequence[float],
    values: Sequence[float],
) -> tuple[float, float]:
    """Returns the highest sum of scores that a threshold of the odds gives, and the threshold.

    A question with odds over the threshold is left unanswered. Questions are passed by growing
    odds, as the script passes them, also where several have the same.

    Args:
        answers, texts, odds: as for `scores_v2`.
        values: score of each text if it is given.
    """
    total = best = float(sum(not known for known in answers))
    threshold = 0.0

    for number in sorted(range(len(odds)), key=lambda number: odds[number]):
        if answers[number]:
            total += values[number]
        elif texts[number]:
            total -= 1
        if total > best:
            best = total
            threshold = odds[number]
    return best, threshold


def final_texts(
    texts: Mapping[str, str], odds: Mapping[str, float], threshold: float
) -> dict[str, str]:
    """Returns question → its answer, "" where the odds are over the threshold."""
    return {key: "" if odds[key] > threshold else text for key, text in texts.items()}
