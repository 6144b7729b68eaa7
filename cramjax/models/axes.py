"""Glossary of the logical axis names of this package; parameters carry them, `parallel/rules.py` maps them to a mesh.

Shape comments use the same words. An axis that is never cut nor decayed by name (the 3 of a fused query-key-value kernel, the 2 halves
of a gated feed-forward) is None.
"""

from __future__ import annotations

BATCH = "batch"  # sequences
LENGTH = "length"  # positions of a sequence; of the queries in attention
KV_LENGTH = "kv_length"  # positions of the keys and values in attention
EMBED = "embed"  # width of the residual stream
EMBED_OUT = "embed_out"  # embed again, where a matrix maps it to itself; one axis of a mesh cannot cut both
HEADS = "heads"
HEAD_DIM = "head_dim"
RANK = "rank"  # between the factors of a feed-forward matrix
MLP = "mlp"  # inner width of the feed-forward; of one half where it is gated
VOCAB = "vocab"  # entries of the token embedding, padding included
POSITION = "position"  # entries of a learned position table
TOKEN_TYPE = "token_type"
BUCKET = "bucket"  # of relative positions
NORM = "norm"  # width of a norm's scale and bias: the same numbers as embed, but never cut
LAYER = "layer"  # blocks, stacked; always the first axis

Axes = tuple[str | None, ...]
