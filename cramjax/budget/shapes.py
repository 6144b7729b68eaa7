"""What a shape of T5 costs: parameters, FLOPs and bytes of train state, from its numbers alone."""

from __future__ import annotations

from cramjax.budget import flops
from cramjax.config.shapes import Shape
from cramjax.config.span_lengths import span_lengths

# Adafactor factors the second moment of a matrix whose sides both have this many entries.
FACTORED_FROM = 128


def cost(shape: Shape, *, vocab_size: int, seq_len: int, optimizer: str) -> tuple[int, float, int]:
    """(parameters, training FLOPs an input token, bytes of train state).

    FLOPs are those of one example of span corruption (15% noise, spans of 3) with `seq_len` inputs. The state is float32 parameters and
    what `optimizer` ("adamw" or "adafactor") keeps beside them.
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
    n_state = n_params * 2 if optimizer == "adamw" else _second_moment(shape, vocab_size)
    return n_params, example / seq_len, 4 * (n_params + n_state)


def _second_moment(shape: Shape, vocab_size: int) -> int:
    """Numbers in Adafactor's second moment (arXiv 1804.04235, section 4): rows and columns of a matrix that is large enough."""
    d, inner = shape.d_model, shape.n_heads * shape.head_dim
    v11 = shape.version == "1.1"
    attention = 4 * _moment(d, inner)
    feed_forward = (3 if v11 else 2) * _moment(d, shape.d_ff)
    encoder = shape.n_layers * (attention + feed_forward + 2 * d)
    decoder = shape.n_decoder_layers * (2 * attention + feed_forward + 3 * d)
    embeddings = (2 if v11 else 1) * _moment(vocab_size, d)
    return encoder + decoder + 2 * d + 2 * 32 * shape.n_heads + embeddings


def _moment(rows: int, columns: int) -> int:
    return rows + columns if min(rows, columns) >= FACTORED_FROM else rows * columns
