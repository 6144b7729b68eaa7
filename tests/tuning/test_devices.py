import types

import jax
import jax.numpy as jnp
import pytest

from cramjax.tuning import devices


def gpu(capability):
    return types.SimpleNamespace(
        platform="gpu", compute_capability=capability, device_kind="some card"
    )


@pytest.mark.parametrize(
    "device, wanted",
    [
        (gpu("6.1"), "float32"),
        (gpu("7.5"), "float16"),
        (gpu("8.6"), "bfloat16"),
        (gpu("12.0"), "bfloat16"),
        (types.SimpleNamespace(platform="tpu", device_kind="TPU v5e"), "bfloat16"),
    ],
)
def test_auto_takes_what_the_card_is_fast_at(device, wanted):
    assert devices.resolve_precision("auto", device) == wanted
    assert devices.resolve_precision("float32", device) == "float32"


@pytest.mark.parametrize(
    "flags, wanted", [({"avx512f"}, "float32"), ({"avx512f", "avx512_bf16"}, "bfloat16")]
)
def test_auto_on_cpu_follows_its_instructions(monkeypatch, flags, wanted):
    monkeypatch.setattr(devices, "_cpu_flags", lambda: flags)
    assert devices.resolve_precision("auto", jax.devices()[0]) == wanted


def test_on_cpu_only_operands_are_narrow():
    narrow = devices.make_precision("bfloat16", jax.devices()[0])
    assert narrow.activation_dtype == jnp.float32 and narrow.matmul_dtype == jnp.bfloat16
    half = devices.make_precision("bfloat16", gpu("8.0"))
    assert half.activation_dtype == jnp.bfloat16


def test_an_unknown_device_is_measured_once(monkeypatch):
    measured = devices.peak_flops(jax.devices()[0], "float32")
    assert measured > 1e8
    monkeypatch.setattr(devices, "measure_matmul_flops", None)
    assert devices.peak_flops(jax.devices()[0], "float32") == measured
