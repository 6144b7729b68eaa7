"""Attention: the choice of a kernel, the agreement of kernels, no gradient across a mask."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.models import kernels, short_attention
from cramjax.models.attention import attention_mask, einsum_attention, mix
from cramjax.models.kernels import AttentionCall
from cramjax.models.layers import FLOAT32, rotary_tables, rotate


def device(platform="gpu", compute_capability="8.6"):
    return types.SimpleNamespace(platform=platform, compute_capability=compute_capability)


CALL = AttentionCall(
    length=128, kv_length=128, n_heads=12, head_dim=64, dtype="bfloat16", is_fused=True
)


def call(**facts):
    return dataclasses.replace(CALL, **facts)


@pytest.mark.parametrize(
    ("requested", "where", "facts", "kernel"),
    [
        ("auto", device(), {}, "cudnn"),
        ("auto", device(compute_capability="7.5"), {"dtype": "float16"}, "xla"),
        ("auto", device(), {"dtype": "float32"}, "xla"),
        ("auto", device(), {"dropout_rate": 0.1}, "einsum"),
        ("auto", device(), {"head_dim": 12}, "xla"),
        ("auto", device(), {"has_bias": True}, "cudnn"),
        ("auto", device(), {"has_bias": True, "has_mask": True}, "xla"),
        ("auto", device(), {"length": 1, "has_bias": True}, "xla"),
        ("xla", device(), {}, "xla"),
        ("auto", device("tpu"), {}, "xla"),
        ("auto", device("cpu"), {}, "einsum"),
        ("xla", device("cpu"), {"dtype": "float32"}, "einsum"),
    ],
)
def test_without_a_measurement_the_kernel_is_one_that_is_known_to_work(
    requested, where, facts, kernel
):
    assert kernels.choose(requested, call(**facts), where, {}) == kernel


def test_a_measured_kernel_is_taken_for_its_call_alone():
    measured = {call(): "short64x8x2"}
    assert kernels.choose("auto", call(), device(), measured) == "short64x8x2"
    assert kernels.choose("auto", call(head_dim=32), device(), measured) == "cudnn"
    assert kernels.choose("xla", call(), device(), measured) == "xla"


@pytest.mark.parametrize(
    ("facts", "has_short"),
    [
        ({}, True),
        (
            {
                "length": 64,
                "kv_length": 64,
                "dropout_rate": 0.1,
                "has_mask": True,
                "is_rotary": True,
            },
            True,
        ),
        ({"length": 512, "kv_length": 512}, False),
        ({"is_fused": False}, False),
        ({"has_bias": True}, False),
        ({"is_causal": True}, False),
        ({"dtype": "float32"}, False),
    ],
)
def test_short_kernels_are_candidates_where_they_fit(facts, has_short):
    names = kernels.candidates(call(**facts), device())
    assert (names[-1] in short_attention.TILES) == has_short
    assert (kernels.promising(call(**facts), device()) in short_attention.TILES) == has_short
    assert not set(kernels.candidates(call(**facts), device(compute_capability="7.5"))) & set(
        short_attention.TILES
    )


@pytest.mark.parametrize(
    ("capability", "facts", "tiles"),
    [
        ("9.0", {}, ["short128x8x3", "short128x8x2", "short64x8x2"]),
        ("9.0", {"has_mask": True}, ["short128x8x2", "short64x8x2"]),
        ("8.0", {}, ["short128x8x3", "short128x8x2", "short64x8x2"]),
        ("8.6", {}, ["short128x8x2", "short64x8x2"]),
        ("8.9", {"has_mask": True}, ["short64x8x2"]),
        ("9.0", {"head_dim": 128}, []),
        ("12.0", {"head_dim": 128}, []),
    ],
)
def test_tiles_are_those_whose_heads_fit_the_cards_shared_memory(capability, facts, tiles):
    names = kernels.candidates(call(**facts), device(compute_capability=capability))
    assert [name for name in names if name.startswith("short")] == tiles


def test_cudnn_is_refused_where_it_cannot_run():
    with pytest.raises(kernels.Unable, match="NVIDIA"):
        kernels.choose("cudnn", call(), device("cpu"), {})
    with pytest.raises(kernels.Unable, match="8.0"):
        kernels.choose("cudnn", call(dtype="float16"), device(compute_capability="7.5"), {})
    assert kernels.candidates(call(), device(compute_capability="gfx90a")) == ["xla"]


def test_calls_are_noted_while_they_are_traced():
    with kernels.noting() as calls:
        kernels.choose("auto", call(), device(), {})
    kernels.choose("auto", call(length=64), device(), {})
    assert calls == {call()}


@pytest.mark.parametrize("masked", [False, True])
def test_einsums_equal_jax(masked):
    query, key_, value = jax.random.normal(jax.random.key(0), (3, 2, 9, 3, 24))
    mask = attention_mask(
        jnp.asarray([[0] * 4 + [1] * 5, [0] * 9]), jnp.arange(9)[None] < jnp.asarray([[9], [6]])
    )
    mask = mask if masked else None

    def both(attend):
        return jax.value_and_grad(
            lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v))), argnums=(0, 1, 2)
        )(query, key_, value)

    ours = both(lambda q, k, v: einsum_attention(q, k, v, mask, FLOAT32))
    theirs = both(
        lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


LENGTH, HEAD = 64, 32


def fused_inputs(n_rows=2, n_heads=3):
    fused = jax.random.normal(jax.random.key(0), (n_rows, LENGTH, 3, n_heads, HEAD))
    return fused, jax.random.normal(jax.random.key(1), (n_rows, LENGTH, n_heads, HEAD))


def documents(n_rows=2):
    """bool [rows, 1, length, length]: two documents, whose border lies elsewhere in each row."""
    borders = jnp.asarray([20, 50])[:n_rows, None]
    return attention_mask((jnp.arange(LENGTH)[None] >= borders).astype(jnp.int32), None)


def short(fused, tile, rotary=None, mask=None, seeds=None, rate=0.0):
    mask = None if mask is None else mask.astype(jnp.int8)
    return short_attention.attention(fused, rotary, mask, seeds, HEAD**-0.5, rate, tile, True)


@pytest.mark.parametrize("is_rotary", [False, True])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("tile", [short_attention.Tile(64, 8, 2), short_attention.Tile(32, 4, 1)])
def test_short_attention_equals_jax(tile, is_masked, is_rotary):
    fused, cotangent = fused_inputs()
    rotary = tuple(map(jnp.asarray, rotary_tables(LENGTH, HEAD, 10000.0))) if is_rotary else None
    mask = documents() if is_masked else None

    def theirs(fused):
        query, key_, value = (fused[:, :, index] for index in range(3))
        if is_rotary:
            query, key_ = rotate(query, *rotary), rotate(key_, *rotary)
        return jax.nn.dot_product_attention(query, key_, value, mask=mask, implementation="xla")

    def both(attention):
        mixed, back = jax.vjp(attention, fused)
        return mixed, *back(cotangent)

    ours = both(lambda fused: short(fused, tile, rotary, mask))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, both(theirs))


@pytest.mark.parametrize("enough", [1, 4])
def test_short_attention_is_the_same_however_many_heads_a_program_has(monkeypatch, enough):
    fused, cotangent = fused_inputs(n_heads=6)
    seeds = jnp.arange(12, dtype=jnp.uint32).reshape(2, 6)
    tile = short_attention.Tile(64, 8, 2)

    def both():
        mixed, back = jax.vjp(lambda x: short(x, tile, None, documents(), seeds, 0.25), fused)
        return mixed, *back(cotangent)

    expected = both()  # one head a program: there are few sequences
    monkeypatch.setattr(short_attention, "_ENOUGH_PROGRAMS", enough)
    jax.tree.map(np.testing.assert_array_equal, both(), expected)


def test_heads_share_a_program_as_long_as_programs_fill_a_card():
    together = short_attention._heads_together
    assert [together(n_rows, 12) for n_rows in (1, 21, 22, 64, 128, 512)] == [1, 1, 1, 3, 6, 12]
    assert together(512, 7) == 7 and together(100, 7) == 1


def test_short_attention_drops_the_same_in_both_passes_and_in_every_tile():
    fused, _ = fused_inputs(n_rows=1, n_heads=1)
    seeds = jnp.asarray([[7]], jnp.uint32)
    tile = short_attention.Tile(32, 4, 1)
    # Queries of zeros weigh all keys alike, and values that are unit vectors show which ones
    # are kept.
    probe = fused.at[:, :, 0].set(0.0).at[:, :, 2].set(0.0)

    def kept(tile):
        shown = [
            short(
                probe.at[:, part * HEAD : (part + 1) * HEAD, 2, 0].set(jnp.eye(HEAD)),
                tile,
                None,
                None,
                seeds,
                0.25,
            )
            for part in range(LENGTH // HEAD)
        ]
        return np.concatenate(shown, axis=-1)[0, :, 0] * LENGTH  # [queries, keys]

    factors = kept(tile)
    assert 0.2 < np.mean(factors == 0) < 0.3 and np.allclose(factors[factors > 0], 4 / 3, atol=1e-4)
    np.testing.assert_array_equal(factors, kept(short_attention.Tile(64, 8, 2)))

    def theirs(fused):
        query, key_, value = (fused[0, :, index, 0] for index in range(3))
        return jax.nn.softmax(query @ key_.T * HEAD**-0.5) * factors @ value

    ours = jax.grad(lambda x: jnp.sum(jnp.sin(short(x, tile, None, None, seeds, 0.25))))(fused)
    np.testing.assert_allclose(
        ours, jax.grad(lambda x: jnp.sum(jnp.sin(theirs(x))))(fused), atol=1e-5
    )
    assert not np.array_equal(factors, kept_with(probe, tile, jnp.asarray([[8]], jnp.uint32)))


def kept_with(probe, tile, seeds):
    shown = short(probe.at[:, :HEAD, 2, 0].set(jnp.eye(HEAD)), tile, None, None, seeds, 0.25)
    return np.pad(shown[0, :, 0] * LENGTH, ((0, 0), (0, LENGTH - HEAD)))


PLACES = jnp.arange(LENGTH)
MASKS = {
    "documents": (PLACES[:, None] < 20) == (PLACES[None] < 20),
    "padding": jnp.broadcast_to(PLACES[None] < 50, (LENGTH, LENGTH)),
    "window": jnp.abs(PLACES[:, None] - PLACES[None]) <= 5,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kernel", ["einsum", "xla", *short_attention.TILES])
def test_what_is_masked_has_a_gradient_of_exactly_zero(kernel, mask):
    fused, _ = fused_inputs(n_rows=1, n_heads=1)

    def of_queries(fused):
        if kernel in short_attention.TILES:
            mixed = short(fused, short_attention.TILES[kernel], None, mask[None, None])
        else:
            parts = (fused[:, :, index] for index in range(3))
            mixed = mix(kernel, FLOAT32, *parts, mask=mask[None, None])
        return jnp.sum(jnp.sin(mixed), axis=(0, 2, 3))  # [queries]

    slopes = np.asarray(jax.jacrev(of_queries)(fused))[
        :, 0, :, 1:
    ]  # [queries, keys, (key, value), 1, head]
    reached = np.any(slopes != 0, axis=(2, 3, 4))
    np.testing.assert_array_equal(reached, mask)


@pytest.mark.parametrize("kernel", ["einsum", "xla"])
def test_no_gradient_comes_from_behind_in_causal_attention(kernel):
    query, key_, value = jax.random.normal(jax.random.key(0), (3, 1, 9, 2, 8))
    bias = jax.random.normal(jax.random.key(1), (1, 2, 9, 9))

    def fourth(key_, value, bias):
        return jnp.sum(
            mix(kernel, FLOAT32, query, key_, value, bias=bias, causal=True, scale=1.0)[:, 3]
        )

    of_keys, of_values, of_bias = jax.grad(fourth, argnums=(0, 1, 2))(key_, value, bias)
    assert (
        not np.any(of_keys[:, 4:])
        and not np.any(of_values[:, 4:])
        and not np.any(of_bias[..., 3, 4:])
    )
    assert np.all(np.any(of_values[:, :4] != 0, axis=(2, 3)))


def test_short_attention_under_vmap_is_that_of_each():
    fused, cotangent = fused_inputs()
    several, seeds = (
        jnp.stack([fused, 2 * fused]),
        jnp.asarray([[[1, 2, 3]] * 2, [[4, 5, 6]] * 2], jnp.uint32),
    )
    tile, mask = short_attention.Tile(64, 8, 2), documents()

    def gradient(fused, seeds):
        return jax.vjp(lambda fused: short(fused, tile, None, mask, seeds, 0.1), fused)[1](
            cotangent
        )[0]

    alone = jnp.stack([gradient(several[index], seeds[index]) for index in range(2)])
    np.testing.assert_allclose(jax.vmap(gradient)(several, seeds), alone, atol=1e-6)
