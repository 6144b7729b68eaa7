"""Speed of finetuning, beside transformers' `Trainer` on the same examples, all in one run."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from cramjax import start
from cramjax.bench import finetuning_peer, peer_examples
from cramjax.config.views import Config
from cramjax.data import tokenizers
from cramjax.errors import UserError
from cramjax.finetuning import heads, learning, training
from cramjax.finetuning.classification import EncoderObjective
from cramjax.finetuning.protocols import choose_protocol
from cramjax.glue.tasks import Task
from cramjax.models import network
from cramjax.objectives.masked_lm import encoder_config
from cramjax.tasks import catalogue
from cramjax.tuning import devices

MODES = (
    "float32",
    "float32, grouped by length",
    "bfloat16",
    "bfloat16, grouped by length",
)
"""Number formats, with batches of texts of all lengths or of like length. The peer's are drawn."""
_PEER_PACKAGES = ("torch", "transformers", "accelerate")


def bench(
    config: Config,
    task_name: str,
    data_dir: str,
    n_steps: int,
    *,
    peer: bool,
    modes: tuple[str, ...] = finetuning_peer.MODES,
) -> dict[str, Any]:
    """Measure examples a second of one seed by the cramming protocol.

    The precision is that of `config`, or float32 and bfloat16 if that is "auto". The network is
    that of `config` with random weights. The tokenizer is trained on the task, and texts are
    tokenised before the clock starts. Batching, packing (the peer's: padding) and the transfer to
    the device are inside the time. An example is a text or a pair, and a window of a text for tags
    and answers.

    Args:
        config: the configuration of the network.
        task_name: a task of classes, tags or answers, as "cola", "conll" or "squad".
        data_dir: where the task is, as `catalogue.open_task` takes it.
        n_steps: timed steps.
        peer: whether to measure the peer as well.
        modes: the peer's modes that are measured, of this precision.

    Returns:
        The result; `tools/bench.py` describes its keys.

    Raises:
        UserError: if the task is of another kind, the network is a T5, the precision is another,
            or a package of the peer is missing.
    """
    if peer and not all(map(importlib.util.find_spec, _PEER_PACKAGES)):
        raise UserError(
            "--peer needs torch, transformers and accelerate: pip install -r requirements-test.txt"
        )
    task = _find(task_name, config)
    own_modes = _of_precision(MODES, config.precision)
    start.start()
    timed = TimedFinetuning(config, task, data_dir, n_steps)
    result = {
        "recipe": config.name,
        "task": task.name,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "params": timed.n_params,
        "batch_size": timed.settings.batch_size,
        "mean_tokens": round(timed.mean_tokens, 2),
        "ours": {mode: timed.measure(mode) for mode in own_modes},
    }
    if not peer:
        return result

    # A machine's speed drifts, so ours is measured on both sides of the peer.
    before = {name: figures["examples_per_s"] for name, figures in result["ours"].items()}
    modes = _of_precision(modes, config.precision)
    peers = finetuning_peer.measure(timed.specification(), n_steps, modes)
    after = {mode: timed.measure(mode)["examples_per_s"] for mode in own_modes}
    return result | comparison(before, after, peers)


def _of_precision(modes: tuple[str, ...], precision: str) -> tuple[str, ...]:
    """Returns the modes of a precision; all for "auto"."""
    if precision == "auto":
        return modes
    chosen = tuple(mode for mode in modes if mode.startswith(precision))
    if not chosen:
        raise UserError(f"precision={precision}: --finetune measures float32 and bfloat16")
    return chosen


def _find(task_name: str, config: Config) -> Task:
    """Returns the task that is measured, or raises UserError."""
    (task, *others) = catalogue.find([task_name])
    is_measured = task.kind in peer_examples.KINDS and config.model.family == "encoder"
    if others or not is_measured:
        raise UserError(
            f"--finetune {task_name}: measures an encoder on one task of classes, tags or answers, "
            "as cola, conll or squad"
        )
    return task


def comparison(
    before: Mapping[str, float], after: Mapping[str, float], peers: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Compare our rates (the mean of before and after the peers ran) with the peers'.

    Args:
        before: examples a second by our mode, measured before the peers.
        after: the same, measured after them.
        peers: results of `finetuning_peer.measure`.

    Returns:
        The keys ours_examples_per_s, peers, ratio_to_peer and best_peer_mode. The ratios are our
        best rate over the peer's best: `float32` of the float32 modes without texts of like length;
        `float32_any` of all float32 modes, also those that put texts of like length together;
        `best` of all modes. The peer's modes have the same keys. A ratio of or over nothing, and
        its mode, are None.
    """
    ours = {mode: statistics.mean([before[mode], after[mode]]) for mode in before}
    rates = {peer["mode"]: peer["examples_per_s"] for peer in peers if "error" not in peer}
    chosen: dict[str, Callable[[str], bool]] = {
        "float32": lambda mode: mode.startswith("float32") and "grouped" not in mode,
        "float32_any": lambda mode: mode.startswith("float32"),
        "best": lambda mode: True,
    }

    ratios: dict[str, float | None] = {}
    best: dict[str, str | None] = {}
    for key, is_chosen in chosen.items():
        others = {mode: rate for mode, rate in rates.items() if is_chosen(mode)}
        best[key] = max(others, key=others.__getitem__, default=None)
        fastest = max((rate for mode, rate in ours.items() if is_chosen(mode)), default=None)
        ratios[key] = fastest / max(others.values()) if others and fastest else None

    return {
        "ours_examples_per_s": {mode: [before[mode], after[mode]] for mode in before},
        "peers": peers,
        "ratio_to_peer": ratios,
        "best_peer_mode": best,
    }


class TimedFinetuning:
    """Finetunes one seed for a number of steps and measures the time.

    A mode compiles its programs when it is first measured.

    Attributes:
        settings: the cramming protocol, with as many epochs as hold the steps.
        n_params: parameters of the encoder.
        mean_tokens: mean length of the examples.
    """

    def __init__(self, config: Config, task: Task, data_dir: str, n_steps: int):
        """Open the task, train the tokenizer on it, and encode its examples."""
        opened = catalogue.open_task(task, data_dir, lambda text: print(text, file=sys.stderr))
        # The data say which tags there are.
        self._task = opened.task
        self._kind = peer_examples.KINDS[task.kind]
        train_rows = opened.splits["train"]
        texts = [text for row in train_rows for text in self._kind.texts(task, row)]
        vocab_size = config.data.vocab_size
        tokenizer, _ = tokenizers.train(
            "wordpiece", texts, vocab_size=vocab_size, lowercase=True, ascii_only=True
        )

        protocol = choose_protocol("cramming", is_t5=False, tasks=[task])
        (point,) = protocol.points(task.name)
        settings = dataclasses.replace(protocol.settings_at(point), single_as_pair=False)
        self._config = encoder_config(config.model, vocab_size)
        self._part = heads.encoder_part(self._task)
        pad_id = tokenizers.special_ids(tokenizer)["pad"]
        splits = {"train": train_rows}
        self._feed = self._part.feed(
            self._task, splits, tokenizer, pad_id, settings, self._config.max_length
        )
        self.mean_tokens = statistics.mean(
            len(sequence.ids) for sequence in self._feed.sequences("train")
        )

        # Training ends with the steps or the epochs, whichever is first; the steps have to be.
        epochs = math.ceil(n_steps / math.ceil(self._feed.n_train / settings.batch_size))
        self.settings = dataclasses.replace(settings, max_steps=n_steps, epochs=max(1, epochs))
        self._trained = network.init_params(self._config, jax.random.key(0))
        self.n_params = sum(leaf.size for leaf in jax.tree.leaves(self._trained["encoder"]))
        self._compile_s: dict[str, float] = {}

    def measure(self, mode: str) -> dict[str, float]:
        """Train once with everything compiled.

        Returns:
            examples_per_s; seconds; and compile_s, the seconds that the first time took more.
        """
        learner = self._learner(mode.partition(",")[0])
        is_grouped = "grouped" in mode
        warm_up_s = None
        if mode not in self._compile_s:
            warm_up_s, _ = self._train(learner, is_grouped)
        seconds, n_steps = self._train(learner, is_grouped)
        if warm_up_s is not None:
            self._compile_s[mode] = max(0.0, warm_up_s - seconds)

        n_examples = finetuning_peer.n_examples(
            self._feed.n_train, self.settings.batch_size, range(n_steps)
        )
        return {
            "examples_per_s": n_examples / seconds,
            "seconds": seconds,
            "compile_s": self._compile_s[mode],
        }

    def _learner(self, precision: str) -> EncoderObjective:
        network = learning.network_with_head(self._config, self._task, self.settings)
        return self._part.objective(network, devices.make_precision(precision, jax.devices()[0]))

    def _train(self, learner: EncoderObjective, is_grouped: bool) -> tuple[float, int]:
        """Returns (seconds, steps) of one training."""
        settings = dataclasses.replace(self.settings, group_by_length=is_grouped)
        started = time.perf_counter()
        trained = training.train(
            self._feed, learner, settings, self._trained, [0], dynamic_scale=False
        )
        return time.perf_counter() - started, trained.n_steps

    def specification(self) -> dict[str, Any]:
        """Returns what the peer trains: a class of BERT with its sizes, settings, and examples.

        The BERT has as many parameters a block as our network.
        """
        config = self._config
        settings = self.settings
        d_ff = config.d_ff
        if config.ffn in ("geglu", "geglu_tanh"):
            # A gated feed-forward has three matrices, BERT's two.
            d_ff = config.d_ff * 3 // 2
        numbers = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "intermediate_size": d_ff,
            "max_position_embeddings": max(settings.max_length, 128),
            "num_labels": self._task.n_classes,
            "hidden_dropout_prob": settings.dropout,
            "attention_probs_dropout_prob": settings.attention_dropout,
        }

        names = ("lr", "warmup", "batch_size", "b1", "b2", "eps", "weight_decay")
        chosen = {name: getattr(settings, name) for name in names}
        columns: dict[str, list[Any]] = {}
        for example in peer_examples.examples(self._kind, self._feed):
            for name, value in example.items():
                columns.setdefault(name, []).append(value)
        # Without types, a BERT takes every token to be of type 0.
        if not any(map(any, columns["token_type_ids"])):
            del columns["token_type_ids"]
        return {
            "model": self._kind.peer,
            "numbers": numbers,
            "settings": chosen,
            "columns": columns,
        }
