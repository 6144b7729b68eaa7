"""Estimates the memory of a train step by formula, if the compiler of a device is not installed.

The result is an order of magnitude and is marked as one. Activations are what the backward pass of
a pre-norm block reads, as counted in Korthikanti et al. (arXiv 2205.05198, section 4) for blocks
without dropout: inputs and outputs of norms, queries, keys and values before and after rotation,
the attention's output, and both sides of the feed-forward's activation. Attention probabilities
count too if no fused kernel spares them.
"""

from __future__ import annotations

from cramjax.config.views import ModelConfig

_FLOAT32 = 4


def activation_bytes(
    model: ModelConfig,
    *,
    n_tokens: int,
    n_targets: int,
    vocab_size: int,
    itemsize: int,
    fused: bool,
) -> int:
    """Returns the bytes that one sequence keeps between its forward and its backward pass.

    Args:
        model: `config.model`.
        n_tokens: tokens of the encoder.
        n_targets: positions that reach the loss; all of the decoder's, if there is a decoder.
        vocab_size: columns of the logits.
        itemsize: bytes of an activation.
        fused: the attention keeps no probabilities.
    """
    total = model.n_layers * n_tokens * _per_token(model, n_tokens, itemsize, fused)

    n_decoder_layers = model.get("n_decoder_layers", 0)
    if n_decoder_layers is None:  # as deep as the encoder
        n_decoder_layers = model.n_layers
    if n_decoder_layers:
        cross = 5 * model.d_model * itemsize
        if not fused:
            cross += 2 * model.n_heads * n_tokens * itemsize
        per_target = _per_token(model, n_targets, itemsize, fused) + cross
        total += n_decoder_layers * n_targets * per_target

    # Logits and their gradient.
    total += n_targets * _FLOAT32 * (2 * vocab_size + model.d_model)
    return round(total)


def _per_token(model: ModelConfig, n_keys: int, itemsize: int, fused: bool) -> int:
    """Returns the bytes that a block keeps for a token."""
    d_model = model.d_model
    is_gated = model.ffn.startswith("geglu")
    if model.remat == "full":
        return d_model * itemsize
    if model.remat == "dots":
        return (5 * d_model + (2 if is_gated else 1) * model.d_ff) * itemsize

    inner = (4 if is_gated else 2) * model.d_ff
    scores = 0 if fused else 2 * model.n_heads * n_keys
    return (10 * d_model + inner + scores) * itemsize


def working_bytes(n_params: int, itemsize: int) -> int:
    """Returns the bytes beside parameters, optimizer and activations.

    They are the summed gradients, those of a microbatch, and narrow copies of the matrices.
    """
    copies = itemsize if itemsize < _FLOAT32 else 0
    return n_params * (2 * _FLOAT32 + copies)
