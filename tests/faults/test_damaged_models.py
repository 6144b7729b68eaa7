"""Every file of every kind of model folder, damaged: a sentence with its name, or a right result.

A workdir, a packed model and a folder of `transformers` are built once. Each case copies one,
damages one file, and reads the folder as `cramjax.load`, `tools.export_hf` and `tools.probe` do.
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cramjax.checkpoints import packed, pretrained
from cramjax.checkpoints.checkpoint import Checkpoints
from cramjax.config.resolve import get_config
from cramjax.data import tokenizers as tokenizer_files
from cramjax.errors import RunFailed, UserError
from cramjax.hub import families, tables
from cramjax.models import encoder, network
from cramjax.publishing.facts import read_facts

# Orbax leaves an event loop behind when a read fails. Python's garbage collector notes it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "anna", "reads", "books", "##s")
BERT = {
    "model_type": "bert",
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 12,
}
NETWORK = encoder.EncoderConfig(vocab_size=12, n_layers=2, d_model=8, n_heads=2, d_ff=12)
MOST_BYTES = 256 * 2**20
"""Memory that Python and NumPy may take for any folder here: all hold less than 1 MB."""


def save_tokenizer(folder):
    tokenizer, _ = tokenizer_files.train(
        "wordpiece", ["anna reads books"] * 3, vocab_size=12, lowercase=True, ascii_only=True
    )
    tokenizer_files.save(tokenizer, folder)


def random_params(config):
    numbers = np.random.default_rng(0)

    def leaf(shape):
        return numbers.normal(size=shape.shape).astype(np.float32)

    return jax.tree.map(leaf, network.abstract_params(config))


def make_workdir(folder):
    save_tokenizer(folder / "tokenizer")
    tokenizer = (folder / "tokenizer" / "tokenizer.json").read_bytes()
    checkpoints = Checkpoints(folder / "checkpoints")
    params = jax.tree.map(jax.numpy.asarray, random_params(NETWORK))
    sidecar = {
        "model": network.describe(NETWORK),
        "tokenizer_sha256": hashlib.sha256(tokenizer).hexdigest(),
    }
    checkpoints.save(20, {"params": params}, sidecar, block=True)
    checkpoints.close()

    config = get_config("quickstart", "data.seq_len=12").to_dict()
    environment = {"command": "python -m cramjax.main", "git": "abc", "devices": ["cpu"]}
    summary = {"steps": 20, "tokens": 9, "params": 99, "eval_loss": 3.0, "eval_accuracy": 0.1}
    for name, content in (
        ("config", config),
        ("environment", environment),
        ("summary", summary),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    lines = [{"step": step, "loss": 3.0, "tokens": step} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_packed(folder):
    folder.mkdir()
    tensors = dict(flatten_dict(random_params(NETWORK), sep="/"))
    dense = tensors["encoder/embeddings/tokens"]
    dense[3:] = 0  # a bitmap marks the zeros

    path = "encoder/layers/mlp/wi/kernel"
    layers, rows, columns = tensors[path].shape
    codes = np.random.default_rng(0).integers(-7, 8, (layers, rows, columns)).astype(np.int8)
    tensors[path] = packed.Quantized(
        codes=codes,
        scale=np.ones((layers, 1, columns), np.float32),
        bits=4,
        group=0,
        matrix=((0,), (1,), (2,)),
        shape=(layers, rows, columns),
    )
    packed.write(
        folder,
        tensors,
        network=dataclasses.asdict(NETWORK) | {"family": "encoder"},
        finetuned=None,
        max_length=12,
        compression={"prune": 0.5, "bits": 4},
    )
    save_tokenizer(folder / "tokenizer")


def make_hub(folder):
    from safetensors.numpy import save_file

    family, config = families.from_json(BERT)
    save_tokenizer(folder)
    state = tables.to_hf(family, config, random_params(config))
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, chosen in parts.items():
        save_file({name: state[name] for name in chosen}, folder / part)
    weight_map = {name: part for part, chosen in parts.items() for name in chosen}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(BERT))


MAKERS = {"workdir": make_workdir, "packed": make_packed, "hub": make_hub}


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """kind → a folder without damage."""
    root = tmp_path_factory.mktemp("models")
    for kind, make in MAKERS.items():
        make(root / kind)
        read(kind, root / kind)
    return {kind: root / kind for kind in MAKERS}


def read(kind, folder):
    """Reads all of a folder; everything that is not ours to answer for raises."""
    from cramjax.inference import _precision_of

    model = pretrained.read(folder)
    if kind != "hub":
        read_facts(folder, None, model.step)
    if kind == "workdir":
        _precision_of(model)
    jax.tree.map(np.asarray, model.params)


def check(kind, folder):
    """The folder is read, or refused in a sentence that names it; returns the sentence or None."""
    tracemalloc.start()
    try:
        read(kind, folder)
        return None
    except (UserError, RunFailed) as error:
        message = str(error)
        assert "\n" not in message and str(folder) in message, message
        return message
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MOST_BYTES, f"{peak:,} bytes"


def files_of(folder):
    """Returns the files of a model, in an order that is the same in every run."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(content, chooser):
    content = bytearray(content)
    content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
    return bytes(content)


# name → (content, source of randomness) to content
DAMAGE = {
    "empty": lambda content, chooser: b"",
    "cut": lambda content, chooser: content[: chooser.randrange(len(content))],
    "flipped": flip,
    "noise": lambda content, chooser: chooser.randbytes(len(content)),
    "list": lambda content, chooser: b"[1, 2]",
    "object": lambda content, chooser: b"{}",
    "deep": lambda content, chooser: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "header": lambda content, chooser: (2**40).to_bytes(8, "little") + content[8:],
}


def replaced(path, kind):
    """Puts something else than a file in the place of `path`."""
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path.name)
        case "outside":
            path.symlink_to("/etc/hostname")


def damaged(whole, kind, number, damage, seed, tmp_path):
    """Returns a copy of a model's folder in which the file of that number is damaged."""
    folder = tmp_path / kind
    shutil.copytree(whole[kind], folder)
    path = files_of(folder)[number % len(files_of(folder))]
    if damage in DAMAGE:
        chooser = random.Random(seed)
        path.write_bytes(DAMAGE[damage](path.read_bytes(), chooser))
    elif damage != "missing":
        replaced(path, damage)
    else:
        path.unlink()
    return folder


ALL_DAMAGE = (*DAMAGE, "missing", "directory", "pipe", "device", "loop", "outside")


@pytest.mark.parametrize("seed", range(18))
def test_a_damaged_file_is_named_or_does_not_matter(whole, seed, tmp_path):
    chooser = random.Random(seed)
    kind = list(MAKERS)[seed % 3]
    damage = ALL_DAMAGE[seed % len(ALL_DAMAGE)]
    check(kind, damaged(whole, kind, chooser.randrange(99), damage, seed, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ALL_DAMAGE)
@pytest.mark.parametrize("kind", MAKERS)
def test_every_file_with_every_damage(whole, kind, damage, tmp_path):
    seeds = range(3) if damage in ("cut", "flipped") else range(1)
    for number in range(len(files_of(whole[kind]))):
        for seed in seeds:
            place = tmp_path / f"{number}-{seed}"
            check(kind, damaged(whole, kind, number, damage, seed, place))


# Values of other types and sizes, in the place of every value of a JSON file.
STRANGE = (None, True, -1, 0, 10**9, 10**30, 1e308, float("nan"), "x", [], [1], {}, {"a": 1})
JSON = {
    "workdir": (
        "config.json",
        "environment.json",
        "summary.json",
        "checkpoints/20/sidecar/metadata",
    ),
    "packed": ("packed.json",),
    "hub": ("config.json", "model.safetensors.index.json"),
}


def keys_of(value, path=()):
    """Yields the path of every value below a JSON object."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from keys_of(inner, (*path, key))


def check_strange(whole, kind, name, path, value, tmp_path):
    folder = tmp_path / kind
    shutil.copytree(whole[kind], folder)
    (folder / "checkpoints" / "20" / "checksums.json").unlink(missing_ok=True)
    content = json.loads((folder / name).read_text())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / name).write_text(json.dumps(content))
    check(kind, folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("seed", range(18))
def test_a_value_of_another_type_is_named_or_does_not_matter(whole, seed, tmp_path):
    chooser = random.Random(seed)
    kind = list(MAKERS)[seed % 3]
    name = chooser.choice(JSON[kind])
    path = chooser.choice(list(keys_of(json.loads((whole[kind] / name).read_text()))))
    check_strange(whole, kind, name, path, chooser.choice(STRANGE), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind, name", [(kind, name) for kind in JSON for name in JSON[kind]])
def test_every_value_of_other_types(whole, kind, name, tmp_path):
    chooser = random.Random(0)
    for path in keys_of(json.loads((whole[kind] / name).read_text())):
        for value in chooser.sample(STRANGE, 3):
            check_strange(whole, kind, name, path, value, tmp_path)
