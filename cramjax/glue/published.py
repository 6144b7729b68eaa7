"""Published results on the development sets of GLUE, to print beside one's own. Protocols differ, and so do the averages."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """`scores`: task → its headline metrics in percent, None where a row leaves it out; `average`: as its source gives it."""

    model: str
    source: str
    protocol: str
    scores: dict[str, tuple[float, ...]]
    average: float | None


def _cramming_row(model, source, mnli, mm, sst2, stsb, rte, qnli, qqp, mrpc, cola, average):
    scores = {
        "cola": (cola,),
        "sst2": (sst2,),
        "mrpc": (mrpc,),
        "stsb": (stsb,),
        "qqp": (qqp,),
        "mnli": (mnli, mm),
        "qnli": (qnli,),
        "rte": (rte,),
    }
    protocol = "cramming: median of 5, F1 for MRPC and QQP, Pearson for STS-B"
    return Published(model=model, source=source, protocol=protocol, scores=scores, average=average)


def _dev_row(model, source, cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, average):
    names = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    values = (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte)
    scores = {name: (value,) for name, value in zip(names, values, strict=True)}
    protocol = "its own settings by task; the mean of eight tasks"
    return Published(model=model, source=source, protocol=protocol, scores=scores, average=average)


_PAPER = "arXiv 2212.14034"
GLUE = (
    _cramming_row(
        "BERT-base, fully trained",
        _PAPER,
        83.2,
        83.4,
        91.9,
        86.7,
        59.2,
        90.6,
        87.7,
        89.3,
        56.5,
        80.9,
    ),
    _cramming_row(
        "BERT-base, not pretrained",
        _PAPER,
        34.1,
        34.1,
        79.9,
        17.8,
        47.3,
        50.0,
        68.6,
        77.9,
        0.0,
        45.5,
    ),
    _cramming_row(
        "RoBERTa-base", _PAPER, 86.6, 86.4, 93.7, 90.4, 77.3, 92.1, 88.3, 91.4, 60.2, 85.1
    ),
    _cramming_row(
        "crammed BERT, A6000, 1 day",
        _PAPER,
        83.9,
        84.1,
        92.2,
        84.6,
        53.8,
        89.5,
        87.3,
        87.5,
        44.5,
        78.6,
    ),
    _cramming_row(
        "crammed BERT v2, best of 5",
        "its model card",
        84.1,
        84.6,
        92.0,
        87.4,
        58.5,
        90.2,
        87.5,
        88.9,
        53.3,
        80.7,
    ),
    _dev_row(
        "MosaicBERT-base",
        "arXiv 2312.17482",
        55.1,
        92.5,
        90.0,
        89.3,
        90.3,
        84.95,
        90.7,
        81.4,
        84.28,
    ),
    _dev_row(
        "ModernBERT-base", "arXiv 2412.13663", 65.1, 96.0, 92.2, 91.8, 92.1, 89.1, 93.9, 87.4, 88.45
    ),
)
"""In the order in which they are printed."""
