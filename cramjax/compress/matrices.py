"""Says which parameters are compressed: the matrices, and the embedding of the vocabulary."""

from __future__ import annotations

from typing import Any

from flax.traverse_util import flatten_dict

from cramjax.models import axes as ax

Matrix = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""How a tensor is read as matrices: the axes that number the matrices (layers, fused parts), those
that are summed over in use (rows), and those of the result (columns)."""


def find(axes: Any, *, embeddings: bool = True) -> dict[str, Matrix]:
    """Returns path joined by "/" → how the tensor is read as matrices, for all that is compressed.

    Norms, biases, tables of positions and token types, and the few scores of a classifier stay as
    they are: they are small, and their errors do harm.

    Args:
        axes: tree of tuples of axis names, as `param_axes` returns it.
        embeddings: includes the embedding of the vocabulary and the logits' own.
    """
    roles: dict[str, Any] = flatten_dict(ax.roles(axes), sep="/")
    names_by_path: dict[str, Any] = flatten_dict(axes, sep="/")
    matrices: dict[str, Matrix] = {}
    for path, names in names_by_path.items():
        if roles[path] == "matrix":
            rows, columns = ax.rows_and_columns(names)
        elif embeddings and ax.VOCAB in names and len(names) == 2:
            # Logits sum over the width, and each token is a column.
            rows = (names.index(ax.EMBED),)
            columns = (names.index(ax.VOCAB),)
        else:
            continue

        batch = tuple(axis for axis in range(len(names)) if axis not in rows + columns)
        if columns:
            matrices[path] = (batch, rows, columns)
    return matrices
