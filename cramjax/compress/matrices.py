"""Which parameters of a model are compressed: its matrices, and the embedding of its vocabulary."""

from __future__ import annotations

from typing import Any

from flax.traverse_util import flatten_dict

from cramjax.models import axes as ax

Matrix = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The axes of a tensor that tell matrices apart (layers, fused parts), those that are summed over in use, and those of the result."""


def find(axes: Any, *, embeddings: bool = True) -> dict[str, Matrix]:
    """Path joined by "/" → how the tensor is read as matrices, for all that is compressed.

    Norms, biases, tables of positions and token types, and the few scores of a classifier stay as they are: they are small, and do harm.

    Args:
        axes: tree of tuples of axis names, as of `param_axes`. embeddings: whether that of the vocabulary and the logits' own are in.
    """
    roles = flatten_dict(ax.roles(axes), sep="/")
    found: dict[str, Matrix] = {}
    for path, names in flatten_dict(axes, sep="/").items():
        if roles[path] == "matrix":
            rows, columns = ax.rows_and_columns(names)
        elif embeddings and ax.VOCAB in names and len(names) == 2:
            # Logits sum over the width, and a token is a column.
            rows, columns = (names.index(ax.EMBED),), (names.index(ax.VOCAB),)
        else:
            continue
        batch = tuple(i for i in range(len(names)) if i not in rows + columns)
        if columns:
            found[path] = (batch, rows, columns)
    return found
