"""Counts, shapes, masks, dropout, stacking and gradients of the encoder."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from cramjax.models import encoder, network
from cramjax.models.attention import einsum_attention
from cramjax.models.encoder import EncoderConfig, Precision
from cramjax.models.gated_gelu import gated_gelu
from cramjax.models.layers import FLOAT32, normalize, product
from tests import networks

BFLOAT16 = Precision(jnp.dtype("float32"), jnp.dtype("bfloat16"))
SMALL = {"n_layers": 3, "d_model": 48, "n_heads": 2, "d_ff": 40, "vocab_size": 97}


def small(name="modernbert-crammed", **changes) -> EncoderConfig:
    return networks.named(name, **(SMALL | changes))


# Compiled once for a network and a shape, however many tests ask.
_init = jax.jit(network.init_params, static_argnums=0)


def init(cfg, seed=0):
    return _init(cfg, jax.random.key(seed))


def tokens_of(cfg, batch=2, length=12, seed=1):
    return jax.random.randint(jax.random.key(seed), (batch, length), 1, cfg.vocab_size)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(cfg, precision, params, tokens, kwargs):
    return encoder.head(
        cfg, precision, params, encoder.encode(cfg, precision, params, tokens, **kwargs)
    )


def logits_of(cfg, params, tokens, precision=FLOAT32, **kwargs):
    return _logits(cfg, precision, params, tokens, kwargs)


@pytest.mark.parametrize(
    ("name", "n_params"),
    [
        ("crammed-bert", 119_589_889),
        ("bert-base", 109_514_298),
        ("hf-bert-base", 111_241_472),
        ("hf-bert-tiny", 4_706_432),
        # Published with BERT's pooler, a dense layer that masked language modelling does not use:
        # 336,230,208 - 1024 * 1025.
        ("bert-large-24h", 336_230_208 - 1024 * 1025),
        # 16 blocks of 4 * 768^2 + 3 * 768 * 1536 and two norms, one less in the first block;
        # embedding, two more norms, head.
        (
            "modernbert-crammed",
            16 * 5_898_240 + 31 * 768 + 32768 * 768 + 2 * 768 + 768 * 769 + 32768,
        ),
    ],
)
def test_parameter_counts(name, n_params):
    assert network.count_params(networks.named(name)) == n_params


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_axes_and_shapes_fit_init(name):
    cfg = small(name)
    params, axes, abstract = init(cfg), network.param_axes(cfg), network.abstract_params(cfg)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), abstract
    )
    jax.tree.map(lambda leaf, names: np.testing.assert_equal(len(names), leaf.ndim), abstract, axes)
    for path, names in jax.tree.flatten_with_path(
        axes, is_leaf=lambda node: isinstance(node, tuple)
    )[0]:
        assert ("layer" in names[:1]) == ("['layers']" in jax.tree_util.keystr(path))
        assert "layer" not in names[1:]
        named = [name for name in names if name]
        assert len(named) == len(set(named))


def test_init_follows_the_recipe():
    cfg = small("crammed-bert", d_model=96, d_ff=80, vocab_size=400)
    params = init(cfg)["encoder"]
    assert not params["embeddings"]["tokens"][0].any()
    assert float(params["embeddings"]["position_scale"]) == pytest.approx(96**-0.5)
    kernels = params["layers"]["mlp"]["wi"]["kernel"]
    assert float(jnp.std(kernels)) == pytest.approx(0.02, rel=0.05)
    assert not np.array_equal(kernels[0], kernels[1])
    assert (params["layers"]["mlp_norm"]["scale"] == 1).all() and not params["layers"]["mlp_norm"][
        "bias"
    ].any()


def test_init_is_a_function_of_the_key():
    cfg = small()
    jax.tree.map(np.testing.assert_array_equal, init(cfg, 3), init(cfg, 3))
    assert not np.array_equal(
        init(cfg, 3)["encoder"]["embeddings"]["tokens"],
        init(cfg, 4)["encoder"]["embeddings"]["tokens"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-base", "modernbert-crammed"])
def test_scan_equals_unrolled(name):
    tokens = tokens_of(small(name))

    def value_and_gradient(**changes):
        cfg = small(name, **changes)

        def loss(params):
            return jnp.mean(
                jnp.square(
                    encoder.head(cfg, FLOAT32, params, encoder.encode(cfg, FLOAT32, params, tokens))
                )
            )

        return jax.jit(jax.value_and_grad(loss))(init(cfg))

    expected = value_and_gradient(unroll=True)
    for changes in ({"unroll": 1}, {"unroll": 2, "remat": "full"}, {"remat": "dots"}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            value_and_gradient(**changes),
            expected,
        )


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_documents_do_not_see_each_other(positions):
    cfg = small(first_norm=True, positions=positions)
    params, tokens = init(cfg), tokens_of(cfg)
    segments = jnp.tile(jnp.repeat(jnp.arange(3), 4)[None], (2, 1))
    changed = tokens.at[:, 4:8].set((tokens[:, 4:8] + 1) % cfg.vocab_size)
    before = logits_of(cfg, params, tokens, segment_ids=segments)
    after = logits_of(cfg, params, changed, segment_ids=segments)
    others = np.r_[0:4, 8:12]
    np.testing.assert_array_equal(before[:, others], after[:, others])
    assert not np.allclose(before[:, 4:8], after[:, 4:8])
    unmasked = logits_of(cfg, params, changed)
    assert not np.allclose(
        logits_of(cfg, params, tokens)[:, others], unmasked[:, others], atol=1e-6
    )


def test_padding_is_not_seen_and_an_empty_row_is_finite():
    cfg = small()
    params, tokens = init(cfg), tokens_of(cfg)
    mask = jnp.arange(12)[None] < jnp.asarray([7, 0])[:, None]
    before = logits_of(cfg, params, tokens, padding_mask=mask)
    after = logits_of(cfg, params, tokens.at[:, 7:].set(3), padding_mask=mask)
    np.testing.assert_array_equal(before[0, :7], after[0, :7])
    assert jnp.isfinite(before).all()
    np.testing.assert_allclose(before[0, :7], logits_of(cfg, params, tokens[:, :7])[0], atol=1e-5)


def test_positions_matter():
    for positions in ("rotary", "scaled_sinusoidal"):
        cfg = small(first_norm=True, positions=positions)
        tokens = tokens_of(cfg)
        turned = logits_of(cfg, init(cfg), tokens[:, ::-1])[:, ::-1]
        assert not np.allclose(turned, logits_of(cfg, init(cfg), tokens), atol=1e-5)
    cfg = small(first_norm=True, positions="none")
    turned = logits_of(cfg, init(cfg), tokens[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(turned, logits_of(cfg, init(cfg), tokens), atol=1e-5)


@pytest.mark.parametrize("rates", [(0.3, 0.0), (0.0, 0.3)])
def test_dropout_is_a_function_of_the_key(rates):
    cfg = small(dropout=rates[0], attention_dropout=rates[1])
    params, tokens = init(cfg), tokens_of(cfg)
    one = logits_of(cfg, params, tokens, key=jax.random.key(5))
    np.testing.assert_array_equal(one, logits_of(cfg, params, tokens, key=jax.random.key(5)))
    assert not np.allclose(one, logits_of(cfg, params, tokens, key=jax.random.key(6)))
    assert not np.allclose(one, logits_of(cfg, params, tokens))


@pytest.mark.parametrize("unroll", [1, True])
def test_dropout_differs_between_layers(unroll):
    # Blocks of equal weights whose attention gives the constant 1 and whose feed-forward gives 0:
    # two of them add dropout(1) + dropout(1), which is 0 where both drop. Independent masks do so
    # at a quarter of the places, equal ones at a half.
    cfg = EncoderConfig(
        **SMALL | {"n_layers": 2},
        linear_bias=True,
        dropout=0.5,
        final_norm=False,
        positions="none",
        unroll=unroll,
    )
    params = jax.tree.map(jnp.zeros_like, init(cfg))
    params["encoder"]["layers"]["attention"]["out"]["bias"] += 1.0
    added = encoder.encode(cfg, FLOAT32, params, tokens_of(cfg), key=jax.random.key(0))
    assert set(np.unique(added)) == {0.0, 2.0, 4.0}
    assert float(jnp.mean((added == 0).astype(jnp.float32))) == pytest.approx(0.25, abs=0.05)


def check_gradient(function, *args):
    check_grads(function, args, order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


def test_written_out_gradients():
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.normal(keys[0], (2, 5, 8))
    scale, bias = 1.0 + 0.1 * jax.random.normal(keys[1], (8,)), jax.random.normal(keys[2], (8,))
    for centre in (True, False):
        check_gradient(lambda x, s, b, c=centre: normalize(x, s, b, c, 1e-6), x, scale, bias)
        check_gradient(lambda x, s, c=centre: normalize(x, s, None, c, 1e-6), x, scale)
    for tanh in (False, True):
        check_gradient(lambda x, t=tanh: gated_gelu(x, t), jax.random.normal(keys[3], (3, 2, 7)))
    kernel = jax.random.normal(keys[4], (8, 2, 3))
    float32 = jnp.dtype("float32")
    check_gradient(lambda x, w: product("bte,egf->btgf", x, w, float32, float32), x, kernel)
    q, k, v = jax.random.normal(keys[5], (3, 2, 5, 2, 4))
    mask = jnp.tril(jnp.ones((1, 1, 5, 5), bool))
    for chosen in (None, mask):
        check_gradient(lambda q, k, v, m=chosen: einsum_attention(q, k, v, m, FLOAT32), q, k, v)

    def with_dropout(q, k, v):
        return einsum_attention(q, k, v, mask, FLOAT32, 0.3, jax.random.key(2))

    check_gradient(with_dropout, q, k, v)


@pytest.mark.parametrize(
    ("name", "activations", "length"),
    [
        pytest.param("crammed-bert", "float32", 12, marks=pytest.mark.slow),
        ("modernbert-crammed", "float32", 7),
        pytest.param("bert-base", "bfloat16", 7, marks=pytest.mark.slow),
    ],
)
def test_bfloat16_is_close_in_value_and_gradient(name, activations, length):
    cfg = small(name, n_layers=2)
    params, tokens = init(cfg), tokens_of(cfg, length=length)

    def loss(params, precision):
        logits = encoder.head(
            cfg, precision, params, encoder.encode(cfg, precision, params, tokens)
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[..., 5])

    exact, exact_gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, FLOAT32)))(params)
    precision = Precision(jnp.dtype(activations), jnp.dtype("bfloat16"))
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, precision)))(params)
    assert abs(float(value - exact)) < 1e-2
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    exact_flat, _ = ravel_pytree(exact_gradient)
    flat, _ = ravel_pytree(gradient)
    assert float(jnp.linalg.norm(flat - exact_flat) / jnp.linalg.norm(exact_flat)) < 0.05


def test_products_have_narrow_operands_forward_and_backward():
    cfg = small("crammed-bert")
    tokens = tokens_of(cfg)

    def loss(params):
        return jnp.sum(
            encoder.head(cfg, BFLOAT16, params, encoder.encode(cfg, BFLOAT16, params, tokens))
        )

    text = jax.jit(jax.grad(loss)).lower(network.abstract_params(cfg)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    # Forward six of a block (query-key-value, scores, mix, output, two of the feed-forward) and the
    # decoder's; more backward.
    assert len(products) > 14
    for line in products:
        operands, result = line.split(" : (")[1].split(") -> ")
        assert operands.count("xbf16>") == 2 and "xf32>" in result, line


def test_numbers_no_network_has():
    with pytest.raises(ValueError, match="n_heads"):
        small(n_heads=5)
    with pytest.raises(ValueError, match="even"):
        small(d_model=15, n_heads=3)
    with pytest.raises(ValueError, match="positions"):
        cfg = small("bert-base", max_positions=4)
        encoder.encode(cfg, FLOAT32, init(cfg), tokens_of(cfg))
