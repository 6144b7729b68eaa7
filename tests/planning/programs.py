"""Small optimised programs, written by hand in the form in which XLA prints those of GPUs."""

STEP = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%gemm (p0: bf16[1024,512], p1: bf16[512,2048]) -> bf16[1024,2048] {
  %p0 = bf16[1024,512]{1,0} parameter(0)
  %p1 = bf16[512,2048]{1,0} parameter(1)
  %dot = f32[1024,2048]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
backend_config={"sizes":["64"]}
  ROOT %narrow = bf16[1024,2048]{1,0} convert(%dot)
}

%norm (p0: f32[4096,768]) -> f32[4096] {
  %p0 = f32[4096,768]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %reduce = f32[4096]{0} reduce(%p0, %zero), dimensions={1}, to_apply=%add
}

%layer (state: (s32[], bf16[1024,512])) -> (s32[], bf16[1024,512]) {
  %state = (s32[], /*index=1*/bf16[1024,512]{1,0}) parameter(0)
  %turn = s32[] get-tuple-element(%state), index=0
  %hidden = bf16[1024,512]{1,0} get-tuple-element(%state), index=1
  %weights = bf16[512,2048]{1,0} constant({...})
  %gemm_fusion_dot.1 = bf16[1024,2048]{1,0} fusion(%hidden, %weights), kind=kCustom, calls=%gemm, \
metadata={op_name="jit(step)/mlp"}, \
backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %copied = bf16[1024,512]{1,0} copy(%hidden)
  ROOT %next = (s32[], bf16[1024,512]{1,0}) tuple(%turn, %copied)
}

%turns (state.1: (s32[], bf16[1024,512])) -> pred[] {
  %state.1 = (s32[], bf16[1024,512]{1,0}) parameter(0)
  ROOT %again = pred[] constant(true)
}

%microbatch (state.2: (s32[], bf16[1024,512])) -> (s32[], bf16[1024,512]) {
  %state.2 = (s32[], bf16[1024,512]{1,0}) parameter(0)
  ROOT %layers = (s32[], bf16[1024,512]{1,0}) while(%state.2), condition=%turns, body=%layer, \
backend_config={"known_trip_count": {"n": "3"}, "known_init_step": {"init": "0", "step": "1"}}
}

%update (q0: f32[4096,768]) -> f32[4096] {
  %q0 = f32[4096,768]{1,0} parameter(0)
  ROOT %row_norms = f32[4096]{0} fusion(%q0), kind=kCustom, calls=%norm, \
metadata={op_name="jit(step)/norm"}, \
backend_config={"fusion_backend_config":{"kind":"__triton"}}
}

ENTRY %main (params: f32[4096,768], batch: bf16[1024,512], n: s32[]) -> f32[4096] {
  %params = f32[4096,768]{1,0} parameter(0), metadata={op_name="params[\\'a\\']"}
  %batch = bf16[1024,512]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %first = (s32[], bf16[1024,512]{1,0}) tuple(%n, %batch)
  %microbatches = (s32[], bf16[1024,512]{1,0}) while(%first), condition=%turns, body=%microbatch
  %reduced = f32[4096,768]{1,0} all-reduce(%params), to_apply=%add
  ROOT %updated = f32[4096]{0} call(%reduced), to_apply=%update
}
"""


def of_fusion(body: str, kind: str = "kLoop") -> str:
    """Returns a program that is one fusion; `body` has the lines of the fused computation."""
    lines = body.strip("\n").splitlines()
    parameters = [line.strip().split(" = ") for line in lines if " parameter(" in line]
    operands = [f"  %o{place} = {shape}" for place, (_, shape) in enumerate(parameters)]
    names = ", ".join(f"%o{place}" for place in range(len(parameters)))
    root = lines[-1].split(" = ")[1]
    # The shape of the root ends at a space, or at the closing bracket of a tuple.
    end = root.index(") ") + 1 if root.startswith("(") else root.index(" ")
    result = root[:end]
    return "\n".join(
        [
            "%fused (p: f32[]) -> f32[] {", *lines, "}", "",
            "ENTRY %main (p: f32[]) -> f32[] {", *operands,
            f"  ROOT %fusion.1 = {result} fusion({names}), kind={kind}, calls=%fused", "}",
        ]
    )  # fmt: skip


def of_call(
    target: str, operands: list[str], result: str, config: str, op_name: str = "call"
) -> str:
    """Returns a program that is one custom call."""
    names = ", ".join(f"%o{place}" for place in range(len(operands)))
    lines = [f"  %o{place} = {shape} parameter({place})" for place, shape in enumerate(operands)]
    call = f'  ROOT %call.1 = {result} custom-call({names}), custom_call_target="{target}", '
    call += f'metadata={{op_name="{op_name}"}}, backend_config={config}'
    return "\n".join(["ENTRY %main (p: f32[]) -> f32[] {", *lines, call, "}"])
