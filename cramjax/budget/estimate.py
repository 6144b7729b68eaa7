"""Memory of a train step by formula, for where the compiler of a device is not installed: the order of magnitude, and marked as such.

Activations are what the backward pass of a pre-norm block reads (as counted in Korthikanti et al., arXiv 2205.05198, section 4, for blocks
without dropout): inputs and outputs of norms, queries, keys and values before and after rotation, the attention's output, and both
sides of the feed-forward's activation; attention probabilities too where no fused kernel spares them.
"""

from __future__ import annotations

from cramjax.config.views import ModelConfig


def activation_bytes(
    model: ModelConfig,
    *,
    n_tokens: int,
    n_targets: int,
    vocab_size: int,
    itemsize: int,
    fused: bool,
) -> int:
    """Bytes of one sequence between its forward and its backward pass.

    Args:
        model: `config.model`. n_tokens: of the encoder. n_targets: positions that reach the loss; of a T5 the decoder's tokens.
        itemsize: bytes of an activation. fused: whether the attention keeps no probabilities.
    """
    layers = model.n_layers * n_tokens * _per_token(model, n_tokens, itemsize, fused)
    if model.family == "t5":
        n_decoder_layers = model.n_decoder_layers or model.n_layers
        cross = 5 * model.d_model * itemsize + (
            0 if fused else 2 * model.n_heads * n_tokens * itemsize
        )
        layers += (
            n_decoder_layers * n_targets * (_per_token(model, n_targets, itemsize, fused) + cross)
        )
    logits = n_targets * (2 * 4 * vocab_size + 4 * model.d_model)  # float32, and their gradient
    return round(layers + logits)


def _per_token(model: ModelConfig, n_keys: int, itemsize: int, fused: bool) -> int:
    """Bytes a block keeps for a token."""
    d, gated = model.d_model, model.ffn.startswith("geglu")
    if model.remat == "full":
        return d * itemsize
    if model.remat == "dots":
        return (5 * d + (2 if gated else 1) * model.d_ff) * itemsize
    inner = (4 if gated else 2) * model.d_ff
    scores = 0 if fused else 2 * model.n_heads * n_keys
    return (10 * d + inner + scores) * itemsize


def working_bytes(n_params: int, itemsize: int) -> int:
    """Bytes beside parameters, optimizer and activations: summed gradients, those of a microbatch, and narrow copies of the matrices."""
    return n_params * (4 + 4 + (itemsize if itemsize < 4 else 0))
