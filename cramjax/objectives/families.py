"""The families of networks, and the objective that pretrains each.

A new family is one class with `network_class` and `from_config`, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cramjax.config import pairs, replaced_tokens
from cramjax.config.views import Config
from cramjax.models.detector import DetectorConfig
from cramjax.models.layers import Precision
from cramjax.models.network import DEFAULT_FAMILY, Network
from cramjax.objectives.hard_masks import HardMasks
from cramjax.objectives.masked_lm import MaskedLM
from cramjax.objectives.objective import PretrainingObjective, Vocabulary
from cramjax.objectives.replaced_tokens import ReplacedTokens
from cramjax.objectives.script import Script
from cramjax.objectives.span_corruption import SpanCorruption
from cramjax.objectives.text_to_text import TextToText


class ObjectiveClass(Protocol):
    """The class of a pretraining objective."""

    @property
    def network_class(self) -> Callable[..., Network]:
        """The class of its networks, made from the numbers of a description."""
        ...

    def from_config(
        self, config: Config, vocabulary: Vocabulary, precision: Precision
    ) -> PretrainingObjective:
        """Returns the objective of a whole configuration over a vocabulary.

        Raises:
            UserError: if the vocabulary does not suit the objective.
        """
        ...


OBJECTIVES: dict[str, ObjectiveClass] = {"encoder": MaskedLM, "t5": SpanCorruption}
"""The objective by `model.family`, unless `OTHERS` has that of `objective.name`."""

OTHERS: dict[str, ObjectiveClass] = {
    "script": Script,
    replaced_tokens.OBJECTIVE: ReplacedTokens,
    pairs.OBJECTIVE: TextToText,
}
"""The further objectives of families that have more than one, by `objective.name`."""

DETECTORS: dict[str, Callable[..., Network]] = {
    "electra": ReplacedTokens.network_class,
    "detector": DetectorConfig,
}
"""Networks of replaced-token detection in a description: those of a run, and what is kept."""


def build(config: Config, vocabulary: Vocabulary, precision: Precision) -> PretrainingObjective:
    """Returns the objective of `config`; see `ObjectiveClass.from_config`."""
    objective = OTHERS.get(config.objective.name) or OBJECTIVES[config.model.family]
    if config.objective.hard_masks:
        objective = HardMasks
    return objective.from_config(config, vocabulary, precision)


def network_of(description: Mapping[str, Any]) -> Network:
    """Returns the network that a checkpoint describes: the inverse of `models.network.describe`."""
    numbers = dict(description)
    family = numbers.pop("family", DEFAULT_FAMILY)
    if family in DETECTORS:
        return DETECTORS[family](**numbers)
    return OBJECTIVES[family].network_class(**numbers)
