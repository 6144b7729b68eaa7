"""`python -m cramjax.bench.peer_steps`: steps of the same networks in torch, by a specification of `peers.py` on standard input.

A line of JSON on standard output for each mode. JAX is not imported.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Batches = list[dict[str, Any]]
WARMUP_STEPS = 3
# Sequences a pass that are tried on a GPU, where a peer gets the best of them; on CPU a batch is one pass.
LEAST_MICROBATCH = 8


def _measurements(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    peers = {wanted["config"]["architectures"][0]: (_transformers_model, _batches)}
    if wanted["plain"]:
        peers["TorchEncoder"] = (_plain_model, _plain_batches)
    sizes: dict[str, int] = {}
    for (name, (build, batches)), mode in itertools.product(peers.items(), wanted["modes"]):
        print(f"peer {name}, {mode}…", file=sys.stderr)
        result = {"peer": name, "mode": mode, "versions": versions}
        torch.manual_seed(0)
        torch.compiler.reset()
        try:
            model = build(wanted).to(device).train()
            make = functools.partial(batches, wanted, device)
            if name not in sizes:  # found without a compiler, for which every size is minutes
                sizes[name] = _best_microbatch(model, mode, wanted["n_rows"], make, device)
            seconds = _step_seconds(model, mode, make(sizes[name]), wanted["n_steps"])
        except Exception as error:  # a compiler that is missing is one mode's trouble
            yield result | {"error": str(error).splitlines()[0][:300]}
            continue
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        median = statistics.median(seconds)
        yield result | {
            "params": sum(weight.numel() for weight in model.parameters()),
            "microbatch_size": sizes[name],
            "step_s": median,
            "step_s_p10": tenths[0],
            "step_s_p90": tenths[-1],
            "tokens_per_s": wanted["n_rows"] * wanted["length"] / median,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        }


def _transformers_model(wanted: dict[str, Any]) -> Any:
    import transformers

    raw = {
        key: value
        for key, value in wanted["config"].items()
        if key not in ("architectures", "model_type")
    }
    config = transformers.CONFIG_MAPPING[wanted["config"]["model_type"]](**raw)
    return getattr(transformers, wanted["config"]["architectures"][0])._from_config(
        config, attn_implementation="sdpa"
    )


def _plain_model(wanted: dict[str, Any]) -> Any:
    from cramjax.bench.torch_encoder import Sizes, TorchEncoder

    return TorchEncoder(Sizes(**wanted["plain"]))


def _best_microbatch(
    model: Any, mode: str, n_rows: int, batches: Callable[[int], Batches], device: str
) -> int:
    """The fastest of the sizes that fit, in growing order until one is slower than the best before it by a twentieth."""
    import torch

    if device == "cpu":
        return n_rows
    best, best_s, size = None, float("inf"), LEAST_MICROBATCH
    while size <= n_rows:
        if n_rows % size == 0:
            try:
                seconds = statistics.median(_step_seconds(model, mode, batches(size), 2))
            except torch.cuda.OutOfMemoryError:
                break
            if seconds > 1.05 * best_s:
                break
            if seconds < best_s:
                best, best_s = size, seconds
        size *= 2
    torch.cuda.empty_cache()
    return best or n_rows


def _batches(wanted: dict[str, Any], device: str, size: int) -> Batches:
    """A batch in passes of `size` sequences."""
    import torch

    vocab_size, length = wanted["config"]["vocab_size"], wanted["length"]
    passes = []
    for _ in range(wanted["n_rows"] // size):
        inputs = torch.randint(5, vocab_size, (size, length), device=device)
        if "labels" in wanted:
            labels = torch.randint(5, vocab_size, (size, wanted["labels"]), device=device)
        else:
            order = torch.rand(size, length, device=device).argsort(dim=1)
            labels = inputs.masked_fill(order >= wanted["n_predicted"], -100)
        passes.append({"input_ids": inputs, "labels": labels})
    return passes


def _plain_batches(wanted: dict[str, Any], device: str, size: int) -> Batches:
    """The same with places and targets of what is predicted in place of labels."""
    passes = []
    for batch in _batches(wanted, device, size):
        labels = batch["labels"].flatten()
        predicted = (labels != -100).nonzero().flatten()
        passes.append(
            {"input_ids": batch["input_ids"], "predicted": predicted, "targets": labels[predicted]}
        )
    return passes


def _step_seconds(model: Any, mode: str, batches: Batches, n_steps: int) -> list[float]:
    import torch

    precision, how = mode.split()
    device = batches[0]["input_ids"].device.type
    forward = torch.compile(model) if how == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for _ in range(WARMUP_STEPS + n_steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                output = forward(**batch)
                loss = getattr(output, "loss", output) / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP_STEPS:]


if __name__ == "__main__":
    for found in _measurements(json.load(sys.stdin)):
        print(json.dumps(found), flush=True)
