import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cramjax.optim import build

AXES = {
    "embeddings": {"tokens": ("vocab", "embed"), "position_scale": ()},
    "layers": {
        "attention_norm": {"scale": ("layer", "embed")},
        "qkv": {"kernel": ("layer", "embed", None, "heads", "head_dim")},
        "out": {"kernel": ("layer", "heads", "head_dim", "embed"), "bias": ("layer", "embed")},
    },
}
SHAPES = {"vocab": 40, "embed": 16, "heads": 2, "head_dim": 8, "layer": 3, None: 3}
NUMBERS = {"b1": 0.9, "b2": 0.98, "eps": 1e-8, "weight_decay": 0.1}


def tree(seed):
    leaves, structure = jax.tree.flatten(AXES, is_leaf=lambda node: isinstance(node, tuple))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    arrays = []
    for key, axes in zip(keys, leaves, strict=True):
        shape = [SHAPES[axis] for axis in axes]
        arrays.append(jax.random.normal(key, shape, jnp.float32))
    return jax.tree.unflatten(structure, arrays)


def first_update(name, axes, **numbers):
    """Returns a function of gradients and parameters: an optimizer's first updates, and its state.

    It is compiled as a whole, which takes a fraction of what its operations take one by one.
    """
    optimizer = build.make_optimizer(name, axes, **(NUMBERS | numbers))
    return jax.jit(
        lambda gradients, params: optimizer.update(gradients, optimizer.init(params), params)
    )


def layer(values, index):
    return values | {"layers": jax.tree.map(lambda leaf: leaf[index], values["layers"])}


def test_decay_leaves_out_biases_and_norms_alone():
    assert build.decay_mask(AXES) == {
        "embeddings": {"tokens": True, "position_scale": True},
        "layers": {
            "attention_norm": {"scale": False},
            "qkv": {"kernel": True},
            "out": {"kernel": True, "bias": False},
        },
    }


def test_adamw_is_optax_adamw():
    ours = build.make_optimizer("adamw", AXES, **NUMBERS)
    theirs = optax.adamw(
        1.0, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1, mask=build.decay_mask(AXES)
    )
    params = tree(0)
    states = ours.init(params), theirs.init(params)
    update, expected = jax.jit(ours.update), jax.jit(theirs.update)
    for seed in (1, 2):
        one, states_0 = update(tree(seed), states[0], params)
        with jax.numpy_dtype_promotion("standard"):
            other, states_1 = expected(tree(seed), states[1], params)
        states = states_0, states_1
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lamb", "lion", "muon"])
def test_the_update_of_a_stack_is_the_updates_of_its_layers(name):
    stacked = first_update(name, AXES)
    single_axes = AXES | {
        "layers": jax.tree.map(
            lambda axes: axes[1:], AXES["layers"], is_leaf=lambda node: isinstance(node, tuple)
        )
    }
    single = first_update(name, single_axes)
    params, gradients = tree(0), tree(1)
    whole, _ = stacked(gradients, params)
    for index in range(3):
        part, _ = single(layer(gradients, index), layer(params, index))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
            layer(whole, index),
            part,
        )


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lamb", "lion", "muon"])
def test_every_optimizer_descends(name):
    optimizer = build.make_optimizer(name, AXES, **(NUMBERS | {"weight_decay": 0.0}))
    params, target = tree(0), tree(1)

    def loss(values):
        return sum(
            jnp.sum((a - b) ** 2)
            for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(target), strict=True)
        )

    state, first = optimizer.init(params), loss(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda p, u: p + 0.02 * u, params, updates), state

    for _ in range(60):
        params, state = step(params, state)
    assert loss(params) < 0.9 * first


@pytest.mark.parametrize("name", ["adafactor", "lamb"])
def test_a_fused_projection_is_the_matrices_it_fuses(name):
    """The reference codes have queries, keys and values [embed, heads * head_dim] as parameters."""
    fused_axes = {"qkv": {"kernel": ("layer", "embed", None, "heads", "head_dim")}}
    apart_axes = {part: {"kernel": ("embed", "mlp")} for part in "abc"}
    # Both sides over 128, so that Adafactor factors; parts of very different size.
    shape = (2, 136, 3, 2, 72)
    scale = jnp.asarray([0.01, 1.0, 30.0]).reshape(1, 1, 3, 1, 1)
    params, gradients = (jax.random.normal(jax.random.key(seed), shape) * scale for seed in (0, 1))

    def apart(array, layer):
        return {
            part: {"kernel": array[layer, :, i].reshape(136, 144)} for i, part in enumerate("abc")
        }

    tree_of = lambda array: {"qkv": {"kernel": array}}  # noqa: E731
    update, state = first_update(name, fused_axes)(tree_of(gradients), tree_of(params))
    single = first_update(name, apart_axes)
    for layer_index in range(2):
        expected, _ = single(apart(gradients, layer_index), apart(params, layer_index))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            apart(update["qkv"]["kernel"], layer_index),
            expected,
        )
    if name == "adafactor":  # rows and columns instead of all entries
        assert max(leaf.size for leaf in jax.tree.leaves(state)) < 2 * 3 * (136 + 144)


def test_parameter_scale_is_the_size_of_each_matrix():
    axes = {"w": ("layer", "embed", "mlp"), "mlp_norm": {"scale": ("norm",)}}
    sizes = jnp.asarray([1e-5, 2.0]).reshape(2, 1, 1)
    signs = jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, (2, 4, 6)), 1.0, -1.0)
    params = {"w": sizes * signs, "mlp_norm": {"scale": jnp.full(3, 0.5)}}
    gradients = jax.tree.map(jnp.ones_like, params)

    def update(name, setting):
        compiled = first_update(name, axes, weight_decay=0.0, parameter_scale=setting)
        return compiled(gradients, params)[0]

    for name in ("adamw", "lion"):
        plain, scaled = update(name, "auto"), update(name, "on")
        jax.tree.map(np.testing.assert_array_equal, plain, update(name, "off"))
        factors = jnp.asarray([1e-3, 2.0]).reshape(2, 1, 1)  # never under a thousandth
        np.testing.assert_allclose(scaled["w"], plain["w"] * factors, rtol=1e-5)
        np.testing.assert_allclose(
            scaled["mlp_norm"]["scale"], plain["mlp_norm"]["scale"] * 0.5, rtol=1e-5
        )
    jax.tree.map(
        np.testing.assert_array_equal, update("adafactor", "auto"), update("adafactor", "on")
    )
    assert not np.allclose(update("adafactor", "off")["w"], update("adafactor", "on")["w"])


def test_relative_step_falls_with_the_root_of_the_steps_from_a_hundredth():
    axes, params = {"w": ("embed", "mlp")}, {"w": jnp.ones((4, 6))}
    numbers = NUMBERS | {"weight_decay": 0.0, "parameter_scale": "off"}
    plain = build.make_optimizer("adafactor", axes, **numbers)
    relative = build.make_optimizer("adafactor", axes, **numbers, relative_step=True)
    states = plain.init(params), relative.init(params)
    step = jax.jit(
        lambda a, b: (plain.update(params, a, params), relative.update(params, b, params))
    )
    for index in range(1, 10_401):
        (one, first), (other, second) = step(*states)
        states = first, second
        if index in (1, 100, 10_000, 10_400):
            np.testing.assert_allclose(other["w"], one["w"] * min(1e-2, index**-0.5), rtol=1e-4)


def test_factors_of_the_rate_are_those_of_the_parameters_roles():
    plain, _ = first_update("adamw", AXES)(tree(1), tree(0))
    scaled, _ = first_update("adamw", AXES, embedding_lr=3.0, scalar_lr=0.5)(tree(1), tree(0))
    factors = {
        "embeddings": {"tokens": 3.0, "position_scale": 0.5},
        "layers": {
            "attention_norm": {"scale": 0.5},
            "qkv": {"kernel": 1.0},
            "out": {"kernel": 1.0, "bias": 0.5},
        },
    }
    jax.tree.map(
        lambda a, b, factor: np.testing.assert_allclose(a * factor, b, rtol=1e-6),
        plain,
        scaled,
        factors,
    )


@pytest.mark.parametrize("name", ["adamw", "muon", "lion"])
def test_cautious_decay_is_where_the_update_makes_the_weight_smaller(name):
    params = tree(0)
    bare, _ = first_update(name, AXES, weight_decay=0.0)(tree(1), params)
    decayed, _ = first_update(name, AXES, cautious=True)(tree(1), params)

    def check(update, result, weight, decays):
        expected = np.where(decays & (update * weight < 0), -0.1 * weight, 0.0)
        np.testing.assert_allclose(result - update, expected, atol=1e-6)

    decays = build.decay_mask(AXES)
    if name == "muon":
        # As without caution, Muon decays matrices alone.
        decays["embeddings"] = {"tokens": False, "position_scale": False}
    jax.tree.map(check, bare, decayed, params, decays)


def test_muons_momentum_rises_to_its_own():
    def second_update(**numbers):
        optimizer = build.make_optimizer("muon", AXES, **(NUMBERS | numbers))
        state = optimizer.init(tree(0))
        update = jax.jit(optimizer.update)
        for seed in (1, 2):
            updates, state = update(tree(seed), state, tree(0))
        return updates["layers"]["qkv"]["kernel"]

    risen = second_update(momentum=0.95, momentum_warmup=1)
    flat = second_update(momentum=0.85, momentum_warmup=7)
    np.testing.assert_allclose(flat, second_update(momentum=0.85), atol=1e-5)
    assert not np.allclose(risen, second_update(momentum=0.95), atol=1e-4)
    assert not np.allclose(risen, second_update(momentum=0.85), atol=1e-4)
