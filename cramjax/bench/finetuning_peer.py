"""Finetuning with transformers' own `Trainer` (torch), measured in a process of its own: `python -m cramjax.bench.finetuning_peer`.

A specification on standard input, a result a line on standard output. torch and transformers are imported here alone (and in `peers.py`).
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from cramjax.errors import RunFailed

MODES = (
    "float32",
    "float32, grouped by length",
    "float32, compiled",
    "bfloat16",
    "bfloat16, grouped by length",
    "bfloat16, compiled",
)
EAGER_MODES = tuple(mode for mode in MODES if "compiled" not in mode)
WARMUP_STEPS = 20


def n_examples(n_train: int, batch_size: int, steps: range) -> int:
    """Examples in `steps`, counted from 0: the last step of an epoch has what is left of the `n_train`."""
    per_epoch = -(-n_train // batch_size)
    last = n_train - (per_epoch - 1) * batch_size
    return sum(last if (step + 1) % per_epoch == 0 else batch_size for step in steps)


def measure(
    specification: dict[str, Any], n_steps: int, modes: tuple[str, ...] = MODES
) -> list[dict[str, Any]]:
    """A dict for each of `modes`: peer, mode, params, examples_per_s over `n_steps` steps after 20, versions; or `error`.

    Raises:
        RunFailed: if the process does not get as far as measuring.
    """
    wanted = specification | {"modes": modes, "n_steps": n_steps}
    command = [sys.executable, "-m", "cramjax.bench.finetuning_peer"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        output, _ = process.communicate(json.dumps(wanted))
    results = [json.loads(line) for line in output.splitlines() if line.startswith('{"peer"')]
    if process.returncode or len(results) != len(modes):
        raise RunFailed(
            "the peer's process ended without its measurements; what it said stands above"
        )
    return results


def _measurements(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch

    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")
    }
    torch.backends.cuda.matmul.allow_tf32 = True
    for mode in wanted["modes"]:
        print(f"peer Trainer, {mode}…", file=sys.stderr, flush=True)
        result = {
            "peer": "BertForSequenceClassification, Trainer",
            "mode": mode,
            "versions": versions,
        }
        torch.compiler.reset()
        try:
            yield result | _train(wanted, mode)
        except Exception as error:  # a compiler that is missing is one mode's trouble
            yield result | {"error": (str(error).strip() or repr(error)).splitlines()[0][:300]}


def _train(wanted: dict[str, Any], mode: str) -> dict[str, Any]:
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**wanted["numbers"]))
    settings, n_steps = wanted["settings"], wanted["n_steps"]
    columns = ("input_ids", "token_type_ids", "labels")
    columns = [name for name in columns if name in wanted]
    examples = [
        dict(zip(columns, values, strict=True))
        for values in zip(*(wanted[name] for name in columns), strict=True)
    ]
    times: dict[int, float] = {}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step in (WARMUP_STEPS, WARMUP_STEPS + n_steps):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times[state.global_step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=settings["batch_size"],
            max_steps=WARMUP_STEPS + n_steps,
            learning_rate=settings["lr"],
            lr_scheduler_type="cosine",
            warmup_steps=round(settings["warmup"] * n_steps),
            weight_decay=settings["weight_decay"],
            adam_beta1=settings["b1"],
            adam_beta2=settings["b2"],
            adam_epsilon=settings["eps"],
            max_grad_norm=0.0,
            optim="adamw_torch_fused",
            bf16=mode.startswith("bfloat16"),
            torch_compile="compiled" in mode,
            train_sampling_strategy="group_by_length" if "grouped" in mode else "random",
            use_cpu=not torch.cuda.is_available(),
            dataloader_num_workers=0,
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model, arguments, data_collator=_collate, train_dataset=examples, callbacks=[Clock()]
        )
        trainer.train()
    timed = range(WARMUP_STEPS, WARMUP_STEPS + n_steps)
    seconds = times[WARMUP_STEPS + n_steps] - times[WARMUP_STEPS]
    return {
        "params": sum(weight.numel() for weight in model.parameters()),
        "seconds": seconds,
        "examples_per_s": n_examples(len(examples), settings["batch_size"], timed) / seconds,
    }


def _collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Padded to the longest, up to a multiple of 8, as Cramming's code does it."""
    import torch

    length = -(-max(len(example["input_ids"]) for example in examples) // 8) * 8
    names = [name for name in ("input_ids", "token_type_ids") if name in examples[0]]
    batch = {
        name: torch.zeros((len(examples), length), dtype=torch.long)
        for name in (*names, "attention_mask")
    }
    for row, example in enumerate(examples):
        n = len(example["input_ids"])
        batch["attention_mask"][row, :n] = 1
        for name in names:
            batch[name][row, :n] = torch.tensor(example[name])
    return batch | {"labels": torch.tensor([example["labels"] for example in examples])}


if __name__ == "__main__":
    for found in _measurements(json.load(sys.stdin)):
        print(json.dumps(found), flush=True)
