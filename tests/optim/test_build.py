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
    arrays = [
        jax.random.normal(k, [SHAPES[a] for a in axes], jnp.float32) for k, axes in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)


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
    theirs = optax.adamw(1.0, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1, mask=build.decay_mask(AXES))
    params = tree(0)
    states = ours.init(params), theirs.init(params)
    for seed in (1, 2):
        one, states_0 = ours.update(tree(seed), states[0], params)
        with jax.numpy_dtype_promotion("standard"):
            other, states_1 = theirs.update(tree(seed), states[1], params)
        states = states_0, states_1
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lamb", "lion", "muon"])
def test_the_update_of_a_stack_is_the_updates_of_its_layers(name):
    stacked = build.make_optimizer(name, AXES, **NUMBERS)
    single_axes = AXES | {
        "layers": jax.tree.map(lambda axes: axes[1:], AXES["layers"], is_leaf=lambda node: isinstance(node, tuple))
    }
    single = build.make_optimizer(name, single_axes, **NUMBERS)
    params, gradients = tree(0), tree(1)
    whole, _ = stacked.update(gradients, stacked.init(params), params)
    for index in range(3):
        part, _ = single.update(layer(gradients, index), single.init(layer(params, index)), layer(params, index))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), layer(whole, index), part)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lamb", "lion", "muon"])
def test_every_optimizer_descends(name):
    optimizer = build.make_optimizer(name, AXES, **(NUMBERS | {"weight_decay": 0.0}))
    params, target = tree(0), tree(1)

    def loss(values):
        return sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(values), jax.tree.leaves(target), strict=True))

    state, first = optimizer.init(params), loss(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda p, u: p + 0.02 * u, params, updates), state

    for _ in range(60):
        params, state = step(params, state)
    assert loss(params) < 0.9 * first
