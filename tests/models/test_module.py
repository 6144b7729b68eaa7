"""Modules of shapes are remembered; the arrays bound to them are not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.models import encoder, module, network
from cramjax.models.layers import FLOAT32

SMALL = encoder.EncoderConfig(
    vocab_size=11, n_layers=1, d_model=4, n_heads=2, d_ff=6, head_transform=True
)


def test_a_remembered_module_is_that_of_its_numbers_and_keeps_no_arrays():
    build = functools.partial(encoder.Head, SMALL, FLOAT32)
    first = module.abstract(build)
    assert module.abstract(functools.partial(encoder.Head, SMALL, FLOAT32)) is first
    assert module.abstract(lambda rngs: build(rngs)) is not first
    shapes = module.params_of(first)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), shapes)

    for scale in (1.0, 2.0):
        bound = module.bind(build, jax.tree.map(lambda leaf, by=scale: by * leaf, params))
        held = jax.tree.leaves(module.params_of(bound))
        assert held and all(np.all(leaf == 7.0 * scale) for leaf in held)
    assert module.params_of(module.abstract(build)) == shapes
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))


def test_what_is_returned_may_be_changed():
    shapes = network.abstract_params(SMALL)
    shapes["encoder"].clear()
    assert network.abstract_params(SMALL)["encoder"]
    wider = dataclasses.replace(SMALL, d_model=8)
    assert network.count_params(wider) > network.count_params(SMALL)
