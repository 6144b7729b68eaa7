"""Our encoder in plain torch, written as a good user of torch would write it.

It is a second peer, because the classes of `transformers` are not always the fastest. Queries, keys
and values are one product, attention is SDPA, and the decoder sees predicted positions alone (in
static shapes, so that torch.compile sees one graph). Norms come first and there are no biases, as
in arXiv 2212.14034, section 4.2; there is no dropout, and every block sees everything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional


class Sizes(NamedTuple):
    """Numbers of a network, named as in `models.encoder.EncoderConfig`.

    Positions are rotary, or a table that is added.
    """

    vocab_size: int
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    is_gated: bool
    is_rotary: bool
    max_positions: int
    has_transform: bool


class Block(nn.Module):
    """Attention and feed-forward, x + f(norm(x)) each."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.n_heads = sizes.n_heads
        self.is_gated = sizes.is_gated
        width = sizes.d_model
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, sizes.d_ff * (2 if sizes.is_gated else 1), bias=False)
        self.down = nn.Linear(sizes.d_ff, width, bias=False)

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Returns the block's output, [batch, length, width] as `x`.

        `rotary` has cosines and sines [length, head_dim], or is None for added positions.
        """
        batch, length, width = x.shape
        head_dim = width // self.n_heads
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.n_heads, head_dim)
        # Each of the three: [batch, heads, length, head_dim].
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            q = _turned(q, *rotary)
            k = _turned(k, *rotary)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))

        hidden = self.up(self.mlp_norm(x))
        if self.is_gated:
            hidden, gate = hidden.chunk(2, dim=-1)
            return x + self.down(functional.gelu(hidden) * gate)
        return x + self.down(functional.gelu(hidden))


def _turned(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of dimensions of `x` [batch, heads, length, head_dim] by their angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines.to(x.dtype) + torch.cat((-second, first), dim=-1) * sines.to(x.dtype)


class TorchEncoder(nn.Module):
    """Embeddings, blocks and the loss over predicted positions, whose decoder is the embedding."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.d_model
        self.embedding = nn.Embedding(sizes.vocab_size, width)
        self.embedding_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.n_layers))
        self.final_norm = nn.LayerNorm(width)
        self.transform = nn.Sequential()
        if sizes.has_transform:
            self.transform.extend((nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)))

        self.is_rotary = sizes.is_rotary
        if sizes.is_rotary:
            head_dim = width // sizes.n_heads
            rates = 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
            # [max_positions, head_dim]: both halves of a head turn by the same angles.
            angles = torch.outer(torch.arange(sizes.max_positions), rates).repeat(1, 2)
            self.register_buffer("cosines", angles.cos())
            self.register_buffer("sines", angles.sin())
        else:
            self.positions = nn.Parameter(torch.randn(sizes.max_positions, width) / 50)

    def forward(
        self, input_ids: torch.Tensor, predicted: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Returns the mean loss in nats.

        Args:
            input_ids: int64 [batch, length].
            predicted: int64 [n], predicted places in the rows of `input_ids` laid end to end.
            targets: int64 [n], the tokens at those places.
        """
        x = self.embedding(input_ids)
        if not self.is_rotary:
            x = x + self.positions[: input_ids.shape[1]]
        x = self.embedding_norm(x)

        rotary = (self.cosines, self.sines) if self.is_rotary else None
        for block in self.blocks:
            x = block(x, rotary)

        hidden = self.transform(self.final_norm(x).flatten(0, 1)[predicted])
        logits = functional.linear(hidden, self.embedding.weight).float()
        return functional.cross_entropy(logits, targets)
