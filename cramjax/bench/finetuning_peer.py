"""Measures finetuning with transformers' own `Trainer` (torch), in a process of its own.

`python -m cramjax.bench.finetuning_peer` reads a specification from standard input and writes one
result a line to standard output. Only this module and `peer_steps.py` import torch for a
measurement, and they do so in that process.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cramjax.errors import RunFailed

if TYPE_CHECKING:
    import transformers

MODES = (
    "float32",
    "float32, grouped by length",
    "float32, compiled",
    "float32, compiled, grouped by length",
    "bfloat16",
    "bfloat16, grouped by length",
    "bfloat16, compiled",
    "bfloat16, compiled, grouped by length",
)
EAGER_MODES = tuple(mode for mode in MODES if "compiled" not in mode)
WARMUP_STEPS = 20

NO_TAG = -100
"""The label of a token without a tag, from which `transformers` learns nothing."""

NOWHERE = 1_000_000
"""The place of an answer from which `transformers` learns nothing: it is behind every token."""

_PADDING = {"input_ids": 0, "token_type_ids": 0, "labels": NO_TAG}
"""Column → what stands behind the last token, where an example has a value for each token."""


def n_examples(n_train: int, batch_size: int, steps: range) -> int:
    """Returns the number of examples in `steps`, which count from 0.

    The last step of an epoch has only the rest of the `n_train` examples.
    """
    per_epoch = -(-n_train // batch_size)
    last = n_train - (per_epoch - 1) * batch_size
    return sum(last if (step + 1) % per_epoch == 0 else batch_size for step in steps)


def measure(
    specification: dict[str, Any], n_steps: int, modes: tuple[str, ...] = MODES
) -> list[dict[str, Any]]:
    """Measure the peer in each of `modes`, in another process.

    Returns:
        A dict for each mode: peer, mode, versions, and either params, seconds and examples_per_s
        over `n_steps` steps after 20 steps of warm-up, or `error`.

    Raises:
        RunFailed: if the process ends before it has measured every mode.
    """
    wanted = specification | {"modes": modes, "n_steps": n_steps}
    command = [sys.executable, "-m", "cramjax.bench.finetuning_peer"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        output, _ = process.communicate(json.dumps(wanted))

    # The Trainer prints summaries of its own between the results.
    results = [json.loads(line) for line in output.splitlines() if line.startswith('{"peer"')]
    if process.returncode or len(results) != len(modes):
        raise RunFailed("the peer's process ended without its measurements; see its output above")
    return results


def _measurements(wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    import torch

    packages = ("torch", "transformers", "accelerate")
    versions = {name: importlib.metadata.version(name) for name in packages}
    torch.backends.cuda.matmul.allow_tf32 = True
    for mode in wanted["modes"]:
        print(f"peer Trainer, {mode}…", file=sys.stderr, flush=True)
        result = {
            "peer": f"{wanted['model']}, Trainer",
            "mode": mode,
            "versions": versions,
        }
        torch.compiler.reset()
        # A mode may fail alone, for example without a compiler; the others are measured.
        try:
            yield result | _train(wanted, mode)
        except Exception as error:
            reason = str(error).strip() or repr(error)
            yield result | {"error": reason.splitlines()[0][:300]}


def _train(wanted: dict[str, Any], mode: str) -> dict[str, Any]:
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, wanted["model"])(transformers.BertConfig(**wanted["numbers"]))
    examples = _examples(wanted)
    batch_size = wanted["settings"]["batch_size"]
    first = WARMUP_STEPS
    last = WARMUP_STEPS + wanted["n_steps"]
    times: dict[int, float] = {}

    class StepClock(transformers.TrainerCallback):
        """Notes the times of the first and the last timed step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (first, last):
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times[state.global_step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model,
            _arguments(wanted, mode, folder),
            data_collator=_collate,
            train_dataset=examples,
            callbacks=[StepClock()],
        )
        trainer.train()

    seconds = times[last] - times[first]
    n_timed = n_examples(len(examples), batch_size, range(first, last))
    return {
        "params": sum(weight.numel() for weight in model.parameters()),
        "seconds": seconds,
        "examples_per_s": n_timed / seconds,
    }


def _examples(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a dict for each example, from the columns of the specification."""
    columns = wanted["columns"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _arguments(wanted: dict[str, Any], mode: str, folder: str) -> transformers.TrainingArguments:
    """Returns the settings of our protocol as the `Trainer` calls them."""
    import torch
    import transformers

    settings = wanted["settings"]
    n_steps = wanted["n_steps"]
    has_gpu = torch.cuda.is_available()
    order = "group_by_length" if "grouped" in mode else "random"
    return transformers.TrainingArguments(
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
        train_sampling_strategy=order,
        use_cpu=not has_gpu,
        dataloader_num_workers=0,
        dataloader_pin_memory=has_gpu,
        # Nothing is written, so that only training takes time.
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad to the longest example, up to a multiple of 8, as Cramming's code does it.

    Returns int64 tensors: [examples, length] where an example has a value for each token, else
    [examples].
    """
    import torch

    longest = max(len(example["input_ids"]) for example in examples)
    length = -(-longest // 8) * 8
    batch = {}
    for name, first in examples[0].items():
        values = [torch.tensor(example[name]) for example in examples]
        if isinstance(first, int):
            batch[name] = torch.stack(values)
            continue
        batch[name] = torch.full((len(examples), length), _PADDING[name])
        for row, value in zip(batch[name], values, strict=True):
            row[: len(value)] = value

    sizes = torch.tensor([len(example["input_ids"]) for example in examples])
    return batch | {"attention_mask": (torch.arange(length) < sizes[:, None]).long()}


if __name__ == "__main__":
    for measurement in _measurements(json.load(sys.stdin)):
        print(json.dumps(measurement), flush=True)
