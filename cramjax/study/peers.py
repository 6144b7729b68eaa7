"""The same train step in torch, as users of `transformers` have it, measured in the same run as ours.

A peer runs in a process of its own (`python -m cramjax.study.peers`, a specification on standard input, a result a line on standard
output), so that torch and XLA never share memory or threads. torch and transformers are imported there alone.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from cramjax.config.errors import RunFailed, UserError
from cramjax.config.spans import span_lengths

MODES = ("float32 eager", "float32 compiled", "bfloat16 eager", "bfloat16 compiled")
WARMUP_STEPS = 3


def compare(resolve: Callable[[str], Any], n_steps: int) -> dict[str, Any]:
    """Our step and the peer's, `n_steps` each: ours before and after the peer's, because machines drift.

    `resolve`: precision → the configuration in it. See `tools/bench.py` for the keys of the result.

    Raises:
        UserError: where torch or transformers is missing.
    """
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise UserError("--peer needs torch and transformers: pip install -r requirements-test.txt")
    from cramjax.study.bench import bench

    precisions = ("float32", "bfloat16")
    before = {name: bench(resolve(name), n_steps) for name in precisions}
    peers = measure_peers(resolve("float32"), n_steps)
    after = {name: bench(resolve(name), n_steps)["tokens_per_s"] for name in precisions}
    rates = {name: statistics.mean([before[name]["tokens_per_s"], after[name]]) for name in precisions}
    best = {
        name: max(
            (peer["tokens_per_s"] for peer in peers if peer["mode"].startswith(name) and "error" not in peer),
            default=None,
        )
        for name in precisions
    }
    return {
        "ours": before,
        "ours_tokens_per_s": {name: [before[name]["tokens_per_s"], after[name]] for name in precisions},
        "peers": peers,
        "ratio_to_peer": {name: rates[name] / best[name] if best[name] else None for name in precisions},
    }


def specification(config: Any) -> dict[str, Any]:
    """What the peer of a configuration is: class, its configuration, and the shapes of a batch."""
    model, data, objective = config.model, config.data, config.objective
    vocab_size = -(-data.vocab_size // model.vocab_multiple) * model.vocab_multiple
    if model.family == "t5":
        lengths = span_lengths(data.seq_len, objective.noise_density, objective.mean_span)
        numbers = {
            "vocab_size": vocab_size,
            "d_model": model.d_model,
            "d_kv": model.head_dim or model.d_model // model.n_heads,
            "d_ff": model.d_ff,
            "num_layers": model.n_layers,
            "num_decoder_layers": model.n_decoder_layers or model.n_layers,
            "num_heads": model.n_heads,
            "feed_forward_proj": "gated-gelu" if model.ffn == "geglu_tanh" else "relu",
            "tie_word_embeddings": model.tie_embeddings,
            "dropout_rate": 0.0,
            "decoder_start_token_id": 0,
        }
        return {"kind": "T5", "head": "ForConditionalGeneration", "numbers": numbers} | {
            "batch": [config.batch_size, lengths.n_inputs],
            "labels": lengths.n_targets,
        }
    numbers = {
        "vocab_size": vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.d_ff,
        "max_position_embeddings": data.seq_len,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return {"kind": "Bert", "head": "ForMaskedLM", "numbers": numbers} | {
        "batch": [config.batch_size, data.seq_len],
        "mask_rate": objective.mask_rate,
    }


def measure_peers(config: Any, n_steps: int, modes: tuple[str, ...] = MODES) -> list[dict[str, Any]]:
    """A dict for each of `modes`: peer, mode, params, step_s (median), step_s_p10, step_s_p90, tokens_per_s, versions.

    A mode that does not run has `error` in place of its figures.

    Raises:
        RunFailed: if the process does not get as far as measuring.
    """
    wanted = specification(config) | {"modes": modes, "n_steps": n_steps}
    command = [sys.executable, "-m", "cramjax.study.peers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(json.dumps(wanted))
    results = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if process.returncode or len(results) != len(modes):
        raise RunFailed("the peer's process ended without its measurements; what it said stands above")
    return results


def _measurements(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch
    import transformers

    config = getattr(transformers, f"{wanted['kind']}Config")(**wanted["numbers"])
    build = getattr(transformers, wanted["kind"] + wanted["head"])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    for mode in wanted["modes"]:
        print(f"peer {build.__name__}, {mode}…", file=sys.stderr)
        result = {"peer": build.__name__, "mode": mode, "versions": versions}
        torch.manual_seed(0)
        torch.compiler.reset()
        try:
            model = build(config).to(device).train()
            seconds = _step_seconds(model, mode, _batch(wanted, device), wanted["n_steps"])
        except Exception as error:  # a compiler that is missing is one mode's trouble
            yield result | {"error": str(error).splitlines()[0][:300]}
            continue
        rows, length = wanted["batch"]
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        median = statistics.median(seconds)
        yield result | {
            "params": sum(weight.numel() for weight in model.parameters()),
            "step_s": median,
            "step_s_p10": tenths[0],
            "step_s_p90": tenths[-1],
            "tokens_per_s": rows * length / median,
        }


def _batch(wanted: dict[str, Any], device: str) -> dict[str, Any]:
    import torch

    rows, length = wanted["batch"]
    vocab_size = wanted["numbers"]["vocab_size"]
    inputs = torch.randint(5, vocab_size, (rows, length), device=device)
    if "labels" in wanted:
        return {"input_ids": inputs, "labels": torch.randint(5, vocab_size, (rows, wanted["labels"]), device=device)}
    masked = torch.rand(rows, length, device=device) < wanted["mask_rate"]
    return {"input_ids": inputs, "labels": inputs.masked_fill(~masked, -100)}


def _step_seconds(model: Any, mode: str, batch: dict[str, Any], n_steps: int) -> list[float]:
    import torch

    precision, how = mode.split()
    device = batch["input_ids"].device.type
    forward = torch.compile(model) if how == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for _ in range(WARMUP_STEPS + n_steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP_STEPS:]


if __name__ == "__main__":
    for found in _measurements(json.load(sys.stdin)):
        print(json.dumps(found), flush=True)
