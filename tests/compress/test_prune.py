"""Pruning: exact counts, nested masks, zeros that stay, smaller networks that compute the same."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import strategies as st

from cramjax.compress import matrices, prune
from cramjax.errors import UserError
from cramjax.models import axes as ax
from cramjax.models import encoder, network, t5
from cramjax.models.layers import FLOAT32
from cramjax.optim.build import make_optimizer

CFG = encoder.EncoderConfig(
    vocab_size=40,
    n_layers=2,
    d_model=24,
    n_heads=4,
    d_ff=10,
    ffn="geglu",
    linear_bias=True,
    unroll=1,
)
MODERN = dataclasses.replace(
    CFG, positions="rotary", first_norm=False, norm_bias=False, linear_bias=False, ffn="gelu"
)
T5 = t5.T5Config(
    vocab_size=40,
    n_layers=2,
    n_decoder_layers=2,
    d_model=16,
    n_heads=4,
    head_dim=4,
    d_ff=10,
    unroll=1,
)
TOKENS = np.random.default_rng(0).integers(1, 40, (2, 9)).astype(np.int32)


def random_params(cfg, seed=0):
    numbers = np.random.default_rng(seed)
    shapes = network.abstract_params(cfg)
    return jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape).astype(np.float32), shapes)


def paths_of(cfg, embeddings=False):
    return matrices.find(network.param_axes(cfg), embeddings=embeddings)


@functools.partial(jax.jit, static_argnums=0)
def logits(cfg, params):
    if isinstance(cfg, t5.T5Config):
        encoded = t5.encode(cfg, FLOAT32, params, TOKENS)
        hidden = t5.decode(cfg, FLOAT32, params, encoded, jnp.asarray(TOKENS[:, :5]))
        return t5.head(cfg, FLOAT32, params, hidden)
    hidden = encoder.encode(cfg, FLOAT32, params, jnp.asarray(TOKENS))
    return encoder.head(cfg, FLOAT32, params, hidden)


@hypothesis.settings(max_examples=20)
@hypothesis.given(share=st.floats(0, 0.99), scope=st.sampled_from(prune.SCOPES), ties=st.booleans())
def test_exactly_so_many_of_the_smallest_are_zero(share, scope, ties):
    params, paths = random_params(CFG), paths_of(CFG)
    if ties:
        params = jax.tree.map(np.sign, params)
    before = flatten_dict(params, sep="/")
    after = flatten_dict(prune.prune(params, paths, share, scope), sep="/")
    for path in before:
        if path not in paths:
            np.testing.assert_array_equal(before[path], after[path])
    pruned = np.concatenate([np.asarray(after[path]).ravel() for path in paths])
    if scope == "global":
        assert (pruned == 0).sum() == round(share * len(pruned))
        if not ties and 0 < (pruned == 0).sum() < len(pruned):
            whole = np.abs(np.concatenate([before[path].ravel() for path in paths]))
            assert whole[pruned == 0].max() <= whole[pruned != 0].min()
    else:
        # [layers, embed, 2, mlp] holds four matrices, and each is pruned by itself.
        wi = np.asarray(after["encoder/layers/mlp/wi/kernel"])
        assert ((wi == 0).sum(axis=(1, 3)) == round(share * wi.shape[1] * wi.shape[3])).all()


def test_more_pruning_keeps_what_was_pruned_at_zero():
    params, paths = random_params(CFG), paths_of(CFG, embeddings=True)
    less = prune.prune(params, paths, 0.3)
    more = flatten_dict(prune.prune(less, paths, 0.6), sep="/")

    for path, leaf in flatten_dict(less, sep="/").items():
        assert not np.asarray(more[path])[np.asarray(leaf) == 0].any()
    assert (np.asarray(more["encoder/embeddings/tokens"]) == 0).mean() > 0.3


@pytest.mark.parametrize(
    "name",
    [
        "adamw",
        "adafactor",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lamb", "lion")),
    ],
)
def test_zeros_stay_zeros_through_training(name):
    paths = paths_of(CFG)
    params = prune.prune(random_params(CFG), paths, 0.5)
    optimizer = make_optimizer(
        name, network.param_axes(CFG), b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.1
    )

    def loss(params):
        return jnp.mean(jax.nn.log_softmax(logits(CFG, prune.keep_zeros(params, paths)))[..., 3])

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda p, u: p + 0.05 * u, params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        trained, state = params, optimizer.init(params)
        for _ in range(3):
            trained, state = step(trained, state)

    before, after = (flatten_dict(tree, sep="/") for tree in (params, trained))
    for path in paths:
        zero = np.asarray(before[path]) == 0
        assert zero.any()
        assert not np.asarray(after[path])[zero].any()
        assert (np.asarray(after[path]) != np.asarray(before[path]))[~zero].mean() > 0.9


def heads_and_columns_at_zero(cfg, params, n_heads, d_ff):
    """Returns `params` with all but some heads and columns at zero.

    Each layer keeps others, except where the layers of a T5 must be alike.
    """
    names = flatten_dict(network.param_axes(cfg), sep="/")
    flat = dict(flatten_dict(params, sep="/"))
    for path, axes in names.items():
        for axis, n_kept in ((ax.HEADS, n_heads), (ax.MLP, d_ff)):
            if axis not in axes or axes[0] != ax.LAYER:
                continue
            number = axes.index(axis)
            leaf = np.moveaxis(np.array(flat[path]), number, 1)
            alike = axis == ax.HEADS and isinstance(cfg, t5.T5Config) and "cross" not in path
            for layer in range(len(leaf)):
                first = 1 if alike else layer
                leaf[layer, :first] = 0
                leaf[layer, first + n_kept :] = 0
            flat[path] = np.moveaxis(leaf, 1, number)
    return unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("cfg", [CFG, MODERN, T5], ids=["encoder", "ModernBERT", "T5"])
def test_a_network_without_its_zero_heads_and_columns_computes_the_same(cfg):
    params = heads_and_columns_at_zero(cfg, random_params(cfg), 2, 6)
    small, fewer = prune.shrink(cfg, params, network.param_axes(cfg), n_heads=2, d_ff=6)
    assert (small.n_heads, small.d_ff, small.head_dim) == (2, 6, cfg.head_dim)

    shapes = jax.tree.map(jnp.shape, network.abstract_params(small))
    assert jax.tree.map(jnp.shape, fewer) == shapes

    before = np.asarray(logits(cfg, params))
    np.testing.assert_allclose(
        logits(small, fewer), before, rtol=1e-4, atol=1e-4 * np.abs(before).max()
    )
    # A second time: heads that were taken out stay out.
    smaller, _ = prune.shrink(small, fewer, network.param_axes(small), n_heads=1, d_ff=1)

    assert smaller.n_heads == 1
    assert getattr(smaller, "pruned_heads", 3) == 3


def test_shares_that_leave_nothing_are_refused():
    for share in (1.0, -0.1, 7.0, float("nan")):
        with pytest.raises(UserError, match="must be a share from 0 to below 1"):
            prune.prune(random_params(CFG), paths_of(CFG), share)
    with pytest.raises(UserError, match="--scope layer: must be one of global, matrix"):
        prune.prune(random_params(CFG), paths_of(CFG), 0.5, "layer")

    assert prune.n_left(4, 0.9) == 1
    assert prune.n_left(12, 0.5) == 6
