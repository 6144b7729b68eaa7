"""The cost of a shape of T5: parameters, FLOPs and bytes of train state, from its numbers alone."""

from __future__ import annotations

from cramjax.budget import flops
from cramjax.config.shapes import Shape
from cramjax.config.span_lengths import span_lengths

# Adafactor factors the second moment of a matrix if both sides have this many entries.
FACTORED_FROM = 128


def cost(shape: Shape, *, vocab_size: int, seq_len: int, optimizer: str) -> tuple[int, float, int]:
    """Returns (parameters, training FLOPs an input token, bytes of train state).

    FLOPs are those of one example of span corruption (15% noise, spans of 3) with `seq_len` inputs.
    The state is float32: the parameters and what the optimizer keeps beside them.

    Args:
        shape: the network.
        vocab_size: rows of the embedding.
        seq_len: input tokens of an example.
        optimizer: "adamw" or "adafactor".
    """
    lengths = span_lengths(seq_len, 0.15, 3.0)
    example = flops.t5_training_flops(
        **shape.model(),
        gated=shape.version == "1.1",
        vocab_size=vocab_size,
        n_inputs=lengths.n_inputs,
        n_targets=lengths.n_targets,
    )

    n_params = shape.count_params(vocab_size)
    if optimizer == "adamw":
        n_state = 2 * n_params
    else:
        n_state = _count_second_moment(shape, vocab_size)
    return n_params, example / seq_len, 4 * (n_params + n_state)


def _count_second_moment(shape: Shape, vocab_size: int) -> int:
    """Returns the numbers in Adafactor's second moment (arXiv 1804.04235, section 4)."""
    total = 0
    for n, rows, columns in shape.arrays(vocab_size):
        is_factored = min(rows, columns) >= FACTORED_FROM
        total += n * (rows + columns if is_factored else rows * columns)
    return total
