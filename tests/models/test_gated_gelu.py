"""The backward kernel of the gated GELU, run as ordinary operations."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cramjax.models import feedforward, gated_gelu
from cramjax.models.activations import normal_tail
from cramjax.models.layers import Precision

BF16 = jnp.dtype(jnp.bfloat16)


def gradient(halves, cotangent, *options):
    # Compiled, as the interpreted kernel is: operations one by one round otherwise.
    @jax.jit
    def backward(halves, cotangent):
        _, back = jax.vjp(lambda halves: gated_gelu.gated_gelu(halves, *options), halves)
        return back(cotangent)[0]

    return np.asarray(backward(halves, cotangent), np.float32)


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 384), (2, 5, 2, 1024)], ids=str)
def test_the_kernel_has_the_gradients_of_plain_operations(shape, tanh):
    keys = jax.random.split(jax.random.key(0), 2)
    # Up to where float32's Phi is 0 or 1.
    halves = 3.0 * jax.random.normal(keys[0], shape)
    cotangent = jax.random.normal(keys[1], (*shape[:-2], shape[-1]))
    plain = gradient(halves, cotangent, tanh)
    np.testing.assert_allclose(gradient(halves, cotangent, tanh, True, True), plain, atol=2e-6)

    narrow = gradient(halves.astype(BF16), cotangent.astype(BF16), tanh, True, True)
    expected = gradient(halves.astype(BF16), cotangent.astype(BF16), tanh)
    np.testing.assert_allclose(narrow, expected, atol=1e-6, rtol=2**-7)


def test_the_tail_is_that_of_the_error_function():
    x = np.linspace(-12.0, 12.0, 4001, dtype=np.float32)
    exact = [0.5 * math.erfc(abs(float(one)) / math.sqrt(2.0)) for one in x]
    np.testing.assert_allclose(normal_tail(x), exact, rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("width", "dtype", "capability", "fits"),
    [
        (1536, BF16, (9, 0), True),
        (1152, jnp.float16, (8, 6), True),
        (192, BF16, (9, 0), False),
        (1536, jnp.float32, (9, 0), False),
        (1536, jnp.float16, (7, 5), False),
        (1536, BF16, (0, 0), False),
    ],
)
def test_where_the_kernel_can_run(width, dtype, capability, fits):
    assert gated_gelu.fits_kernel(width, jnp.dtype(dtype), capability) == fits


@pytest.mark.parametrize("owns_rows", [True, False])
def test_a_program_that_xla_divides_among_devices_has_plain_operations(owns_rows, monkeypatch):
    asked = []

    def gated(halves, tanh, one_kernel):
        asked.append(one_kernel)
        return halves[..., 0, :]

    monkeypatch.setattr(feedforward, "gated_gelu", gated)
    facts = {"ffn": "geglu", "ffn_rank": None, "linear_bias": False, "dropout": 0.0}
    cfg = types.SimpleNamespace(d_model=8, d_ff=128, **facts)
    card = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    precision = Precision(BF16, BF16, device=card, owns_rows=owns_rows)
    init = jax.nn.initializers.zeros
    layer = feedforward.FeedForward(cfg, precision, nnx.Rngs(0), init_in=init, init_out=init)
    layer(jnp.zeros((1, 2, 8), BF16))
    assert asked == [owns_rows]


def test_the_tail_of_the_tanh_form_is_not_lost_to_rounding():
    # 1 - tanh^2 would cancel here: its gradient is wrong by 3e-6, at any size of the true one.
    x = np.linspace(-8.0, -2.0, 1001)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    inner_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    cdf = 1 / (1 + np.exp(-2 * inner))
    exact = cdf + x * 2 * cdf * (1 - cdf) * inner_slope

    x = x.astype(np.float32)
    halves = np.stack([x, np.ones_like(x)])
    found = gradient(halves, np.ones_like(x), True)[0]
    np.testing.assert_allclose(found, exact, rtol=2e-5, atol=1e-8)
