"""Glossary of the logical axis names of parameters; `parallel/rules.py` maps them to a mesh.

Shape comments use the same words. An axis without a name is None: the 3 of a fused query-key-value
kernel, and the 2 halves of a gated feed-forward.
"""

from __future__ import annotations

from typing import Any

import jax

BATCH = "batch"  # sequences
LENGTH = "length"  # positions of a sequence; of the queries in attention
EMBED = "embed"  # width of the residual stream
# Embed again, where a matrix maps it to itself: one axis of a mesh cannot cut both.
EMBED_OUT = "embed_out"
HEADS = "heads"
HEAD_DIM = "head_dim"
RANK = "rank"  # between the factors of a feed-forward matrix
MLP = "mlp"  # inner width of the feed-forward; of one half where it is gated
VOCAB = "vocab"  # entries of the token embedding, padding included
POSITION = "position"  # entries of a learned position table
TOKEN_TYPE = "token_type"
BUCKET = "bucket"  # of relative positions
NORM = "norm"  # width of a norm's scale and bias: the same numbers as embed, but never cut
LAYER = "layer"  # blocks, stacked; always the first axis

Axes = tuple[str | None, ...]


def is_axes(node: Any) -> bool:
    """Returns whether `node` is a leaf of a tree of axis names."""
    return isinstance(node, tuple)


def roles(axes: Any) -> Any:
    """Returns a tree like `axes` with the role of each parameter, from its path and axes.

    A role is "matrix", "embedding", "norm", "bias" or "scalar".
    """

    def role(path: Any, names: Axes) -> str:
        keys = [getattr(entry, "key", str(entry)) for entry in path]
        if keys[-1] == "bias":
            return "bias"
        if any("norm" in key for key in keys):
            return "norm"
        if "embeddings" in keys or VOCAB in names or BUCKET in names:
            return "embedding" if len(names) > 1 else "scalar"
        return "matrix"

    return jax.tree.map_with_path(role, axes, is_leaf=is_axes)


def own_axes(role: str, names: Axes) -> tuple[int, ...]:
    """Returns the axes of a single tensor.

    The others tell apart layers and, in a matrix, fused parts (query, key, value; halves of a GLU).
    """
    others = {LAYER, None} if role == "matrix" else {LAYER}
    return tuple(i for i, axis in enumerate(names) if axis not in others)


def rows_and_columns(names: Axes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axes of a matrix that its product sums over, and those of the result."""
    own = own_axes("matrix", names)
    split = 1 if names[own[0]] == EMBED else len(own) - 1
    return own[:split], own[split:]
