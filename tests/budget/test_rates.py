"""Expected speed by peak rates, against what planning expects of the kernels of compiled steps."""

import pytest

from cramjax.budget import rates
from cramjax.config.resolve import get_config
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families
from cramjax.training.session import AssumedVocabulary

CARDS = ("NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060")
# Expected tokens/s on these cards: docs/benchmarks.md, "What the recipes take".
PLANNED = {
    "bert_1day": (645_007, 129_838, 25_462),
    "bert_1day_modern": (649_614, 131_160, 25_594),
    "bert_24h_academic": (232_071, 45_620, 8_560),
    "t5_1day": (415_617, 82_333, 15_962),
    "t5_efficient:small-nl24": (382_753, 80_120, 15_661),
}


@pytest.mark.parametrize("recipe", PLANNED)
def test_the_rate_is_near_that_of_the_plan_and_rather_too_high(recipe):
    config = get_config(recipe)
    vocabulary = AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    flops = families.build(config, vocabulary, FLOAT32).flops / config.data.seq_len
    for card, planned in zip(CARDS, PLANNED[recipe], strict=True):
        per_s, note = rates.expected_flops(card, "auto")
        most = 1.4 if recipe.startswith("t5") else 1.07
        assert 0.92 < per_s / flops / planned < most and not note


def test_unknown_devices_are_counted_as_something_and_said():
    for kind in ("NVIDIA Nonesuch 9000", "cpu", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        per_s, note = rates.expected_flops(kind, "auto")
        assert 1e12 < per_s < 1e15 and "counted" in note


def test_the_fastest_format_in_hardware_counts_unless_one_is_named():
    a100, in_float32 = (
        rates.expected_flops("NVIDIA A100", name)[0] for name in ("auto", "float32")
    )
    assert in_float32 < a100 == rates.expected_flops("NVIDIA A100", "bfloat16")[0]
    # Volta multiplies in float16, and has nothing for bfloat16 but the rate of float32.
    v100 = [rates.expected_flops("Tesla V100", name)[0] for name in ("auto", "float16", "bfloat16")]
    assert v100[0] == v100[1] > 2 * v100[2]
