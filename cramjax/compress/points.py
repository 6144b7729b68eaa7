"""Compressed models on disk, one for each point: a model, a seed, a share and a number of bits."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cramjax.checkpoints import packed, pretrained
from cramjax.compress import matrices, quantize
from cramjax.compress.candidates import Candidate
from cramjax.compress.plan import CompressionPlan
from cramjax.files import read_json, write_json
from cramjax.models.int8 import Int8, is_faster
from cramjax.models.network import Network

RESULT = "result.json"

_REDO = "delete its folder, and the same command does this point again"


class TrainedNetwork(NamedTuple):
    """A network in memory: its configuration and parameters."""

    config: Network
    params: Any


@dataclasses.dataclass(frozen=True)
class Point:
    """A model, pruned to a share of zeros after finetuning by a seed, with weights of `bits`."""

    candidate: Candidate
    seed: int
    share: float
    bits: int


class PointFolders:
    """Writes and reads points; each has a folder with the compressed model and its result."""

    def __init__(self, out: pathlib.Path, plan: CompressionPlan):
        self._out = out
        self._plan = plan

    def folder(self, point: Point) -> pathlib.Path:
        """Returns the folder of a point."""
        name = f"prune-{point.share:g},bits-{point.bits}"
        return self._out / point.candidate.name / f"seed-{point.seed}" / name

    def is_done(self, point: Point) -> bool:
        """Returns whether the point has a result that was reached over the same shares."""
        result = self.folder(point) / RESULT
        if not result.is_file():
            return False
        done = read_json(result, _REDO)
        if done.get("path") != self._plan.path(point.share):
            return False
        # A model that was deleted or damaged since is missing.
        try:
            digests = _digests(result.parent)
        except FileNotFoundError:
            return False
        # Results that 0.2.0 and older wrote have no digests.
        return done.get("files", digests) == digests

    def result(self, point: Point) -> dict[str, Any]:
        """Returns the result of a point that is done."""
        return read_json(self.folder(point) / RESULT, _REDO)

    def read(self, point: Point) -> TrainedNetwork:
        """Returns the network of a point that is done."""
        model = pretrained.read(self.folder(point))
        return TrainedNetwork(model.config, jax.device_put(model.params))

    def write(self, point: Point, network: TrainedNetwork) -> dict[str, Any]:
        """Write a compressed model, measure it as it is read from there, and return the result."""
        folder = self.folder(point)
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        n_bytes = self._save(temporary, point, network)
        result = {"path": self._plan.path(point.share), "bytes": n_bytes}
        result |= _measure(temporary, point, network.config)
        result["files"] = _digests(temporary)
        write_json(temporary / RESULT, result)

        # The folder appears whole, with its result.
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        return result

    def _save(self, folder: pathlib.Path, point: Point, network: TrainedNetwork) -> int:
        """Write the tokenizer and the packed parameters; return the bytes of the latter."""
        candidate = point.candidate
        (folder / "tokenizer").mkdir(parents=True)
        # Not by its own `save`, whose errors of the disk are bare Exceptions.
        text = candidate.model.tokenizer.to_str(pretty=True)
        (folder / "tokenizer" / "tokenizer.json").write_text(text, encoding="utf-8")

        paths = matrices.find(candidate.subject.axes(network.config))
        quantizer = self._plan.quantizer(point.bits)
        stored = quantize.quantize(flatten_dict(network.params, sep="/"), paths, quantizer)

        finetuned = None
        if candidate.about["task"]:
            finetuned = dict(candidate.about["task"])
            del finetuned["rows"]
        compression = {"prune": point.share, "bits": point.bits}
        return packed.write(
            folder,
            stored,
            network=dataclasses.replace(candidate.model, config=network.config).description(),
            max_length=candidate.subject.max_length,
            finetuned=finetuned,
            compression=compression | self._plan.describe("shares", "bits"),
        )


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns name → SHA-256 of the files of a compressed model."""
    digests = {}
    for name in (packed.FILE, packed.INDEX, "tokenizer/tokenizer.json"):
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _measure(folder: pathlib.Path, point: Point, config: Network) -> dict[str, Any]:
    """Returns score, sizes and latency of the compressed model in `folder`."""
    subject = point.candidate.subject
    precision = point.candidate.model.precision
    _, stored = packed.read(folder)

    # Integers stay integers if the device is faster with them, as when the model is used.
    keeps_int8 = is_faster(jax.devices()[0], precision.matmul_dtype)
    flat = packed.values(stored, whole=keeps_int8)
    params = jax.device_put(unflatten_dict(flat, sep="/"))
    score = subject.score(config, params)

    weights = [np.asarray(leaf) for leaf in packed.values(stored).values()]
    return {
        "metric": score.metric,
        "value": score.value,
        "loss": score.loss,
        "params": sum(leaf.size for leaf in weights),
        "nonzero": sum(int(np.count_nonzero(leaf)) for leaf in weights),
        "int8": any(isinstance(leaf, Int8) for leaf in flat.values()),
        "latency": subject.latency(config, params),
    }
