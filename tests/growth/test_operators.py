"""Growth operators: which leave the network's function as it is, and what moments become."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from cramjax.growth.operators import Compound, Depth, SharedWidth, ZeroWidth, grow
from cramjax.models import encoder, network, t5
from cramjax.models.layers import FLOAT32
from cramjax.optim.build import make_optimizer

# Norms far from their beginnings, biases where there are any: nothing holds by chance.
ENCODER = encoder.EncoderConfig(
    vocab_size=40,
    n_layers=2,
    d_model=12,
    n_heads=2,
    d_ff=10,
    ffn="geglu",
    linear_bias=True,
    head_transform=True,
    head_bias=True,
    decoder_bias=True,
    unroll=1,
)
MODERN = dataclasses.replace(
    ENCODER, positions="rotary", first_norm=False, norm_bias=False, linear_bias=False
)
T5 = t5.T5Config(
    vocab_size=40,
    n_layers=2,
    n_decoder_layers=1,
    d_model=12,
    n_heads=2,
    head_dim=5,
    d_ff=10,
    ffn="geglu_tanh",
    unroll=1,
)
TOKENS = np.random.default_rng(0).integers(1, 40, (3, 9)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def initial(cfg, seed):
    return network.init_params(cfg, jax.random.key(seed))


def trained(cfg, seed=0):
    """Parameters as if trained: far from what they begin with."""
    numbers = np.random.default_rng(seed)
    params = initial(cfg, seed)
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * numbers.normal(size=leaf.shape).astype(np.float32), params
    )


@functools.partial(jax.jit, static_argnums=0)
def logits(cfg, params):
    if isinstance(cfg, t5.T5Config):
        encoded = t5.encode(cfg, FLOAT32, params, TOKENS)
        return t5.head(
            cfg,
            FLOAT32,
            params,
            t5.decode(cfg, FLOAT32, params, encoded, jnp.asarray(TOKENS[:, :5])),
        )
    return encoder.head(
        cfg, FLOAT32, params, encoder.encode(cfg, FLOAT32, params, jnp.asarray(TOKENS))
    )


def grown(small, operator, **changes):
    """(small network's parameters, large configuration, its parameters)."""
    big = dataclasses.replace(small, **changes)
    params, fresh = trained(small), initial(big, 9)
    axes = network.param_axes(big)
    return (
        params,
        big,
        jax.jit(lambda params, fresh: grow(params, axes, fresh, operator)[0])(params, fresh),
    )


def jump(small, operator, **changes):
    """Returns the largest change of a logit, relative to the largest logit above 1."""
    params, big, more = grown(small, operator, **changes)
    shapes = jax.tree.map(jnp.shape, network.abstract_params(big))
    assert jax.tree.map(jnp.shape, more) == shapes
    before = np.asarray(logits(small, params))
    assert before.std() > 0.1
    return np.abs(np.asarray(logits(big, more)) - before).max() / max(1.0, np.abs(before).max())


EXACT = [
    pytest.param(ENCODER, Depth("identity"), {"n_layers": 5}, id="identity layers, LayerNorm"),
    pytest.param(
        MODERN,
        Depth("identity"),
        {"n_layers": 4},
        id="identity layers, ModernBERT",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        T5,
        Depth("identity"),
        {"n_layers": 3, "n_decoder_layers": 3},
        id="identity layers, T5",
        marks=pytest.mark.slow,
    ),
    pytest.param(ENCODER, SharedWidth(), {"d_ff": 20}, id="shared width, twice"),
    pytest.param(
        dataclasses.replace(ENCODER, ffn="gelu", norm_position="post"),
        SharedWidth(),
        {"d_ff": 40},
        id="post-norm",
    ),
    pytest.param(
        T5,
        SharedWidth(noise=0.5),
        {"d_ff": 30},
        id="shared width, T5, three times, much noise",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        dataclasses.replace(
            ENCODER,
            norm="rmsnorm",
            norm_bias=False,
            head_bias=False,
            head_transform=False,
            positions="learned",
        ),
        ZeroWidth(),
        {"d_model": 30, "n_heads": 5, "d_ff": 16},
        id="zero width, RMSNorm",
    ),
    pytest.param(
        T5,
        ZeroWidth(tied=("decoder/final_norm",)),
        {"d_model": 20, "n_heads": 3, "d_ff": 16},
        id="zero width, tied T5",
    ),
    pytest.param(
        dataclasses.replace(T5, tie_embeddings=False),
        ZeroWidth(),
        {"d_model": 20, "n_heads": 3},
        id="zero width, T5",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        ENCODER,
        Compound((SharedWidth(), Depth("identity"))),
        {"n_layers": 4, "d_ff": 20},
        id="width and depth at once",
    ),
    pytest.param(
        dataclasses.replace(ENCODER, ffn_rank=3),
        Compound(()),
        {"ffn_rank": 0},
        id="factors, encoder",
    ),
    pytest.param(
        dataclasses.replace(T5, ffn_rank=3), Compound(()), {"ffn_rank": 0}, id="factors, T5"
    ),
    pytest.param(
        dataclasses.replace(ENCODER, ffn_rank=3, ffn="gelu", norm_position="post"),
        Compound((SharedWidth(),)),
        {"ffn_rank": 0, "d_ff": 20},
        id="factors, then shared width",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        dataclasses.replace(T5, ffn_rank=4),
        Compound((SharedWidth(), Depth("identity"))),
        {"d_ff": 20, "n_layers": 4},
        id="width and depth of factors",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        dataclasses.replace(T5, ffn_rank=4, tie_embeddings=False),
        ZeroWidth(),
        {"d_model": 20, "n_heads": 3},
        id="zero width with factors",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        ENCODER, ZeroWidth(), {"d_ff": 13}, id="zero width of the feed-forward alone, LayerNorm"
    ),
]


@pytest.mark.parametrize("small, operator, changes", EXACT)
def test_the_function_stays_what_it_was(small, operator, changes):
    assert jump(small, operator, **changes) < 1e-5


@pytest.mark.parametrize("how", ["stack", "repeat", "interpolate"])
def test_copies_of_layers_change_the_function(how):
    assert jump(ENCODER, Depth(how), n_layers=4) > 1e-3


def test_which_layer_comes_from_which():
    def origin(how, small, big):
        return Depth(how).sources(small, big).argmax(1).tolist()

    assert origin("stack", 3, 6) == [0, 1, 2, 0, 1, 2] and origin("stack", 2, 5) == [0, 1, 0, 1, 0]
    assert origin("repeat", 3, 6) == origin("identity", 3, 6) == [0, 0, 1, 1, 2, 2]
    shares = Depth("interpolate").sources(3, 5)
    np.testing.assert_allclose(shares @ [0.0, 1.0, 2.0], [0.0, 0.5, 1.0, 1.5, 2.0])
    with pytest.raises(ValueError, match="unknown way to deepen"):
        Depth("up").sources(2, 4)


@hypothesis.given(
    how=st.sampled_from(["stack", "repeat", "identity", "interpolate"]),
    small=st.integers(1, 9),
    more=st.integers(0, 12),
)
def test_every_layer_is_a_mean_of_old_ones(how, small, more):
    shares = Depth(how).sources(small, small + more)
    assert shares.shape == (small + more, small) and (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(1), 1.0)
    # None is lost, and nothing changes where nothing grows.
    assert (shares.max(0) > 0).all()
    if not more:
        np.testing.assert_array_equal(shares, np.eye(small))


def test_a_copy_of_the_first_layer_of_a_modernbert_has_a_fresh_norm():
    params, _, more = grown(MODERN, Depth("stack"), n_layers=4)
    scales = more["encoder"]["layers"]["attention_norm"]["scale"]
    old = params["encoder"]["layers"]["attention_norm"]["scale"]
    np.testing.assert_array_equal(
        scales, jnp.stack([old[0], jnp.ones(12), old[0]])
    )  # of layers 1, 2 (from 0) and 3 (from 1)


def gradients(cfg, params):
    return jax.grad(lambda params: jnp.mean(jax.nn.log_softmax(logits(cfg, params))[..., 3]))(
        params
    )


def test_copies_stay_alike_without_noise_and_part_with_it():
    for noise, alike in ((0.0, True), (0.1, False)):
        _, big, more = grown(ENCODER, SharedWidth(noise=noise), d_ff=20)
        inner = gradients(big, more)["encoder"]["layers"]["mlp"]["wi"]["kernel"]
        assert np.allclose(inner[..., :10], inner[..., 10:], rtol=1e-4, atol=1e-9) == alike


@pytest.mark.slow
def test_moments_grow_as_gradients_do():
    """The moments of copies are those that gradients after the growth would have."""
    params, big, more = grown(ENCODER, SharedWidth(noise=0.0), d_ff=30)
    axes, fresh = network.param_axes(big), initial(big, 9)
    optimizer = optax.scale_by_adam(
        0.0, 0.0
    )  # a memory of one step: mu is the gradient, nu its square
    small_state, big_state = optimizer.init(params), optimizer.init(more)
    with jax.numpy_dtype_promotion("standard"):
        small_state = optimizer.update(gradients(ENCODER, params), small_state)[1]
        expected = optimizer.update(gradients(big, more), big_state)[1]
    _, found = grow(
        params, axes, fresh, SharedWidth(noise=0.0), opt_state=small_state, fresh_state=big_state
    )
    assert int(found.count) == 1
    for name in ("mu", "nu"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=1e-3, atol=1e-6 * float(jnp.abs(b).max() + 1e-6)
            ),
            getattr(found, name),
            getattr(expected, name),
        )


@pytest.mark.slow
def test_noise_between_copies_lets_the_loss_fall_further():
    """A fit to a wide teacher: copies without noise stay the narrow network, others do not."""
    small = dataclasses.replace(ENCODER, n_layers=1, d_ff=2, ffn="gelu")
    teacher = dataclasses.replace(small, d_ff=24)
    wanted = logits(teacher, trained(teacher, seed=5))
    start = trained(small, seed=1)
    mlp = start["encoder"]["layers"]["mlp"]
    start = jax.tree.map(
        jnp.array, trained(teacher, seed=5)
    )  # all but the feed-forward is the teacher's
    start["encoder"]["layers"]["mlp"] = mlp
    optimizer = optax.adam(3e-3)

    def fit(cfg, params, n_steps):
        def loss(mlp):
            layers = params["encoder"]["layers"] | {"mlp": mlp}
            whole = params | {"encoder": params["encoder"] | {"layers": layers}}
            return jnp.mean(jnp.square(logits(cfg, whole) - wanted))

        @jax.jit
        def train(mlp):
            def step(_, carry):
                mlp, state = carry
                updates, state = optimizer.update(jax.grad(loss)(mlp), state)
                return optax.apply_updates(mlp, updates), state

            return jax.lax.fori_loop(0, n_steps, step, (mlp, optimizer.init(mlp)))[0]

        with jax.numpy_dtype_promotion("standard"):
            mlp = train(params["encoder"]["layers"]["mlp"])
            return mlp, float(loss(mlp))

    fitted, plateau = fit(small, start, 1500)
    start["encoder"]["layers"]["mlp"] = fitted
    big = dataclasses.replace(small, d_ff=24)
    fresh, found = initial(big, 9), {}
    for noise in (0.0, 0.1):
        wider = grow(start, network.param_axes(big), fresh, SharedWidth(noise=noise))[0]
        found[noise] = fit(big, wider, 1500)[1]
    assert found[0.1] < 0.7 * found[0.0] and found[0.0] > 0.5 * plateau, (plateau, found)


@pytest.mark.parametrize(
    "name",
    [
        "adamw",
        "muon",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("lamb", "lion", "adafactor")),
    ],
)
def test_every_optimizer_goes_on_after_growth(name):
    operator = Compound((SharedWidth(), Depth("stack")))
    big = dataclasses.replace(ENCODER, n_layers=4, d_ff=20)
    params, fresh = trained(ENCODER), initial(big, 9)
    optimizer = make_optimizer(
        name, network.param_axes(ENCODER), b1=0.9, b2=0.98, eps=1e-9, weight_decay=0.01
    )
    with jax.numpy_dtype_promotion("standard"):
        update, init = jax.jit(optimizer.update), jax.jit(optimizer.init)
        state = update(jax.tree.map(lambda leaf: 0.1 + leaf, params), init(params), params)[1]
        axes, fresh_state = network.param_axes(big), init(fresh)
        more, found = grow(params, axes, fresh, operator, opt_state=state, fresh_state=fresh_state)
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (found, fresh_state)]
        assert shapes[0] == shapes[1]
        updates, _ = update(more, found, more)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
        if ".mu" in jax.tree_util.keystr(path)
    ]
    assert name == "adafactor" or all(np.abs(leaf).max() > 0 for leaf in moments if leaf.ndim)


def test_moments_of_a_matrix_that_was_two_factors_start_anew():
    small = dataclasses.replace(ENCODER, ffn_rank=3)
    params, fresh = trained(small), initial(ENCODER, 9)
    optimizer = optax.scale_by_adam()
    state, fresh_state = optimizer.init(params), optimizer.init(fresh)
    ones = state._replace(mu=jax.tree.map(jnp.ones_like, state.mu), count=state.count + 7)
    _, found = grow(
        params,
        network.param_axes(ENCODER),
        fresh,
        Compound(()),
        opt_state=ones,
        fresh_state=fresh_state,
    )
    layers = found.mu["encoder"]["layers"]
    assert found.count == 7 and (layers["attention"]["out"]["kernel"] == 1).all()
    assert (layers["mlp"]["wi"]["kernel"] == 0).all() and (layers["mlp"]["wo"]["kernel"] == 0).all()


def test_a_width_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="a width of 25 is no multiple of 10"):
        grown(ENCODER, SharedWidth(), d_ff=25)
