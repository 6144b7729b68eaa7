"""Kernels of attention on a real GPU; skipped where there is none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.models import attention, gated_gelu, kernels, short_attention
from cramjax.models.kernels import AttentionCall
from cramjax.models.layers import Precision
from cramjax.tuning import attention_choice

BF16 = jnp.dtype(jnp.bfloat16)


@pytest.fixture(scope="module")
def precision():
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU here")
    return Precision(BF16, BF16, device=device)


def inputs(device, length, n_heads=2, head_dim=64):
    arrays = jax.random.normal(jax.random.key(0), (3, 1, length, n_heads, head_dim), BF16)
    return jax.device_put(arrays, device)


@pytest.mark.parametrize("border", [1, 20, 64])
@pytest.mark.parametrize("name", ["cudnn", "xla", *short_attention.TILES])
def test_no_gradient_crosses_from_one_document_to_another(precision, name, border):
    query, key_, value = inputs(precision.device, 128)
    documents = (jnp.arange(128) >= border).astype(jnp.int32)
    mask = (documents[:, None] == documents[None])[None, None]

    def first_document(query, key_, value):
        if name in short_attention.TILES:
            fused, tile = jnp.stack([query, key_, value], axis=2), short_attention.TILES[name]
            mixed = short_attention.attention(
                fused, None, mask.astype(jnp.int8), None, 0.125, 0.0, tile
            )
        else:
            mixed = attention.mix(name, precision, query, key_, value, mask=mask)
        return jnp.sum(mixed[:, :border].astype(jnp.float32))

    for gradient in jax.jit(jax.grad(first_document, argnums=(0, 1, 2)))(query, key_, value):
        assert np.all(np.asarray(gradient, np.float32)[:, border:] == 0)


def test_no_gradient_comes_from_behind_in_causal_attention_with_a_bias(precision):
    query, key_, value = inputs(precision.device, 114)
    bias = jax.random.normal(jax.random.key(1), (1, 2, 114, 114))

    def early(key_, value):
        mixed = attention.mix(
            "cudnn", precision, query, key_, value, bias=bias, causal=True, scale=1.0
        )
        return jnp.sum(mixed[:, :40].astype(jnp.float32))

    for gradient in jax.jit(jax.grad(early, argnums=(0, 1)))(key_, value):
        assert np.all(np.asarray(gradient, np.float32)[:, 40:] == 0)


CALL = AttentionCall(length=128, kv_length=128, n_heads=4, head_dim=64, dtype="bfloat16")


@pytest.mark.parametrize(
    "facts",
    [
        {"is_fused": True},
        {"is_fused": True, "is_rotary": True, "has_mask": True},
        {"is_fused": True, "dropout_rate": 0.1},
        {"has_bias": True},
        {"has_bias": True, "is_causal": True, "length": 57, "kv_length": 57},
        {"length": 114, "kv_length": 512},
    ],
)
def test_every_candidate_agrees_with_plain_operations(precision, facts, monkeypatch):
    monkeypatch.setattr(attention_choice, "SECONDS", 0.05)
    call, lines = dataclasses.replace(CALL, **facts), []
    names = kernels.candidates(call, precision.device)
    assert attention_choice.fastest([call], precision, lines.append)[call] in names
    assert not any("something else" in line or "does not run" in line for line in lines), lines


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("width", [1152, 1536, 2048])
def test_the_gated_gelus_backward_kernel_agrees_with_plain_operations(precision, width, tanh):
    keys = jax.random.split(jax.random.key(0), 2)
    halves = 3.0 * jax.random.normal(keys[0], (4, 128, 2, width), BF16)
    cotangent = jax.random.normal(keys[1], (4, 128, width), BF16)
    arrays = jax.device_put((halves, cotangent), precision.device)
    assert gated_gelu.fits_kernel(width, BF16, precision.capability)

    def gradient(halves, cotangent, one_kernel):
        _, back = jax.vjp(lambda x: gated_gelu.gated_gelu(x, tanh, one_kernel), halves)
        return back(cotangent)[0]

    found, expected = (
        np.asarray(jax.jit(gradient, static_argnums=2)(*arrays, one_kernel), np.float32)
        for one_kernel in (True, False)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=2**-7)
