"""The choice of an attention kernel, and that the kernels agree."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.models.attention import attention_backend, attention_mask, einsum_attention
from cramjax.models.layers import FLOAT32


def device(platform="gpu", compute_capability="8.6"):
    return types.SimpleNamespace(platform=platform, compute_capability=compute_capability)


@pytest.mark.parametrize(
    ("requested", "where", "dtype", "options", "kernel"),
    [
        ("auto", device(), "bfloat16", {}, "cudnn"),
        ("auto", device(compute_capability="7.5"), "float16", {}, "xla"),
        ("auto", device(), "float32", {}, "xla"),
        ("auto", device(), "bfloat16", {"dropout_rate": 0.1}, "einsum"),
        ("auto", device(), "bfloat16", {"head_dim": 12}, "xla"),
        ("xla", device(), "bfloat16", {}, "xla"),
        ("auto", device("tpu"), "bfloat16", {}, "xla"),
        ("auto", device("cpu"), "bfloat16", {}, "einsum"),
        ("xla", device("cpu"), "float32", {}, "einsum"),
    ],
)
def test_choice(requested, where, dtype, options, kernel):
    assert attention_backend(requested, where, jnp.dtype(dtype), **options) == kernel


def test_cudnn_is_refused_where_it_cannot_run():
    with pytest.raises(ValueError, match="NVIDIA"):
        attention_backend("cudnn", device("cpu"), jnp.dtype("bfloat16"))
    with pytest.raises(ValueError, match="8.0"):
        attention_backend("cudnn", device(compute_capability="7.5"), jnp.dtype("float16"))


@pytest.mark.parametrize("masked", [False, True])
def test_einsums_equal_jax(masked):
    query, key_, value = jax.random.normal(jax.random.key(0), (3, 2, 9, 3, 24))
    mask = attention_mask(jnp.asarray([[0] * 4 + [1] * 5, [0] * 9]), jnp.arange(9)[None] < jnp.asarray([[9], [6]]))
    mask = mask if masked else None

    def both(attend):
        return jax.value_and_grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v))), argnums=(0, 1, 2))(
            query, key_, value
        )

    ours = both(lambda q, k, v: einsum_attention(q, k, v, mask, FLOAT32))
    theirs = both(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)
