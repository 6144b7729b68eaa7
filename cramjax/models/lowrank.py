"""A matrix as the product of two narrower ones, and the way back to whole matrices."""

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
    """A dense layer whose kernel is a product of two.

    This is the factorisation of CompoundGrow (arXiv 2010.12562). It takes the arguments of `Linear`
    and the `rank` of the kernel. A bias belongs to the second half.
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

        down = f"{left},{right[0]}r->{middle}"
        down_shape, down_axes = (shape[0], rank), (axes[0], ax.RANK)
        self.down = Linear(down, down_shape, down_axes, bias=False, init=init, **common)

        # The product has the deviation that `init` gives to the whole matrix.
        second = jax.nn.initializers.normal(rank**-0.5)
        up = f"{middle},r{right[1:]}->{out}"
        up_shape, up_axes = (rank, *shape[1:]), (ax.RANK, *axes[1:])
        self.up = Linear(up, up_shape, up_axes, bias=bias, init=second, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the product and bias in the activation dtype."""
        return self.up(self.down(x))


def merged(params: dict[str, Any]) -> dict[str, Any]:
    """Returns stacked `params` with each pair of factors as the matrix that is their product.

    The network's function stays the same.
    """
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    factored = [path for path in flat if path.endswith(f"/{_DOWN}/kernel")]
    for path in factored:
        place = path.removesuffix(f"/{_DOWN}/kernel")
        down, up = flat.pop(path), flat.pop(f"{place}/{_UP}/kernel")
        exact = jax.lax.Precision.HIGHEST  # accelerators would round the parameters
        flat[f"{place}/kernel"] = jnp.einsum("ler,lr...->le...", down, up, precision=exact)
        if f"{place}/{_UP}/bias" in flat:
            flat[f"{place}/bias"] = flat.pop(f"{place}/{_UP}/bias")
    return unflatten_dict(flat, sep="/")
