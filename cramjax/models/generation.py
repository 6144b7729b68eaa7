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
    length_penalty: float = 1.0,
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
        padding_mask: bool [batch, length], False where nobody should look.
        n_beams: hypotheses of a sequence; 1 is greedy.
        length_penalty: for beams, see `decoding.beam_search`.

    Returns:
        tokens int32 [batch, max_len] and scores float32 [batch].
    """
    encoded = encode(cfg, precision, params, tokens, padding_mask=padding_mask)
    cache = init_cache(cfg, precision, params, encoded, max_len=max_len, padding_mask=padding_mask)
    step = functools.partial(decode_step, cfg, precision, params)
    if unused:
        step = _without(step, jnp.asarray(unused))
    common = {"batch_size": tokens.shape[0], "max_len": max_len, "vocab_size": vocab_size}
    ids = {"start_id": special["pad"], "eos_id": special["sep"], "pad_id": special["pad"]}

    if n_beams == 1:
        return decoding.greedy(step, cache, **common, **ids)
    return decoding.beam_search(
        step, cache, n_beams=n_beams, length_penalty=length_penalty, **common, **ids
    )


def _without(step: decoding.Step, unused: jax.Array) -> decoding.Step:
    """Returns `step` with logits that never choose the ids `unused`, int [n]."""

    def masked(cache: Any, tokens: jax.Array, index: jax.Array) -> tuple[jax.Array, Any]:
        logits, cache = step(cache, tokens, index)
        return logits.at[:, unused].set(decoding.IMPOSSIBLE), cache

    return masked


def init_cache(
    cfg: T5Config,
    precision: Precision,
    params: Params,
    encoded: jax.Array,
    *,
    max_len: int,
    padding_mask: jax.Array | None = None,
) -> Cache:
    """Returns the cache of `decode_step` before the first step.

    It holds, for every layer, keys and values of `max_len` empty positions and of `encoded`. Axis 0
    of every array is the layer (of size 1 for the mask), axis 1 the row.

    Args:
        cfg: the network.
        precision: its number formats.
        params: as from `network.init_params`.
        encoded: [n, kv_length, embed] as from `t5.encode`.
        max_len: positions of the decoder.
        padding_mask: bool [n, kv_length], False where nobody should look.
    """
    model = module.bind(cfg.build(precision), params)
    n, kv_length = encoded.shape[:2]

    def cross(_: None, params: Params) -> tuple[None, list[jax.Array]]:
        attention = module.bind(model.decoder.build_block, params).cross_attention
        assert attention is not None  # a decoder has one
        return None, attention.keys_and_values(encoded)

    _, (cross_key, cross_value) = jax.lax.scan(cross, None, module.params_of(model.decoder.layers))
    shape = (cfg.n_decoder_layers, n, max_len, cfg.n_heads, cfg.head_dim)
    if padding_mask is None:
        padding_mask = jnp.ones((n, kv_length), bool)
    empty = jnp.zeros(shape, precision.activation_dtype)
    return {
        "key": empty,
        "value": empty,
        "cross_key": cross_key,
        "cross_value": cross_value,
        "cross_mask": padding_mask.astype(bool)[None],
    }


def decode_step(
    cfg: T5Config,
    precision: Precision,
    params: Params,
    cache: Cache,
    tokens: jax.Array,
    index: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Runs the decoder for one position.

    Args:
        cfg: the network.
        precision: its number formats.
        params: as from `network.init_params`.
        cache: as from `init_cache` or the step before.
        tokens: int [n], at position `index`.
        index: int32 scalar.

    Returns:
        float32 logits [n, vocab] of the next position, and the cache with this one in it.
    """
    model = module.bind(cfg.build(precision), params)
    hidden, cache = model.decoder.step(model.embed(tokens[:, None]), cache, index)
    return head(cfg, precision, params, hidden[:, 0]), cache
