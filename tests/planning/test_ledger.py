"""The ledger: cards and kinds of kernels on small programs, and on the measured programs.

The measured programs lie beside the checkout; without them their tests are skipped.
"""

import collections
import gzip
import json

import pytest

from cramjax.planning import cards, hlo, kernels, ledger, report
from cramjax.planning.traffic import Work
from tests.planning import programs

H100 = cards.CARDS["h100"]
GPUS = [card for card in cards.CARDS.values() if card.gpu]
# Microbatches of a step, and its ms: one NVIDIA H100 80GB HBM3, 2026-11-26, jax 0.11.2, commit
# 4601a63, AdamW and bfloat16.
MEASURED = {
    "bert128": (2, 241.6),
    "modern128": (2, 240.6),
    "t5base512": (4, 260.3),
    "large128": (4, 1597.0),
}


def kernel(kind, form="", flops=0.0, n_bytes=0.0, operations=0.0, dtype="bf16", count=1):
    return kernels.Kernel(
        "k", kind, count, Work(n_bytes / 2, n_bytes / 2, flops, operations), dtype, "", form
    )


def seconds(*launched, card=H100):
    return sum(row.seconds for row in ledger.rows(launched, card))


# Attention of the steps of docs/benchmarks.md, from their profiles: the same kind of card,
# 2026-11-27, jax 0.11.2. Form, launches, GFLOP, MB read and written by a launch (cuDNN's with the
# gradient of the scores, if there is a bias), and the ms of all launches together.
ATTENTION = {
    "bert_24h_academic": ([("short forward with dropout", 96, 17.2, 201, 67)], 16.2),
    "bert_24h_academic, backward": (
        [("short backward with dropout", 96, 42.9, 268, 201)],
        39.4,
    ),
    # Launches of 65,536 tokens of 12 heads, timed alone.
    "short": ([("short forward", 1, 25.8, 302, 101)], 0.163),
    "short, backward": ([("short backward", 1, 64.4, 403, 302)], 0.303),
    "short, rotary": ([("short forward with rotary", 1, 25.8, 302, 101)], 0.223),
    "short, rotary, backward": ([("short backward with rotary", 1, 64.4, 403, 302)], 0.509),
    "t5_1day": (
        [
            ("forward with bias", 48, 25.8, 82, 26),
            ("forward with bias", 48, 0.6, 17, 6),
            ("forward", 48, 5.7, 56, 6),
        ],
        8.2,
    ),
    "t5_1day, backward": (
        [
            ("backward", 48, 64.4, 586, 333),
            ("backward", 48, 1.6, 60, 38),
            ("backward", 48, 14.3, 79, 67),
        ],
        37.6,
    ),
    "small-nl24": (
        [("forward with bias", 96, 17.2, 55, 17), ("forward", 96, 3.8, 37, 4)],
        10.1,
    ),
    "small-nl24, backward": (
        [("backward", 96, 42.9, 391, 222), ("backward", 96, 9.6, 52, 45)],
        43.6,
    ),
}


@pytest.mark.parametrize("step", ATTENTION)
def test_attention_takes_what_was_measured_within_a_sixth(step):
    launches, measured_ms = ATTENTION[step]
    expected_s = 0.0
    for form, count, gflop, read_mb, written_mb in launches:
        work = Work(1e6 * read_mb, 1e6 * written_mb, 1e9 * gflop, 0)
        expected_s += seconds(kernels.Kernel("k", kernels.ATTENTION, count, work, "bf16", "", form))
    assert 1e3 * expected_s == pytest.approx(measured_ms, rel=1 / 6)


@pytest.mark.parametrize("card", GPUS, ids=lambda card: card.name)
def test_no_kernel_is_faster_than_its_card(card):
    peak = 1e12 * (card.peak.bfloat16 or card.peak.float16 or card.peak.float32)
    memory = 1e9 * card.peak.bandwidth
    for kind, form in (
        (kernels.PRODUCTS, "generated"), (kernels.PRODUCTS, "library"),
        (kernels.ATTENTION, "forward"), (kernels.ATTENTION, "backward"),
        (kernels.ATTENTION, "forward with bias"),
        (kernels.ATTENTION, "short forward"), (kernels.ATTENTION, "short backward"),
        (kernels.ATTENTION, "short backward with rotary"),
        (kernels.ATTENTION, "short backward with dropout"),
    ):  # fmt: skip
        assert seconds(kernel(kind, form, flops=1e13, n_bytes=1e9), card=card) > 1e13 / peak
        assert seconds(kernel(kind, form, flops=1e3, n_bytes=1e10), card=card) > 1e10 / memory
    for kind in (kernels.ELEMENTWISE, kernels.REDUCTIONS, kernels.COPIES, kernels.OTHER):
        assert seconds(kernel(kind, n_bytes=1e10), card=card) > 1e10 / memory


def test_what_sets_a_kernels_time():
    product = kernel(kernels.PRODUCTS, "library", flops=1e12, n_bytes=1e9)
    written_apart = kernel(kernels.PRODUCTS, "generated", flops=1e12, n_bytes=1e9)
    in_float32 = kernel(kernels.PRODUCTS, "library", flops=1e12, n_bytes=1e9, dtype="f32")
    assert seconds(product) < seconds(written_apart)
    assert seconds(product) < seconds(in_float32)

    # Instructions and bytes overlap: the slower of the two counts.
    moved = kernel(kernels.ELEMENTWISE, n_bytes=1e9)
    assert seconds(kernel(kernels.ELEMENTWISE, n_bytes=1e9, operations=1e6)) == seconds(moved)
    assert seconds(kernel(kernels.ELEMENTWISE, n_bytes=1e9, operations=1e11)) > seconds(moved)
    assert seconds(kernel(kernels.REDUCTIONS, "rows", n_bytes=1e9)) > seconds(moved)
    # An empty kernel takes its launch, and a launch takes as long as another.
    launch = seconds(kernel(kernels.COPIES))
    assert launch > 0 and seconds(kernel(kernels.COPIES, count=7)) == pytest.approx(7 * launch)


def test_a_card_with_twice_the_bandwidth_waits_half_as_long_for_memory():
    moved = kernel(kernels.ELEMENTWISE, n_bytes=1e12)
    a100, a100_80 = cards.CARDS["a100"], cards.CARDS["a100-80"]
    ratio = a100_80.peak.bandwidth / a100.peak.bandwidth
    assert seconds(moved, card=a100) / seconds(moved, card=a100_80) == pytest.approx(
        ratio, rel=1e-3
    )


def test_kinds_add_up_to_the_step_the_largest_first():
    rows = ledger.rows(kernels.launched(hlo.parse(programs.STEP), 2), H100)
    by_kind = ledger.by_kind(rows)
    assert set(by_kind) == set(kernels.KINDS)
    assert sum(by_kind.values()) == pytest.approx(sum(row.seconds for row in rows))
    assert list(by_kind.values()) == sorted(by_kind.values(), reverse=True)
    assert by_kind[kernels.PRODUCTS] > 0 and by_kind[kernels.ATTENTION] == 0


def test_the_list_of_kernels_has_the_longest_first_and_says_what_is_left():
    rows = ledger.rows(kernels.launched(hlo.parse(programs.STEP), 2), H100)
    head, first, rest = report.kernel_list(rows, 1).splitlines()
    assert head.split()[:4] == ["ms", "count", "kind", "GFLOP"]
    assert "gemm_fusion_dot.1" in first
    assert first.split()[1:3] == ["6", "products"]
    assert rest.startswith("the other 2: ")
    assert len(report.kernel_list(rows, 99).splitlines()) == 5


@pytest.fixture(params=MEASURED)
def measured(request, root):
    """A measured program: its ledger, instructions by name, ms of the step, and its profile."""
    folders = [parent / "shared" / "gpu" for parent in root.parents]
    programs = [folder / f"{request.param}.hlo.txt.gz" for folder in folders]
    program = next((path for path in programs if path.is_file()), None)
    if program is None:
        pytest.skip("the measured programs are not beside the checkout")

    parsed = hlo.parse(gzip.decompress(program.read_bytes()).decode())
    microbatches, step_ms = MEASURED[request.param]
    rows = ledger.rows(kernels.launched(parsed, microbatches), H100)
    instructions = {}
    for computation in parsed.computations.values():
        instructions |= computation.instructions
    profile = json.loads((program.parent / f"{request.param}.json").read_text())
    return rows, instructions, step_ms, profile


def test_the_expected_step_is_the_measured_one_within_a_tenth(measured):
    rows, _, step_ms, profile = measured
    assert step_ms == pytest.approx(1e3 * profile["step_s"], rel=1e-3)
    assert 1e3 * sum(row.seconds for row in rows) == pytest.approx(step_ms, rel=0.1)


def test_each_kind_of_kernel_takes_what_was_measured_within_a_fifth(measured, request):
    rows, instructions, step_ms, profile = measured
    measured_ms, expected_ms = by_kind(rows, instructions, profile)
    # With pytest -s, the table of docs/benchmarks.md.
    program = request.node.callspec.id
    for kind, ms in sorted(measured_ms.items()):
        print(f"{program}  {kind}: measured {ms:.1f} ms, expected {expected_ms[kind]:.1f}")

    large = [kind for kind, ms in measured_ms.items() if ms > 0.05 * step_ms]
    assert len(large) >= 3
    for kind in large:
        assert expected_ms[kind] == pytest.approx(measured_ms[kind], rel=0.2), kind


# Kernels of libraries go by names of their own.
LIBRARIES = {"nvjet": "library", "cublas": "library", "cudnn": "attention", "memcpy": "copy"}
KIND_OF_LIBRARY = {
    "library": kernels.PRODUCTS,
    "attention": kernels.ATTENTION,
    "copy": kernels.COPIES,
}


def by_kind(rows, instructions, profile):
    """Returns measured and expected ms by kind of the profile's longest kernels (70 names).

    Fused kernels of equal code are launched under the name of one of them. Kernels of a library are
    compared as a whole.
    """
    alike = collections.defaultdict(list)
    launched_as = {}
    for row in rows:
        group = _group(instructions[row.kernel.name], row.kernel)
        alike[group].append(row)
        launched_as[row.kernel.name.replace(".", "_")] = group

    measured_ms = collections.Counter()
    expected_ms = collections.Counter()
    for name, ms, n_launched in profile["kernels_ms_per_step"]:
        mark = next((group for mark, group in LIBRARIES.items() if mark in name), None)
        group = alike.pop(mark or launched_as.get(name), None)
        kind = KIND_OF_LIBRARY.get(mark)
        if group:
            kind = group[0].kernel.kind
            # A profile has the clones of a kernel in loops under one name; those that were launched
            # count.
            n_counted = sum(row.kernel.count for row in group)
            scale = 1 if mark else n_launched / n_counted
            expected_ms[kind] += 1e3 * scale * sum(row.seconds for row in group)
        if kind:
            measured_ms[kind] += ms
    return measured_ms, expected_ms


def _group(instruction, kernel):
    """Returns the name that a kernel is launched under: its library, or the fusion of its code."""
    if kernel.kind == kernels.ATTENTION or kernel.form == "library":
        return "attention" if kernel.kind == kernels.ATTENTION else "library"
    if instruction.opcode in ("copy", "fusion-start"):
        return "copy"
    return instruction.find(r'deduplicated_name="([^"]*)"') or kernel.name
