"""Tests on a card promote as users' programs do: JAX's own attention is not strict."""

import jax
import pytest

# Global options, not JAX's context managers: kernels are compiled in threads of their own.
FREE = {"jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}


@pytest.fixture(autouse=True, scope="module")
def promotion():
    before = {name: getattr(jax.config, name) for name in FREE}
    for name, value in FREE.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
