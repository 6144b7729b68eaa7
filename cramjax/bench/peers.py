"""The same train step in torch, as users of `transformers` have it, measured in the same run as ours.

A peer runs in a process of its own (`peer_steps.py`), so that torch and XLA never share memory or threads.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from typing import Any

from cramjax.config.resolve import changed
from cramjax.config.span_lengths import span_lengths
from cramjax.errors import RunFailed, UserError
from cramjax.hub import equivalence, families
from cramjax.models.encoder import EncoderConfig
from cramjax.objectives import masking
from cramjax.objectives.masked_lm import encoder_config
from cramjax.objectives.span_corruption import t5_config

PRECISIONS = ("float32", "bfloat16")


def compare(config: Any, n_steps: int) -> dict[str, Any]:
    """Our step and the peer's, `n_steps` each: ours before and after the peer's, because machines drift.

    In the precision of `config`, or in float32 and bfloat16 where that is "auto". See `tools/bench.py` for the keys of the result.

    Raises:
        UserError: where torch or transformers is missing.
    """
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise UserError("--peer needs torch and transformers: pip install -r requirements-test.txt")
    from cramjax.bench.pretraining import bench

    precisions = PRECISIONS if config.precision == "auto" else (config.precision,)
    ours = {name: changed(config, {"precision": name}) for name in precisions}
    before = {name: bench(own, n_steps) for name, own in ours.items()}
    peers = measure_peers(
        config,
        n_steps,
        tuple(f"{name} {how}" for name in precisions for how in ("eager", "compiled")),
    )
    after = {name: bench(own, n_steps)["tokens_per_s"] for name, own in ours.items()}
    rates = {
        name: statistics.mean([before[name]["tokens_per_s"], after[name]]) for name in precisions
    }
    best = {
        name: max(
            (
                peer["tokens_per_s"]
                for peer in peers
                if peer["mode"].startswith(name) and "error" not in peer
            ),
            default=None,
        )
        for name in precisions
    }
    return {
        "ours": before,
        "ours_tokens_per_s": {
            name: [before[name]["tokens_per_s"], after[name]] for name in precisions
        },
        "peers": peers,
        "ratio_to_peer": {
            name: rates[name] / best[name] if best[name] else None for name in precisions
        },
    }


def specification(config: Any) -> dict[str, Any]:
    """What the peer of a configuration is: its config.json, and the shapes of a batch.

    It is the class that computes the same network, where `transformers` has one, and else a BERT of the same sizes; beside that `plain`,
    the sizes of `torch_encoder.TorchEncoder`, or None where that is not such a network.
    """
    model, data, objective = config.model, config.data, config.objective
    batch = {"n_rows": config.batch_size, "plain": None}
    if model.family == "t5":
        lengths = span_lengths(data.seq_len, objective.noise_density, objective.mean_span)
        name, cfg = equivalence.find_family(t5_config(model, data.vocab_size))
        return (
            {"config": families.to_json(name, cfg)}
            | batch
            | {"length": lengths.n_inputs, "labels": lengths.n_targets}
        )
    cfg = encoder_config(model, data.vocab_size)
    try:
        raw = families.to_json(*equivalence.find_family(cfg))
    except UserError:
        raw = {
            "model_type": "bert",
            "architectures": ["BertForMaskedLM"],
            "vocab_size": cfg.vocab_size,
            "hidden_size": cfg.d_model,
            "num_hidden_layers": cfg.n_layers,
            "num_attention_heads": cfg.n_heads,
            "intermediate_size": cfg.d_ff,
            "max_position_embeddings": data.seq_len,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    lengths = {
        "length": data.seq_len,
        "n_predicted": masking.n_predicted(objective.mask_rate, data.seq_len),
    }
    return {"config": raw} | batch | lengths | {"plain": _plain(cfg, data.seq_len)}


def _plain(cfg: EncoderConfig, length: int) -> dict[str, Any] | None:
    if (
        cfg.norm_position != "pre"
        or cfg.local_window
        or cfg.dropout
        or cfg.attention_dropout
        or cfg.linear_bias
    ):
        return None
    return {
        "vocab_size": cfg.vocab_size,
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "n_heads": cfg.n_heads,
        "d_ff": cfg.d_ff,
        "is_gated": cfg.ffn == "geglu",
        "is_rotary": cfg.positions == "rotary",
        "max_positions": length,
        "has_transform": cfg.head_transform,
    }


def measure_peers(config: Any, n_steps: int, modes: tuple[str, ...]) -> list[dict[str, Any]]:
    """A dict for each peer and each of `modes` ("float32 eager", …): peer, mode, params, microbatch_size, step_s (median),
    step_s_p10, step_s_p90, tokens_per_s, peak_memory_bytes (of a GPU), versions.

    A mode that does not run has `error` in place of its figures.

    Raises:
        RunFailed: if the process does not get as far as measuring.
    """
    wanted = specification(config) | {"modes": modes, "n_steps": n_steps}
    command = [sys.executable, "-m", "cramjax.bench.peer_steps"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        output, _ = process.communicate(json.dumps(wanted))
    results = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if process.returncode or len(results) != len(modes) * (2 if wanted["plain"] else 1):
        raise RunFailed(
            "the peer's process ended without its measurements; what it said stands above"
        )
    return results
