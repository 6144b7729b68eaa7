"""Steps of the same networks in torch: `python -m cramjax.bench.peer_steps`.

Reads a specification of `peers.py` from standard input and writes a line of JSON to standard output
for each mode. JAX is not imported.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Batches = list[dict[str, Any]]
WARMUP_STEPS = 3
# The smallest number of sequences a pass that is tried on a GPU; a peer gets the best of the sizes.
LEAST_MICROBATCH = 8


def _measurements(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True

    peers = [(wanted["config"]["architectures"][0], _transformers_model, _batches)]
    if wanted["plain"]:
        peers.append(("TorchEncoder", _plain_model, _plain_batches))
    sizes: dict[str, int] = {}
    runs = [(*peer, mode) for peer in peers for mode in wanted["modes"]]
    for name, build, batches, mode in runs:
        print(f"peer {name}, {mode}…", file=sys.stderr)
        result = {"peer": name, "mode": mode, "versions": versions}
        torch.manual_seed(0)
        torch.compiler.reset()
        # A mode may fail alone, for example without a compiler; the others are measured.
        try:
            model = build(wanted).to(device).train()
            make = functools.partial(batches, wanted, device)
            # The eager mode comes first and finds the size: compiling every size takes minutes.
            if name not in sizes:
                sizes[name] = _best_microbatch(model, mode, wanted["n_rows"], make, device)
            seconds = _step_seconds(model, mode, make(sizes[name]), wanted["n_steps"])
        except Exception as error:
            yield result | {"error": str(error).splitlines()[0][:300]}
            continue

        memory = torch.cuda.max_memory_allocated() if device == "cuda" else None
        yield result | {
            "params": sum(weight.numel() for weight in model.parameters()),
            "microbatch_size": sizes[name],
            **_summary(seconds, wanted["n_rows"] * wanted["length"]),
            "peak_memory_bytes": memory,
        }


def _summary(seconds: list[float], n_tokens: int) -> dict[str, float]:
    """Returns the median and the outer tenths of the steps' seconds, and the rate at the median."""
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    median = statistics.median(seconds)
    return {
        "step_s": median,
        "step_s_p10": tenths[0],
        "step_s_p90": tenths[-1],
        "tokens_per_s": n_tokens / median,
    }


def _transformers_model(wanted: dict[str, Any]) -> Any:
    import transformers

    values = dict(wanted["config"])
    (architecture,) = values.pop("architectures")
    config_class = transformers.CONFIG_MAPPING[values.pop("model_type")]
    # SDPA is the fastest attention that users of transformers get without further packages.
    values["attn_implementation"] = "sdpa"
    return getattr(transformers, architecture)(config_class(**values))


def _plain_model(wanted: dict[str, Any]) -> Any:
    from cramjax.bench.torch_encoder import Sizes, TorchEncoder

    return TorchEncoder(Sizes(**wanted["plain"]))


def _best_microbatch(
    model: Any, mode: str, n_rows: int, batches: Callable[[int], Batches], device: str
) -> int:
    """Returns the fastest number of sequences a pass that fits.

    On a GPU sizes grow until one is slower than the best before it by a twentieth. On a CPU a batch
    is one pass.
    """
    import torch

    if device == "cpu":
        return n_rows
    best = None
    best_s = float("inf")
    size = LEAST_MICROBATCH
    while size <= n_rows:
        if n_rows % size == 0:
            try:
                seconds = statistics.median(_step_seconds(model, mode, batches(size), 2))
            except torch.cuda.OutOfMemoryError:
                break
            if seconds > 1.05 * best_s:
                break
            if seconds < best_s:
                best = size
                best_s = seconds
        size *= 2

    torch.cuda.empty_cache()
    return best or n_rows


def _batches(wanted: dict[str, Any], device: str, size: int) -> Batches:
    """Returns a batch of random tokens in passes of `size` sequences: int64 [size, length]."""
    import torch

    vocab_size = wanted["config"]["vocab_size"]
    length = wanted["length"]
    passes = []
    for _ in range(wanted["n_rows"] // size):
        inputs = torch.randint(5, vocab_size, (size, length), device=device)
        if "labels" in wanted:
            labels = torch.randint(5, vocab_size, (size, wanted["labels"]), device=device)
        else:
            # A random order of the places; all but the first `n_predicted` are ignored (-100).
            order = torch.rand(size, length, device=device).argsort(dim=1)
            labels = inputs.masked_fill(order >= wanted["n_predicted"], -100)
        passes.append({"input_ids": inputs, "labels": labels})
    return passes


def _plain_batches(wanted: dict[str, Any], device: str, size: int) -> Batches:
    """Returns the same batch with the predicted places and their targets instead of labels."""
    passes = []
    for batch in _batches(wanted, device, size):
        labels = batch["labels"].flatten()
        predicted = (labels != -100).nonzero().flatten()
        targets = labels[predicted]
        passes.append({"input_ids": batch["input_ids"], "predicted": predicted, "targets": targets})
    return passes


def _step_seconds(model: Any, mode: str, batches: Batches, n_steps: int) -> list[float]:
    """Returns the seconds of each of `n_steps` optimizer steps after the warm-up.

    Args:
        model: the network.
        mode: precision and way, as "bfloat16 compiled".
        batches: the passes of a step, one at least.
        n_steps: timed steps.
    """
    import torch

    precision, how = mode.split()
    device = batches[0]["input_ids"].device.type
    forward = torch.compile(model) if how == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def backward(batch: dict[str, Any]) -> Any:
        """Adds the gradient of one pass; returns its loss."""
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            output = forward(**batch)
            loss = getattr(output, "loss", output) / len(batches)
        loss.backward()
        return loss

    seconds = []
    for _ in range(WARMUP_STEPS + n_steps):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        losses = [backward(batch) for batch in batches]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # Reading a loss waits for the device.
        losses[-1].item()
        seconds.append(time.perf_counter() - started)
    return seconds[WARMUP_STEPS:]


if __name__ == "__main__":
    for measurement in _measurements(json.load(sys.stdin)):
        print(json.dumps(measurement), flush=True)
