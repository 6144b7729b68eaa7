"""Losses over a vocabulary, in float32, as sums with their weights so that they add up over microbatches and devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array, z_loss: float = 0.0) -> jax.Array:
    """Weighted sum of the cross-entropy in nats, plus `z_loss` times log(Z)^2 (weighted alike).

    Args:
        logits: float32 [..., vocab].
        labels: int32 [...], the right entries.
        weights: float32 [...]; 0 leaves a position out. Not differentiated.
        z_loss: coefficient that keeps the normaliser near 1; 0 for none.

    Returns:
        float32 scalar.
    """
    return _forward(logits, labels, weights, z_loss)[0]


def _forward(logits, labels, weights, z_loss):
    log_z = jax.nn.logsumexp(logits, axis=-1)  # [...]
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]  # [...]
    loss = jnp.sum((log_z - picked + z_loss * log_z**2) * weights)
    return loss, (logits, labels, weights, log_z)


def _backward(z_loss, saved, cotangent):
    # Written out because the transpose of the gather is a scatter into a zero array of the size of the logits: on CPU
    # that costs more than the softmax itself. The comparison below fuses into the same single pass.
    logits, labels, weights, log_z = saved
    scale = (cotangent * weights)[..., None]
    probabilities = jnp.exp(logits - log_z[..., None])
    hit = labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    gradient = probabilities * (1.0 + 2.0 * z_loss * log_z[..., None]) - hit.astype(logits.dtype)
    return gradient * scale, None, None


cross_entropy.defvjp(_forward, _backward)
