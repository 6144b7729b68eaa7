"""Pruning by magnitude, of single weights or of whole heads and feed-forward columns.

All functions are pure functions of the parameters. The paper (Train Large, Then Compress, arXiv
2002.11794, section 4) prunes by magnitude, again and again with finetuning in between. How much at
a time, which weights are compared, and what becomes of heads is not in the sources at hand; these
choices are ours.
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
    """Returns `share`. Raises UserError unless it is a share that leaves something."""
    if not 0 <= share < 1:
        raise UserError(
            f"--prune {share:g}: must be a share from 0 to below 1; at 1 nothing is left"
        )
    return share


def check_scope(scope: str) -> None:
    """Raises UserError for an unknown scope."""
    if scope not in SCOPES:
        raise UserError(f"--scope {scope}: must be one of {', '.join(SCOPES)}")


def prune(
    params: Params, paths: Mapping[str, Matrix], share: float, scope: str = "global"
) -> Params:
    """Returns `params` with the smallest weights (by magnitude) of the tensors in `paths` at zero.

    Exactly the `share` becomes zero.

    Args:
        scope: "global" compares all weights with each other, "matrix" those of one matrix (of one
            layer; of query, key or value).

    Raises:
        UserError: for a share that leaves nothing, or an unknown scope.
    """
    check_share(share)
    check_scope(scope)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    chosen = sorted(path for path in paths if path in flat)
    # The masks are computed on the host: sorting all weights needs no device.
    if scope == "global":
        masks = _kept_of_all({path: np.abs(flat[path]) for path in chosen}, share)
    else:
        masks = {path: _kept_by_matrix(np.abs(flat[path]), paths[path], share) for path in chosen}

    for path, mask in masks.items():
        flat[path] = np.where(mask, flat[path], np.float32(0.0))
    return unflatten_dict({path: jnp.asarray(leaf) for path, leaf in flat.items()}, sep="/")


def _kept(magnitudes: np.ndarray, share: float) -> np.ndarray:
    """Returns bool [n], true where one of `magnitudes` [n] stays; of equal ones the later stays."""
    n_zero = round(share * len(magnitudes))
    kept = np.ones(len(magnitudes), bool)
    kept[np.argsort(magnitudes, kind="stable")[:n_zero]] = False
    return kept


def _kept_of_all(magnitudes: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    """Returns masks by path after all weights are compared with each other."""
    kept = _kept(np.concatenate([leaf.ravel() for leaf in magnitudes.values()]), share)
    masks = {}
    start = 0
    for path, leaf in magnitudes.items():
        masks[path] = kept[start : start + leaf.size].reshape(leaf.shape)
        start += leaf.size
    return masks


def _kept_by_matrix(magnitudes: np.ndarray, matrix: Matrix, share: float) -> np.ndarray:
    """Returns the mask of a tensor after the weights of each of its matrices are compared."""
    masks = []
    for one in fold(magnitudes, matrix):
        masks.append(_kept(one.ravel(), share).reshape(one.shape))
    return unfold(np.stack(masks), matrix, magnitudes.shape)


def keep_zeros(params: Params, paths: Mapping[str, Matrix]) -> Params:
    """Returns `params` with no gradient at the zeros of the tensors in `paths`.

    A pruned weight thus stays zero under every elementwise optimizer.
    """
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    for path in paths:
        if path in flat:
            leaf = flat[path]
            is_kept = jax.lax.stop_gradient(leaf) != 0
            flat[path] = jnp.where(is_kept, leaf, jnp.zeros((), leaf.dtype))
    return unflatten_dict(flat, sep="/")


def n_left(n: int, share: float) -> int:
    """Returns how many of `n` heads or columns are left after pruning a `share`, at least one."""
    return max(1, round((1 - check_share(share)) * n))


def shrink(cfg: Any, params: Params, axes: Any, *, n_heads: int, d_ff: int) -> tuple[Any, Params]:
    """Returns a smaller network with the heads and feed-forward columns that weigh most.

    Each layer keeps equally many. The weight of a head or a column is the norm of all parameters
    that belong to it. The heads of a T5's self-attention share biases over the layers, so a stack
    keeps the same heads in all its layers.

    Args:
        cfg: configuration of an encoder or a T5.
        params: parameters, with a classifier or without.
        axes: axis names of the parameters.
        n_heads: heads that stay in a layer.
        d_ff: feed-forward columns that stay in a layer.

    Returns:
        The configuration and the parameters.
    """
    names: dict[str, Any] = flatten_dict(axes, sep="/")
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    for axis, n_kept in ((ax.HEADS, n_heads), (ax.MLP, d_ff)):
        # All parameters of an attention or a feed-forward lose the same heads or columns.
        for module, paths in _modules(names, axis).items():
            shared = _shared_biases(names, module) if axis == ax.HEADS else []
            leaves = [(np.asarray(flat[path]), names[path]) for path in paths]
            keep = _heaviest(leaves, axis, n_kept, alike=bool(shared))

            for path in paths:
                leaf = jnp.asarray(flat[path])
                flat[path] = _take_by_layer(leaf, names[path].index(axis), keep)
            for path in shared:
                leaf = jnp.asarray(flat[path])
                flat[path] = jnp.take(leaf, keep[0], axis=names[path].index(axis))

    fields = {"n_heads": n_heads, "d_ff": d_ff}
    if hasattr(cfg, "pruned_heads"):
        fields["pruned_heads"] = cfg.pruned_heads + cfg.n_heads - n_heads
    return dataclasses.replace(cfg, **fields), unflatten_dict(flat, sep="/")


def _modules(names: Mapping[str, ax.Axes], axis: str) -> dict[str, list[str]]:
    """Returns attentions or feed-forwards of a stack → paths of their parameters with `axis`."""
    modules: dict[str, list[str]] = {}
    for path, path_axes in names.items():
        if path_axes[:1] == (ax.LAYER,) and axis in path_axes:
            stack, _, rest = path.partition("/layers/")
            module = f"{stack}/layers/{rest.partition('/')[0]}"
            modules.setdefault(module, []).append(path)
    return modules


def _shared_biases(names: Mapping[str, ax.Axes], module: str) -> list[str]:
    """Returns paths of the position biases that the heads of `module` share over the layers."""
    if module.endswith("cross_attention"):
        return []
    stack = module.partition("/layers/")[0]
    return [path for path in names if path.startswith(stack) and ax.BUCKET in names[path]]


def _heaviest(
    leaves: list[tuple[np.ndarray, ax.Axes]], axis: str, n: int, *, alike: bool
) -> np.ndarray:
    """Returns int [layers, n]: the indices along `axis` with the largest norms, in order.

    Args:
        leaves: parameters and their axis names; axis 0 is the layer.
        alike: chooses the same indices in all layers.
    """
    weights: Any = 0.0
    for leaf, leaf_axes in leaves:
        others = tuple(i for i in range(1, leaf.ndim) if i != leaf_axes.index(axis))
        weights = weights + np.square(leaf.astype(np.float64)).sum(axis=others)  # [layers, size]

    if alike:
        weights = np.broadcast_to(weights.sum(axis=0), weights.shape)
    chosen = np.argsort(-weights, axis=1, kind="stable")[:, :n]
    return np.sort(chosen, axis=1)


def _take_by_layer(leaf: jax.Array, axis: int, keep: np.ndarray) -> jax.Array:
    """Returns the entries `keep` [layers, n] along `axis`; each layer (axis 0) has its own."""
    # [layers, n] → [layers, 1, …, n, …, 1]
    shape = [1] * leaf.ndim
    shape[0], shape[axis] = keep.shape
    return jnp.take_along_axis(leaf, jnp.asarray(keep).reshape(shape), axis=axis)
