"""Model FLOPs, counted by hand: the matrix products of the forward and the backward pass.

A multiply-add is two FLOPs. Element-wise work, softmax, norms, the optimizer and recomputation are
left out: the count is what the model needs, not what a program does. MFU divides by it. Attention
is bidirectional (every score counts), and the head reads the predicted positions only. All
arguments and results are plain numbers; `peaks.py` has the peak rates of devices.
"""

from __future__ import annotations

from typing import Any

BACKWARD_PER_FORWARD = 2
"""A product y = xW costs one product forward and two backward: the gradients of x and of W."""


def encoder_forward_flops(
    *,
    n_layers: int,
    d_model: int,
    d_ff: int,
    gated: bool,
    seq_len: int,
    n_predicted: int,
    vocab_size: int,
    head_transform: bool = False,
    ffn_rank: int = 0,
    n_pooled: int | None = None,
) -> int:
    """Returns the FLOPs of one sequence's forward pass through an encoder and its sparse head.

    The number of heads does not matter.

    Args:
        n_layers: blocks.
        d_model: width.
        d_ff: inner width of the feed-forward; of each half if it is gated.
        gated: the feed-forward has three matrices instead of two.
        seq_len: tokens of the sequence.
        n_predicted: positions of the sequence that the head reads.
        vocab_size: rows of the decoder with their padding.
        head_transform: a dense layer comes before the decoder.
        ffn_rank: inner dimension of the feed-forward's factored matrices; 0 for whole ones.
        n_pooled: positions if embeddings are pooled; the first layer's keys and values have
            `seq_len` positions all the same.
    """
    square = d_model * d_model
    n_positions = seq_len if n_pooled is None else n_pooled
    feed_forward = _feed_forward(d_model, d_ff, gated, ffn_rank)
    attention = 2 * d_model  # for a query and a key: the score, and its product with the value

    # Only the first layer's keys and values see every embedding.
    first = n_positions * (2 * square + feed_forward + attention * seq_len) + seq_len * 2 * square
    others = n_positions * (4 * square + feed_forward + attention * n_positions)

    per_prediction = d_model * vocab_size + (square if head_transform else 0)
    return 2 * (first + (n_layers - 1) * others + n_predicted * per_prediction)


def _feed_forward(d_model: int, d_ff: int, gated: bool, rank: int) -> int:
    """Returns the multiply-adds of a position."""
    n_inner = 2 if gated else 1
    if rank:
        return rank * (d_model + n_inner * d_ff) + rank * (d_ff + d_model)
    return (n_inner + 1) * d_model * d_ff


def encoder_training_flops(**shape: Any) -> int:
    """Returns the FLOPs of one sequence's forward and backward pass.

    Arguments are those of `encoder_forward_flops`.
    """
    return (1 + BACKWARD_PER_FORWARD) * encoder_forward_flops(**shape)


def t5_forward_flops(
    *,
    n_layers: int,
    n_decoder_layers: int,
    d_model: int,
    n_heads: int,
    head_dim: int,
    d_ff: int,
    gated: bool,
    vocab_size: int,
    n_inputs: int,
    n_targets: int,
    ffn_rank: int = 0,
) -> int:
    """Returns the FLOPs of one pair's forward pass through an encoder-decoder.

    The attention's inner width is n_heads * head_dim, whatever `d_model` is. Every score of the
    decoder counts, also one that a causal mask hides. The head reads every target.

    Args:
        n_layers: blocks of the encoder.
        n_decoder_layers: blocks of the decoder.
        d_model: width.
        n_heads: attention heads.
        head_dim: dimensions of a head.
        d_ff: inner width of the feed-forward; of each half if it is gated.
        gated: the feed-forward has three matrices instead of two.
        vocab_size: rows of the head's matrix with their padding.
        n_inputs: tokens of the encoder.
        n_targets: tokens of the decoder.
        ffn_rank: inner dimension of the feed-forward's factored matrices; 0 for whole ones.
    """
    inner = n_heads * head_dim
    feed_forward = _feed_forward(d_model, d_ff, gated, ffn_rank)
    encoder = n_inputs * (4 * d_model * inner + feed_forward + 2 * n_inputs * inner)

    self_attention = n_targets * (4 * d_model * inner + 2 * n_targets * inner)
    # Queries and outputs for the targets, keys and values for the inputs.
    projections = (n_targets + n_inputs) * 2 * d_model * inner
    cross_attention = projections + n_targets * 2 * n_inputs * inner
    decoder = self_attention + cross_attention + n_targets * feed_forward
    return 2 * (n_layers * encoder + n_decoder_layers * decoder + n_targets * d_model * vocab_size)


def t5_training_flops(**shape: Any) -> int:
    """Returns the FLOPs of one pair's forward and backward pass.

    Arguments are those of `t5_forward_flops`.
    """
    return (1 + BACKWARD_PER_FORWARD) * t5_forward_flops(**shape)
