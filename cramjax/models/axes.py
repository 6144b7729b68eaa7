"""Names of array axes, used by every shape comment of this folder and by the sharding rules.

batch      sequences                       embed     width of the residual stream
length     positions of a sequence         heads     attention heads
kv_length  positions attended to           head_dim  width of a head
layer      blocks, stacked on axis 0       mlp       inner width of the feed-forward
vocab      entries of the vocabulary       predicted positions of a sequence that reach the loss

None stands for an axis that is never cut: fused query, key and value (3), the halves of a GLU (2), table rows.
"""

Axes = tuple[str | None, ...]

LAYER, EMBED, HEADS, HEAD_DIM, MLP, VOCAB = "layer", "embed", "heads", "head_dim", "mlp", "vocab"
# Second width of the head's square matrix: one array cannot have two axes on one mesh axis.
HEAD_EMBED = "head_embed"
