"""Bytes of a train step on one device, by formula: what a search for a microbatch starts from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cramjax.budget import estimate
from cramjax.models import kernels

if TYPE_CHECKING:
    from cramjax.training.session import Session


def state_bytes(session: Session) -> dict[str, int]:
    """Bytes of the parameters and of the rest of the state ("optimizer"), as one device holds them."""

    def held(tree):
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    params = held(session.abstract.params)
    return {"parameters": params, "optimizer": held(session.abstract) - params}


def by_formula(session: Session, n_sequences: int) -> int:
    """Bytes of a step with `n_sequences` a pass on each device: linear, with the fixed part at 0."""
    config, itemsize = session.config, jnp.dtype(session.precision).itemsize
    state = state_bytes(session)
    per_sequence = estimate.activation_bytes(
        config.model,
        n_tokens=config.data.seq_len,
        n_targets=session.task.n_predicted,
        vocab_size=config.data.vocab_size,
        itemsize=itemsize,
        fused=not any(name in session.attention for name in (kernels.XLA, kernels.EINSUM)),
    )
    # Gradients lie like the parameters they are of.
    working = estimate.working_bytes(state["parameters"] // 4, itemsize)
    return sum(state.values()) + working + n_sequences * per_sequence
