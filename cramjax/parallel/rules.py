"""The table of logical axis name → mesh axis, and the shardings that follow from it."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# fsdp divides the width, which every matrix has. tensor divides the axes with independent
# computations: heads, feed-forward columns, vocabulary.
RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def partition_spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh
) -> PartitionSpec:
    """Returns the spec of an array; an axis whose size the mesh does not divide stays whole.

    Args:
        axes: the logical name of each axis, or None.
        shape: the size of each axis.
        mesh: the devices.

    Raises:
        ValueError: if two axes of one array would lie on the same mesh axis, or the ranks differ.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not fit shape {shape}")

    spec: list[str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        name = RULES.get(axis) if axis else None
        divides = name is not None and size % mesh.shape[name] == 0
        if not divides:
            name = None
        spec.append(name)

    used = [name for name in spec if name]
    if len(set(used)) != len(used):
        raise ValueError(f"axes {axes} put two dimensions on one mesh axis: {spec}")
    return PartitionSpec(*spec)


def param_shardings(axes: Any, abstract: Any, mesh: Mesh) -> Any:
    """Returns the NamedShardings of a tree of parameters.

    Args:
        axes: the same tree with a tuple of axis names at each leaf.
        abstract: the tree with shapes.
        mesh: the devices.
    """
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh)),
        abstract,
        axes,
    )


def optimizer_shardings(
    optimizer: optax.GradientTransformation, abstract_params: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Returns the NamedShardings of the optimizer state.

    A leaf with the shape of its parameter has that parameter's sharding; the rest is replicated.
    Without this `jit(optimizer.init)` puts all moments on one device: zeros depend on no input.

    A leaf belongs to the parameter whose path ends the leaf's own path. This holds through every
    wrapper of optax (chains, masks, partitions).
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    paths_and_leaves = jax.tree_util.tree_flatten_with_path(abstract_params)[0]
    known = {}
    for (path, leaf), sharding in zip(paths_and_leaves, jax.tree.leaves(shardings), strict=True):
        known[_keys(path)] = (leaf.shape, sharding)

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        # The longest ending of the path comes first.
        keys = _keys(path)
        for start in range(len(keys)):
            shape, sharding = known.get(keys[start:], (None, replicated))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, abstract_params))


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns the dict keys on a tree path, without positions in tuples and names of fields."""
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
