"""The fastest kernel of attention: timed, compared with plain operations, remembered."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest

from cramjax.models import attention, kernels
from cramjax.models.kernels import AttentionCall
from cramjax.models.layers import FLOAT32
from cramjax.tuning import attention_choice
from tests.stepping import batches, losses, open_tiny

CALL = AttentionCall(length=16, kv_length=16, n_heads=2, head_dim=8, dtype="float32")
CALLS = {
    "fused": {"is_fused": True, "is_rotary": True, "has_mask": True},
    "dropout": {"is_fused": True, "dropout_rate": 0.1},
    "bias": {"has_bias": True, "is_causal": True},
    "cross": {"kv_length": 24},
}


@pytest.fixture
def two_kernels(monkeypatch, tmp_path):
    """einsum and xla as candidates on this CPU, timed shortly, and a fresh place for answers."""
    monkeypatch.setattr(kernels, "candidates", lambda call, device: ["einsum", "xla"])
    monkeypatch.setattr(attention_choice, "SECONDS", 0.0)
    monkeypatch.setattr(attention_choice, "TOKENS", 64)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def fastest(*calls):
    lines = []
    precision = dataclasses.replace(FLOAT32, device=jax.devices()[0])
    return attention_choice.fastest(calls, precision, lines.append), lines


def call(**facts):
    return dataclasses.replace(CALL, **facts)


@pytest.mark.parametrize("facts", CALLS.values(), ids=CALLS)
def test_every_kind_of_call_is_timed_and_the_answer_is_kept(two_kernels, facts):
    chosen, lines = fastest(call(**facts))
    (name,) = chosen.values()
    assert set(chosen) == {call(**facts)} and name in ("einsum", "xla")
    assert "timing einsum, xla" in lines[0] and " ms" in lines[1] and lines[2].endswith(f": {name}")
    again, lines = fastest(call(**facts))
    assert again == chosen and len(lines) == 1


def test_a_slower_kernel_is_not_chosen(two_kernels, monkeypatch):
    mix = attention.mix

    def slow(kernel, *arguments, **options):
        mixed = mix(kernel, *arguments, **options)
        if kernel == "xla":
            jax.debug.callback(lambda: time.sleep(0.05))
        return mixed

    monkeypatch.setattr(attention, "mix", slow)
    assert fastest(call())[0] == {call(): "einsum"}


def test_a_kernel_that_computes_something_else_is_left_out(two_kernels, monkeypatch):
    mix = attention.mix

    def wrong(kernel, *arguments, **options):
        mixed = mix(kernel, *arguments, **options)
        return mixed * 1.2 if kernel == "xla" else mixed

    monkeypatch.setattr(attention, "mix", wrong)
    # Of two plain kernels the first is what the other is held against.
    chosen, lines = fastest(call())
    assert chosen == {call(): "einsum"} and any(
        "xla computes something else" in line for line in lines
    )


def test_a_kernel_that_does_not_run_is_left_out(two_kernels, monkeypatch):
    mix = attention.mix

    def failing(kernel, *arguments, **options):
        if kernel == "einsum":
            raise NotImplementedError("not on this card")
        return mix(kernel, *arguments, **options)

    monkeypatch.setattr(attention, "mix", failing)
    chosen, lines = fastest(call())
    assert chosen == {call(): "xla"} and any(
        "einsum does not run here (not on this card)" in line for line in lines
    )


def test_where_there_is_no_choice_nothing_is_timed():
    assert fastest(call()) == ({}, [])


def test_not_a_number_is_no_agreement():
    assert not attention_choice._agree([jnp.full(3, jnp.nan)], [jnp.ones(3)])


@pytest.mark.parametrize("name", ["xla", pytest.param("einsum", marks=pytest.mark.slow)])
def test_a_session_on_a_gpu_takes_what_was_found(two_kernels, monkeypatch, name):
    monkeypatch.setattr(kernels, "GPUS", ("cpu",))
    monkeypatch.setattr(attention_choice, "_time", lambda programs, announce: name)
    made = open_tiny("microbatch_size=4")
    assert made.attention == name and losses(made, [batches(1)[0]])
    assert (
        open_tiny("microbatch_size=4", "model.attention=xla").attention == "einsum"
    )  # the first plain one


def test_where_xla_divides_the_step_no_kernel_of_ours_is_taken(two_kernels, monkeypatch):
    monkeypatch.setattr(kernels, "GPUS", ("cpu",))
    monkeypatch.setattr(attention_choice, "_time", lambda programs, announce: "xla")
    divided = ("microbatch_size=8", "mesh.data=1", "mesh.fsdp=8")
    assert open_tiny(*divided, devices=8).attention == "einsum"
    assert open_tiny("microbatch_size=8", "mesh.data=8", devices=8).attention == "xla"
