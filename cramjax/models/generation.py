"""Text from a T5: greedy or beam search over a cache of keys and values, all inside `jax.jit`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cramjax.models import decoding, module
from cramjax.models.layers import Precision
from cramjax.models.t5 import Cache, Params, T5Config, encode, head

_SCORING = decoding.Scoring()


def generate(
    cfg: T5Config,
    precision: Precision,
    params: Params,
    tokens: jax.Array,
    *,
    max_len: int,
    special: dict[str, int],
    vocab_size: int,
    unused: Sequence[int] = (),
    padding_mask: jax.Array | None = None,
    n_beams: int = 1,
    scoring: decoding.Scoring = _SCORING,
) -> decoding.Decoded:
    """Returns the most likely targets of each row of `tokens`.

    Args:
        cfg: the network.
        precision: its number formats.
        params: as from `network.init_params`.
        tokens: int [batch, length].
        max_len: the largest number of generated tokens, the end of sequence included.
        special: ids of "pad" (which starts a sequence and fills it up) and "sep" (which ends it).
        vocab_size: entries of the tokenizer; those that pad the embedding are never chosen.
        unused: ids below it that have no token; they are not chosen either.
        padding_mask: bool [batch, length], False where nobody should look. A row of nothing else
            fills up the batch: its targets mean nothing, and nobody waits for them.
        n_beams: hypotheses of a sequence; 1 is greedy.
        scoring: how beams are compared.

    Returns:
        tokens int32 [batch, max_len] and scores float32 [batch].
    """
    if padding_mask is None:
        padding_mask = jnp.ones(tokens.shape, bool)
    encoded = encode(cfg, precision, params, tokens, padding_mask=padding_mask)
    sizes = {"n_beams": n_beams, "max_len": max_len}
    cache = init_cache(cfg, precision, params, encoded, padding_mask, **sizes)
    step = functools.partial(decode_step, cfg, precision, params)
    if unused:
        step = _without(step, jnp.asarray(unused))
    is_blank = ~jnp.any(padding_mask, axis=1)
    common: dict[str, Any] = dict(batch_size=tokens.shape[0], max_len=max_len, is_blank=is_blank)
    common["vocab_size"] = vocab_size
    common |= {"start_id": special["pad"], "eos_id": special["sep"], "pad_id": special["pad"]}

    if n_beams == 1:
        return decoding.greedy(step, cache, **common)
    return decoding.beam_search(step, cache, n_beams=n_beams, scoring=scoring, **common)


def _without(step: decoding.Step, unused: jax.Array) -> decoding.Step:
    """Returns `step` with logits that never choose the ids `unused`, int [n]."""

    def masked(
        cache: Any, tokens: jax.Array, index: jax.Array, lineage: jax.Array
    ) -> tuple[jax.Array, Any]:
        logits, cache = step(cache, tokens, index, lineage)
        return logits.at[..., unused].set(decoding.IMPOSSIBLE), cache

    return masked


def init_cache(
    cfg: T5Config,
    precision: Precision,
    params: Params,
    encoded: jax.Array,
    padding_mask: jax.Array,
    *,
    n_beams: int,
    max_len: int,
) -> Cache:
    """Returns the cache of `decode_step` before the first step.

    It holds, for every layer, keys and values of `max_len` empty positions of `n_beams` hypotheses,
    and of `encoded`, which all hypotheses share.

    Args:
        cfg: the network.
        precision: its number formats.
        params: as from `network.init_params`.
        encoded: [batch, kv_length, embed] as from `t5.encode`.
        padding_mask: bool [batch, kv_length], False where nobody should look.
        n_beams: hypotheses of each row.
        max_len: positions of the decoder.
    """
    decoder = module.bind(cfg.build(precision), params).decoder
    shape = (encoded.shape[0], cfg.n_heads, max_len, n_beams, cfg.head_dim)

    layers = []
    for number in range(cfg.n_decoder_layers):
        attention = decoder.block(number).cross_attention
        assert attention is not None  # a decoder has one
        layer = {"key": jnp.zeros(shape, precision.matmul_dtype)}
        layer["value"] = jnp.zeros(shape, precision.matmul_dtype)
        cross = zip(("cross_key", "cross_value"), attention.keys_and_values(encoded), strict=True)
        for name, array in cross:
            # [batch, heads, kv_length, head_dim]
            layer[name] = jnp.swapaxes(array, 1, 2).astype(precision.matmul_dtype)
        layers.append(layer)
    return Cache(layers, padding_mask.astype(bool))


def decode_step(
    cfg: T5Config,
    precision: Precision,
    params: Params,
    cache: Cache,
    tokens: jax.Array,
    index: jax.Array,
    lineage: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Runs the decoder for one position of each hypothesis: a `decoding.Step`.

    Args:
        cfg: the network.
        precision: its number formats.
        params: as from `network.init_params`.
        cache: as from `init_cache` or the step before.
        tokens: int [batch, beams], at position `index`.
        index: int32 scalar.
        lineage: int32 [batch, beams, max_len], see `decoding`.

    Returns:
        float32 logits [batch, beams, vocab] of the next position, and the cache with this one in
        it.
    """
    model = module.bind(cfg.build(precision), params)
    hidden, cache = model.decoder.step(model.embed(tokens), cache, index, lineage)
    return head(cfg, precision, params, hidden), cache
