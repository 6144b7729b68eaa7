"""How fast a task is finetuned here, beside the `Trainer` of transformers on the same examples, all in one run."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import statistics
import sys
import time
from typing import Any

import jax

from cramjax import start
from cramjax.bench import finetuning_peer
from cramjax.data import tokenizers
from cramjax.errors import UserError
from cramjax.finetuning import training
from cramjax.finetuning.classification import classification
from cramjax.finetuning.feed import EncoderFeed, truncating
from cramjax.finetuning.protocols import PROTOCOLS
from cramjax.glue import inputs, rows
from cramjax.glue.tasks import Task, find_tasks
from cramjax.models import network
from cramjax.objectives.masked_lm import encoder_config
from cramjax.tuning import devices

PRECISIONS = ("float32", "bfloat16")


def bench(
    config: Any,
    task_name: str,
    data_dir: str,
    n_steps: int,
    *,
    peer: bool,
    modes: tuple[str, ...] = finetuning_peer.MODES,
) -> dict[str, Any]:
    """Examples a second by the cramming protocol, one seed: see `tools/bench.py` for the keys of the result.

    `modes`: those of the peer that are measured.

    The network of `config` with random weights; the tokenizer is trained on the task, whose sentences are tokenised before the clock
    starts. Batching, packing (the peer's: padding) and the transfer are inside the time.

    Raises:
        UserError: for another task than one of classification, a T5, and without what the peer needs.
    """
    if peer and not all(
        importlib.util.find_spec(name) for name in ("torch", "transformers", "accelerate")
    ):
        raise UserError(
            "--peer needs torch, transformers and accelerate: pip install -r requirements-test.txt"
        )
    (task, *others) = find_tasks([task_name])
    if others or task.kind != "classification" or config.model.family != "encoder":
        raise UserError(
            f"--finetune {task_name}: measures one task of classification with an encoder, as cola"
        )
    start.start()
    measure = _Ours(config, task, data_dir, n_steps)
    result = {
        "recipe": config.name,
        "task": task.name,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "params": measure.n_params,
        "batch_size": measure.settings.batch_size,
        "mean_tokens": round(measure.mean_tokens, 2),
        "ours": {name: measure(name) for name in PRECISIONS},
    }
    if not peer:
        return result
    peers = finetuning_peer.measure(measure.specification(), n_steps, modes)
    after = {name: measure(name)["examples_per_s"] for name in PRECISIONS}
    return result | comparison(
        {name: found["examples_per_s"] for name, found in result["ours"].items()}, after, peers
    )


def comparison(
    before: dict[str, float], after: dict[str, float], peers: list[dict[str, Any]]
) -> dict[str, Any]:
    """Ours (the mean of before and after the peers ran) over the peer's.

    float32: over its float32 modes on batches in random order, as ours are; float32_any: over all its float32 modes, those that put
    sentences of like length together among them; best: our best over the best of all its modes.
    """
    ours = {name: statistics.mean([before[name], after[name]]) for name in before}
    rates = {peer["mode"]: peer["examples_per_s"] for peer in peers if "error" not in peer}

    def ratio(rate, chosen):
        return rate / max(chosen) if chosen else None

    float32 = {mode: rate for mode, rate in rates.items() if mode.startswith("float32")}
    return {
        "ours_examples_per_s": {name: [before[name], after[name]] for name in before},
        "peers": peers,
        "ratio_to_peer": {
            "float32": ratio(
                ours["float32"], [rate for mode, rate in float32.items() if "grouped" not in mode]
            ),
            "float32_any": ratio(ours["float32"], list(float32.values())),
            "best": ratio(max(ours.values()), list(rates.values())),
        },
    }


class _Ours:
    """One seed, `n_steps` steps, in a precision; what a precision compiles, it compiles when first called."""

    def __init__(self, config: Any, task: Task, data_dir: str, n_steps: int):
        opened = rows.open_task(task, data_dir, lambda text: print(text, file=sys.stderr))
        splits = {"train": opened.splits["train"]}
        settings = PROTOCOLS["cramming"].settings
        # As many epochs as hold the steps: training ends with the first of the two.
        epochs = math.ceil(n_steps / math.ceil(len(splits["train"]) / settings.batch_size))
        self.settings = dataclasses.replace(
            settings, max_steps=n_steps, epochs=max(1, epochs), single_as_pair=False
        )
        samples = [sample for row in splits["train"] for sample in inputs.samples(task, row)]
        pairs = [pair for sample in samples for pair in sample.pairs]
        texts = [text for pair in pairs for text in pair if text is not None]
        vocab_size = config.data.vocab_size
        tokenizer, _ = tokenizers.train(
            "wordpiece", texts, vocab_size=vocab_size, lowercase=True, ascii_only=True
        )
        self._config = encoder_config(config.model, vocab_size)
        self._n_classes = task.n_classes
        pad_id = tokenizers.special_ids(tokenizer)["pad"]
        self._feed = EncoderFeed(task, splits, tokenizer, pad_id, self.settings, None)
        self._trained = network.init_params(self._config, jax.random.key(0))
        # What the feed makes of them, for the peer.
        self._encoded = truncating(tokenizer, self.settings.max_length).encode_batch(
            [(a, b) if b is not None else a for a, b in pairs]
        )
        self._labels = [sample.label for sample in samples]
        self.mean_tokens = statistics.mean(len(found.ids) for found in self._encoded)
        self._compile_s: dict[str, float] = {}
        self.n_params = sum(leaf.size for leaf in jax.tree.leaves(self._trained["encoder"]))

    def __call__(self, precision: str) -> dict[str, float]:
        """examples_per_s and seconds with everything compiled, and compile_s: what the first time took more."""
        number_format = devices.make_precision(precision, jax.devices()[0])
        settings = self.settings
        rates = {"dropout": settings.dropout, "attention_dropout": settings.attention_dropout}
        learner = classification(
            self._config,
            number_format,
            width=settings.head_width,
            pooling=settings.pooling,
            **rates,
        )

        def train() -> tuple[float, int]:
            start = time.perf_counter()
            found = training.train(
                self._feed, learner, settings, self._trained, [0], dynamic_scale=False
            )
            return time.perf_counter() - start, found.n_steps

        first = None if precision in self._compile_s else train()
        seconds, n_steps = train()
        if first:
            self._compile_s[precision] = max(0.0, first[0] - seconds)
        n_examples = finetuning_peer.n_examples(
            self._feed.n_train, settings.batch_size, range(n_steps)
        )
        return {
            "examples_per_s": n_examples / seconds,
            "seconds": seconds,
            "compile_s": self._compile_s[precision],
        }

    def specification(self) -> dict[str, Any]:
        """What the peer needs to know: a BERT with as many parameters a block, examples and settings."""
        config, settings = self._config, self.settings
        gated = config.ffn in ("geglu", "geglu_tanh")
        numbers = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            # A gated feed-forward has three matrices, BERT's two.
            "intermediate_size": config.d_ff * 3 // 2 if gated else config.d_ff,
            "max_position_embeddings": max(settings.max_length, 128),
            "num_labels": self._n_classes,
            "hidden_dropout_prob": settings.dropout,
            "attention_probs_dropout_prob": settings.attention_dropout,
        }
        chosen = {
            name: getattr(settings, name)
            for name in ("lr", "warmup", "batch_size", "b1", "b2", "eps", "weight_decay")
        }
        examples = {"input_ids": [found.ids for found in self._encoded], "labels": self._labels}
        if any(
            any(found.type_ids) for found in self._encoded
        ):  # a BERT takes single sentences to be of type 0
            examples["token_type_ids"] = [found.type_ids for found in self._encoded]
        return {"numbers": numbers, "settings": chosen} | examples
