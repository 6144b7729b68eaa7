"""The feed-forward of a block, of whole matrices or of factors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models.activations import gelu
from cramjax.models.dropout import dropout
from cramjax.models.gated_gelu import fits_kernel, gated_gelu
from cramjax.models.layers import Linear, Precision
from cramjax.models.lowrank import LowRank
from cramjax.models.module import Initializer

_FLOAT16_MAX = float(np.finfo(np.float16).max)


class FeedForward(nnx.Module):
    """Two matrices around a GELU or ReLU, or the gated GELU of arXiv 2002.05202.

    The latter is (GELU(x W0) * x W1) Wo. `init_in` and `init_out` fill the matrices before and
    after the activation. With an `ffn_rank` each matrix is a product of two.
    """

    def __init__(
        self,
        cfg,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        init_in: Initializer,
        init_out: Initializer,
    ):
        self.cfg, self.precision = cfg, precision
        self.is_gated = cfg.ffn in ("geglu", "geglu_tanh")
        common = {"bias": cfg.linear_bias, "precision": precision, "rngs": rngs}
        dense = functools.partial(LowRank, rank=cfg.ffn_rank) if cfg.ffn_rank else Linear
        if self.is_gated:
            # Index 0 of the middle axis goes through the GELU, index 1 is the linear half.
            spec = "bte,egf->btgf"
            shape = (cfg.d_model, 2, cfg.d_ff)
            axes = (ax.EMBED, None, ax.MLP)
        else:
            spec = "bte,ef->btf"
            shape = (cfg.d_model, cfg.d_ff)
            axes = (ax.EMBED, ax.MLP)
        self.wi = dense(spec, shape, axes, init=init_in, **common)

        shape, axes = (cfg.d_ff, cfg.d_model), (ax.MLP, ax.EMBED)
        self.wo = dense("btf,fe->bte", shape, axes, init=init_out, **common)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """[batch, length, embed] → the same shape; with a key, dropout between the matrices."""
        inner = dropout(self._activate(self.wi(x)), self.cfg.dropout, key)
        if self.precision.matmul_dtype == jnp.float16:
            # A trained T5 exceeds the range of float16 only here: its largest number is nearer than
            # infinity.
            inner = jnp.clip(inner, -_FLOAT16_MAX, _FLOAT16_MAX)
        return self.wo(inner)

    def _activate(self, inner: jax.Array) -> jax.Array:
        """[batch, length, (2,) mlp] → [batch, length, mlp]."""
        if self.is_gated:
            precision = self.precision
            fits = fits_kernel(inner.shape[-1], inner.dtype, precision.capability)
            return gated_gelu(inner, self.cfg.ffn == "geglu_tanh", precision.owns_rows and fits)
        if self.cfg.ffn == "relu":
            return jax.nn.relu(inner)
        return gelu(inner)
