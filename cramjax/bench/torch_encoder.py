"""Our encoder in plain torch, as a good user of torch would write it: the peer where the classes of `transformers` are not the fastest.

One product for queries, keys and values, SDPA, and the decoder over predicted positions alone (in static shapes, so that torch.compile
sees one graph). Norms first and no biases, as in arXiv 2212.14034, section 4.2; no dropout, and every block sees everything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional


class Sizes(NamedTuple):
    """Numbers of a network, by the names of `models.encoder.EncoderConfig`; positions are rotary, or a table that is added."""

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
        self.n_heads, self.is_gated = sizes.n_heads, sizes.is_gated
        width = sizes.d_model
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, sizes.d_ff * (2 if sizes.is_gated else 1), bias=False)
        self.down = nn.Linear(sizes.d_ff, width, bias=False)

    def forward(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """x [batch, length, width] → the same."""
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(
            batch, length, 3, self.n_heads, width // self.n_heads
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            q, k = _turned(q, *rotary), _turned(k, *rotary)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = self.up(self.mlp_norm(x))
        if self.is_gated:
            hidden, gate = hidden.chunk(2, dim=-1)
            return x + self.down(functional.gelu(hidden) * gate)
        return x + self.down(functional.gelu(hidden))


def _turned(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosines.to(x.dtype) + torch.cat((-second, first), dim=-1) * sines.to(x.dtype)


class TorchEncoder(nn.Module):
    """Embeddings, blocks, and the loss over predicted positions with the transposed embedding as the decoder."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        width = sizes.d_model
        self.embedding = nn.Embedding(sizes.vocab_size, width)
        self.embedding_norm, self.final_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.n_layers))
        transform = (
            (nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)) if sizes.has_transform else ()
        )
        self.transform = nn.Sequential(*transform)
        self.is_rotary = sizes.is_rotary
        if sizes.is_rotary:
            n = width // sizes.n_heads
            rates = 10000.0 ** -(torch.arange(0, n, 2) / n)
            angles = torch.outer(torch.arange(sizes.max_positions), rates).repeat(1, 2)
            self.register_buffer("cosines", angles.cos())
            self.register_buffer("sines", angles.sin())
        else:
            self.positions = nn.Parameter(torch.randn(sizes.max_positions, width) / 50)

    def forward(
        self, input_ids: torch.Tensor, predicted: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """The mean loss in nats of `targets` [n] at the places `predicted` int64 [n] of the rows of `input_ids`, laid end to end."""
        x = self.embedding(input_ids)
        x = x if self.is_rotary else x + self.positions[: input_ids.shape[1]]
        x = self.embedding_norm(x)
        rotary = (self.cosines, self.sines) if self.is_rotary else None
        for block in self.blocks:
            x = block(x, rotary)
        hidden = self.transform(self.final_norm(x).flatten(0, 1)[predicted])
        return functional.cross_entropy(
            functional.linear(hidden, self.embedding.weight).float(), targets
        )
