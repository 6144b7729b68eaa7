"""Lengths of span corruption: the text that fills inputs of a given length, and its targets."""

from __future__ import annotations

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanLengths:
    """Counts of one example, all exact.

    `n_raw` tokens of text hold `n_noise` tokens of noise in `n_spans` spans. Inputs are the other
    tokens, a sentinel for every span, and an end-of-sequence token. Targets are the noise, its
    sentinels and an end-of-sequence token.
    """

    n_raw: int
    n_noise: int
    n_spans: int

    @property
    def n_inputs(self) -> int:
        """Tokens the encoder reads, the end of sequence included."""
        return self.n_raw - self.n_noise + self.n_spans + 1

    @property
    def n_targets(self) -> int:
        """Tokens the decoder predicts, the end of sequence included."""
        return self.n_noise + self.n_spans + 1


def span_lengths(n_inputs: int, noise_density: float, mean_span: float) -> SpanLengths:
    """Returns the lengths of the longest text whose corruption has exactly `n_inputs` input tokens.

    The arithmetic is T5's (arXiv 1910.10683, section 3.1.4). At noise density 0.15 and mean span 3,
    512 inputs are 568 tokens of text, 85 of them noise in 28 spans, and 114 targets.

    Raises:
        ValueError: no text has that many, which takes a noise density near 1 or a few inputs.
    """
    candidates = (_lengths(n_raw, noise_density, mean_span) for n_raw in itertools.count(2))
    # Inputs never shrink as the text grows.
    fitting = list(itertools.takewhile(lambda lengths: lengths.n_inputs <= n_inputs, candidates))
    if not fitting or fitting[-1].n_inputs != n_inputs:
        raise ValueError(f"no text makes exactly {n_inputs} input tokens")
    return fitting[-1]


def _lengths(n_raw: int, noise_density: float, mean_span: float) -> SpanLengths:
    n_noise = min(max(round(n_raw * noise_density), 1), n_raw - 1)
    # A token of text stands between two spans, so there are no more spans than other tokens.
    n_spans = min(max(round(n_noise / mean_span), 1), n_raw - n_noise)
    return SpanLengths(n_raw=n_raw, n_noise=n_noise, n_spans=n_spans)
