"""Packed models are read as they were written, at their true size, and damage is named.

The same content gives the same bytes.
"""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cramjax.checkpoints import packed
from cramjax.checkpoints.packed import Quantized
from cramjax.errors import UserError

ABOUT = {
    "network": {"family": "encoder"},
    "finetuned": None,
    "max_length": 8,
    "compression": {"prune": 0.5},
}


@hypothesis.given(bits=st.sampled_from(packed.BITS), n=st.integers(0, 70), seed=st.integers(0, 99))
def test_numbers_of_any_bits_come_back(bits, n, seed):
    largest = 2 ** (bits - 1) - 1
    codes = np.random.default_rng(seed).integers(-largest, largest + 1, n).astype(np.int8)
    stored = packed.pack(codes, bits)
    assert stored.dtype == np.uint8 and len(stored) == -(-n * bits // 8)
    np.testing.assert_array_equal(packed.unpack(stored, bits, n), codes)


def test_more_numbers_than_are_unpacked_at_a_time(monkeypatch):
    monkeypatch.setattr(packed, "_CHUNK", 16)
    codes = np.random.default_rng(0).integers(-3, 4, 77).astype(np.int8)
    np.testing.assert_array_equal(packed.unpack(packed.pack(codes, 3), 3, 77), codes)


def tensors(share_zero=0.0):
    numbers = np.random.default_rng(1)
    codes = numbers.integers(-7, 8, (2, 32, 20)).astype(np.int8)
    dense = numbers.normal(size=(6, 500)).astype(np.float32)
    for array in (codes, dense):
        array[numbers.random(array.shape) < share_zero] = 0
    scale = numbers.random((2, 1, 20)).astype(np.float32)
    matrix = ((0,), (2,), (1,))
    return {
        "a/kernel": Quantized(
            codes=codes, scale=scale, bits=4, group=0, matrix=matrix, shape=(2, 20, 32)
        ),
        "a/scale": np.float32(3.5).reshape(()),
        "b/kernel": dense,
    }


@pytest.mark.parametrize(("share_zero", "most"), [(0.0, 1280 // 2 + 160 + 12000 + 4), (0.9, 2000)])
def test_it_is_read_as_it_was_written_and_takes_what_it_holds(tmp_path, share_zero, most):
    written = tensors(share_zero)
    size = packed.write(tmp_path, written, **ABOUT)
    content, read = packed.read(tmp_path)
    assert size == packed.size(tmp_path)
    assert content["max_length"] == 8
    assert content["tensors"]["b/kernel"]["sparse"] == (share_zero > 0)
    assert (tmp_path / packed.FILE).stat().st_size < most + 700  # safetensors' own header
    for path, leaf in written.items():
        if isinstance(leaf, Quantized):
            np.testing.assert_array_equal(read[path].codes, leaf.codes)
            np.testing.assert_array_equal(read[path].values(), leaf.values())
            expected = (leaf.codes * leaf.scale).transpose(0, 2, 1)
            np.testing.assert_allclose(leaf.values(), expected, rtol=1e-6)
        else:
            np.testing.assert_array_equal(read[path], leaf)


def test_the_same_content_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        packed.write(tmp_path / name, tensors(0.5), **ABOUT)
    for name in (packed.FILE, packed.INDEX):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_groups_share_scales_by_rows():
    codes = np.ones((1, 5, 2), np.int8)
    scale = np.asarray([[[1, 2], [3, 4], [5, 6]]], np.float16)
    leaf = Quantized(
        codes=codes, scale=scale, bits=2, group=2, matrix=((), (0,), (1,)), shape=(5, 2)
    )
    np.testing.assert_array_equal(leaf.values(), [[1, 2], [1, 2], [3, 4], [3, 4], [5, 6]])


@pytest.mark.parametrize("damage", ["cut", "json", "format", "other", "missing"])
def test_damage_is_named(tmp_path, damage):
    packed.write(tmp_path, tensors(), **ABOUT)
    weights, index = tmp_path / packed.FILE, tmp_path / packed.INDEX
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "missing":
            weights.unlink()
        case "json":
            index.write_text("{")
        case "format":
            index.write_text(index.read_text().replace('"format": 1', '"format": 9'))
        case "other":
            index.write_text(index.read_text().replace('"shape": [6, 500]', '"shape": [6, 501]'))

    with pytest.raises(UserError, match="compress the model again|update cramjax"):
        packed.read(tmp_path)
