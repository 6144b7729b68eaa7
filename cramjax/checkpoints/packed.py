"""A compressed model on disk at its true size: whole numbers of few bits and their scales, zeros as a bitmap.

A folder holds packed.json, packed.safetensors and the tokenizer. packed.json has `format` (1), `network` (the fields of our configuration),
`finetuned`, `max_length` (tokens of a text), `compression` (what was done, for people) and `tensors`: path of a parameter → its `shape` and

    bits     32: float32. 8 or less: numbers q of so many bits in two's complement from -(2^(bits-1) - 1) on, value = q * scale
    matrix   for these: the axes [batch], [rows], [columns] that the tensor is read by, as an array [batch, rows, columns]
    group    rows that share a scale (0: all); scales are [batch, groups, columns], or [batch, 1, 1] for one a matrix
    sparse   true: only what is not zero is stored, and `<path>.kept` has a bit for each number, in order, the lowest bit of a byte first

In packed.safetensors `<path>` is float32, or uint8 with the numbers one behind the other, lowest bits first, each raised by 2^(bits-1);
`<path>.scale` is float16 for groups and float32 otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from cramjax.errors import UserError
from cramjax.models.int8 import LEAST_NUMBERS, Int8

FORMAT = 1
FILE, INDEX = "packed.safetensors", "packed.json"
BITS = (2, 3, 4, 6, 8)
# Numbers unpacked at a time: a bit takes a byte while that is done.
_CHUNK = 1 << 21


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """A tensor as whole numbers.

    codes: int8 of `shape` [batch, rows, columns] after the axes `matrix` = (batch, rows, columns) of the tensor have been brought together;
    scale: float32 or float16, as the module says; group: rows that share one, 0: all.
    """

    codes: np.ndarray
    scale: np.ndarray
    bits: int
    group: int
    matrix: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]

    def values(self) -> np.ndarray:
        """The tensor the numbers stand for: float32 of `shape`."""
        folded = self.codes.astype(np.float32) * spread(self.scale, self.codes.shape[1], self.group)
        return np.ascontiguousarray(unfold(folded, self.matrix, self.shape))

    def whole(self) -> Int8:
        """The numbers with their scales, of 8 bits and no groups."""
        batch, _, columns = self.codes.shape
        scale = np.broadcast_to(self.scale.astype(np.float32), (batch, 1, columns))
        shape = tuple(1 if axis in self.matrix[1] else size for axis, size in enumerate(self.shape))
        codes = unfold(self.codes, self.matrix, self.shape)
        return Int8(
            np.ascontiguousarray(codes), np.ascontiguousarray(unfold(scale, self.matrix, shape))
        )


def fold(tensor: Any, matrix: tuple[tuple[int, ...], ...]) -> Any:
    """A tensor (NumPy or JAX) as [batch, rows, columns]."""
    sizes = [math.prod(tensor.shape[i] for i in axes) for axes in matrix]
    return tensor.transpose(sum(matrix, ())).reshape(sizes)


def unfold(folded: Any, matrix: tuple[tuple[int, ...], ...], shape: tuple[int, ...]) -> Any:
    """The inverse of `fold` for a tensor of `shape`."""
    order = sum(matrix, ())
    back = tuple(order.index(i) for i in range(len(order)))
    return folded.reshape([shape[i] for i in order]).transpose(back)


def spread(scale: Any, n_rows: int, group: int) -> Any:
    """`scale` (NumPy or JAX) [batch, groups, columns] for each of `n_rows`: float32, broadcasting to [batch, n_rows, columns]."""
    scale = scale.astype(np.float32)
    return scale.repeat(group, axis=1)[:, :n_rows] if group else scale


def write(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray | Quantized],
    *,
    network: Mapping[str, Any],
    finetuned: Mapping[str, Any] | None,
    max_length: int,
    compression: Mapping[str, Any],
) -> int:
    """Write a model into `folder`, which exists; returns the bytes of both files. The same content gives the same bytes."""
    stored: dict[str, np.ndarray] = {}
    layout: dict[str, dict[str, Any]] = {}
    for path in sorted(tensors):
        layout[path] = _store(path, tensors[path], stored)
    save_file(stored, folder / FILE)
    (folder / FILE).chmod(0o644)  # the library lets nobody else read it
    content = {
        "format": FORMAT,
        "network": dict(network),
        "finetuned": finetuned,
        "max_length": max_length,
        "compression": dict(compression),
        "tensors": layout,
    }
    (folder / INDEX).write_text(json.dumps(content, sort_keys=True) + "\n", encoding="utf-8")
    return size(folder)


def size(folder: pathlib.Path) -> int:
    """Bytes of the files of a model but its tokenizer."""
    return sum((folder / name).stat().st_size for name in (FILE, INDEX))


def _store(
    path: str, tensor: np.ndarray | Quantized, stored: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Put what a tensor consists of into `stored`; returns its entry in `tensors`."""
    if isinstance(tensor, Quantized):
        entry = {
            "bits": tensor.bits,
            "group": tensor.group,
            "matrix": [list(axes) for axes in tensor.matrix],
        }
        numbers, bits = tensor.codes.ravel(), tensor.bits
        stored[f"{path}.scale"] = np.ascontiguousarray(tensor.scale)
    else:
        entry, bits = {"bits": 32}, 32
        numbers = np.asarray(tensor, np.float32).ravel()
    kept = numbers != 0
    # The bitmap pays where more is left out than it takes.
    entry |= {
        "shape": list(tensor.shape),
        "sparse": bool(len(numbers) < bits * (len(numbers) - kept.sum())),
    }
    if entry["sparse"]:
        stored[f"{path}.kept"] = np.packbits(kept, bitorder="little")
        numbers = numbers[kept]
    stored[path] = numbers if bits == 32 else pack(numbers, bits)
    return entry


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """int8 [n], each of `bits` bits → uint8 [ceil(n * bits / 8)]."""
    raised = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    # A multiple of 8 numbers fills whole bytes.
    return np.concatenate(
        [_packed(raised[start : start + _CHUNK], bits) for start in range(0, len(raised), _CHUNK)]
        or [np.zeros(0, np.uint8)]
    )


def _packed(raised: np.ndarray, bits: int) -> np.ndarray:
    return np.packbits(
        np.unpackbits(raised[:, None], axis=1, count=bits, bitorder="little"), bitorder="little"
    )


def unpack(packed: np.ndarray, bits: int, n: int) -> np.ndarray:
    """The inverse of `pack` for `n` numbers."""
    step = _CHUNK * bits // 8
    parts = []
    for start, first in zip(range(0, len(packed), step), range(0, n, _CHUNK), strict=False):
        count = min(_CHUNK, n - first)
        single = np.unpackbits(
            packed[start : start + step], count=count * bits, bitorder="little"
        ).reshape(count, bits)
        parts.append(np.packbits(single, axis=1, bitorder="little")[:, 0])
    raised = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return (raised.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def is_packed(path: pathlib.Path) -> bool:
    """Whether there is a packed model in the folder `path`."""
    return (path / INDEX).is_file()


def read_index(folder: pathlib.Path) -> dict[str, Any]:
    """What packed.json says. Raises UserError where it is damaged or of a later format."""
    where = folder / INDEX
    try:
        content = json.loads(where.read_text(encoding="utf-8"))
        found = content["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: not readable ({error!r}); compress the model again") from error
    if found != FORMAT:
        raise UserError(f"{where}: format {found}, this cramjax reads {FORMAT}; update cramjax")
    return content


def read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray | Quantized]]:
    """What packed.json says, and the tensors by path.

    Raises:
        UserError: where the files are damaged, do not fit each other, or are of a later format.
    """
    content = read_index(folder)
    try:
        stored = load_file(folder / FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{folder / FILE}: not readable ({error}); compress the model again"
        ) from error
    try:
        return content, {
            path: _load(path, entry, stored) for path, entry in content["tensors"].items()
        }
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder}: its two files do not fit each other ({error}); compress the model again"
        ) from error


def values(
    tensors: Mapping[str, np.ndarray | Quantized], *, whole: bool = False
) -> dict[str, np.ndarray | Int8]:
    """The parameters that tensors stand for, by path: float32, or with `whole` as `Int8` what has 8 bits, no groups, and large matrices."""

    def value(leaf):
        if not isinstance(leaf, Quantized):
            return leaf
        is_whole = (
            whole and leaf.bits == 8 and not leaf.group and leaf.codes[0].size >= LEAST_NUMBERS
        )
        return leaf.whole() if is_whole else leaf.values()

    return {path: value(leaf) for path, leaf in tensors.items()}


def _load(
    path: str, entry: Mapping[str, Any], stored: Mapping[str, np.ndarray]
) -> np.ndarray | Quantized:
    shape, bits = tuple(entry["shape"]), entry["bits"]
    n = math.prod(shape)
    kept = (
        np.unpackbits(stored[f"{path}.kept"], count=n, bitorder="little").astype(bool)
        if entry["sparse"]
        else None
    )
    n_stored = n if kept is None else int(kept.sum())
    numbers = stored[path] if bits == 32 else unpack(stored[path], bits, n_stored)
    if len(numbers) != n_stored:
        raise ValueError(f"{path} has {len(numbers)} numbers, not {n_stored}")
    if kept is not None:
        full = np.zeros(n, numbers.dtype)
        full[kept] = numbers
        numbers = full
    if bits == 32:
        return numbers.reshape(shape)
    matrix = tuple(tuple(axes) for axes in entry["matrix"])
    codes = numbers.reshape([math.prod(shape[i] for i in axes) for axes in matrix])
    return Quantized(
        codes=codes,
        scale=stored[f"{path}.scale"],
        bits=bits,
        group=entry["group"],
        matrix=matrix,
        shape=shape,
    )
