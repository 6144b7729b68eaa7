import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cramjax.models import network, t5
from cramjax.models.attention import MASKED_SCORE, einsum_attention
from cramjax.models.layers import FLOAT32, Precision
from cramjax.models.module import bind
from cramjax.models.relative import RelativeBias, relative_buckets

V10 = t5.T5Config(
    vocab_size=50,
    n_layers=2,
    n_decoder_layers=3,
    d_model=32,
    n_heads=3,
    head_dim=8,
    d_ff=48,
    unroll=1,
)
V11 = dataclasses.replace(
    V10, ffn="geglu_tanh", tie_embeddings=False, n_layers=3, n_decoder_layers=1
)
FORMS = pytest.mark.parametrize("cfg", [V10, V11], ids=["1.0", "1.1"])


def tokens(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(3, 50, shape), jnp.int32)


# Compiled once for a network and a shape, however many tests ask.
_init = jax.jit(network.init_params, static_argnums=0)


def init(cfg):
    return _init(cfg, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def _hidden(cfg, params, inputs, targets, options):
    encoded = t5.encode(cfg, FLOAT32, params, inputs, **options)
    return t5.decode(cfg, FLOAT32, params, encoded, targets, **options)


def hidden(cfg, params, inputs, targets, **options):
    return _hidden(cfg, params, inputs, targets, options)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("length", "kv_length"), [(7, 7), (1, 5), (200, 200), (1, 1), (4, 9)])
def test_bias_is_the_bucket_of_each_pair(bidirectional, length, kv_length):
    cfg = dataclasses.replace(V10, relative_max_distance=64)

    def build(rngs):
        return RelativeBias(cfg, rngs, bidirectional=bidirectional)

    table = jax.random.normal(jax.random.key(0), (32, 3))
    bias = bind(build, {"table": table})(length, kv_length)
    distances = np.arange(kv_length)[None] - np.arange(length)[:, None]
    buckets = relative_buckets(
        distances, bidirectional=bidirectional, n_buckets=32, max_distance=64
    )
    expected = np.moveaxis(np.asarray(table)[buckets], -1, 0)[None]
    np.testing.assert_array_equal(bias, expected)
    if not bidirectional:
        expected = np.where(distances <= 0, expected, np.float32(MASKED_SCORE))
    if length == kv_length:
        for index in (0, length // 2, length - 1):
            row = bind(build, {"table": table}).row(jnp.int32(index), kv_length)
            np.testing.assert_array_equal(row[0, :, 0], expected[0, :, index])


def test_bias_has_the_written_out_gradient():
    keys = jax.random.split(jax.random.key(1), 2)
    query, key, value = jax.random.normal(keys[0], (3, 2, 5, 2, 4))
    for shape in ((1, 2, 5, 5), (2, 1, 1, 5), (2, 2, 5, 5)):
        bias = jax.random.normal(keys[1], shape)

        def attention(query, key, value, bias):
            return einsum_attention(query, key, value, None, FLOAT32, bias=bias, scale=1.0)

        check_grads(
            attention,
            (query, key, value, bias),
            order=1,
            modes=["rev"],
            atol=1e-2,
            rtol=1e-2,
            eps=1e-2,
        )
        theirs = jax.nn.dot_product_attention(query, key, value, bias=bias, scale=1.0)
        np.testing.assert_allclose(attention(query, key, value, bias), theirs, atol=1e-5)


def test_the_decoder_sees_no_later_token():
    cfg = V10
    params = init(cfg)
    inputs, targets = tokens(2, 9), tokens(2, 8, seed=1)
    before = hidden(cfg, params, inputs, targets)
    after = hidden(cfg, params, inputs, targets.at[:, 5].add(1))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.all(np.any(np.asarray(before[:, 5:] != after[:, 5:]), axis=-1))


def test_padding_changes_nothing():
    cfg = V11
    params = init(cfg)
    inputs, targets = tokens(2, 9), tokens(2, 8, seed=1)
    padded = jnp.pad(inputs, ((0, 0), (0, 4)), constant_values=7)
    mask = jnp.arange(13)[None] < jnp.full((2, 1), 9)
    np.testing.assert_allclose(
        hidden(cfg, params, padded, targets, padding_mask=mask),
        hidden(cfg, params, inputs, targets),
        atol=1e-5,
    )


@pytest.mark.slow
@FORMS
def test_scan_unrolled_and_rematerialized_agree(cfg):
    params = init(cfg)
    inputs, targets = tokens(2, 9), tokens(2, 8, seed=1)

    def value_and_gradient(**changes):
        changed = dataclasses.replace(cfg, **changes)
        return jax.jit(
            jax.value_and_grad(lambda p: jnp.sum(hidden(changed, p, inputs, targets) ** 2))
        )(params)

    expected = value_and_gradient()
    for changes in ({"unroll": True}, {"remat": "full"}, {"remat": "dots"}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
            value_and_gradient(**changes),
            expected,
        )


def test_init_is_t5xs():
    cfg = t5.T5Config(
        vocab_size=512, n_layers=2, n_decoder_layers=2, d_model=256, n_heads=8, head_dim=32,
        d_ff=512, ffn="geglu_tanh",
        tie_embeddings=False,
    )  # fmt: skip
    params = init(cfg)
    layers = params["decoder"]["layers"]
    qkv = layers["attention"]["qkv"]["kernel"]
    for array, deviation in (
        (params["embeddings"]["tokens"], 1.0),
        (params["head"]["kernel"], 256**-0.5),
        (qkv[:, :, 0], (256 * 32) ** -0.5),
        (qkv[:, :, 1:], 256**-0.5),
        (layers["cross_attention"]["query"]["kernel"], (256 * 32) ** -0.5),
        (layers["cross_attention"]["kv"]["kernel"], 256**-0.5),
        (layers["attention"]["out"]["kernel"], (8 * 32) ** -0.5),
        (layers["mlp"]["wi"]["kernel"], 256**-0.5),
        (layers["mlp"]["wo"]["kernel"], 512**-0.5),
    ):
        assert float(jnp.std(array)) == pytest.approx(deviation, rel=0.03)
    assert np.all(layers["mlp_norm"]["scale"] == 1.0)
    assert float(jnp.abs(layers["mlp"]["wi"]["kernel"]).max()) < 2.3 * 256**-0.5  # truncated
    jax.tree.map(np.testing.assert_array_equal, params, init(cfg))


@pytest.mark.slow
def test_the_first_loss_is_near_that_of_chance():
    """transformers' initialisation of an untied head starts near 110."""
    cfg = dataclasses.replace(V11, d_model=128, vocab_size=1000)
    params = init(cfg)
    inputs, targets = tokens(4, 16), tokens(4, 16, seed=1)
    logits = t5.head(cfg, FLOAT32, params, hidden(cfg, params, inputs, t5.shift_right(targets, 0)))
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1).mean()
    assert abs(float(loss) - np.log(1000)) < 1.0


@pytest.mark.slow
def test_dropout_is_a_function_of_the_key():
    cfg = dataclasses.replace(V10, dropout=0.3, attention_dropout=0.3)
    params = init(cfg)
    inputs, targets = tokens(2, 9), tokens(2, 8, seed=1)
    one, again, other = (
        hidden(cfg, params, inputs, targets, key=jax.random.key(k)) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(
        one, hidden(cfg, params, inputs, targets)
    )


@FORMS
def test_every_parameter_has_axes_and_a_gradient(cfg):
    params = init(cfg)
    axes = network.param_axes(cfg)
    jax.tree.map(
        lambda leaf, names: leaf.ndim == len(names) or pytest.fail(str(names)), params, axes
    )
    inputs, targets = tokens(2, 9), tokens(2, 8, seed=1)
    direction = jax.random.normal(jax.random.key(1), (2, 8, cfg.vocab_size))
    gradients = jax.grad(
        lambda p: jnp.vdot(
            direction, t5.head(cfg, FLOAT32, p, hidden(cfg, p, inputs, t5.shift_right(targets, 0)))
        )
    )(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.any(np.asarray(gradient) != 0), jax.tree_util.keystr(path)


@FORMS
@pytest.mark.parametrize(
    ("activations", "operands"), [("bfloat16", "bfloat16"), ("float32", "float16")]
)
def test_narrow_products_are_close(cfg, activations, operands):
    precision = Precision(jnp.dtype(activations), jnp.dtype(operands))
    params = init(cfg)
    inputs, targets = tokens(2, 9), tokens(2, 8, seed=1)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(precision):
        encoded = t5.encode(cfg, precision, params, inputs)
        return t5.head(cfg, precision, params, t5.decode(cfg, precision, params, encoded, targets))

    narrow, wide = logits(precision), logits(FLOAT32)
    assert narrow.dtype == jnp.float32
    assert float(jnp.abs(narrow - wide).max()) < 0.06 * float(jnp.std(wide)) + 0.03


def test_float16_stays_finite_where_the_feed_forward_leaves_its_range():
    precision = Precision(jnp.dtype("float32"), jnp.dtype("float16"))
    params = init(V11)
    params["encoder"]["layers"]["mlp"]["wi"]["kernel"] *= 3000.0
    encoded = t5.encode(V11, precision, params, tokens(2, 9))
    assert bool(jnp.all(jnp.isfinite(encoded)))


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="buckets"):
        dataclasses.replace(V10, relative_buckets=30)


def test_count_is_the_formula_of_the_paper():
    # Small of arXiv 2109.10686: 60.51 million. A layer has 4 d (h kv) + 2 d f + 2 d, one of a
    # decoder 8 d (h kv) + 2 d f + 3 d.
    cfg = t5.T5Config(
        vocab_size=32128,
        n_layers=6,
        n_decoder_layers=6,
        d_model=512,
        n_heads=8,
        head_dim=64,
        d_ff=2048,
    )
    assert network.count_params(cfg) == 60_506_624
    v11 = dataclasses.replace(
        cfg,
        n_layers=8,
        n_decoder_layers=8,
        n_heads=6,
        d_ff=1024,
        ffn="geglu_tanh",
        tie_embeddings=False,
    )
    assert network.count_params(v11) == 76_961_152
