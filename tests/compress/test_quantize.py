"""Quantisation: nearer with more bits and scales, exact zeros, straight-through gradients."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import strategies as st

from cramjax.checkpoints import packed
from cramjax.checkpoints.packed import BITS, Quantized
from cramjax.compress import matrices, quantize
from cramjax.compress.quantize import Quantizer
from cramjax.errors import UserError
from cramjax.models import classifier, encoder, network, t5

CFG = encoder.EncoderConfig(
    vocab_size=48, n_layers=2, d_model=16, n_heads=2, d_ff=24, ffn="geglu", linear_bias=True
)


@functools.partial(jax.jit, static_argnums=0)
def codes(quantizer, folded):
    return quantizer.codes(folded)


def error(quantizer, weights):
    numbers, scale = codes(quantizer, jnp.asarray(weights))
    group = quantizer.group_size if quantizer.granularity == "group" else 0
    stored = Quantized(
        codes=np.asarray(numbers).astype(np.int8),
        scale=np.asarray(scale),
        bits=quantizer.bits,
        group=group,
        matrix=((0,), (1,), (2,)),
        shape=weights.shape,
    )
    return float(np.mean(np.square(stored.values() - weights)))


def weights(rows=40):
    numbers = np.random.default_rng(0)
    spread = np.exp(numbers.normal(size=(2, 1, 12)))  # columns of different sizes
    return (numbers.standard_t(4, size=(2, rows, 12)) * spread).astype(np.float32)


def test_more_bits_and_more_scales_are_nearer():
    by_bits = [error(Quantizer(bits=bits), weights()) for bits in BITS]
    assert by_bits == sorted(by_bits, reverse=True)
    assert by_bits[-1] < 1e-3 * by_bits[0]

    for bits in (3, 4, 8):
        tensor, channel, group = (
            error(Quantizer(bits=bits, granularity=name, group_size=8), weights())
            for name in quantize.GRANULARITIES
        )
        assert group < channel < tensor


@hypothesis.settings(max_examples=15)
@hypothesis.given(
    bits=st.sampled_from(BITS),
    name=st.sampled_from(quantize.GRANULARITIES),
    seed=st.integers(0, 99),
)
def test_no_weight_is_farther_than_half_a_step_or_the_clipping(bits, name, seed):
    numbers = np.random.default_rng(seed)
    given = numbers.normal(size=(1, 16, 4)).astype(np.float32)
    given[numbers.random(given.shape) < 0.3] = 0.0
    quantizer = Quantizer(bits=bits, granularity=name, group_size=8)
    found, scale = map(np.asarray, codes(quantizer, jnp.asarray(given)))

    assert (found == np.round(found)).all()
    assert np.abs(found).max() <= quantizer.largest

    assert (found[given == 0] == 0).all()

    step = scale.astype(np.float32)
    if name == "group":
        step = step.repeat(8, axis=1)
    is_inside = np.abs(found) < quantizer.largest
    errors = np.abs(found * step - given)
    half_steps = 0.5 * step * np.ones_like(given) * (1 + 1e-5)
    assert (errors <= half_steps)[is_inside].all()


def test_all_zeros_stay_zeros():
    found, scale = codes(Quantizer(bits=4), jnp.zeros((1, 8, 3)))
    assert not np.asarray(found).any()
    assert np.isfinite(scale).all()


def tiny(kind):
    """Returns the parameters of a tiny network by path, and the matrices among them."""
    if kind == "t5":
        cfg = t5.T5Config(
            vocab_size=40,
            n_layers=2,
            n_decoder_layers=1,
            d_model=16,
            n_heads=2,
            head_dim=8,
            d_ff=24,
        )
    elif kind == "classifier":
        cfg = classifier.ClassifierConfig(encoder=CFG, width=20, n_outputs=3)
    else:
        cfg = CFG

    shapes = flatten_dict(network.abstract_params(cfg), sep="/")
    numbers = np.random.default_rng(0)
    params = {
        path: numbers.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()
    }
    return params, matrices.find(network.param_axes(cfg))


@pytest.mark.parametrize("kind", ["encoder", "classifier", "t5"])
def test_matrices_and_the_vocabulary_are_quantised_and_nothing_else(kind):
    params, paths = tiny(kind)
    small = [path for path in params if path not in paths]
    kinds = ("bias", "scale", "classifier/out/kernel")
    assert all(path.endswith(kinds) or "relative_bias" in path for path in small), small
    assert any("embeddings/tokens" in path for path in paths)

    stored = quantize.quantize(params, paths, Quantizer(bits=8))
    back = packed.values(stored)
    for path, leaf in params.items():
        assert back[path].shape == leaf.shape
        assert back[path].dtype == np.float32
        if path in paths:
            assert 0 < np.abs(back[path] - leaf).max() < 0.05
        else:
            np.testing.assert_array_equal(back[path], leaf)


@pytest.mark.parametrize(
    "granularity",
    ["group", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tensor", "channel"))],
)
def test_what_training_sees_is_what_is_stored(granularity):
    params, paths = tiny("encoder")
    quantizer = Quantizer(bits=3, granularity=granularity, group_size=8)
    stored = packed.values(quantize.quantize(params, paths, quantizer))
    for path in (
        "encoder/layers/attention/qkv/kernel",
        "encoder/layers/attention/out/kernel",
        "encoder/embeddings/tokens",
    ):
        leaf = jnp.asarray(params[path])
        seen = jax.jit(lambda leaf, path=path: quantizer.simulate(leaf, paths[path]))(leaf)
        np.testing.assert_allclose(seen, stored[path], rtol=1e-6, atol=1e-7)

    slope = jax.grad(lambda leaf: jnp.sum(quantizer.simulate(leaf, paths[path]) * 2.0))(leaf)
    np.testing.assert_array_equal(slope, np.full(leaf.shape, 2.0))


def test_what_there_is_not_is_refused():
    for wrong in (
        {"bits": 5},
        {"bits": 1},
        {"bits": 16},
        {"bits": 4, "granularity": "row"},
        {"bits": 4, "group_size": 2},
    ):
        with pytest.raises(UserError, match=r"must be"):
            Quantizer(**wrong)

    assert dataclasses.replace(Quantizer(bits=2), bits=8).largest == 127
