import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cramjax.objectives import losses
from cramjax.objectives.losses import cross_entropy, predicted_cross_entropy


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
    value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels, weights, z_loss))(
        logits
    )
    wanted, wanted_gradient = jax.value_and_grad(lambda x: reference(x, labels, weights, z_loss))(
        logits
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-6)


def test_a_position_of_weight_zero_counts_for_nothing(case):
    logits, labels, weights = case
    gradient = jax.grad(lambda x: cross_entropy(x, labels, weights, 0.0))(logits)
    assert (np.asarray(gradient)[np.asarray(weights) == 0] == 0).all()


def test_large_logits_stay_finite():
    logits = jnp.asarray([[1e4, -1e4, 0.0]], jnp.float32)
    value, gradient = jax.value_and_grad(
        lambda x: cross_entropy(x, jnp.asarray([1]), jnp.ones(1), 0.0)
    )(logits)
    assert value == pytest.approx(2e4) and np.isfinite(gradient).all()


def linear(params, hidden):
    return hidden @ params["matrix"].T + params["bias"][None, None]


@pytest.mark.parametrize(
    "most_logits", [pytest.param(10**9, marks=pytest.mark.slow), 6 * 3 * 37, 6 * 2 * 37, 1]
)
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_in_chunks_value_and_gradients_are_those_of_all_logits_at_once(
    case, z_loss, most_logits, monkeypatch
):
    _, labels, weights = case
    keys = jax.random.split(jax.random.key(1), 3)
    params = {
        "matrix": jax.random.normal(keys[0], (37, 8)),
        "bias": jax.random.normal(keys[1], (37,)),
    }
    hidden = jax.random.normal(keys[2], (6, 5, 8))
    monkeypatch.setattr(losses, "MOST_LOGITS", most_logits)

    def both(loss):
        return jax.value_and_grad(loss, argnums=(0, 1))(params, hidden)

    ours = both(
        lambda params, hidden: (
            3 * predicted_cross_entropy(linear, params, hidden, labels, weights, z_loss)
        )
    )
    theirs = both(
        lambda params, hidden: 3 * reference(linear(params, hidden), labels, weights, z_loss)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)
    alone = predicted_cross_entropy(linear, params, hidden, labels, weights, z_loss)
    np.testing.assert_allclose(3 * alone, ours[0], rtol=1e-6)


def test_chunks_bound_the_logits_in_memory(case, monkeypatch):
    _, labels, weights = case
    params, hidden = {"matrix": jnp.ones((37, 8)), "bias": jnp.ones(37)}, jnp.ones((6, 5, 8))
    monkeypatch.setattr(losses, "MOST_LOGITS", 6 * 2 * 37)
    gradient = jax.grad(
        lambda params: predicted_cross_entropy(linear, params, hidden, labels, weights)
    )
    text = str(jax.make_jaxpr(gradient)(params))
    assert "6,2,37]" in text and "6,5,37]" not in text
