"""Dropout: how much, how independent, the same in both passes, a function of its key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.models.dropout import dropout


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_the_share_is_right_along_every_axis_and_the_mean_stays(rate):
    x = jnp.ones((64, 32, 256))
    dropped = np.asarray(jax.jit(dropout, static_argnums=1)(x, rate, jax.random.key(3))) == 0
    n = dropped.size
    for axis in range(3):
        shares = dropped.mean(axis=tuple(other for other in range(3) if other != axis))
        deviation = np.sqrt(rate * (1 - rate) * len(shares) / n)
        assert abs(shares.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
        assert np.all(np.abs(shares - rate) < 5 * deviation)


def test_neighbours_and_keys_are_independent():
    x, rate = jnp.ones((512, 512)), 0.5
    first, second = (np.asarray(dropout(x, rate, jax.random.key(seed))) == 0 for seed in (0, 1))
    bound = 5 / np.sqrt(first.size)

    def correlation(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    assert abs(correlation(first, second)) < bound
    for shift in (1, 2, 16, 17, 256):
        assert abs(correlation(first[:, shift:], first[:, :-shift])) < bound
        assert abs(correlation(first[shift:], first[:-shift])) < bound


def test_the_gradient_has_the_zeros_of_the_value():
    x = jax.random.normal(jax.random.key(0), (4, 8, 33)) + 10.0
    key = jax.random.key(1)
    value, gradient = dropout(x, 0.3, key), jax.grad(lambda x: jnp.sum(dropout(x, 0.3, key)))(x)
    np.testing.assert_allclose(value, x * gradient, rtol=1e-6)
    np.testing.assert_array_equal(value, dropout(x, 0.3, key))
    assert dropout(x, 0.3, None) is x and dropout(x, 0.0, key) is x


def test_under_vmap_each_key_draws_its_own():
    x, keys = jnp.ones((3, 5, 64)), jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(lambda x, key: dropout(x, 0.5, key))(x, keys)
    alone = jnp.stack([dropout(x[i], 0.5, keys[i]) for i in range(3)])
    np.testing.assert_array_equal(together, alone)
