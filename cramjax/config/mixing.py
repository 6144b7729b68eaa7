"""Mixtures of sources by their sizes, as T5 mixes tasks (arXiv 1910.10683, section 3.5.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from cramjax.config.views import Config, DataConfig

BY_SIZE = "auto"
"""The weight of a source in a mixture by size."""

TASK_SCHEMES = ("glue", "superglue")
"""Schemes of `data.source` that stand for a mixture of tasks by size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixing:
    """The rates of a mixture by size.

    Attributes:
        limit: examples of a source that count at most; None for all.
        temperature: rates are raised to its inverse: at 1 they are proportional to the sizes, and
            large ones make them equal.
    """

    limit: int | None = None
    temperature: float = 1.0

    def rates(self, n_examples: Sequence[int]) -> list[float]:
        """Returns the share of each source in the examples that are drawn."""
        limit = float("inf") if self.limit is None else self.limit
        raised = [min(size, limit) ** (1 / self.temperature) for size in n_examples]
        # Without any example there is nothing to share out.
        total = sum(raised) or 1.0
        return [rate / total for rate in raised]


def mixing_of(data: DataConfig) -> Mixing:
    """Returns the rates that the section `data` asks for."""
    temperature = float(data.mixture_temperature)
    return Mixing(limit=data.mixture_limit, temperature=temperature)


def needing_sizes(data: DataConfig) -> list[str]:
    """Returns the keys that change a mixture by size alone, with their values."""
    keys = (("mixture_limit", None), ("mixture_temperature", 1.0))
    return [f"data.{key}={data[key]}" for key, default in keys if data[key] != default]


def is_by_size(source: Any) -> bool:
    """Returns whether a sound value of `data.source` is a mixture by size."""
    if isinstance(source, str):
        return source.partition(":")[0] in TASK_SCHEMES
    return BY_SIZE in _weights(source)


def _weights(source: Any) -> list[Any]:
    entries = [entry for entry in source if isinstance(entry, list | tuple) and len(entry) > 1]
    return [entry[1] for entry in entries]


def mistakes(config: Config) -> Iterator[str]:
    """Yields what does not go together in a mixture, one sentence each."""
    data = config.data
    if str(data.source).startswith("prepared:"):
        return  # its manifest says if it is one, which is checked when it is opened
    if not is_by_size(data.source):
        for setting in needing_sizes(data):
            yield f"{setting}: needs a mixture by size, data.source=[[source, 'auto'], …]"
        return

    if not isinstance(data.source, str):
        weights = _weights(data.source)
        if any(weight != BY_SIZE for weight in weights):
            yield f"data.source: the weights {weights} are 'auto' for all sources or for none"
    if data.max_mb is not None:
        yield (
            f"data.max_mb={data.max_mb}: must be None in a mixture by size, whose shares are known "
            "only when everything is read; data.mixture_limit bounds a large source"
        )
