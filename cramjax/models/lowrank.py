"""A matrix as the product of two narrower ones, and the parameters of such layers written as whole matrices again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.models import axes as ax
from cramjax.models.layers import Linear, Precision
from cramjax.models.module import Initializer

_DOWN, _UP = "down", "up"


class LowRank(nnx.Module):
    """A dense layer whose kernel is a product of two: `Linear` with a narrow middle (factorisation of CompoundGrow, arXiv 2010.12562).

    Arguments as of `Linear`, with the `rank` of the kernel; a bias is that of the second half.
    """

    def __init__(
        self,
        spec: str,
        shape: tuple[int, ...],
        axes: ax.Axes,
        *,
        rank: int,
        bias: bool,
        init: Initializer,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        operands, out = spec.split("->")
        left, right = operands.split(",")  # the kernel's first axis is the one that is summed
        middle = f"{left[:-1]}r"
        common = {"precision": precision, "rngs": rngs}
        shapes, names = (
            ((shape[0], rank), (rank, *shape[1:])),
            ((axes[0], ax.RANK), (ax.RANK, *axes[1:])),
        )
        self.down = Linear(
            f"{left},{right[0]}r->{middle}", shapes[0], names[0], bias=False, init=init, **common
        )
        # The product has the deviation that `init` gives to the whole matrix.
        second = jax.nn.initializers.normal(rank**-0.5)
        self.up = Linear(
            f"{middle},r{right[1:]}->{out}", shapes[1], names[1], bias=bias, init=second, **common
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """As `Linear`."""
        return self.up(self.down(x))


def merged(params: dict[str, Any]) -> dict[str, Any]:
    """`params`, stacks of layers among them, with each pair of factors as the matrix it stands for; the function stays what it was."""
    flat = flatten_dict(params, sep="/")
    for path in [path for path in flat if path.endswith(f"/{_DOWN}/kernel")]:
        place = path.removesuffix(f"/{_DOWN}/kernel")
        down, up = flat.pop(path), flat.pop(f"{place}/{_UP}/kernel")
        exact = jax.lax.Precision.HIGHEST  # accelerators would round the parameters
        flat[f"{place}/kernel"] = jnp.einsum("ler,lr...->le...", down, up, precision=exact)
        if f"{place}/{_UP}/bias" in flat:
            flat[f"{place}/bias"] = flat.pop(f"{place}/{_UP}/bias")
    return unflatten_dict(flat, sep="/")
