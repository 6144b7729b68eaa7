"""An encoder that finds replaced tokens, and the generator that replaces them in training.

ELECTRA (arXiv 2003.10555): a small masked language model fills masks with samples, and the
discriminator says for every token if it is one of them. Both share all embeddings. The generator
projects them to its width and, before its logits, back to theirs. The discriminator's head is a
dense layer, GELU, and one number a token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import nnx

from cramjax.models import axes as ax
from cramjax.models import encoder, module
from cramjax.models.activations import gelu
from cramjax.models.attention import attention_mask
from cramjax.models.layers import FLOAT32, Linear, Norm, Precision
from cramjax.models.module import param

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorConfig(encoder.EncoderConfig):
    """The numbers of a discriminator: an encoder and its head (`network.Network`).

    The fields of the encoder's own head are those of the generator's.
    """

    family: ClassVar[str] = "detector"

    def build(self, precision: Precision) -> Callable[[nnx.Rngs], Any]:
        """Returns the constructor of the modules."""
        return functools.partial(Detector, self, precision)

    def without_head(self) -> encoder.EncoderConfig:
        """Returns the encoder alone, as finetuning gives it another head."""
        names = [field.name for field in dataclasses.fields(encoder.EncoderConfig)]
        return encoder.EncoderConfig(**{name: getattr(self, name) for name in names})

    def gap_logits(self, *_: Any, **__: Any) -> jax.Array:
        """Raises ValueError: it predicts no tokens."""
        raise ValueError("a discriminator predicts no tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ElectraConfig(DetectorConfig):
    """The numbers of a discriminator and its generator, as they train (`network.Network`).

    Attributes:
        generator_layers: blocks of the generator.
        generator_heads: its heads, of the discriminator's dimensions; they decide its width.
        generator_d_ff: its feed-forward's inner width.
    """

    family: ClassVar[str] = "electra"

    generator_layers: int
    generator_heads: int
    generator_d_ff: int

    @property
    def generator(self) -> encoder.EncoderConfig:
        """The numbers of the generator's blocks."""
        return dataclasses.replace(
            self.without_head(),
            n_layers=self.generator_layers,
            d_model=self.generator_heads * self.head_dim,
            n_heads=self.generator_heads,
            d_ff=self.generator_d_ff,
        )

    @property
    def n_blocks(self) -> int:
        """Blocks of both networks together."""
        return self.n_layers + self.generator_layers

    def build(self, precision: Precision) -> Callable[[nnx.Rngs], Electra]:
        """Returns the constructor of the modules."""
        return functools.partial(Electra, self, precision)

    def discriminator(self) -> DetectorConfig:
        """Returns the discriminator alone."""
        numbers = dataclasses.asdict(self)
        names = [field.name for field in dataclasses.fields(DetectorConfig)]
        return DetectorConfig(**{name: numbers[name] for name in names})


class DetectionHead(nnx.Module):
    """From hidden states to the log-odds that a token was replaced: dense, GELU, one output."""

    def __init__(self, cfg: DetectorConfig, precision: Precision, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(cfg.init_std)
        common = {"bias": True, "init": init, "rngs": rngs}
        shape, axes = (cfg.d_model, cfg.d_model), (ax.EMBED, ax.EMBED_OUT)
        self.transform = Linear("te,ef->tf", shape, axes, precision=precision, **common)
        # One number in float32: nothing is gained by less.
        wide = dataclasses.replace(FLOAT32, matmul_dtype=precision.matmul_dtype)
        self.score = Linear(
            "te,ef->tf", (cfg.d_model, 1), (ax.EMBED, None), precision=wide, **common
        )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """[tokens, embed] → float32 [tokens, 1]."""
        return self.score(gelu(self.transform(hidden)))


class Detector(nnx.Module):
    """Encoder and detection head: the whole tree of a discriminator's parameters."""

    def __init__(self, cfg: DetectorConfig, precision: Precision, rngs: nnx.Rngs):
        self.encoder = encoder.Encoder(cfg, precision, rngs)
        self.head = DetectionHead(cfg, precision, rngs)


class GeneratorHead(nnx.Module):
    """From the generator's states to logits: dense to the embeddings' width, GELU, norm, decode."""

    def __init__(self, cfg: ElectraConfig, precision: Precision, rngs: nnx.Rngs):
        self.precision = precision
        common = {"bias": cfg.head_bias, "precision": precision, "rngs": rngs}
        shape, axes = (cfg.generator.d_model, cfg.d_model), (ax.EMBED, ax.EMBED_OUT)
        normal = jax.nn.initializers.normal(cfg.init_std)
        self.dense = Linear("te,ef->tf", shape, axes, init=normal, **common)
        self.norm = Norm(cfg, **common)
        bias = None
        if cfg.decoder_bias:
            bias = param(jax.nn.initializers.zeros, rngs, (cfg.vocab_size,), (ax.VOCAB,))
        self.bias = bias

    def __call__(self, hidden: jax.Array, embedding: jax.Array) -> jax.Array:
        """[tokens, generator embed], embedding [vocab, embed] → float32 [tokens, vocab]."""
        hidden = self.norm(gelu(self.dense(hidden)))  # [tokens, embed]
        return encoder.decode(hidden, embedding, self.bias, self.precision)


class Generator(nnx.Module):
    """The generator without the embeddings that it shares."""

    def __init__(self, cfg: ElectraConfig, precision: Precision, rngs: nnx.Rngs):
        small = cfg.generator
        shape, axes = (cfg.d_model, small.d_model), (ax.EMBED, ax.EMBED_OUT)
        init = jax.nn.initializers.normal(cfg.init_std)
        common = {"bias": True, "init": init, "precision": precision, "rngs": rngs}
        self.projection = Linear("bte,ef->btf", shape, axes, **common)
        self.encoder = encoder.Encoder(small, precision, rngs, embeds=False)
        self.head = GeneratorHead(cfg, precision, rngs)


class Electra(nnx.Module):
    """Discriminator and generator: the whole tree of parameters in training."""

    def __init__(self, cfg: ElectraConfig, precision: Precision, rngs: nnx.Rngs):
        self.encoder = encoder.Encoder(cfg, precision, rngs)
        self.head = DetectionHead(cfg, precision, rngs)
        self.generator = Generator(cfg, precision, rngs)


def generator_states(
    cfg: ElectraConfig,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns the generator's hidden states: [batch, length, generator's embed].

    Arguments are those of `encoder.encode`, with the parameters of both networks.
    """
    model = module.bind(cfg.build(precision), params)
    keys = None if key is None else jax.random.split(key, cfg.generator_layers + 1)
    of_blocks, of_embeddings = (None, None) if keys is None else (keys[:-1], keys[-1])
    assert model.encoder.embeddings is not None
    embedded = model.encoder.embeddings(tokens, None, None, of_embeddings)  # [batch, length, embed]
    x = model.generator.projection(embedded)  # [batch, length, generator's embed]
    return model.generator.encoder.mix(x, None, attention_mask(segment_ids, None), of_blocks)


def generator_logits(
    cfg: ElectraConfig, precision: Precision, params: Params, hidden: jax.Array
) -> jax.Array:
    """Returns the generator's logits of `hidden` [..., generator's embed]: float32 [..., vocab].

    `params` are all parameters, or those of `generator_head_params`.
    """
    build = functools.partial(GeneratorHead, cfg, precision)
    rows = hidden.reshape((-1, hidden.shape[-1]))
    embedding = params["encoder"]["embeddings"]["tokens"]  # [vocab, embed]
    logits = module.bind(build, params["generator"]["head"])(rows, embedding)
    return logits.reshape(hidden.shape[:-1] + (cfg.vocab_size,))


def generator_head_params(params: Params) -> Params:
    """Returns the part of `params` that `generator_logits` reads."""
    tokens = params["encoder"]["embeddings"]["tokens"]
    return {
        "generator": {"head": params["generator"]["head"]},
        "encoder": {"embeddings": {"tokens": tokens}},
    }


def detect(
    cfg: DetectorConfig, precision: Precision, params: Params, hidden: jax.Array
) -> jax.Array:
    """Returns the log-odds that tokens were replaced: float32 [...], of `hidden` [..., embed].

    `hidden` are states as from `encoder.encode`.
    """
    build = functools.partial(DetectionHead, cfg, precision)
    rows = hidden.reshape((-1, cfg.d_model))
    return module.bind(build, params["head"])(rows).reshape(hidden.shape[:-1])
