"""Reading optimised programs: what is launched how often, and how much work it is."""

import pytest

from cramjax.planning import hlo, kernels, traffic
from tests.planning import programs


def launched(text, loops=1):
    return kernels.launched(hlo.parse(text), loops)


def work_of(body, kind="kLoop"):
    (kernel,) = launched(programs.of_fusion(body, kind))
    return kernel


def test_instructions_have_shapes_operands_and_attributes():
    program = hlo.parse(programs.STEP)
    assert program.entry == "main" and set(program.computations) == {
        "add", "gemm", "norm", "layer", "turns", "microbatch", "update", "main",
    }  # fmt: skip
    layer = program.computations["layer"]
    assert layer.root == "next"
    assert [one.name for one in layer][:2] == ["state", "turn"]

    state = layer.instructions["state"]
    fusion = layer.instructions["gemm_fusion_dot.1"]
    assert state.arrays == (hlo.Array("s32", ()), hlo.Array("bf16", (1024, 512)))
    assert state.n_bytes == 4 + 2 * 1024 * 512
    assert fusion.operands == ("hidden", "weights")
    assert fusion.called("calls") == "gemm"
    assert fusion.op_name == "jit(step)/mlp"
    assert layer.instructions["hidden"].index == 1
    assert layer.instructions["weights"].operands == ()
    assert [one.name for one in layer.users["hidden"]] == ["gemm_fusion_dot.1", "copied"]
    dot = program.computations["gemm"].instructions["dot"]
    assert dot.numbers("lhs_contracting_dims") == (1,) and dot.config == {"sizes": ["64"]}


@pytest.mark.parametrize(
    "shape, n_bytes",
    [
        ("pred[3,5]{1,0}", 15),
        ("s4[7]{0}", 4),
        ("f8e4m3fn[8]{0}", 8),
        ("f32[]", 4),
        ("bf16[<=8,2]{1,0:T(8,128)(2,1)S(1)}", 32),
        ("()", 0),
    ],
)
def test_bytes_of_arrays(shape, n_bytes):
    program = hlo.parse(f"ENTRY %main (p: f32[]) -> f32[] {{\n  ROOT %p = {shape} parameter(0)\n}}")
    assert program.computations["main"].instructions["p"].n_bytes == n_bytes


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="not the text of an HLO program"):
        hlo.parse("module @jit_step {\n}\n")


@pytest.mark.parametrize("microbatches", [1, 4])
def test_loops_count_as_often_as_they_run(microbatches):
    product, copy, norm = launched(programs.STEP, microbatches)
    # The program has the count of the layers' loop, not that of microbatches.
    assert (product.count, copy.count, norm.count) == (3 * microbatches, 3 * microbatches, 1)
    kinds = (kernels.PRODUCTS, kernels.COPIES, kernels.REDUCTIONS)
    assert (product.kind, copy.kind, norm.kind) == kinds
    assert (product.form, norm.form) == ("generated", "rows") and product.dtype == "bf16"
    assert product.work.flops == 2 * 1024 * 512 * 2048
    assert (product.work.read, product.work.written) == (
        2 * (1024 * 512 + 512 * 2048),
        2 * 1024 * 2048,
    )
    assert copy.work.read == copy.work.written == 2 * 1024 * 512
    assert norm.work.read == 4 * 4096 * 768 and norm.work.written == 4 * 4096


def test_exchange_between_devices_is_noticed_and_left_out():
    assert kernels.has_collectives(hlo.parse(programs.STEP))
    assert "all-reduce" not in {kernel.name for kernel in launched(programs.STEP)}
    alone = programs.STEP.replace("all-reduce(", "negate(")
    assert not kernels.has_collectives(hlo.parse(alone))
    assert len(launched(alone)) == len(launched(programs.STEP)) + 1


def test_of_an_operand_that_is_sliced_the_slices_are_read():
    kernel = work_of(
        """
  %p0 = bf16[1024,3072]{1,0} parameter(0)
  %wide = f32[1024,3072]{1,0} convert(%p0)
  %gate = f32[1024,1024]{1,0} slice(%wide), slice={[0:1024], [0:1024]}
  %value = f32[1024,1024]{1,0} slice(%wide), slice={[0:1024], [1024:2048]}
  ROOT %product = f32[1024,1024]{1,0} multiply(%gate, %value)"""
    )
    assert kernel.kind == kernels.ELEMENTWISE and kernel.work == traffic.Work(
        2 * 2 * 2**20, 4 * 2**20, 0, 2**20
    )


def test_of_a_layer_taken_from_a_stack_the_layer_is_read():
    kernel = work_of(
        """
  %p0 = f32[24,512,512]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = f32[1,512,512]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), \
dynamic_slice_sizes={1,512,512}
  ROOT %narrow = bf16[1,512,512]{2,1,0} convert(%layer)"""
    )
    assert (
        kernel.kind == kernels.COPIES
        and kernel.work.read == 4 * 512 * 512 + 4
        and kernel.work.written == 2 * 512 * 512
    )


def test_a_result_that_is_updated_in_place_is_written_in_part():
    kernel = work_of(
        """
  %p0 = f32[24,512,512]{2,1,0} parameter(0)
  %p1 = f32[512,512]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %twice = f32[512,512]{1,0} add(%p1, %p1)
  %layer = f32[1,512,512]{2,1,0} bitcast(%twice)
  ROOT %stack = f32[24,512,512]{2,1,0} dynamic-update-slice(%p0, %layer, %p2, %zero, %zero)"""
    )
    assert kernel.work.read == 4 * 512 * 512 + 4 and kernel.work.written == 4 * 512 * 512


def test_every_result_of_a_fusion_counts():
    kernel = work_of(
        """
  %p0 = f32[1000]{0} parameter(0)
  %narrow = bf16[1000]{0} convert(%p0)
  %twice = f32[1000]{0} add(%p0, %p0)
  ROOT %both = (bf16[1000]{0}, f32[1000]{0}) tuple(%narrow, %twice)"""
    )
    assert kernel.work.read == 4000 and kernel.work.written == 6000


def test_what_two_sides_of_a_concatenation_share_is_computed_twice_but_read_once():
    kernel = work_of(
        """
  %p0 = f32[1000]{0} parameter(0)
  %gelu = f32[1000]{0} erf(%p0)
  %up = f32[1000]{0} add(%gelu, %p0)
  %down = f32[1000]{0} subtract(%gelu, %p0)
  ROOT %stack = f32[2000]{0} concatenate(%up, %down), dimensions={0}""",
        "kInput",
    )
    one_side = work_of(
        """
  %p0 = f32[1000]{0} parameter(0)
  %gelu = f32[1000]{0} erf(%p0)
  ROOT %up = f32[1000]{0} add(%gelu, %p0)"""
    )
    assert kernel.work.read == 4000 and kernel.work.operations == 2 * one_side.work.operations


def test_random_bits_are_work_and_zeros_are_stores():
    bits = work_of(
        """
  %counter = u32[1000]{0} iota(), iota_dimension=0
  %shifted = u32[1000]{0} shift-left(%counter, %counter)
  ROOT %mixed = u32[1000]{0} xor(%shifted, %counter)"""
    )
    zeros = work_of(
        """
  %zero = bf16[] constant(0)
  ROOT %filled = bf16[1000]{0} broadcast(%zero), dimensions={}"""
    )
    assert (
        0 < bits.work.operations < zeros.work.operations and bits.work.read == zeros.work.read == 0
    )
    assert zeros.work.written == 2000 and zeros.kind == kernels.COPIES


def test_a_call_of_cublas_is_a_product():
    operands = ["bf16[4,768,1024]{2,1,0}", "bf16[4,1024,256]{2,1,0}"]
    results = "(f32[4,768,256]{2,1,0}, s8[33554432]{0})"
    numbers = '{"lhs_batch_dimensions":["0"],"lhs_contracting_dimensions":["2"]}'
    config = f'{{"gemm_backend_config":{{"beta":0,"dot_dimension_numbers":{numbers}}}}}'
    (kernel,) = launched(programs.of_call("__cublas$lt$matmul", operands, results, config))

    assert (kernel.kind, kernel.form, kernel.dtype) == (kernels.PRODUCTS, "library", "bf16")
    assert kernel.work.flops == 2 * 4 * 768 * 256 * 1024
    # Scratch memory, the second result, is not written.
    assert kernel.work.written == 4 * 4 * 768 * 256


ATTENTION = (
    '{"cudnn_fmha_backend_config": {"fmha_scale": 0.125, '
    '"intermediate_tensor_shape": {"element_type": "BF16", '
    '"dimensions": ["8", "12", "128", "512"]}, "mask_type": "NO_MASK"}}'
)
QUERY, KEY = "bf16[8,128,12,64]{3,2,1,0}", "bf16[8,512,12,64]{3,2,1,0}"


@pytest.mark.parametrize(
    "name", ["Softmax", "SoftmaxDropout", "ScaleBiasSoftmax", "ScaleBiasSoftmaxDropout"]
)
def test_a_call_of_cudnn_is_attention_both_ways(name):
    results = "(bf16[8,12,128,64]{3,1,2,0}, f32[8,12,128]{2,1,0}, u8[256]{0})"
    gradients = f"({QUERY}, {KEY}, {KEY}, u8[0]{{0}})"
    target = f"__cudnn$fmha{name}"

    def call(target, operands, results, config):
        (kernel,) = launched(programs.of_call(target, operands, results, config))
        return kernel

    forward = call(target, [QUERY, KEY, KEY], results, ATTENTION)
    backward = call(f"{target}Backward", [QUERY, KEY, KEY, QUERY, QUERY], gradients, ATTENTION)
    forms = ("forward with bias" if "Bias" in name else "forward", "backward")
    assert (forward.kind, forward.form, backward.form) == (kernels.ATTENTION, *forms)
    assert forward.work.flops == 4 * 8 * 12 * 128 * 512 * 64
    assert backward.work.flops == 2.5 * forward.work.flops
    assert forward.work.read == 2 * (8 * 128 + 2 * 8 * 512) * 12 * 64

    # The gradient of a bias is the sum of the scores', which are written once and read twice.
    with_bias = f"({QUERY}, {KEY}, {KEY}, bf16[1,12,128,512]{{3,2,1,0}}, u8[0]{{0}})"
    summed = call(f"{target}Backward", [QUERY, KEY, KEY, QUERY, QUERY], with_bias, ATTENTION)
    scores = 2 * 8 * 12 * 128 * 512
    assert summed.work.read == backward.work.read + 2 * scores
    assert summed.work.written == backward.work.written + scores + 2 * 12 * 128 * 512

    config = ATTENTION.replace("NO_MASK", "CAUSAL")
    causal = call(target, [QUERY, KEY, KEY], results, config)
    assert causal.work.flops == forward.work.flops / 2


def test_our_own_kernel_is_attention_both_ways():
    fused, mixed = "bf16[8,128,3,12,64]{4,3,2,1,0}", "bf16[8,128,12,64]{3,2,1,0}"
    call = ("__gpu$xla.gpu.triton", '{ir = "not JSON {"}', "jit(step)/short_attention/pallas_call")

    def one(operands, result):
        target, config, op_name = call
        (kernel,) = launched(programs.of_call(target, operands, result, config, op_name))
        return kernel

    forward, backward = one([fused], mixed), one([fused, mixed], fused)
    forms = ("short forward", "short backward")
    assert (forward.kind, forward.form, backward.form) == (kernels.ATTENTION, *forms)
    angles, seeds = ["f32[1,128,32]{2,1,0}"] * 2, "u32[8,12]{1,0}"
    assert one([fused, *angles], mixed).form == "short forward with rotary"
    assert one([fused, mixed, *angles, seeds], fused).form == "short backward with dropout"
    assert forward.work == traffic.Work(
        3 * 2 * 8 * 128 * 768, 2 * 8 * 128 * 768, 4 * 8 * 12 * 128**2 * 64, 0
    )
    assert backward.work == traffic.Work(
        4 * 2 * 8 * 128 * 768, 3 * 2 * 8 * 128 * 768, 10 * 8 * 12 * 128**2 * 64, 0
    )


def test_our_kernel_of_the_gated_gelu_is_bound_by_memory():
    halves, cotangent = "bf16[8,2,1536]{2,1,0}", "bf16[8,1536]{1,0}"
    op_name = "jit(step)/transpose(jvp())/gated_gelu/pallas_call"
    call = ("__gpu$xla.gpu.triton", '{ir = "not JSON {"}', op_name)
    (kernel,) = launched(programs.of_call(call[0], [halves, cotangent], halves, *call[1:]))
    assert (kernel.kind, kernel.dtype) == (kernels.ELEMENTWISE, "bf16")
    assert kernel.work == traffic.Work(3 * 2 * 8 * 1536, 2 * 2 * 8 * 1536, 0, 0)


def test_what_was_started_counts_once_and_of_branches_one():
    text = """
%fused (p0: f32[1000]) -> f32[1000] {
  %p0 = f32[1000]{0} parameter(0)
  ROOT %twice = f32[1000]{0} add(%p0, %p0)
}
%one (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0)
  ROOT %work = f32[1000]{0} fusion(%a), kind=kLoop, calls=%fused
}
%none (b: f32[1000]) -> f32[1000] {
  ROOT %b = f32[1000]{0} parameter(0)
}
ENTRY %main (p: f32[1000], q: pred[]) -> f32[1000] {
  %p = f32[1000]{0} parameter(0)
  %q = pred[] parameter(1)
  %start = ((f32[1000]{0}), f32[1000]{0}, u32[]) fusion-start(%p), kind=kLoop, calls=%fused
  %done = f32[1000]{0} fusion-done(%start)
  %started = ((f32[1000]{0}), f32[1000]{0}, s32[]) async-start(%done), calls=%one
  %finished = f32[1000]{0} async-done(%started)
  ROOT %chosen = f32[1000]{0} conditional(%q, %finished, %finished), \
true_computation=%one, false_computation=%none
}"""

    assert [kernel.name for kernel in launched(text)] == ["start", "work", "work"]
    assert {kernel.work.written for kernel in launched(text)} == {4000}
