"""The interface of a network, and what follows from it for the parameters of every family.

A family is one frozen dataclass that holds the numbers of a network and builds its modules. Modules
never leave `models`: the rest of the project sees the numbers and plain dicts of parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
from flax import nnx

from cramjax.models import module
from cramjax.models.layers import FLOAT32, Precision

Params = dict[str, Any]

DEFAULT_FAMILY = "encoder"
"""The family of a description that names none: checkpoints of encoders are older than the key."""

FREE_FIELDS = frozenset(
    {"dropout", "attention_dropout", "init_std", "attention", "unroll", "remat"}
)
"""Fields that say how a network is trained or computed; a run may change them when it goes on."""


class Buildable(Protocol):
    """Numbers that modules are built from; hashable, so that they can be a static argument."""

    def build(self, precision: Precision) -> Callable[[nnx.Rngs], nnx.Module]:
        """Returns the constructor of the modules; their parameters are the whole network's."""
        ...


class Network(Buildable, Protocol):
    """The numbers of a language model: a frozen dataclass, one class for each family.

    `family` is the value of `model.family` that selects it.
    """

    family: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding, padding included."""
        ...

    @property
    def d_model(self) -> int:
        """Width of the token embedding."""
        ...

    @property
    def max_length(self) -> int | None:
        """The longest sequence in tokens, or None if any length is possible."""
        ...

    @property
    def unscaled_norms(self) -> tuple[str, ...]:
        """Paths of norms whose scales stay when the network is widened.

        The logits behind such a norm are divided by the square root of the width.
        """
        ...

    def gap_logits(
        self,
        precision: Precision,
        params: Params,
        tokens: jax.Array,
        places: jax.Array,
        *,
        gap_id: int,
        pad_id: int,
        padding_mask: jax.Array,
    ) -> jax.Array:
        """Predicts the one token that is hidden in each sequence: float32 [batch, vocab].

        Args:
            precision: the number formats.
            params: as from `init_params`.
            tokens: int [batch, length], with `gap_id` in the place of the hidden token.
            places: int [batch], the position of the hidden token.
            gap_id: the mask token, or the sentinel of a span.
            pad_id: the padding token.
            padding_mask: bool [batch, length], False at padding.
        """
        ...


class Stacked(Network, Protocol):
    """A network that runs its blocks in loops (`models.stack`)."""

    @property
    def n_blocks(self) -> int:
        """Blocks of all stacks together."""
        ...

    @property
    def unroll(self) -> str | int | bool:
        """The extent to which loops are unrolled: "auto", a bool, or a number of blocks."""
        ...


def init_params(cfg: Buildable, key: jax.Array) -> Params:
    """Returns fresh float32 parameters, a pure function of `key`; a nested dict of arrays."""
    return module.params_of(cfg.build(FLOAT32)(nnx.Rngs(params=key)))


def abstract_params(cfg: Buildable) -> Params:
    """Returns the tree of `init_params` with a ShapeDtypeStruct at each leaf."""
    return module.params_of(module.abstract(cfg.build(FLOAT32)))


def param_axes(cfg: Buildable) -> Params:
    """Returns the tree of `init_params` with logical axis names (`axes.py`) at each leaf."""
    return module.axes_of(module.abstract(cfg.build(FLOAT32)))


def count_params(cfg: Buildable) -> int:
    """Returns the number of parameters; a matrix that is used twice counts once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(cfg)))


def describe(cfg: Network) -> dict[str, Any]:
    """Returns the numbers by name, as a run's checkpoint stores them."""
    numbers = dataclasses.asdict(cfg)
    return numbers if cfg.family == DEFAULT_FAMILY else {"family": cfg.family} | numbers
