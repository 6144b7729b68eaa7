"""The text that a budget reads, and how much is prepared for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.config.resolve import changed, get_config
from cramjax.console import silent
from cramjax.training import text_amount
from cramjax.training.history import Earlier

H100 = "NVIDIA H100 80GB HBM3"


def megabytes(config, kind=H100, n_devices=1):
    return text_amount.settled_for(config, kind, n_devices, silent).data.max_mb


def test_a_resolved_recipe_leaves_the_amount_to_the_devices():
    assert get_config("bert_1day").data.max_mb == "budget"
    assert megabytes(get_config("bert_1day", "data.max_mb=7")) == 7
    assert megabytes(get_config("bert_1day", "data.max_mb=None")) is None


def test_faster_cards_and_more_of_them_get_more_text():
    config = get_config("bert_1day")
    amounts = [
        megabytes(config, "cpu"),
        megabytes(config, "NVIDIA GeForce RTX 3060"),
        megabytes(config, "NVIDIA GeForce RTX 4090"),
        megabytes(config),
        megabytes(config, n_devices=8),
    ]
    assert amounts == sorted(set(amounts))
    # The H100's own rate was measured: 630,600 tokens/s (docs/benchmarks.md).
    assert 630_600 * 86_400 * 4.5 / 1e6 < amounts[3] < 1.5 * 630_600 * 86_400 * 4.5 / 1e6


def test_the_amount_follows_the_first_limit_of_the_budget():
    hours = text_amount.expected(get_config("bert_1day"), H100, 1)
    half = text_amount.expected(get_config("bert_1day", "budget.hours=12"), H100, 1)
    assert (
        hours.tokens == pytest.approx(2 * half.tokens) and hours.tokens_per_s == half.tokens_per_s
    )

    tokens = text_amount.expected(get_config("bert_1day", "budget.tokens=1e9"), "unheard of", 3)
    assert tokens.tokens == 1e9 and tokens.tokens_per_s is None and tokens.is_known
    steps = get_config(
        "bert_1day", "budget.hours=None", "budget.steps=1000", "schedule.batch_ramp=0"
    )
    assert text_amount.expected(steps, H100, 1).tokens == 1000 * 8192 * 128
    flops = get_config("bert_1day", "budget.hours=None", "budget.flops=1e20")
    few = text_amount.expected(flops, H100, 1).tokens
    assert 1e20 / 0.7e9 < few < 1e20 / 0.5e9  # 0.62 GFLOP a token


def test_a_batch_that_ramps_reads_less_in_the_same_steps():
    flat, ramped = (
        text_amount.expected(
            get_config(
                "bert_1day", "budget.hours=None", "budget.steps=100", f"schedule.batch_ramp={ramp}"
            ),
            H100,
            1,
        )
        for ramp in (0, 0.6)
    )
    # Sixteen stairs of 512 sequences, over 60% of the steps.
    mean = 0.6 * (1 + 16) / 32 + 0.4
    assert ramped.tokens == pytest.approx(mean * flat.tokens, rel=0.01)


def test_spans_take_more_text_than_the_model_reads():
    config = get_config("t5_1day", "budget.tokens=1e9")
    assert 1.05e9 < text_amount.expected(config, H100, 1).tokens < 1.2e9


def test_small_first_stages_read_more_in_the_same_time():
    grown, whole = get_config("bert_stack"), get_config("bert_stack:control")
    ratio = (
        text_amount.expected(grown, H100, 1).tokens / text_amount.expected(whole, H100, 1).tokens
    )
    assert 1.3 < ratio < 1.6  # an eighth of the time at a quarter of the layers, 0.175 at half


def test_no_amount_is_too_small_for_a_tokenizer():
    config = get_config("bert_1day", "budget.tokens=1e4")
    assert megabytes(config) == config.data.tokenizer_sample_mb


@given(st.floats(1e-3, 1e12), st.floats(1.0, 1.02))
def test_the_grid_is_coarse_and_never_below(value, factor):
    rounded = text_amount.on_coarse_grid(value)
    assert value <= rounded * (1 + 1e-9) and rounded < 1.27 * value
    again = text_amount.on_coarse_grid(rounded)
    assert again == pytest.approx(rounded)
    assert text_amount.on_coarse_grid(value * factor) in (
        rounded,
        text_amount.on_coarse_grid(rounded * 1.001),
    )


def test_a_run_that_goes_on_keeps_its_amount_unless_it_may_change():
    config = get_config("bert_1day")
    before = changed(config, {"data.max_mb": 123.0})
    earlier = Earlier(
        step=1,
        sidecar={},
        config=before,
        dataset=None,
        fingerprint=None,
        summary=None,
    )
    assert text_amount.settled(config, earlier, silent).data.max_mb == 123.0
    free = changed(config, {"data.allow_change": True})
    here = text_amount.settled(free, earlier, silent).data.max_mb
    assert here == text_amount.settled(config, None, silent).data.max_mb != 123.0


def test_the_number_is_said_with_its_reason():
    lines = []
    text_amount.settled_for(get_config("bert_1day"), "NVIDIA Nonesuch", 2, lines.append)
    first, second = lines
    assert "MB of text" in first
    assert "2 × NVIDIA Nonesuch" in second and "counted as an NVIDIA A100" in second
