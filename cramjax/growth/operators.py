"""From a trained network to a larger one: the new values of parameters and optimizer moments.

An operator is a rule for one parameter, which it knows by its path and the names of its axes.
`grow` applies it to parameters and moments alike. The docstring of an operator says whether it
preserves the network's function.
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
"""Kinds of numbers: a parameter, a mean of its gradients, a mean of their squares."""

# Where a block writes into the residual stream.
_WRITERS = ("attention/out", "mlp/wo", "mlp/wo/up")
_OUTER = "/mlp/wo/"
_MOMENTS = {"mu": GRADIENT, "nu": SQUARE, "trace": GRADIENT, "average": VALUE}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter, or a moment of it.

    Attributes:
        path: joined by "/".
        axes: their names.
        kind: of its numbers.
        first: the first layer that has it, in a stack where the first layers lack it.
    """

    path: str
    axes: Axes
    kind: str = VALUE
    first: int = 0

    def writes(self) -> bool:
        """Returns whether it is the last of a block's branch, kernel or bias."""
        return self.path.rpartition("/")[0].endswith(_WRITERS)

    def is_outer(self) -> bool:
        """Returns whether it comes after the activation of a feed-forward."""
        return _OUTER in self.path


class Operator(Protocol):
    """A rule for every parameter."""

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """Returns the grown parameter or moment.

        Args:
            leaf: says what it is.
            old: its value in the small network.
            fresh: the large network's initial parameter, or zeros for a moment; the result has its
                shape.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Depth:
    """More layers, made of those in the small network.

    `how` is one of:
        "stack": copies of the whole stack on top (ABAB; Gong et al., 2019; CompoundGrow, arXiv
            2010.12562).
        "repeat": each layer's copies behind it (AABB).
        "interpolate": means of the two nearest layers.
        "identity": copies as with "repeat", whose branches write zeros. With norms in front of the
            branches this preserves the network's function (arXiv 2203.06211).
    """

    how: str = "stack"

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """Returns the grown leaf; parameters outside of stacks stay."""
        if leaf.axes[:1] != (ax.LAYER,):
            return old
        first = leaf.first
        sources = self.sources(old.shape[0] + first, fresh.shape[0] + first)
        if first:
            # Layers that lack it have its fresh value; other operators grow other dimensions.
            missing = fresh[(slice(first), *map(slice, old.shape[1:]))]
            old = jnp.concatenate([missing, old])

        if self.how == "interpolate":
            exact = jax.lax.Precision.HIGHEST  # accelerators would round the parameters
            shares = jnp.asarray(sources, old.dtype)
            return jnp.einsum("bs,s...->b...", shares, old, precision=exact)[first:]

        origin = sources.argmax(1)  # int [n_big], the layer that each one is a copy of
        grown = old[origin[first:]]
        if self.how == "identity" and leaf.writes():
            is_copy = np.r_[False, origin[1:] == origin[:-1]][first:]
            is_copy = is_copy.reshape((-1,) + (1,) * (old.ndim - 1))
            grown = jnp.where(is_copy, jnp.zeros((), old.dtype), grown)
        return grown

    def sources(self, n_small: int, n_big: int) -> np.ndarray:
        """Returns the shares of the small network's layers in each of the large one's.

        Returns:
            float64 [n_big, n_small].

        Raises:
            ValueError: for an unknown `how`.
        """
        at = np.arange(n_big)
        if self.how == "interpolate":
            place = at * (n_small - 1) / max(1, n_big - 1)
            return np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(n_small)[None]))
        if self.how not in ("stack", "repeat", "identity"):
            raise ValueError(f"unknown way to deepen: {self.how!r}")
        origin = at % n_small if self.how == "stack" else at * n_small // n_big
        return np.eye(n_small)[origin]


@dataclasses.dataclass(frozen=True)
class SharedWidth:
    """A feed-forward k times as wide, of k copies.

    The inner half is repeated, the outer half repeated and divided by k. This is the parameter
    sharing of CompoundGrow (arXiv 2010.12562), and preserves the function for every activation. The
    copies would stay alike for ever, because their gradients are. `noise` sets the outer halves
    apart by that share of their standard deviation. It sums to zero over the copies, so the
    function stays.
    """

    noise: float = 0.1
    seed: int = 0

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """Returns the grown leaf.

        Raises:
            ValueError: if the new width is no multiple of the old one.
        """
        if ax.MLP not in leaf.axes:
            return old
        axis = leaf.axes.index(ax.MLP)
        k, rest = divmod(fresh.shape[axis], old.shape[axis])
        if rest:
            raise ValueError(
                f"{leaf.path}: a width of {fresh.shape[axis]} is no multiple of {old.shape[axis]}"
            )

        copies = jnp.stack([old] * k, axis)  # the copies' axis, then the width
        # The gradient of a copy's inner half passes through 1/k of the outer half, so it is
        # divided. The outer half sees each copy in full.
        divided = leaf.is_outer() if leaf.kind == VALUE else not leaf.is_outer()
        if divided:
            divisor = k * k if leaf.kind == SQUARE else k
            copies = copies / divisor
        if leaf.kind == VALUE and leaf.is_outer() and self.noise and k > 1:
            copies = copies + self._apart(leaf.path, copies, axis)
        return copies.reshape(old.shape[:axis] + (k * old.shape[axis],) + old.shape[axis + 1 :])

    def _apart(self, path: str, copies: jax.Array, axis: int) -> jax.Array:
        """Returns noise of the shape of `copies` that sums to zero over them."""
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(path.encode()))
        drawn = jax.random.normal(key, copies.shape, copies.dtype)
        return self.noise * copies.std() * (drawn - drawn.mean(axis, keepdims=True))


@dataclasses.dataclass(frozen=True)
class ZeroWidth:
    """A wider residual stream, more heads, a wider feed-forward.

    New parts read at random and write zeros: composable exact expansions (arXiv 2308.06103). With
    RMSNorms in front of the branches, whose gains shrink by sqrt(old width / new width), the
    function stays the same. LayerNorms are off by the mean of their input, and sinusoidal positions
    differ in another width. `tied` are paths of norms whose gains stay, because the logits behind
    them scale by the width (`models.network.Network.unscaled_norms`).
    """

    tied: tuple[str, ...] = ()

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """Returns the grown leaf."""
        if old.shape == fresh.shape:
            return old
        rest = fresh
        if leaf.axes[-1] == ax.NORM and leaf.kind == VALUE:
            stays = leaf.path.startswith(self.tied) or leaf.path.endswith("/bias")
            gain = 1.0 if stays else math.sqrt(old.shape[-1] / fresh.shape[-1])
            old, rest = old * gain, fresh * gain
        elif leaf.writes() or leaf.path.startswith(("encoder/embeddings", "embeddings", "head")):
            rest = jnp.zeros_like(fresh)
        return rest.at[tuple(map(slice, old.shape))].set(old)


@dataclasses.dataclass(frozen=True)
class Compound:
    """Several operators in order, one for each dimension (CompoundGrow, arXiv 2010.12562)."""

    operators: tuple[Operator, ...]

    def __call__(self, leaf: Leaf, old: jax.Array, fresh: jax.Array) -> jax.Array:
        """Returns the grown leaf."""
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
    """Returns parameters and optimizer state of a larger network.

    Args:
        params: of the small network. Factors of matrices that are not factored in the large one are
            multiplied first (`models.lowrank`).
        axes: of the large network, as from `network.param_axes`.
        fresh: its initial parameters, for their shapes and for new parts.
        operator: the rule.
        opt_state: of the small network's optimizer.
        fresh_state: the state of the same optimizer for `fresh`.

    Returns:
        The parameters, and the state with its moments grown alike. Counts stay. Other state, such
        as factored moments or that of a matrix that was factored, starts anew if its shape changes.
    """
    factors_stay = jax.tree.structure(params) == jax.tree.structure(fresh)
    if not factors_stay:
        params = merged(params)
    olds: dict[str, Any] = flatten_dict(params, sep="/")
    news: dict[str, Any] = flatten_dict(fresh, sep="/")
    names: dict[str, Any] = flatten_dict(axes, sep="/")
    leaves = _leaves(names, news)
    flat = {path: operator(leaves[path], olds[path], new) for path, new in news.items()}
    grown = unflatten_dict(flat, sep="/")
    if opt_state is None:
        return grown, None

    old_state = dict(jax.tree_util.tree_leaves_with_path(opt_state))
    state = []
    for path, new in jax.tree_util.tree_leaves_with_path(fresh_state):
        if path in old_state:
            new = _grown_state(leaves, operator, path, old_state[path], new)
        state.append(new)
    return grown, jax.tree.unflatten(jax.tree.structure(fresh_state), state)


def _leaves(names: Mapping[str, Axes], params: Mapping[str, jax.Array]) -> dict[str, Leaf]:
    """Returns the leaf of each parameter by path, from the names of their axes."""
    stacks = {}
    for path, axes in names.items():
        if axes[:1] == (ax.LAYER,):
            stacks[path] = path.partition("/layers/")[0]

    depths: dict[str, int] = {}
    for path, stack in stacks.items():
        depths[stack] = max(depths.get(stack, 0), params[path].shape[0])

    leaves = {}
    for path, axes in names.items():
        # A parameter with fewer layers than its stack is one that the first layers lack.
        first = depths[stacks[path]] - params[path].shape[0] if path in stacks else 0
        leaves[path] = Leaf(path, axes, first=first)
    return leaves


def _grown_state(
    leaves: Mapping[str, Leaf], operator: Operator, path: Any, old: Any, fresh: Any
) -> Any:
    """Returns a grown leaf of an optimizer's state.

    Its path ends in the name of a field and the keys of the parameter it belongs to, if any.
    """
    field = None
    keys: list[str] = []
    for entry in path:
        if isinstance(entry, jax.tree_util.GetAttrKey):
            field, keys = entry.name, []
        elif isinstance(entry, jax.tree_util.DictKey):
            keys.append(str(entry.key))

    leaf = leaves.get("/".join(keys))
    if field in _MOMENTS and leaf is not None:
        return operator(dataclasses.replace(leaf, kind=_MOMENTS[field]), old, jnp.zeros_like(fresh))
    return old if jnp.shape(old) == jnp.shape(fresh) else fresh
