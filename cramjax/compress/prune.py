"""Pruning by magnitude, of single weights or of whole heads and feed-forward columns; pure functions on parameters.

The paper (Train Large, Then Compress, arXiv 2002.11794, section 4) prunes by magnitude, again and again with finetuning between; how much
at a time, over what weights are compared, and what becomes of heads is not in the sources at hand and is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.checkpoints.packed import fold, unfold
from cramjax.compress.matrices import Matrix
from cramjax.errors import UserError
from cramjax.models import axes as ax

Params = dict[str, Any]
SCOPES = ("global", "matrix")


def check_share(share: float) -> float:
    """`share` itself. Raises UserError where it is no share that leaves something."""
    if not 0 <= share < 1:
        raise UserError(
            f"--prune {share:g}: must be a share from 0 to below 1; at 1 nothing is left"
        )
    return share


def prune(
    params: Params, paths: Mapping[str, Matrix], share: float, scope: str = "global"
) -> Params:
    """`params` with the `share` of the smallest weights (by magnitude) of the tensors in `paths` at zero: exactly so many.

    Args:
        scope: "global" compares all weights, "matrix" those of one matrix (of one layer, of query, key or value) with each other.

    Raises:
        UserError: for a share that leaves nothing, or an unknown scope.
    """
    check_share(share)
    if scope not in SCOPES:
        raise UserError(f"--scope {scope}: must be one of {', '.join(SCOPES)}")
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    chosen = sorted(path for path in paths if path in flat)
    if scope == "global":
        sizes = [flat[path].size for path in chosen]
        kept = _kept(np.concatenate([np.abs(flat[path]).ravel() for path in chosen]), share)
        masks = {
            path: part.reshape(flat[path].shape)
            for path, part in zip(chosen, np.split(kept, np.cumsum(sizes)[:-1]), strict=True)
        }
    else:
        masks = {path: _kept_by_matrix(np.abs(flat[path]), paths[path], share) for path in chosen}
    for path, mask in masks.items():
        flat[path] = np.where(mask, flat[path], np.float32(0.0))
    return unflatten_dict({path: jnp.asarray(leaf) for path, leaf in flat.items()}, sep="/")


def _kept(magnitudes: np.ndarray, share: float) -> np.ndarray:
    """Which of [n] stay: bool [n]; of equal ones the later."""
    kept = np.ones(len(magnitudes), bool)
    kept[np.argsort(magnitudes, kind="stable")[: round(share * len(magnitudes))]] = False
    return kept


def _kept_by_matrix(magnitudes: np.ndarray, matrix: Matrix, share: float) -> np.ndarray:
    kept = np.stack(
        [_kept(one.ravel(), share).reshape(one.shape) for one in fold(magnitudes, matrix)]
    )
    return unfold(kept, matrix, magnitudes.shape)


def keep_zeros(params: Params, paths: Mapping[str, Matrix]) -> Params:
    """`params` with no gradient where a weight in `paths` is zero: what is pruned stays so under every elementwise optimizer."""

    def held(path, leaf):
        return (
            jnp.where(jax.lax.stop_gradient(leaf) != 0, leaf, jnp.zeros((), leaf.dtype))
            if path in paths
            else leaf
        )

    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: held(path, leaf) for path, leaf in flat.items()}, sep="/")


def n_left(n: int, share: float) -> int:
    """Of `n` heads or columns what is left after pruning a `share`: one at least."""
    return max(1, round((1 - check_share(share)) * n))


def shrink(cfg: Any, params: Params, axes: Any, *, n_heads: int, d_ff: int) -> tuple[Any, Params]:
    """A network of the heads and of the feed-forward columns that weigh most, in each layer as many: smaller tensors.

    What a head or a column weighs is the norm of all weights that belong to it. The heads of a T5's self-attention share biases over
    the layers, so they are the same ones in a stack.

    Args:
        cfg: of an encoder or a T5. params, axes: trees of the network, with a classifier or without. n_heads, d_ff: what stays.

    Returns:
        The configuration and the parameters.
    """
    names, flat = flatten_dict(axes, sep="/"), dict(flatten_dict(params, sep="/"))
    for axis, n_kept in ((ax.HEADS, n_heads), (ax.MLP, d_ff)):
        for module, paths in _modules(names, axis).items():
            tied = [
                path
                for path in names
                if path.startswith(module.partition("/layers/")[0]) and ax.BUCKET in names[path]
            ]
            tied = tied if axis == ax.HEADS and not module.endswith("cross_attention") else []
            keep = _heaviest(
                [(np.asarray(flat[path]), names[path]) for path in paths],
                axis,
                n_kept,
                alike=bool(tied),
            )
            for path in paths:
                flat[path] = _taken(jnp.asarray(flat[path]), names[path].index(axis), keep)
            for path in tied:
                flat[path] = jnp.take(
                    jnp.asarray(flat[path]), keep[0], axis=names[path].index(axis)
                )
    fields = {"n_heads": n_heads, "d_ff": d_ff}
    if hasattr(cfg, "pruned_heads"):
        fields["pruned_heads"] = cfg.pruned_heads + cfg.n_heads - n_heads
    return dataclasses.replace(cfg, **fields), unflatten_dict(flat, sep="/")


def _modules(names: Mapping[str, ax.Axes], axis: str) -> dict[str, list[str]]:
    """Attentions or feed-forwards of a stack of layers → their parameters that have `axis`."""
    modules: dict[str, list[str]] = {}
    for path, own in names.items():
        if own[:1] == (ax.LAYER,) and axis in own:
            stack, _, rest = path.partition("/layers/")
            modules.setdefault(f"{stack}/layers/{rest.partition('/')[0]}", []).append(path)
    return modules


def _heaviest(
    leaves: list[tuple[np.ndarray, ax.Axes]], axis: str, n: int, *, alike: bool
) -> np.ndarray:
    """int [layers, n]: along `axis` the indices with the largest norms, in order; the same in all layers if `alike`."""
    total = 0.0
    for leaf, own in leaves:
        others = tuple(i for i in range(1, leaf.ndim) if i != own.index(axis))
        total = total + np.square(leaf.astype(np.float64)).sum(axis=others)  # [layers, size]
    weights = np.broadcast_to(total.sum(axis=0), total.shape) if alike else total
    chosen = np.argsort(-weights, axis=1, kind="stable")[:, :n]
    return np.sort(chosen, axis=1)


def _taken(leaf: jax.Array, axis: int, keep: np.ndarray) -> jax.Array:
    """Of each layer (axis 0) what `keep` [layers, n] says along `axis`."""
    shape = [1] * leaf.ndim
    shape[0], shape[axis] = keep.shape
    return jnp.take_along_axis(leaf, jnp.asarray(keep).reshape(shape), axis=axis)
