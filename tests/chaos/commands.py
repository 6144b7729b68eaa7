"""The commands that stories disturb, and what must be equal in their results."""

import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import random
from collections.abc import Callable

import jax
import numpy as np

import cramjax
from tests.finetuning import grammar

SMALL = (
    "data.vocab_size=128", "data.seq_len=32", "data.heldout_fraction=0.1", "data.loader=numpy",
    "data.max_shard_tokens=4000", "model.n_layers=2", "model.d_model=32", "model.d_ff=64",
    "budget.hours=None", "budget.steps=20", "checkpoint.every_steps=3", "log.every_steps=2",
    "log.tensorboard=False", "log.fill_masks=0", "eval.every_fraction=0.2", "eval.batches=2",
    "eval.batch_size=16", "batch_size=16", "microbatch_size=8", "precision=float32",
    "optimizer.name=adamw", "optimizer.lr=5e-3",
)  # fmt: skip
QUICK_FINETUNING = ("--seeds=2", "--set=batch_size=16", "--set=lr=1e-3", "--set=epochs=1")
# In metrics lines, summaries and tables: all that is time, or tells of restarts or places.
TIMES = {
    "elapsed_s", "tokens_per_s", "mfu", "compile_s", "eval_s", "save_s", "time_to_first_step_s",
    "data_wait_s",
    "data_wait_fraction",
    "goodput", "growth_s", "resumed_from", "pareto_s", "pareto_latency", "seconds", "workdir",
    "seconds_per_seed", "latency",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class World:
    """The folder of one story: its text, its prepared data and the results of its command.

    `given` is what commands read and no story may change: a trained run, and tasks.
    """

    folder: pathlib.Path
    given: pathlib.Path

    @property
    def text(self):
        return self.given / "stories.txt"

    @property
    def cache(self):
        return self.folder / "prepared"

    @property
    def out(self):
        return self.folder / "results" / "out"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command and its result.

    Attributes:
        words: the module and its flags, for a world.
        result: what must be the same as without faults: name → value.
        weight: of 20 stories, about so many disturb it.
        reads: the folder of its world, in which files are damaged between starts as well.
        data: the share of stories that find the data prepared.
    """

    words: Callable[[World], list[str]]
    result: Callable[[World], dict]
    weight: int
    reads: Callable[[World], pathlib.Path]
    data: float = 1.0


# What a start may write down for the next one to be quicker, or not: a file that was changed within
# the last seconds is not remembered.
MEMORIES = (".verified.json", "digests.json")


def _recipe(world):
    overrides = (*SMALL, f"data.source=text:{world.text}", f"data.cache_dir={world.cache}")
    return [
        "--config=configs/quickstart.py",
        *(f"--config.{override}" for override in overrides),
    ]


def _run(workdir):
    params = jax.tree_util.tree_leaves_with_path(cramjax.load(workdir).params)
    digest = hashlib.sha256()
    for path, leaf in params:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {
        "parameters": digest.hexdigest(),
        "metrics lines": [_untimed(json.loads(line)) for line in lines],
        "summary": _untimed(json.loads((workdir / "summary.json").read_text())),
    }


def _untimed(value):
    """Returns a copy without what differs between two undisturbed starts."""
    if isinstance(value, dict):
        return {key: _untimed(entry) for key, entry in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [_untimed(entry) for entry in value]
    return value


def _files(folder, *, without=()):
    """Returns name → content of all files below a folder; its own path counts as one word."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(
            os.fsencode(folder), b"FOLDER"
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in without
    }


def _json(path, *, without=()):
    content = json.loads(path.read_text())
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in without}
    return _untimed(content)


def _finetuned(world):
    return {
        "results": _json(world.out / "results.json", without=("command", "environment")),
        "predictions": _files(world.out / "predictions"),
    }


def _compressed(world):
    packed = {
        name: content
        for name, content in _files(world.out).items()
        if "prune-" in name and not name.endswith(".json")
    }
    return {"entries": _json(world.out / "pareto.json"), "models": packed}


def _swept(world):
    with (world.out / "sweep.csv").open() as file:
        rows = [_untimed(row) for row in csv.DictReader(file)]
    runs = {path.name: _run(path) for path in sorted(world.out.glob("seed-*"))}
    return {"table": rows, "runs": runs}


def _tool(name, *flags):
    return lambda world: [
        f"tools.{name}", f"--checkpoint={world.given / 'run'}", f"--out={world.out}",
        *(flag.format(given=world.given) for flag in flags),
    ]  # fmt: skip


COMMANDS = {
    "main": Command(
        lambda world: ["cramjax.main", *_recipe(world), f"--workdir={world.out}"],
        lambda world: _run(world.out),
        weight=10,
        reads=lambda world: world.cache,
        data=0.85,
    ),
    "prepare": Command(
        lambda world: ["tools.prepare_data", *_recipe(world)],
        lambda world: {"files": _files(world.cache, without=MEMORIES)},
        weight=4,
        # A finished dataset is checked by those who train on it.
        reads=lambda world: next(world.cache.glob("*.partial"), world.out),
        data=0.0,
    ),
    "finetune": Command(
        _tool("finetune", "--task=cola,rte", "--data_dir={given}/glue", *QUICK_FINETUNING),
        _finetuned,
        weight=3,
        reads=lambda world: world.out,
    ),
    "compress": Command(
        _tool("compress", "--prune=0,0.5", "--bits=32,8"),
        _compressed,
        weight=2,
        reads=lambda world: world.out,
    ),
    "export": Command(
        _tool("export_hf"),
        lambda world: {"files": _files(world.out)},
        weight=3,
        reads=lambda world: world.out,
    ),
    "sweep": Command(
        lambda world: ["tools.sweep", *_recipe(world), f"--out={world.out}", "--grid", "seed=0,1"],
        _swept,
        weight=1,
        reads=lambda world: world.out,
    ),
}


def write_text(path):
    """Write a text in which the next word can be learned."""
    chooser = random.Random(0)
    names, verbs, things = ("anna boris clara".split(), "reads paints sells".split(), "books boats")
    documents = []
    for number in range(200):
        sentences = [
            f"{chooser.choice(names)} {chooser.choice(verbs)} {chooser.choice(things.split())} ."
            for _ in range(chooser.randint(3, 9))
        ]
        documents.append(" ".join(sentences) + f" this is story number {number} .")
    path.write_text("\n\n".join(documents))


def write_tasks(folder):
    """Write tiny tasks of GLUE as they are distributed."""
    grammar.write_glue(folder)
