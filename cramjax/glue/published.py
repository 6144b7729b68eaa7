"""Published results on the development sets of GLUE, to print beside one's own.

Protocols differ, and so do the averages.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A row of a published table.

    Attributes:
        source: where it was published.
        protocol: how the model was finetuned.
        scores: task → its headline metrics in percent.
        average: the average that the source gives; ModernBERT's is the mean computed here.
    """

    model: str
    source: str
    protocol: str
    scores: dict[str, tuple[float, ...]]
    average: float


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The columns of a published table: names of tasks, and at the end the average."""

    columns: str
    protocol: str


_CRAMMING = _Layout(
    # MNLI has two columns, matched and mismatched.
    columns="mnli mnli sst2 stsb rte qnli qqp mrpc cola average",
    protocol="cramming: median of 5, F1 for MRPC and QQP, Pearson for STS-B",
)
_OWN_SETTINGS = _Layout(
    columns="cola sst2 mrpc stsb qqp mnli qnli rte average",
    protocol="its own settings by task; the mean of eight tasks",
)


def _row(layout: _Layout, model: str, source: str, numbers: str) -> Published:
    """Reads a row of a table; `numbers` are the cells of its columns."""
    *cells, average = [float(number) for number in numbers.split()]
    *tasks, _ = layout.columns.split()
    scores: dict[str, tuple[float, ...]] = {}
    for task, cell in zip(tasks, cells, strict=True):
        scores[task] = (*scores.get(task, ()), cell)
    return Published(
        model=model, source=source, protocol=layout.protocol, scores=scores, average=average
    )


_PAPER = "arXiv 2212.14034"

# fmt: off
GLUE = (
    _row(_CRAMMING, "BERT-base, fully trained", _PAPER,
         "83.2 83.4 91.9 86.7 59.2 90.6 87.7 89.3 56.5 80.9"),
    _row(_CRAMMING, "BERT-base, not pretrained", _PAPER,
         "34.1 34.1 79.9 17.8 47.3 50.0 68.6 77.9 0.0 45.5"),
    _row(_CRAMMING, "RoBERTa-base", _PAPER,
         "86.6 86.4 93.7 90.4 77.3 92.1 88.3 91.4 60.2 85.1"),
    _row(_CRAMMING, "crammed BERT, A6000, 1 day", _PAPER,
         "83.9 84.1 92.2 84.6 53.8 89.5 87.3 87.5 44.5 78.6"),
    _row(_CRAMMING, "crammed BERT v2, best of 5", "its model card",
         "84.1 84.6 92.0 87.4 58.5 90.2 87.5 88.9 53.3 80.7"),
    _row(_OWN_SETTINGS, "MosaicBERT-base", "arXiv 2312.17482",
         "55.1 92.5 90.0 89.3 90.3 84.95 90.7 81.4 84.28"),
    _row(_OWN_SETTINGS, "ModernBERT-base", "arXiv 2412.13663",
         "65.1 96.0 92.2 91.8 92.1 89.1 93.9 87.4 88.45"),
)
# fmt: on
"""Published rows in the order in which they are printed."""
