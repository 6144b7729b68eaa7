"""Logical axis name → mesh axis, in one table; shardings of parameters and of optimizer state follow from it."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# fsdp cuts the width, which every matrix has; tensor cuts what is computed apart: heads, feed-forward columns, vocabulary.
RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def partition_spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The spec of an array with logical `axes` and `shape`; an axis the mesh does not divide stays whole.

    Raises:
        ValueError: if two axes of one array would lie on the same mesh axis, or the ranks differ.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {axes} do not fit shape {shape}")
    spec = [RULES.get(axis) if axis else None for axis in axes]
    spec = [name if name and size % mesh.shape[name] == 0 else None for name, size in zip(spec, shape, strict=True)]
    used = [name for name in spec if name]
    if len(set(used)) != len(used):
        raise ValueError(f"axes {axes} put two dimensions on one mesh axis: {spec}")
    return PartitionSpec(*spec)


def param_shardings(axes: Any, abstract: Any, mesh: Mesh) -> Any:
    """NamedShardings for a tree of parameters (`axes`: the same tree with a tuple of axis names at each leaf)."""
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh)), abstract, axes
    )


def optimizer_shardings(optimizer: optax.GradientTransformation, abstract_params: Any, shardings: Any, mesh: Mesh) -> Any:
    """NamedShardings for the optimizer state: whatever has its parameter's shape lies like it, the rest is replicated.

    Without this `jit(optimizer.init)` puts all moments on one device, since zeros depend on no input.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    abstract_state = jax.eval_shape(optimizer.init, abstract_params)

    def place(leaf, param, sharding):
        return sharding if leaf.shape == param.shape else whole

    return optax.tree.map_params(
        optimizer, place, abstract_state, abstract_params, shardings, transform_non_params=lambda _: whole
    )
