"""`python -m cramjax.study.peer_steps`: steps of a model of `transformers` in torch, by a specification of `peers.py` on standard input.

A line of JSON on standard output for each mode. torch and transformers are imported here alone, and JAX is not.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

WARMUP_STEPS = 3
# Sequences a pass that are tried on a GPU, where a peer gets the best of them; on CPU a batch is one pass.
LEAST_MICROBATCH = 8


def _measurements(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch
    import transformers

    raw = dict(wanted["config"])
    (name,) = raw.pop("architectures")
    build = getattr(transformers, name)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    size = None
    for mode in wanted["modes"]:
        print(f"peer {name}, {mode}…", file=sys.stderr)
        result = {"peer": name, "mode": mode, "versions": versions}
        torch.manual_seed(0)
        torch.compiler.reset()
        try:
            config = transformers.CONFIG_MAPPING[raw["model_type"]](
                **{key: raw[key] for key in raw if key != "model_type"}
            )
            model = build._from_config(config, attn_implementation="sdpa").to(device).train()
            # Found without a compiler, for which every size is minutes.
            size = size or _best_microbatch(model, mode, wanted, device)
            seconds = _step_seconds(model, mode, _batches(wanted, size, device), wanted["n_steps"])
        except Exception as error:  # a compiler that is missing is one mode's trouble
            yield result | {"error": str(error).splitlines()[0][:300]}
            continue
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        median = statistics.median(seconds)
        yield result | {
            "params": sum(weight.numel() for weight in model.parameters()),
            "microbatch_size": size,
            "step_s": median,
            "step_s_p10": tenths[0],
            "step_s_p90": tenths[-1],
            "tokens_per_s": wanted["n_rows"] * wanted["length"] / median,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        }


def _best_microbatch(model: Any, mode: str, wanted: dict[str, Any], device: str) -> int:
    """The fastest of the sizes that fit, in growing order until one is slower than the best before it by a twentieth."""
    import torch

    n_rows = wanted["n_rows"]
    if device == "cpu":
        return n_rows
    best, best_s, size = None, float("inf"), LEAST_MICROBATCH
    while size <= n_rows:
        if n_rows % size == 0:
            try:
                seconds = statistics.median(_step_seconds(model, mode, _batches(wanted, size, device), 2))
            except torch.cuda.OutOfMemoryError:
                break
            if seconds > 1.05 * best_s:
                break
            if seconds < best_s:
                best, best_s = size, seconds
        size *= 2
    torch.cuda.empty_cache()
    return best or n_rows


def _batches(wanted: dict[str, Any], size: int, device: str) -> list[dict[str, Any]]:
    """A batch in passes of `size` sequences."""
    import torch

    vocab_size, length = wanted["config"]["vocab_size"], wanted["length"]
    passes = []
    for _ in range(wanted["n_rows"] // size):
        inputs = torch.randint(5, vocab_size, (size, length), device=device)
        if "labels" in wanted:
            labels = torch.randint(5, vocab_size, (size, wanted["labels"]), device=device)
        else:
            labels = inputs.masked_fill(torch.rand(size, length, device=device) >= wanted["mask_rate"], -100)
        passes.append({"input_ids": inputs, "labels": labels})
    return passes


def _step_seconds(model: Any, mode: str, batches: list[dict[str, Any]], n_steps: int) -> list[float]:
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
                loss = forward(**batch).loss / len(batches)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP_STEPS:]


if __name__ == "__main__":
    for found in _measurements(json.load(sys.stdin)):
        print(json.dumps(found), flush=True)
