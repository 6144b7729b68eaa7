"""Losses over a vocabulary, in float32, as weighted sums.

Sums add up over microbatches and devices; means do not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

MOST_LOGITS = 2**28
"""Logits in memory at a time, where gradients are taken: a gigabyte of float32."""


def predicted_cross_entropy(
    logits_of: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    hidden: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
) -> jax.Array:
    """Returns `cross_entropy` of `logits_of(params, hidden)`, with few logits in memory at a time.

    Where gradients are taken, they are computed with the loss, chunk by chunk along the axis of
    positions: no logits wait for a backward pass. A chunk has at most `MOST_LOGITS` of them. Sums
    run in another order than for all positions at once.

    Args:
        logits_of: returns float32 [batch, positions, vocab].
        params: a tree of float32 arrays.
        hidden: [batch, positions, embed].
        labels: int32 [batch, positions], not differentiated.
        weights: float32 [batch, positions], not differentiated.
        z_loss: as for `cross_entropy`.
        smoothing: as for `cross_entropy`.

    Returns:
        float32 scalar.
    """
    both: Any = _predicted(logits_of, params, hidden, labels, weights, z_loss, smoothing)
    return both[0]


def predicted_with_hits(
    logits_of: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    hidden: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns `predicted_cross_entropy`, and where no entry has a higher logit than the label.

    The second is bool [batch, positions], and costs no logits of its own.
    """
    both: Any = _predicted(logits_of, params, hidden, labels, weights, z_loss, 0.0)
    return both


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def _predicted(logits_of, params, hidden, labels, weights, z_loss, smoothing):
    logits = logits_of(params, hidden)
    loss = cross_entropy(logits, labels, weights, z_loss, smoothing)
    return loss, _are_highest(logits, labels)


def _predicted_forward(logits_of, params, hidden, labels, weights, z_loss, smoothing):
    def loss_and_gradients(hidden, labels, weights):
        logits, back = jax.vjp(logits_of, params, hidden)
        loss, saved = _forward(logits, labels, weights, z_loss, smoothing)
        gradients = back(_backward(z_loss, smoothing, saved, jnp.ones((), jnp.float32))[0])
        return loss, _are_highest(logits, labels), *gradients

    n_positions = hidden.shape[1]
    n_logits = jax.eval_shape(logits_of, params, hidden).size
    n_chunks = min(-(-n_logits // MOST_LOGITS), n_positions)
    if n_chunks == 1:
        loss, hits, *gradients = loss_and_gradients(hidden, labels, weights)
        return (loss, hits), tuple(gradients)

    def add_chunk(sums, chunk):
        # Gradients of parameters add up over chunks, those of hidden states stand side by side.
        loss, hits, of_params, of_hidden = loss_and_gradients(*chunk)
        return jax.tree.map(jnp.add, sums, (loss, of_params)), (hits, of_hidden)

    chunks = tuple(_split(x, n_chunks) for x in (hidden, labels, weights))
    zeros = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
    (loss, of_params), of_positions = jax.lax.scan(add_chunk, zeros, chunks)

    def beside(parts):
        # [chunks, batch, positions / chunks, …] → [batch, positions, …]
        whole = jnp.moveaxis(parts, 0, 1).reshape((hidden.shape[0], -1, *parts.shape[3:]))
        return whole[:, :n_positions]

    hits, of_hidden = jax.tree.map(beside, of_positions)
    return (loss, hits), (of_params, of_hidden)


def _predicted_backward(logits_of, z_loss, smoothing, gradients, cotangents):
    cotangent, _ = cotangents  # hits have no gradient

    def scale(gradient):
        return (gradient.astype(jnp.float32) * cotangent).astype(gradient.dtype)

    return *jax.tree.map(scale, gradients), None, None


_predicted.defvjp(_predicted_forward, _predicted_backward)


def presence_cross_entropy(
    logits_of: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    hidden: jax.Array,
    is_present: jax.Array,
) -> jax.Array:
    """Returns the sum in nats of a yes-or-no question to every position.

    The log-odds of yes are the logarithm of the sum of the exponentials of the position's logits.
    At most `MOST_LOGITS` of them are in memory at a time; the backward pass computes them again.

    Args:
        logits_of: returns float32 [batch, positions, vocab].
        params: a tree of float32 arrays.
        hidden: [batch, positions, embed].
        is_present: bool [batch, positions], the right answers.

    Returns:
        float32 scalar.
    """

    def of_chunk(params, hidden, answers, weights):
        log_odds = jax.nn.logsumexp(logits_of(params, hidden), axis=-1)
        return jnp.sum(weights * (jax.nn.softplus(log_odds) - answers * log_odds))

    answers = is_present.astype(jnp.float32)
    weights = jnp.ones_like(answers)
    n_logits = jax.eval_shape(logits_of, params, hidden).size
    n_chunks = min(-(-n_logits // MOST_LOGITS), hidden.shape[1])
    if n_chunks == 1:
        return of_chunk(params, hidden, answers, weights)

    def add_chunk(total, chunk):
        return total + jax.checkpoint(of_chunk)(params, *chunk), None

    chunks = tuple(_split(x, n_chunks) for x in (hidden, answers, weights))
    return jax.lax.scan(add_chunk, jnp.zeros((), jnp.float32), chunks)[0]


def _split(x: jax.Array, n_chunks: int) -> jax.Array:
    """[batch, positions, …] → [chunks, batch, positions / chunks, …].

    Zeros fill up the last chunk, and have no weight.
    """
    size = -(-x.shape[1] // n_chunks)
    rest = [(0, 0)] * (x.ndim - 2)
    filled = jnp.pad(x, [(0, 0), (0, n_chunks * size - x.shape[1]), *rest])
    return jnp.moveaxis(filled.reshape((x.shape[0], n_chunks, size, *x.shape[2:])), 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
) -> jax.Array:
    """Returns the weighted sum of the cross-entropy in nats, plus `z_loss` times log(Z)^2.

    Args:
        logits: float32 [..., vocab].
        labels: int32 [...], the right entries.
        weights: float32 [...], not differentiated; 0 leaves a position out.
        z_loss: coefficient that keeps the normaliser Z near 1; 0 for none.
        smoothing: share of the right entry's probability that is spread over all entries (arXiv
            1512.00567, section 7).

    Returns:
        float32 scalar.
    """
    return _forward(logits, labels, weights, z_loss, smoothing)[0]


def _forward(logits, labels, weights, z_loss, smoothing):
    log_z = jax.nn.logsumexp(logits, axis=-1)  # [...]
    picked = _picked(logits, labels)
    if smoothing:
        picked = (1.0 - smoothing) * picked + smoothing * jnp.mean(logits, axis=-1)
    loss = jnp.sum((log_z - picked + z_loss * log_z**2) * weights)
    return loss, (logits, labels, weights, log_z)


def _backward(z_loss, smoothing, saved, cotangent):
    # Written out because the transpose of the gather is a scatter into a zero array of the size of
    # the logits: on CPU that costs more than the softmax itself. The comparison below fuses into
    # the same single pass.
    logits, labels, weights, log_z = saved
    scale = (cotangent * weights)[..., None]
    probabilities = jnp.exp(logits - log_z[..., None])
    hit = _hits(logits, labels).astype(logits.dtype)
    if smoothing:
        hit = (1.0 - smoothing) * hit + smoothing / logits.shape[-1]
    gradient = probabilities * (1.0 + 2.0 * z_loss * log_z[..., None]) - hit
    return gradient * scale, None, None


def _picked(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the logits of the right entries: [...]."""
    return jax.lax.platform_dependent(logits, labels, cpu=_gathered, default=_compared)


def _are_highest(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return _picked(logits, labels) >= jnp.max(logits, axis=-1)


def _gathered(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def _compared(logits: jax.Array, labels: jax.Array) -> jax.Array:
    # It joins the sweep of the sum of exponentials over the logits; a gather would be a second one.
    return jnp.sum(jnp.where(_hits(logits, labels), logits, 0.0), axis=-1)


def _hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the right entries: bool [..., vocab]."""
    right = labels[..., None]
    return right == jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)


cross_entropy.defvjp(_forward, _backward)
