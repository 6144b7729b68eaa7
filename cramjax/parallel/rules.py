"""Logical axis name → mesh axis, in one table; shardings of parameters and of optimizer state follow from it."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# fsdp cuts the width, which every matrix has; tensor cuts what is computed apart: heads, feed-forward columns, vocabulary.
RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def partition_spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    """The spec of an array with logical `axes` and `shape`; an axis the mesh does not divide stays whole.

    Raises:
        ValueError: if two axes of one array would lie on the same mesh axis, or the ranks differ.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not fit shape {shape}")
    spec = [RULES.get(axis) if axis else None for axis in axes]
    spec = [
        name if name and size % mesh.shape[name] == 0 else None
        for name, size in zip(spec, shape, strict=True)
    ]
    used = [name for name in spec if name]
    if len(set(used)) != len(used):
        raise ValueError(f"axes {axes} put two dimensions on one mesh axis: {spec}")
    return PartitionSpec(*spec)


def param_shardings(axes: Any, abstract: Any, mesh: Mesh) -> Any:
    """NamedShardings for a tree of parameters (`axes`: the same tree with a tuple of axis names at each leaf)."""
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh)),
        abstract,
        axes,
    )


def optimizer_shardings(
    optimizer: optax.GradientTransformation, abstract_params: Any, shardings: Any, mesh: Mesh
) -> Any:
    """NamedShardings for the optimizer state: whatever has its parameter's shape lies like it, the rest is replicated.

    Without this `jit(optimizer.init)` puts all moments on one device, since zeros depend on no input. A state leaf belongs to the
    parameter whose path its own path ends with, which holds through every wrapper of optax (chains, masks, partitions).
    """
    whole = NamedSharding(mesh, PartitionSpec())
    paths_and_leaves = jax.tree_util.tree_flatten_with_path(abstract_params)[0]
    known = {
        _keys(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(paths_and_leaves, jax.tree.leaves(shardings), strict=True)
    }

    def place(path, leaf):
        keys = _keys(path)
        for start in range(len(keys)):
            shape, sharding = known.get(keys[start:], (None, whole))
            if shape == leaf.shape:
                return sharding
        return whole

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, abstract_params))


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The dict keys on a tree path; positions in tuples and names of fields are left out."""
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
