"""Products of integers: exact sums, close to products of floats, in all of a network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.checkpoints import packed
from cramjax.compress import matrices
from cramjax.compress.quantize import Quantizer, quantize
from cramjax.models import encoder, int8, network, t5
from cramjax.models.int8 import Int8
from cramjax.models.layers import FLOAT32, product

SPECS = {
    "bte,ef->btf": ((2, 3, 16), (16, 5), (0,)),
    "bte,egf->btgf": ((2, 3, 16), (16, 2, 4), (0,)),
    "btnh,nhe->bte": ((2, 3, 4, 8), (4, 8, 6), (0, 1)),
    "te,ve->tv": ((7, 16), (9, 16), (1,)),
}


@pytest.mark.parametrize("spec", SPECS)
def test_a_product_is_that_of_the_rounded_operands(spec):
    shape, kernel_shape, summed = SPECS[spec]
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    x[0] = 0.0  # a row of zeros has no largest element
    codes = rng.integers(-127, 128, kernel_shape).astype(np.int8)
    scale_shape = tuple(1 if axis in summed else n for axis, n in enumerate(kernel_shape))
    scale = rng.uniform(0.01, 0.02, scale_shape).astype(np.float32)
    dtype = jnp.dtype("float32")
    y = product(spec, jnp.asarray(x), Int8(jnp.asarray(codes), jnp.asarray(scale)), dtype, dtype)

    left, right = spec.split("->")[0].split(",")
    axes = tuple(left.index(axis) for axis in left if axis in right)
    step = np.abs(x).max(axis=axes, keepdims=True) / 127
    rounded = np.round(x / np.where(step > 0, step, 1)) * np.where(step > 0, step, 1)
    np.testing.assert_allclose(y, np.einsum(spec, rounded, codes * scale), rtol=1e-4, atol=1e-5)
    exact = np.einsum(spec, x, codes * scale)
    assert y.dtype == np.float32 and np.abs(y - exact).max() < 0.02 * np.abs(exact).max()


# Compiled once for a network, however many tests ask.
init = jax.jit(network.init_params, static_argnums=0)
NETWORKS = {
    "encoder": encoder.EncoderConfig(
        vocab_size=64, n_layers=3, d_model=32, n_heads=2, d_ff=48, ffn="geglu", first_norm=False,
        positions="rotary",
        head_transform=True, decoder_bias=True,
    ),
    "BERT": encoder.EncoderConfig(
        vocab_size=64, n_layers=2, d_model=32, n_heads=2, d_ff=48, positions="learned",
        linear_bias=True, token_types=2,
    ),
    "T5": t5.T5Config(
        vocab_size=64, n_layers=2, n_decoder_layers=2, d_model=32, n_heads=2, head_dim=16, d_ff=48,
    ),
    "tied T5": t5.T5Config(
        vocab_size=64, n_layers=2, n_decoder_layers=2, d_model=32, n_heads=2, head_dim=16, d_ff=48,
        tie_embeddings=True,
    ),
}  # fmt: skip


def stored(cfg, params, granularity):
    paths = matrices.find(network.param_axes(cfg))
    return quantize(
        flatten_dict(params, sep="/"), paths, Quantizer(bits=8, granularity=granularity)
    ), paths


@functools.partial(jax.jit, static_argnums=0)
def outputs(cfg, params):
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 1, 64)
    if isinstance(cfg, encoder.EncoderConfig):
        return encoder.head(cfg, FLOAT32, params, encoder.encode(cfg, FLOAT32, params, tokens))
    encoded = t5.encode(cfg, FLOAT32, params, tokens)
    return t5.head(cfg, FLOAT32, params, t5.decode(cfg, FLOAT32, params, encoded, tokens))


@pytest.mark.parametrize("granularity", ["channel", pytest.param("tensor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_whole_numbers_is_near_that_of_floats(name, granularity):
    cfg = NETWORKS[name]
    params = init(cfg, jax.random.key(0))
    tensors, paths = stored(cfg, params, granularity)
    whole = {path: leaf.whole() if path in paths else leaf for path, leaf in tensors.items()}
    for path in paths:
        np.testing.assert_array_equal(whole[path].astype(np.float32), packed.values(tensors)[path])
    ours = outputs(cfg, jax.device_put(unflatten_dict(whole, sep="/")))
    theirs = outputs(cfg, unflatten_dict(packed.values(tensors), sep="/"))
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert 0 < error < 0.03


def test_groups_other_bits_and_small_matrices_become_floats(monkeypatch):
    cfg = dataclasses.replace(NETWORKS["encoder"], n_layers=2)
    params = flatten_dict(init(cfg, jax.random.key(0)), sep="/")
    paths = matrices.find(network.param_axes(cfg))
    eight = Quantizer(bits=8)

    def n_whole(quantizer):
        found = packed.values(quantize(params, paths, quantizer), whole=True)
        return sum(isinstance(leaf, Int8) for leaf in found.values())

    assert n_whole(eight) == 0
    monkeypatch.setattr(packed, "LEAST_NUMBERS", 48 * 32)
    assert n_whole(eight) == 3  # the feed-forward's two and the vocabulary
    monkeypatch.setattr(packed, "LEAST_NUMBERS", 0)
    assert n_whole(eight) == len(paths)
    assert (
        n_whole(Quantizer(bits=4))
        == n_whole(Quantizer(bits=8, granularity="group", group_size=8))
        == 0
    )


def test_it_is_used_where_it_was_measured_to_be_faster():
    device = jax.devices("cpu")[0]
    assert int8.is_faster(device, jnp.dtype("float32")) and not int8.is_faster(
        device, jnp.dtype("bfloat16")
    )
