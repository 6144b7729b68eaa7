"""Readings of the text by a run: expected at its start, measured beside it, counted at its end."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from cramjax.config.views import Config
from cramjax.console import Announce
from cramjax.data.dataset import TokenDataset
from cramjax.data.row_reader import shorter
from cramjax.training import text_amount
from cramjax.training.parts import Run
from cramjax.training.session import Session

MANY = 4.0
"""Readings up to which text that comes again teaches nearly as much as new text.

Muennighoff et al., "Scaling Data-Constrained Language Models" (arXiv 2305.16264).
"""
# The shares of the budget after which the run's own rate is looked at.
_MEASURED_AFTER = (0.05, 0.1, 0.25, 0.5)
# A measured number is said if it is this much off the one that was said before.
_NEWS = 1.25


def epochs(dataset: TokenDataset, config: Config, session: Session, n_tokens: float) -> float:
    """Returns how often the text is read that is read most often, in a run of `n_tokens`.

    That is read / there, by the training rows; of a mixture, that of the source which comes round
    most often.

    Args:
        dataset: the prepared text.
        config: the configuration of the run.
        session: of the stage whose rows count.
        n_tokens: tokens of rows that the model reads, as the clock counts them.
    """
    return max(_by_source(dataset, config, session, n_tokens))


def _by_source(
    dataset: TokenDataset, config: Config, session: Session, n_tokens: float
) -> list[float]:
    n_rows = n_tokens / session.config.data.seq_len
    shape = shorter(session.objective.row_shape, int(config.data.cls_token))
    weights = dataset.row_weights(shape)
    total = sum(weights)
    readings = []
    for size, weight in zip(dataset.n_sequences("train", shape), weights, strict=True):
        # A source that is not trained on may be empty.
        times = 0.0
        if weight:
            times = n_rows * weight / total / size
        readings.append(times)
    return readings


def describe(
    dataset: TokenDataset, config: Config, session: Session, n_tokens: float, basis: str
) -> list[str]:
    """Returns the lines that say how often a run of `n_tokens` reads its text; [] for once.

    `basis` says where the number of tokens comes from: "expected" or "measured".
    """
    readings = _by_source(dataset, config, session, n_tokens)
    most = max(readings)
    if most <= 1:
        return []

    text_tokens = n_tokens * session.objective.row_tokens / session.config.data.seq_len
    sources = dataset.manifest["sources"]
    which = "the text"
    if len(sources) > 1:
        which = str(sources[readings.index(most)].get("spec", "one source"))
    lines = [
        f"the budget reads {which} {most:.1f} times "
        f"({text_amount.in_words(text_tokens)} tokens {basis}, "
        f"{text_amount.in_words(dataset.manifest['train_tokens'])} there)"
    ]
    if most > MANY:
        lines += [
            f"  over {MANY:g} times, text that comes again teaches less and less "
            "(arXiv 2305.16264):",
            "  raise data.max_mb, name a larger data.source, or lower the budget",
        ]
    return lines


class Watch:
    """A sink of metrics that says how often the text is read at the rate that was measured.

    It is silent where that is no news, and without a limit in hours: then the rate changes nothing.
    """

    def __init__(self, run: Run, session: Session, said: float | None):
        """`said` is what the start said, in readings; None if it said nothing."""
        self._run = run
        self._session = session
        self._said = said
        self._looks = [] if run.config.budget.hours is None else list(_MEASURED_AFTER)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one step."""
        rate = values.get("tokens_per_s")
        progress = values.get("progress", 0.0)
        if not rate or not self._looks or progress < self._looks[0]:
            return
        self._looks = [share for share in self._looks if share > progress]
        run = self._run
        n_tokens = values["tokens"] + rate * _left_s(run.config, values["elapsed_s"])
        if run.config.budget.tokens is not None:
            n_tokens = min(n_tokens, run.config.budget.tokens)

        now = epochs(run.dataset, run.config, self._session, n_tokens)
        if self._said is None or not 1 / _NEWS <= now / self._said <= _NEWS:
            self._said = now
            announce_lines(run.progress.announce, run, self._session, n_tokens, "at this rate")

    def close(self) -> None:
        """Finish: there are no more numbers."""


def announce_lines(
    announce: Announce, run: Run, session: Session, n_tokens: float, basis: str
) -> None:
    """Print the lines of `describe` for a run."""
    for line in describe(run.dataset, run.config, session, n_tokens, basis):
        announce(line)


def watch(run: Run, session: Session) -> Watch:
    """Say how often the budget is expected to read the text; returns a sink that checks it.

    A run that goes on counts with the rate that it had. On a device without known rates a budget
    in hours says nothing before it is measured.
    """
    config, clock = run.config, run.clock
    n_tokens = None
    devices = jax.devices()
    reading = text_amount.expected(config, devices[0].device_kind, len(devices))
    if config.budget.hours is not None and clock.n_tokens:
        rate = clock.n_tokens / clock.elapsed_s
        n_tokens = clock.n_tokens + rate * _left_s(config, clock.elapsed_s)
    elif reading.is_known:
        seq_len = session.config.data.seq_len
        n_tokens = reading.tokens * seq_len / session.objective.row_tokens

    if n_tokens is None:
        return Watch(run, session, None)
    announce_lines(run.progress.announce, run, session, n_tokens, "expected")
    return Watch(run, session, epochs(run.dataset, config, session, n_tokens))


def _left_s(config: Config, elapsed_s: float) -> float:
    """Returns the seconds that are left of a budget in hours."""
    return max(0.0, (config.budget.hours or 0.0) * 3600 - elapsed_s)
