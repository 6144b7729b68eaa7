import pytest

from cramjax.errors import UserError
from cramjax.planning import cards

PROMISED = (
    "gtx1080ti", "rtx2080ti", "t4", "rtx3060", "rtx3090", "rtx4060ti", "rtx4090", "rtx5090", "a4000", "a6000", "l4", "v100", "a100",
    "a100-80", "h100", "h200", "v2-8", "v3-8", "v4-8", "v5e-1", "v5e-4", "v5e-8", "v5p-8", "v6e-8",
)  # fmt: skip


def test_every_promised_device_is_there():
    assert set(PROMISED) == set(cards.CARDS)


@pytest.mark.parametrize("card", cards.CARDS.values(), ids=cards.CARDS)
def test_a_card_has_rates_memory_and_one_compiler(card):
    assert card.peak is not None and card.peak.bandwidth > 100
    assert 7 < card.memory_gib < 150 and (card.gpu is None) != (card.topology is None)
    if card.gpu:
        text = cards.target_config(card)
        assert text.count("{") == text.count("}") and f'"{card.device_kind}"' in text
        assert f"device_memory_size: {card.memory_bytes}\n" in text
        # Twice the lanes times the clock is the float32 rate, of cards whose rate is not that of tensor cores.
        if card.gpu.capability < (8, 0):
            lanes = cards._MULTIPROCESSOR[card.gpu.capability][3]
            rate = 2e-3 * lanes * card.gpu.n_multiprocessors * card.gpu.clock_ghz
            assert rate == pytest.approx(card.peak.float32, rel=0.03)


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("RTX 3060", "rtx3060"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("rtx-2080-ti", "rtx2080ti"),
        ("a100-80gb", "a100-80"),
        ("TPU v5e-8", "v5e-8"),
        ("Tesla T4", "t4"),
    ],
)
def test_names_may_be_spelled_as_people_do(name, wanted):
    assert cards.find(name).name == wanted


def test_an_unknown_one_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="rtx3050: not known; did you mean .*rtx3060"):
        cards.find("rtx3050")
