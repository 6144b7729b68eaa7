"""Replaced-token detection in a configuration: sizes of its generator, and what it goes with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import cast

from cramjax.config.views import Config, EncoderModelConfig

OBJECTIVE = "replaced_tokens"
"""The value of `objective.name`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorSizes:
    """The sizes of a generator, with the names of the keys of `model`."""

    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int


def generator_sizes(config: Config) -> GeneratorSizes:
    """Returns the sizes of the generator; heads keep their dimensions."""
    model, objective = config.model, config.objective
    n_heads = max(1, round(objective.generator_width * model.n_heads))
    return GeneratorSizes(
        n_layers=objective.generator_layers or model.n_layers,
        d_model=model.d_model * n_heads // model.n_heads,
        n_heads=n_heads,
        d_ff=max(1, model.d_ff * n_heads // model.n_heads),
    )


def mistakes(config: Config) -> Iterator[str]:
    """Yields what does not go with replaced-token detection, one sentence each."""
    model = cast(EncoderModelConfig, config.model)
    if config.growth.stages:
        yield (
            f"growth.stages: networks of objective.name={OBJECTIVE} do not grow; leave the stages "
            "out, or set objective.name=mlm"
        )
    if config.init_from is not None:
        yield (
            f"init_from={config.init_from}: objective.name={OBJECTIVE} starts from fresh "
            "parameters, because models are kept without a generator; leave init_from out"
        )

    if not model.head_transform:
        yield (
            f"model.head_transform=False: the generator of objective.name={OBJECTIVE} predicts "
            "through a transform; set it to True"
        )
    if not model.first_norm and (config.objective.generator_layers or model.n_layers) < 2:
        yield (
            f"objective.generator_layers={config.objective.generator_layers}: "
            "model.first_norm=False needs at least 2 layers"
        )
    if config.objective.pool != 1:
        yield (
            f"objective.pool={config.objective.pool}: must be 1 where objective.name is {OBJECTIVE}"
        )
