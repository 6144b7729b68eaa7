"""FLOPs against an independent count, and the table of peaks against the names devices give."""

import pytest

from cramjax.budget import flops, peaks

CRAMMED = dict(
    n_layers=16, d_model=768, d_ff=1536, gated=True, seq_len=128, n_predicted=32, vocab_size=32768
)


def test_training_costs_six_flops_a_weight_and_position_plus_attention():
    # Matrices only: a block has two norms with weight and bias.
    block_weights = 94_420_992 - 16 * 2 * 2 * 768
    attention = 16 * 128 * 128 * 768 * 2
    head = 32 * 768 * 32768
    assert flops.encoder_training_flops(**CRAMMED) == 6 * (128 * block_weights + attention + head)


def test_bert_base_costs_what_the_field_reports():
    # 0.5615 GFLOP a token at 128 and 0.6115 at 512: 12 layers, 32,768 entries, and the head on a
    # quarter of the positions.
    base = dict(n_layers=12, d_model=768, d_ff=3072, gated=False, vocab_size=32768)
    for seq_len, gflop in [(128, 0.5615), (512, 0.6115)]:
        row = flops.encoder_training_flops(**base, seq_len=seq_len, n_predicted=seq_len // 4)
        assert row / seq_len / 1e9 == pytest.approx(gflop, rel=0.03)


def test_the_head_transform_is_one_more_matrix():
    without = flops.encoder_forward_flops(**CRAMMED)
    more = flops.encoder_forward_flops(**CRAMMED, head_transform=True) - without
    assert more == 2 * 32 * 768 * 768


@pytest.mark.parametrize(
    ("kind", "dtype", "tflops"),
    [
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA GeForce RTX 3060", "float16", 25.5),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "bfloat16", 88.2),
        ("NVIDIA RTX A4000", "bfloat16", 76.7),
        ("NVIDIA RTX 6000 Ada Generation", "bfloat16", 364.2),
        ("Quadro RTX 6000", "float16", 130.5),
        ("Tesla T4", "float16", 65),
        ("Tesla T4", "bfloat16", None),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("NVIDIA A10G", "bfloat16", 70),
        ("NVIDIA A100-SXM4-40GB", "float32", 156),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA L40S", "bfloat16", 362),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5", "bfloat16", 459),
        ("TPU v6 lite", "bfloat16", 918),
        # Another chip under the same name, and names that only contain a known one.
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA GeForce RTX 5090 D", "bfloat16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", None),
        ("NVIDIA A1000", "bfloat16", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks_of_devices_by_the_name_jax_gives(kind, dtype, tflops):
    assert peaks.peak_flops(kind, dtype) == (
        None if tflops is None else pytest.approx(tflops * 1e12)
    )


def test_bandwidth():
    assert peaks.find("NVIDIA A100-SXM4-80GB").bandwidth == 2039
    assert peaks.find("NVIDIA A100-SXM4-40GB").bandwidth == 1555
    assert peaks.find("cpu") is None
