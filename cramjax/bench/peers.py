"""The same train step in torch, as users of `transformers` write it, measured in one run with ours.

A peer runs in a process of its own (`peer_steps.py`), so torch and XLA never share memory or
threads.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from cramjax.config.resolve import changed
from cramjax.config.span_lengths import span_lengths
from cramjax.config.views import Config
from cramjax.errors import RunFailed, UserError
from cramjax.hub import equivalence, families
from cramjax.models.encoder import EncoderConfig
from cramjax.objectives import masking
from cramjax.objectives.encoder_decoder import t5_config
from cramjax.objectives.masked_lm import encoder_config

PRECISIONS = ("float32", "bfloat16")


def compare(config: Config, n_steps: int) -> dict[str, Any]:
    """Measure our step and the peer's, `n_steps` of each.

    Ours is measured before and after the peer's, because a machine's speed drifts. The precision
    is that of `config`, or float32 and bfloat16 if that is "auto".

    Returns:
        The result; `tools/bench.py` describes its keys.

    Raises:
        UserError: if torch or transformers is missing.
    """
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise UserError("--peer needs torch and transformers: pip install -r requirements-test.txt")
    from cramjax.bench.pretraining import bench

    precisions = PRECISIONS if config.precision == "auto" else (config.precision,)
    modes = tuple(f"{name} {how}" for name in precisions for how in ("eager", "compiled"))
    configs = {name: changed(config, {"precision": name}) for name in precisions}
    before = {name: bench(configs[name], n_steps) for name in precisions}
    peers = measure_peers(config, n_steps, modes)
    after = {name: bench(configs[name], n_steps) for name in precisions}

    rates = {}
    ratios = {}
    for name in precisions:
        rates[name] = [side[name]["tokens_per_s"] for side in (before, after)]
        best = _best_rate(peers, name)
        ratios[name] = statistics.mean(rates[name]) / best if best else None
    return {"ours": before, "ours_tokens_per_s": rates, "peers": peers, "ratio_to_peer": ratios}


def _best_rate(peers: Sequence[dict[str, Any]], precision: str) -> float | None:
    """Returns the most tokens a second of a peer in `precision`; None if none ran."""
    rates = [
        peer["tokens_per_s"]
        for peer in peers
        if peer["mode"].startswith(precision) and "error" not in peer
    ]
    return max(rates, default=None)


def specification(config: Config) -> dict[str, Any]:
    """Returns the peer of a configuration: its config.json, and the shapes of a batch.

    The peer is the class of `transformers` that computes the same network, or else a BERT of the
    same sizes. The key `plain` has the sizes of a `torch_encoder.TorchEncoder`, or None if our
    network is not of its kind.
    """
    model = config.model
    data = config.data
    objective = config.objective
    if model.family == "t5":
        lengths = span_lengths(data.seq_len, objective.noise_density, objective.mean_span)
        return {
            "config": families.to_json(*equivalence.find_family(t5_config(model, data.vocab_size))),
            "n_rows": config.batch_size,
            "plain": None,
            "length": lengths.n_inputs,
            "labels": lengths.n_targets,
        }

    network = encoder_config(model, data.vocab_size)
    try:
        description = families.to_json(*equivalence.find_family(network))
    except UserError:
        description = _bert(network, data.seq_len)
    return {
        "config": description,
        "n_rows": config.batch_size,
        "plain": _plain(network, data.seq_len),
        "length": data.seq_len,
        "n_predicted": masking.n_predicted(objective.mask_rate, data.seq_len),
    }


def _bert(network: EncoderConfig, length: int) -> dict[str, Any]:
    """Returns the config.json of a BERT with the sizes of `network`."""
    return {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "vocab_size": network.vocab_size,
        "hidden_size": network.d_model,
        "num_hidden_layers": network.n_layers,
        "num_attention_heads": network.n_heads,
        "intermediate_size": network.d_ff,
        "max_position_embeddings": length,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _plain(network: EncoderConfig, length: int) -> dict[str, Any] | None:
    """Returns the sizes of a `TorchEncoder`, or None if that cannot be this network."""
    has_dropout = network.dropout or network.attention_dropout
    is_pre_norm = network.norm_position == "pre"
    if not is_pre_norm or network.local_window or has_dropout or network.linear_bias:
        return None
    return {
        "vocab_size": network.vocab_size,
        "n_layers": network.n_layers,
        "d_model": network.d_model,
        "n_heads": network.n_heads,
        "d_ff": network.d_ff,
        "is_gated": network.ffn == "geglu",
        "is_rotary": network.positions == "rotary",
        "max_positions": length,
        "has_transform": network.head_transform,
    }


def measure_peers(config: Config, n_steps: int, modes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Measure each peer of `config` in each of `modes` ("float32 eager", …), in another process.

    Returns:
        A dict for each peer and mode: peer, mode, versions, and either params, microbatch_size,
        step_s (median), step_s_p10, step_s_p90, tokens_per_s and peak_memory_bytes (on a GPU), or
        `error`.

    Raises:
        RunFailed: if the process ends before it has measured every mode.
    """
    wanted = specification(config) | {"modes": modes, "n_steps": n_steps}
    command = [sys.executable, "-m", "cramjax.bench.peer_steps"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        output, _ = process.communicate(json.dumps(wanted))

    results = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    n_peers = 2 if wanted["plain"] else 1
    if process.returncode or len(results) != len(modes) * n_peers:
        raise RunFailed("the peer's process ended without its measurements; see its output above")
    return results
