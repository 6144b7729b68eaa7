"""Model FLOPs, counted by hand: the matrix products of the forward and the backward pass, a multiply-add
being two.

Element-wise work, softmax, norms, the optimizer and recomputation are left out, so the count says what the
model needs, not what a program does; MFU divides by it. Attention is bidirectional (every score counts) and
the head reads the predicted positions only. Plain numbers in and out; peak rates of devices are in
`peaks.py`.
"""

from __future__ import annotations

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
    """FLOPs of one sequence's forward pass through an encoder and its sparse head.

    `d_ff` is the inner width (of each half where the feed-forward is `gated`, which then has three matrices
    instead of two), `n_predicted` the positions of the sequence the head reads, `vocab_size` the rows of the
    decoder with their padding, `head_transform` whether a dense layer comes before it. The number of heads
    does not matter. `ffn_rank`: of the factors of the feed-forward's matrices, 0: they are whole. `n_pooled`:
    positions of all but the first layer's keys and values, where embeddings are pooled.
    """
    square = d_model * d_model
    n_positions = seq_len if n_pooled is None else n_pooled
    feed_forward = _feed_forward(d_model, d_ff, gated, ffn_rank)
    attention = 2 * d_model  # for a query and a key: the score, and its product with the value
    others = n_positions * (4 * square + feed_forward + attention * n_positions)
    first = n_positions * (2 * square + feed_forward + attention * seq_len) + seq_len * 2 * square
    per_prediction = d_model * vocab_size + (square if head_transform else 0)
    return 2 * (first + (n_layers - 1) * others + n_predicted * per_prediction)


def _feed_forward(d_model: int, d_ff: int, gated: bool, rank: int) -> int:
    """Multiply-adds of a position."""
    n_inner = 2 if gated else 1
    if rank:
        return rank * (d_model + n_inner * d_ff) + rank * (d_ff + d_model)
    return (n_inner + 1) * d_model * d_ff


def encoder_training_flops(**shape) -> int:
    """FLOPs of one sequence's forward and backward pass; arguments as for `encoder_forward_flops`."""
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
    """FLOPs of one pair's forward pass through an encoder-decoder: `n_inputs` and `n_targets` tokens.

    The attention's inner width is n_heads * head_dim, whatever `d_model` is. Every score of the decoder counts, also
    those a causal mask hides. The head reads every target.
    """
    inner = n_heads * head_dim
    feed_forward = _feed_forward(d_model, d_ff, gated, ffn_rank)
    encoder = n_inputs * (4 * d_model * inner + feed_forward + 2 * n_inputs * inner)
    self_attention = n_targets * (4 * d_model * inner + 2 * n_targets * inner)
    # Queries and outputs for the targets, keys and values for the inputs.
    cross_attention = (
        n_targets + n_inputs
    ) * 2 * d_model * inner + n_targets * 2 * n_inputs * inner
    decoder = self_attention + cross_attention + n_targets * feed_forward
    return 2 * (n_layers * encoder + n_decoder_layers * decoder + n_targets * d_model * vocab_size)


def t5_training_flops(**shape) -> int:
    """FLOPs of one pair's forward and backward pass; arguments as for `t5_forward_flops`."""
    return (1 + BACKWARD_PER_FORWARD) * t5_forward_flops(**shape)
