"""Peak rates of devices: MFU divides by them, and rooflines are drawn from them.

The rates are dense (no 2:4 sparsity), for matrix products that accumulate in float32, as training
does. On GeForce cards they are half of the float16-accumulate figures that are often quoted; MFU of
consumer cards is often wrong because it divides by those. `float32` is the rate at JAX's default
precision: TensorFloat-32 on GPUs that have it, one bfloat16 pass on TPUs. Rates are at the vendor's
stated boost clock; a card can measure a few per cent above.

The comments name the publication of a figure. Most figures were recalled rather than read there, so
check before you quote one.
"""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Peak:
    """Dense peaks of one JAX device.

    TFLOP/s by dtype (None: no hardware for it), and `bandwidth` of the memory in GB/s.
    """

    bfloat16: float | None
    float16: float | None
    float32: float
    bandwidth: float


def _gpu(tensor: float, float32: float, bandwidth: float) -> Peak:
    """Ampere and later, with bfloat16 at the rate of float16."""
    return Peak(tensor, tensor, float32, bandwidth)


def _old_gpu(float16: float, float32: float, bandwidth: float) -> Peak:
    """Volta and Turing, with tensor cores for float16 only."""
    return Peak(None, float16, float32, bandwidth)


def _tpu(bfloat16: float, bandwidth: float) -> Peak:
    return Peak(bfloat16, None, bfloat16, bandwidth)


# `find` takes the longest key that stands in the lower-case `device_kind` as whole words.
PEAKS: dict[str, Peak] = {
    # NVIDIA Tesla P100 and V100 datasheets. P100 has no tensor cores: float16 into float32 runs at
    # the float32 rate.
    "p100-pcie": Peak(None, 9.3, 9.3, 732),
    "p100-sxm2": Peak(None, 10.6, 10.6, 732),
    # NVIDIA GTX 1080 Ti product page: no tensor cores, and float16 at a 64th of the rate.
    "gtx 1080 ti": Peak(None, None, 11.3, 484),
    "v100": _old_gpu(125, 15.7, 900),
    "v100-pcie": _old_gpu(112, 14.0, 900),
    "titan v": _old_gpu(110, 13.8, 653),
    # NVIDIA Turing whitepaper, appendix A (reference clocks) and T4 datasheet; TITAN RTX and Quadro
    # accumulate in float32 at the full rate, GeForce at half.
    "t4": _old_gpu(65, 8.1, 320),
    "rtx 2070": _old_gpu(29.9, 7.5, 448),
    "rtx 2080": _old_gpu(40.3, 10.1, 448),
    "rtx 2080 ti": _old_gpu(53.8, 13.4, 616),
    "titan rtx": _old_gpu(130.5, 16.3, 672),
    "quadro rtx 6000": _old_gpu(130.5, 16.3, 672),
    "quadro rtx 8000": _old_gpu(130.5, 16.3, 672),
    # NVIDIA A100 whitepaper; A30, A10, A2, A40 datasheets; A10G: AWS G5 (70 TFLOP/s, half rate).
    "a100": _gpu(312, 156, 1555),
    "a100 80gb": _gpu(312, 156, 1935),
    "a100-sxm4-80gb": _gpu(312, 156, 2039),
    "a30": _gpu(165, 82, 933),
    "a10": _gpu(125, 62.5, 600),
    "a10g": _gpu(70, 35, 600),
    "a2": _gpu(18, 9, 200),
    "a40": _gpu(149.7, 74.8, 696),
    # NVIDIA GA102 whitepaper, appendices A and C; other GeForce 30: 4 x cores x boost clock; RTX A
    # datasheets.
    "rtx 3060": _gpu(25.5, 12.7, 360),
    "rtx 3060 ti": _gpu(32.4, 16.2, 448),
    "rtx 3070": _gpu(40.6, 20.3, 448),
    "rtx 3070 ti": _gpu(43.5, 21.7, 608),
    "rtx 3080": _gpu(59.5, 29.8, 760),
    "rtx 3080 ti": _gpu(68.2, 34.1, 912),
    "rtx 3090": _gpu(71.0, 35.6, 936),
    "rtx 3090 ti": _gpu(80.0, 40.0, 1008),
    "rtx a4000": _gpu(76.7, 38.3, 448),
    "rtx a5000": _gpu(111.1, 55.6, 768),
    "rtx a6000": _gpu(154.8, 77.4, 768),
    # NVIDIA Ada whitepaper, appendices; L4, L40 and L40S datasheets (halves of the sparse figures).
    "rtx 4060": _gpu(30.2, 15.1, 272),
    "rtx 4060 ti": _gpu(44.1, 22.1, 288),
    "rtx 4070": _gpu(58.3, 29.1, 504),
    "rtx 4070 super": _gpu(71.0, 35.5, 504),
    "rtx 4070 ti": _gpu(80.2, 40.1, 504),
    "rtx 4070 ti super": _gpu(88.2, 44.1, 672),
    "rtx 4080": _gpu(97.5, 48.7, 717),
    "rtx 4080 super": _gpu(104.4, 52.2, 736),
    "rtx 4090": _gpu(165.2, 82.6, 1008),
    "rtx 6000 ada": _gpu(364.2, 182.1, 960),
    "l4": _gpu(121, 60, 300),
    "l40": _gpu(181, 90.5, 864),
    "l40s": _gpu(362, 181, 864),
    # NVIDIA H100, H200 and GH200 datasheets (halves of the sparse figures).
    "h100": _gpu(989.4, 494.7, 3350),
    "h100 pcie": _gpu(756, 378, 2000),
    "h100 nvl": _gpu(835, 417.5, 3900),
    "h200": _gpu(989.4, 494.7, 4800),
    "h200 nvl": _gpu(835.5, 417.5, 4800),
    "gh200": _gpu(989.4, 494.7, 4000),
    # NVIDIA RTX Blackwell whitepaper, appendices; HGX B200 datasheet.
    "rtx 5070": _gpu(61.7, 30.9, 672),
    "rtx 5070 ti": _gpu(87.9, 43.9, 896),
    "rtx 5080": _gpu(112.6, 56.3, 960),
    "rtx 5090": _gpu(209.5, 104.8, 1792),
    "b200": _gpu(2250, 1125, 8000),
    # cloud.google.com/tpu/docs/system-architecture-tpu-vm. A JAX device is a core on v2 and v3, and
    # a chip from v4 on.
    "tpu v2": _tpu(22.5, 350),
    "tpu v3": _tpu(61.5, 450),
    "tpu v4": _tpu(275, 1228),
    "tpu v5 lite": _tpu(197, 819),
    "tpu v5e": _tpu(197, 819),
    "tpu v5": _tpu(459, 2765),
    "tpu v5p": _tpu(459, 2765),
    "tpu v6 lite": _tpu(918, 1640),
    "tpu v6e": _tpu(918, 1640),
}

# Other chips or clocks under the same name: no figure is better than a wrong one.
_OTHER_CHIPS = re.compile(r"\b(laptop|max-q|mobile|mig|d)\b")


def find(device_kind: str) -> Peak | None:
    """Returns the peaks of a `jax.Device.device_kind` such as "NVIDIA H100 PCIe", or None."""
    kind = device_kind.lower()
    if _OTHER_CHIPS.search(kind):
        return None
    matches = [key for key in PEAKS if re.search(rf"(?<![\w]){re.escape(key)}(?![\w])", kind)]
    return PEAKS[max(matches, key=len)] if matches else None


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns the dense FLOP/s of one device, or None if unknown or not in hardware.

    `dtype` is "bfloat16", "float16" or "float32".
    """
    peak = find(device_kind)
    if peak is None or dtype not in ("bfloat16", "float16", "float32"):
        return None
    tflops = getattr(peak, dtype)
    return None if tflops is None else tflops * 1e12
