"""The embeddings of a fresh state from counts over the training text, before the first step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from cramjax.data import cooccurrence
from cramjax.data.dataset import TokenDataset
from cramjax.models import network
from cramjax.models.axes import EMBED, VOCAB
from cramjax.parallel import processes
from cramjax.training.session import Session

ROW_LENGTH = 2.0
"""Length of a token's vector, where a fresh one is shorter.

The head's states have a norm of sqrt(d_model), so logits start with a deviation of about 2 at any
width. docs/studies/track.md has the lengths that were tried, at one width.
"""


def from_cooccurrence(
    dataset: TokenDataset, session: Session, params: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Returns `params` with the vectors of `data.cooccurrence` for embeddings and logits.

    The vectors are turned by a random rotation, which `seed` decides. A token that the training
    text does not have keeps the direction of its fresh row.

    Args:
        dataset: what is counted, `TOKENS_PER_ENTRY` tokens for each entry of the vocabulary.
        session: has the network and its mesh.
        params: fresh ones, on the devices.
        seed: of the rotation.

    Raises:
        UserError: if the width is not well below the size of the vocabulary.
    """
    width = session.objective.network.d_model
    n_tokens = cooccurrence.TOKENS_PER_ENTRY * dataset.vocab_size

    rows = dataset.spread(n_tokens, session.objective.row_shape)
    dataset.refuse_foreign(rows, "train")
    pad_id = dataset.special_tokens["pad"]

    vectors = cooccurrence.vectors(rows, dataset.vocab_size, width, pad_id)
    vectors = vectors @ _rotation(width, seed)
    if processes.count() > 1:
        # Processors round differently, and every process must hold the same parameters.
        vectors = multihost_utils.broadcast_one_to_all(vectors)

    axes = network.param_axes(session.objective.network)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    place = jax.jit(lambda old, vectors: _placed(old, axes, vectors), out_shardings=shardings)
    return place(params, np.asarray(vectors))


def _rotation(width: int, seed: int) -> np.ndarray:
    """Returns a random orthogonal matrix, float32 [width, width]."""
    normal = np.random.default_rng(seed).standard_normal((width, width))
    return np.linalg.qr(normal)[0].astype(np.float32)


def _placed(params: dict[str, Any], axes: Any, vectors: jax.Array) -> dict[str, Any]:
    """Returns `params` with `vectors` in every matrix of tokens and widths."""

    def place(leaf: jax.Array, names: Any) -> jax.Array:
        if names != (VOCAB, EMBED):
            return leaf
        fresh_length = jnp.sqrt(jnp.mean(jnp.sum(leaf**2, axis=1)))
        known = jnp.pad(vectors, ((0, leaf.shape[0] - vectors.shape[0]), (0, 0)))
        is_known = jnp.any(known != 0, axis=1, keepdims=True)

        # The padding's row is 0 and stays so.
        lengths = jnp.linalg.norm(leaf, axis=1, keepdims=True)
        directions = jnp.where(is_known, known, leaf / jnp.maximum(lengths, 1e-12))
        return directions * jnp.maximum(ROW_LENGTH, fresh_length)

    return jax.tree.map(place, params, axes)
