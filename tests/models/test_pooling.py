"""Means of embeddings: `pool` on a sequence, and a pooled encoder with means of one token."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from cramjax.budget import flops
from cramjax.models import encoder, network, pooling
from cramjax.models.layers import FLOAT32

CFG = encoder.EncoderConfig(vocab_size=40, n_layers=3, d_model=16, n_heads=2, d_ff=12, unroll=1)
NETWORKS = {
    "pre-norm": CFG,
    "post-norm": dataclasses.replace(
        CFG, norm_position="post", final_norm=False, linear_bias=True, positions="learned"
    ),
    "ModernBERT": dataclasses.replace(
        CFG,
        positions="rotary",
        first_norm=False,
        ffn="geglu",
        local_window=4,
        global_every=2,
        remat="full",
    ),
}
TOKENS = np.random.default_rng(0).integers(1, 40, (3, 11)).astype(np.int32)
TARGETS = np.array([[3, 7, 1], [10, 1, 2], [5, 6, 4]], np.int32)  # in any order


@hypothesis.settings(max_examples=20)
@hypothesis.given(
    length=st.integers(4, 20),
    n_targets=st.integers(1, 3),
    size=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_embedding_is_in_one_place(length, n_targets, size, seed):
    numbers = np.random.default_rng(seed)
    x = numbers.normal(size=(2, length, 3)).astype(np.float32)
    targets = np.stack([1 + numbers.permutation(length - 1)[:n_targets] for _ in range(2)]).astype(
        np.int32
    )
    pooled, places = jax.jit(pooling.pool, static_argnums=2)(x, targets, size)
    assert (
        pooled.shape == (2, pooling.n_pooled(length, n_targets, size), 3)
        and places.shape == pooled.shape[:2]
    )
    for row in range(2):
        others = [at for at in range(1, length) if at not in targets[row]]
        groups = [others[i : i + size] for i in range(0, len(others), size)]
        expected = [[0], *groups, *targets[row, :, None].tolist()]
        np.testing.assert_allclose(
            pooled[row], [x[row, group].mean(0) for group in expected], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(places[row], [np.mean(group) for group in expected], rtol=1e-6)


def random_params(cfg):
    numbers = np.random.default_rng(0)
    params = jax.jit(lambda: network.init_params(cfg, jax.random.key(0)))()
    return jax.tree.map(
        lambda leaf: leaf + 0.3 * numbers.normal(size=leaf.shape).astype(np.float32), params
    )


@functools.partial(jax.jit, static_argnums=(0, 2))
def pooled_states(cfg, params, size):
    return encoder.encode_pooled(
        cfg, FLOAT32, params, jnp.asarray(TOKENS), jnp.asarray(TARGETS), size=size
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_means_of_one_token_change_nothing(name):
    """Attention does not mind the order, and the angles of places are those of whole numbers."""
    cfg = NETWORKS[name]
    params = random_params(cfg)
    whole = jax.jit(lambda params: encoder.encode(cfg, FLOAT32, params, jnp.asarray(TOKENS)))(
        params
    )
    expected = np.take_along_axis(np.asarray(whole), TARGETS[..., None], axis=1)
    alone = pooled_states(cfg, params, 1)
    np.testing.assert_allclose(alone, expected, rtol=2e-5, atol=2e-5)
    pooled = pooled_states(cfg, params, 3)
    assert pooled.shape == expected.shape and np.abs(pooled - expected).max() > 1e-3


def test_the_first_layer_still_reads_every_token():
    slopes = jax.jit(jax.grad(lambda params: jnp.sum(pooled_states(CFG, params, 4)[0, 0])))(
        random_params(CFG)
    )
    slopes = np.asarray(slopes["encoder"]["embeddings"]["tokens"])
    assert (np.abs(slopes[TOKENS[0]]).max(axis=1) > 0).all()


def test_flops_of_a_pooled_sequence():
    shape = {
        "d_model": 8,
        "d_ff": 16,
        "gated": False,
        "seq_len": 16,
        "n_predicted": 4,
        "vocab_size": 100,
    }
    per_layer = {
        n: flops.encoder_forward_flops(n_layers=n, **shape, n_pooled=10) - 2 * 4 * 8 * 100
        for n in (1, 2, 3)
    }
    # Keys and values of 16 tokens, all else of 10.
    assert per_layer[1] == 2 * (16 * 2 * 64 + 10 * (2 * 64 + 2 * 8 * 16) + 2 * 8 * 16 * 10)
    assert per_layer[3] - per_layer[2] == 2 * 10 * (4 * 64 + 2 * 8 * 16 + 2 * 8 * 10)
    whole = flops.encoder_forward_flops(n_layers=2, **shape)
    assert flops.encoder_forward_flops(n_layers=2, **shape, n_pooled=16) == whole
    low = flops.encoder_forward_flops(n_layers=2, **shape, ffn_rank=3)
    assert whole - low == 2 * 2 * 16 * (2 * 8 * 16 - 2 * 3 * (8 + 16))
