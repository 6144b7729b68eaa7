import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cramjax.objectives.losses import cross_entropy


@pytest.fixture
def case():
    keys = jax.random.split(jax.random.key(0), 3)
    logits = 4 * jax.random.normal(keys[0], (6, 5, 37), jnp.float32)
    labels = jax.random.randint(keys[1], (6, 5), 0, 37)
    weights = jax.random.bernoulli(keys[2], 0.7, (6, 5)).astype(jnp.float32)
    return logits, labels, weights


def reference(logits, labels, weights, z_loss):
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum((nll + z_loss * jax.nn.logsumexp(logits, -1) ** 2) * weights)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_value_and_gradient_equal_the_textbook_form(case, z_loss):
    logits, labels, weights = case
    value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels, weights, z_loss))(logits)
    wanted, wanted_gradient = jax.value_and_grad(lambda x: reference(x, labels, weights, z_loss))(logits)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-6)


def test_a_position_of_weight_zero_counts_for_nothing(case):
    logits, labels, weights = case
    gradient = jax.grad(lambda x: cross_entropy(x, labels, weights, 0.0))(logits)
    assert (np.asarray(gradient)[np.asarray(weights) == 0] == 0).all()


def test_large_logits_stay_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0]], jnp.float32)
    value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, jnp.asarray([1]), jnp.ones(1), 0.0))(logits)
    assert value == pytest.approx(2e4) and np.isfinite(gradient).all()
