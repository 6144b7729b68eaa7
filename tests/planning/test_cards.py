"""The table of devices: sound rows, found however people spell their names."""

import re

import pytest

from cramjax.errors import UserError
from cramjax.models import short_attention
from cramjax.planning import cards


def test_every_device_that_the_documentation_names_is_known(root):
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    lists = re.findall(r"--device ([\w,-]+)", text)
    names = {name for listed in lists for name in listed.split(",")} - {"all"}

    assert len(names) > 3
    for name in names:
        assert cards.find(name).name == name


@pytest.mark.parametrize("card", cards.CARDS.values(), ids=cards.CARDS)
def test_a_card_has_rates_memory_and_one_compiler(card):
    assert card.peak.bandwidth > 100
    assert 7 < card.memory_gib < 150
    assert (card.gpu is None) != (card.topology is None)


GPUS = [card for card in cards.CARDS.values() if card.gpu]


def test_shared_memory_is_what_our_kernel_counts_on():
    for capability, multiprocessor in cards._MULTIPROCESSORS.items():
        if capability >= (8, 0):
            counted = short_attention._SHARED_BYTES.get(
                capability, short_attention._CONSUMERS_SHARED_BYTES
            )
            assert multiprocessor.shared_memory_of_block == counted


@pytest.mark.parametrize("card", GPUS, ids=lambda card: card.name)
def test_a_gpu_is_described_to_the_compiler(card):
    text = cards.target_config(card)
    assert text.count("{") == text.count("}")
    assert f'"{card.device_kind}"' in text
    assert f"device_memory_size: {card.memory_bytes}\n" in text

    # An instruction is two FLOPs. From Ampere on the float32 rate is that of tensor cores.
    if card.gpu.capability < (8, 0):
        assert 2e-12 * card.instructions_per_s == pytest.approx(card.peak.float32, rel=0.03)


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


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="rtx3050: not known; did you mean .*rtx3060"):
        cards.find("rtx3050")
