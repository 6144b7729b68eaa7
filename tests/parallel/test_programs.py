"""Programs of the train step for absent TPUs and GPUs.

Checked are collectives, kernels, donated memory and narrow products.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from cramjax.config.resolve import get_config
from cramjax.models import short_attention
from cramjax.planning import cards, targets
from cramjax.training import session
from cramjax.tuning import devices
from tests.parallel import programs

CPU = jax.devices("cpu")[0]
PLUGINS = importlib.util.find_spec("jax_plugins")
CUDA = PLUGINS and any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13))
needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu")
# One block, because libtpu takes long to compile for eight devices.
ONE_BLOCK = ("model.n_layers=1", "model.first_norm=True", "optimizer.name=adamw")
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs the wheels of jax[cuda12]")
# The elements of the activations of the program. Nothing of this size may be gathered.
ACTIVATIONS = 16 * 128 * 128


def program(root, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    path = os.pathsep.join([str(root), *filter(None, [environment.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(root / "tests/parallel/programs.py"), *arguments],
        capture_output=True, text=True, cwd=root, env=environment | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(
    devices.resolve_precision("auto", CPU) != "bfloat16", reason="needs a CPU with bfloat16"
)
@pytest.mark.parametrize(
    "recipe", ["quickstart", pytest.param("t5_efficient:mini", marks=pytest.mark.slow)]
)
def test_on_a_cpu_products_are_narrow(recipe):
    config = get_config(recipe, *programs.SMALL, "optimizer.name=adamw")
    vocabulary = session.AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    compiled, _ = session.compile_train_step(session.session_on(config, vocabulary, [CPU]))
    found = programs.operand_types(compiled.as_text())
    assert len(found) > 40 and set(found) == {"bf16"}


@pytest.mark.slow
@needs_libtpu
def test_on_a_tpu_slice_copies_exchange_gradients_alone(root):
    found = program(root, "v5e-8", "quickstart", "mesh.data=8", "microbatch_size=8", *ONE_BLOCK)
    # Once a step, for any number of microbatches.
    assert [kind for kind, _ in found["collectives"]] == ["all-reduce"]
    assert max(size for _, size in found["collectives"]) <= found["largest_param"]
    assert found["donated"] >= 0.99 * found["state"] and not found["host"]


@pytest.fixture
def libtpu_in_use():
    """Hold libtpu's lock, as any process with JAX does on a machine that has libtpu."""
    with open("/tmp/libtpu_lockfile", "a") as file:
        with contextlib.suppress(BlockingIOError):  # another process holds it already
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@pytest.mark.slow
@needs_libtpu
@pytest.mark.usefixtures("libtpu_in_use")
def test_on_a_tpu_slice_shards_gather_parameters_and_scatter_gradients(root):
    # Dear, because libtpu compiles for eight devices. Fake CPU devices show that the numbers are
    # right; only the program of a real slice shows what is sent between devices, and how much.
    found = program(root, "v5e-8", "quickstart", "mesh.data=1", "mesh.fsdp=8", *ONE_BLOCK)
    gathered = [size for kind, size in found["collectives"] if kind in ("all-gather", "all-reduce")]
    assert gathered and max(gathered) <= found["largest_param"] < ACTIVATIONS
    whole = 3 * 4 * found["n_params"]  # parameters and two moments
    assert whole / 8 <= found["state"] < 1.25 * whole / 8  # small vectors are not cut
    assert found["scattering"] and found["donated"] >= 0.99 * found["state"]


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize(("length", "head_dim"), [(128, 64), (64, 128), (128, 32)])
@pytest.mark.parametrize(("card", "capability"), [("h100", (9, 0)), ("rtx4090", (8, 9))])
def test_every_tile_that_is_possible_compiles(card, capability, length, head_dim, has_mask):
    on = jax.sharding.SingleDeviceSharding(targets.devices(cards.CARDS[card])[0])

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=on)

    # Many rows, so that a program has several heads, which it reads ahead.
    fused = array((256, length, 3, 4, head_dim), jnp.bfloat16)
    angles = array((1, length, head_dim // 2), jnp.float32)
    mask = array((256, 1, length, length), jnp.int8) if has_mask else None
    seeds = array((256, 4), jnp.uint32)
    names = short_attention.possible_tiles(length, head_dim, has_mask, capability)
    assert names
    for name in names:

        def both(fused, angles, mask, seeds, tile=short_attention.TILES[name]):
            def mix(fused):
                rotary = angles, angles
                return short_attention.attention(fused, rotary, mask, seeds, 0.1, 0.1, tile)

            mixed, back = jax.vjp(mix, fused)
            return back(mixed)

        jax.jit(both).lower(fused, angles, mask, seeds).compile()


@needs_cuda
@pytest.mark.parametrize("recipe", ["bert_1day", "bert_1day_modern", "bert_24h_academic"])
def test_on_a_gpu_short_attention_is_one_kernel_products_are_narrow_and_the_state_is_donated(
    root, recipe
):
    found = program(root, "rtx3060", recipe, "optimizer.name=adamw")
    assert found["attention"].startswith("short") and "__gpu$xla.gpu.triton" in found["calls"]
    assert not any("fmha" in call for call in found["calls"])
    # 24hBERT's feed-forward has no gate.
    gated = [] if recipe == "bert_24h_academic" else ["gated_gelu"]
    assert found["ours"] == [*gated, "short_attention"]
    assert found["n_dots"] > 10 and found["operands"] == ["bf16"]
    assert (
        found["donated"] >= 0.99 * found["state"] and not found["host"] and not found["collectives"]
    )


@needs_cuda
@pytest.mark.parametrize(
    "settings", [(), ("model.document_attention=True",)], ids=["all", "documents"]
)
def test_on_a_gpu_cudnns_attention_is_taken_on_request_and_writes_no_gradient_of_a_mask(
    root, settings
):
    found = program(
        root, "rtx3060", "bert_1day", "optimizer.name=adamw", "model.attention=cudnn", *settings
    )
    assert found["attention"] == "cudnn" and any("fmha" in call for call in found["calls"])
    assert found["gradients_of_attention"] == [3] and found["operands"] == ["bf16"]


@needs_cuda
@pytest.mark.parametrize("length", ["data.seq_len=128", "data.seq_len=96"])
def test_on_a_gpu_all_of_t5s_attention_is_cudnns(root, length):
    found = program(
        root, "rtx3060", "t5_1day", "model.n_decoder_layers=2", "optimizer.name=adamw", length
    )
    # With a position bias, whose gradient is wanted, and without one in cross attention.
    assert found["attention"] == "cudnn" and found["gradients_of_attention"] == [3, 4]
    assert found["n_dots"] > 10 and found["operands"] == ["bf16"]
    assert found["donated"] >= 0.99 * found["state"] and not found["host"]


@needs_cuda
def test_a_card_without_bfloat16_has_narrow_products_too(root):
    found = program(root, "t4", "quickstart", "optimizer.name=adamw", "precision=auto")
    assert found["attention"] == "xla" and found["operands"] == ["f16"]
