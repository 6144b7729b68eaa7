"""From a trained network to a larger one: what each parameter, and what an optimizer knows of it, becomes.

An operator is a rule for one parameter, told apart by its path and the names of its axes; `grow` applies it to parameters and moments
alike. Which of them leave the network's function as it is stands with each.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.models import axes as ax
from cramjax.models.lowrank import merged

Params = dict[str, Any]
Axes = tuple[str | None, ...]

VALUE, GRADIENT, SQUARE = "value", "gradient", "square"
"""What a number is: a parameter, a mean of its gradients, or of their squares."""

# Where a block writes into the residual stream.
_WRITERS = ("attention/out", "mlp/wo", "mlp/wo/up")
_OUTER = "/mlp/wo/"
_MOMENTS = {"mu": GRADIENT, "nu": SQUARE, "trace": GRADIENT}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter: `path` joined by "/", names of its `axes`, what its numbers are, in a stack the `first` layer that has it."""

    path: str
    axes: Axes
    kind: str = VALUE
    first: int = 0

    def writes(self) -> bool:
        """Whether it is the last of a block's branch, kernel or bias."""
        return self.path.rpartition("/")[0].endswith(_WRITERS)

    def is_outer(self) -> bool:
        """Whether it comes behind the activation of a feed-forward."""
        return _OUTER in self.path


class Operator(Protocol):
    """A rule for every parameter."""

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """The grown parameter or moment, of the shape of `fresh`: an initial parameter, or zeros for a moment."""
        ...


@dataclasses.dataclass(frozen=True)
class Depth:
    """More layers, made of those there are.

    `how`: "stack" puts copies of the whole stack on top (ABAB; Gong et al., 2019; CompoundGrow, arXiv 2010.12562), "repeat"
    each layer's copies behind it (AABB), "interpolate" means of the two nearest layers, and "identity" copies as "repeat" does whose
    branches write zeros: with norms in front of the branches the network's function stays what it was (arXiv 2203.06211).
    """

    how: str = "stack"

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """As `Operator`; parameters outside of stacks stay."""
        if leaf.axes[:1] != (ax.LAYER,):
            return old
        sources = self.sources(old.shape[0] + leaf.first, fresh.shape[0] + leaf.first)
        if (
            leaf.first
        ):  # of a layer that lacks it, what is fresh; other dimensions grow by themselves
            old = jnp.concatenate([fresh[(slice(leaf.first), *map(slice, old.shape[1:]))], old])
        if self.how == "interpolate":
            exact = jax.lax.Precision.HIGHEST  # accelerators would round the parameters
            grown = jnp.einsum(
                "bs,s...->b...", jnp.asarray(sources, old.dtype), old, precision=exact
            )[leaf.first :]
        else:
            grown = old[sources.argmax(1)[leaf.first :]]
        if self.how == "identity" and leaf.writes():
            origin = sources.argmax(1)
            copied = np.r_[False, origin[1:] == origin[:-1]][leaf.first :].reshape(
                (-1,) + (1,) * (old.ndim - 1)
            )
            grown = jnp.where(copied, jnp.zeros((), old.dtype), grown)
        return grown

    def sources(self, n_small: int, n_big: int) -> np.ndarray:
        """float64 [n_big, n_small]: shares of the small network's layers in each of the large one's.

        Raises:
            ValueError: for an unknown `how`.
        """
        at = np.arange(n_big)
        if self.how == "interpolate":
            place = at * (n_small - 1) / max(1, n_big - 1)
            return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(n_small)[None]))
        if self.how not in ("stack", "repeat", "identity"):
            raise ValueError(f"unknown way to deepen: {self.how!r}")
        return np.eye(n_small)[at % n_small if self.how == "stack" else at * n_small // n_big]


@dataclasses.dataclass(frozen=True)
class SharedWidth:
    """A feed-forward k times as wide, of k copies: the inner half repeated, the outer half repeated and divided by k.

    Parameter sharing of CompoundGrow (arXiv 2010.12562): the function stays what it was for every activation. The copies
    would stay alike for ever, for so do their gradients; `noise` sets the outer halves apart by that share of their standard deviation,
    summing to zero over the copies, which leaves the function alone.
    """

    noise: float = 0.1
    seed: int = 0

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """As `Operator`. Raises ValueError where the width is no multiple."""
        if ax.MLP not in leaf.axes:
            return old
        axis = leaf.axes.index(ax.MLP)
        k, rest = divmod(fresh.shape[axis], old.shape[axis])
        if rest:
            raise ValueError(
                f"{leaf.path}: a width of {fresh.shape[axis]} is no multiple of {old.shape[axis]}"
            )
        copies = jnp.stack([old] * k, axis)  # the copies' axis, then the width
        # A copy's inner half is seen through 1/k of the outer half: so is its gradient. The outer half sees each copy in full.
        divided = leaf.is_outer() if leaf.kind == VALUE else not leaf.is_outer()
        if divided:
            copies = copies / (k * k if leaf.kind == SQUARE else k)
        if leaf.kind == VALUE and leaf.is_outer() and self.noise and k > 1:
            copies = copies + self._apart(leaf.path, copies, axis)
        return copies.reshape(old.shape[:axis] + (k * old.shape[axis],) + old.shape[axis + 1 :])

    def _apart(self, path: str, copies: jax.Array, axis: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(path.encode()))
        drawn = jax.random.normal(key, copies.shape, copies.dtype)
        return self.noise * copies.std() * (drawn - drawn.mean(axis, keepdims=True))


@dataclasses.dataclass(frozen=True)
class ZeroWidth:
    """A wider residual stream, more heads, a wider feed-forward: what is new reads at random and writes zeros.

    Composable exact expansions (arXiv 2308.06103): the function stays what it was where norms are RMSNorms in front of the branches, whose
    gains shrink by sqrt(old width / new width); LayerNorms whose input has another mean than zero are off by that, and sinusoidal
    positions are others in another width.
    `tied`: paths of norms right before a tied decoder that scales by the width itself (T5's), whose gains stay.
    """

    tied: tuple[str, ...] = ()

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """As `Operator`."""
        if old.shape == fresh.shape:
            return old
        rest = fresh
        if leaf.axes[-1] == ax.NORM and leaf.kind == VALUE:
            gain = math.sqrt(old.shape[-1] / fresh.shape[-1])
            gain = 1.0 if leaf.path.startswith(self.tied) or leaf.path.endswith("/bias") else gain
            old, rest = old * gain, fresh * gain
        elif leaf.writes() or leaf.path.startswith(("encoder/embeddings", "embeddings", "head")):
            rest = jnp.zeros_like(fresh)
        return rest.at[tuple(map(slice, old.shape))].set(old)


@dataclasses.dataclass(frozen=True)
class Compound:
    """Several operators, one after the other, each of its own dimension: CompoundGrow (arXiv 2010.12562)."""

    operators: tuple[Operator, ...]

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """As `Operator`."""
        for operator in self.operators:
            old = operator(leaf, old, fresh)
        return old


def grow(
    params: Params,
    axes: Params,
    fresh: Params,
    operator: Operator,
    *,
    opt_state: Any = None,
    fresh_state: Any = None,
) -> tuple[Params, Any]:
    """Parameters and optimizer state of a larger network.

    Args:
        params: of the small network; factors of matrices that are whole in the large one are multiplied first (`models.lowrank`).
        axes: of the large network, as of `param_axes`. fresh: its initial parameters, for their shapes and what is new.
        operator: the rule. opt_state: of the small network's optimizer; fresh_state: what the same optimizer makes of `fresh`.

    Returns:
        The parameters, and the state with its moments grown alike; what is no moment of a parameter (counts) stays, and what has a form
        of its own (factored moments), or is of a matrix that was none, starts anew where its shape changes.
    """
    factors_stay = jax.tree.structure(params) == jax.tree.structure(fresh)
    whole = params if factors_stay else merged(params)
    flat, new = (flatten_dict(tree, sep="/") for tree in (whole, fresh))
    known = _leaves(flatten_dict(axes, sep="/"), new)
    grown = unflatten_dict(
        {path: operator(known[path], flat[path], new[path]) for path in new}, sep="/"
    )
    if opt_state is None:
        return grown, None
    olds = dict(jax.tree_util.tree_leaves_with_path(opt_state))
    leaves = [
        _grown_state(known, operator, path, olds[path], leaf) if path in olds else leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(fresh_state)
    ]
    return grown, jax.tree.unflatten(jax.tree.structure(fresh_state), leaves)


def _leaves(names: Mapping[str, Axes], params: Mapping[str, jax.Array]) -> dict[str, Leaf]:
    depths: dict[str, int] = {}
    stacks = {
        path: path.partition("/layers/")[0]
        for path, axes in names.items()
        if axes[:1] == (ax.LAYER,)
    }
    for path, stack in stacks.items():
        depths[stack] = max(depths.get(stack, 0), params[path].shape[0])
    return {
        path: Leaf(
            path, axes, first=depths[stacks[path]] - params[path].shape[0] if path in stacks else 0
        )
        for path, axes in names.items()
    }


def _grown_state(
    known: Mapping[str, Leaf], operator: Operator, path: Any, old: Any, fresh: Any
) -> Any:
    """A leaf of an optimizer's state; its path ends in the name of a field and the keys of the parameter it belongs to, if any."""
    field, keys = None, []
    for entry in path:
        if isinstance(entry, jax.tree_util.GetAttrKey):
            field, keys = entry.name, []
        elif isinstance(entry, jax.tree_util.DictKey):
            keys.append(str(entry.key))
    leaf = known.get("/".join(keys))
    if field in _MOMENTS and leaf is not None:
        return operator(dataclasses.replace(leaf, kind=_MOMENTS[field]), old, jnp.zeros_like(fresh))
    return old if jnp.shape(old) == jnp.shape(fresh) else fresh
