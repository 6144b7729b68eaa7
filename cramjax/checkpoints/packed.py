"""A compressed model on disk at its true size.

Its matrices are whole numbers of few bits with scales; a bitmap marks the zeros. A folder holds
packed.json, packed.safetensors and the tokenizer. packed.json has

    format       1
    network      the fields of our configuration
    finetuned    the notes of `tools.finetune` about a finetuned model, or null
    max_length   tokens of a text
    compression  what was done to the model, for people
    tensors      path of a parameter → its `shape` and the keys below

    bits     32: float32. 8 or less: whole numbers q in two's complement of so many bits, from
             -(2^(bits-1) - 1) on, value = q * scale
    matrix   for whole numbers: the axes [batch], [rows], [columns] by which the tensor is read as
             an array [batch, rows, columns]
    group    for whole numbers: rows that share a scale (0: all). Scales are
             [batch, groups, columns], or [batch, 1, 1] for one per matrix
    sparse   true: only numbers that are not zero are stored, and `<path>.kept` has a bit for each
             number, in order, the lowest bit of a byte first

In packed.safetensors `<path>` is float32, or uint8 with the numbers one behind the other, lowest
bits first, each raised by 2^(bits-1). `<path>.scale` is float16 for groups and float32 otherwise.
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

from cramjax.errors import RunFailed, UserError
from cramjax.files import read_json
from cramjax.models.int8 import LEAST_NUMBERS, Int8

FORMAT = 1
FILE, INDEX = "packed.safetensors", "packed.json"
BITS = (2, 3, 4, 6, 8)
# Numbers unpacked at a time: meanwhile each bit takes a byte.
_CHUNK = 1 << 21

_CURE = "compress the model again"

Matrix = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantized:
    """A tensor as whole numbers.

    Attributes:
        codes: int8 [batch, rows, columns], the tensor after `fold`.
        scale: float32 or float16, see the module's description.
        bits: of a number.
        group: rows that share a scale; 0 for all.
        matrix: the axes of the tensor that are (batch, rows, columns).
        shape: of the tensor.
    """

    codes: np.ndarray
    scale: np.ndarray
    bits: int
    group: int
    matrix: Matrix
    shape: tuple[int, ...]

    def values(self) -> np.ndarray:
        """Returns the tensor that the numbers stand for: float32 of `shape`."""
        scale = spread(self.scale, self.codes.shape[1], self.group)
        folded = self.codes.astype(np.float32) * scale
        return np.ascontiguousarray(unfold(folded, self.matrix, self.shape))

    def whole(self) -> Int8:
        """Returns the numbers with their scales; they have 8 bits and no groups."""
        batch, _, columns = self.codes.shape
        scale = np.broadcast_to(self.scale.astype(np.float32), (batch, 1, columns))
        # All rows share a scale, so their axes have length 1.
        shape = tuple(1 if axis in self.matrix[1] else size for axis, size in enumerate(self.shape))
        return Int8(
            np.ascontiguousarray(unfold(self.codes, self.matrix, self.shape)),
            np.ascontiguousarray(unfold(scale, self.matrix, shape)),
        )


def fold(tensor: Any, matrix: Matrix) -> Any:
    """Returns a tensor (NumPy or JAX) as [batch, rows, columns]."""
    sizes = _folded_shape(tensor.shape, matrix)
    return tensor.transpose(sum(matrix, ())).reshape(sizes)


def _folded_shape(shape: tuple[int, ...], matrix: Matrix) -> list[int]:
    sizes = []
    for axes in matrix:
        sizes.append(math.prod(shape[axis] for axis in axes))
    return sizes


def unfold(folded: Any, matrix: Matrix, shape: tuple[int, ...]) -> Any:
    """Returns a tensor of `shape` from its `folded` form: the inverse of `fold`."""
    order: tuple[int, ...] = sum(matrix, ())
    inverse = tuple(order.index(axis) for axis in range(len(order)))
    return folded.reshape([shape[axis] for axis in order]).transpose(inverse)


def spread(scale: Any, n_rows: int, group: int) -> Any:
    """Returns the scale of each row, float32; it broadcasts to [batch, n_rows, columns].

    Args:
        scale: [batch, groups, columns], NumPy or JAX.
        n_rows: of the matrix.
        group: rows that share a scale; 0 for all.
    """
    scale = scale.astype(np.float32)
    if not group:
        return scale
    # The last group may have fewer rows.
    return scale.repeat(min(group, n_rows), axis=1)[:, :n_rows]


def write(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray | Quantized],
    *,
    network: Mapping[str, Any],
    finetuned: Mapping[str, Any] | None,
    max_length: int,
    compression: Mapping[str, Any],
) -> int:
    """Write a model into `folder`, which exists; the same content gives the same bytes.

    The keywords are described in the module's docstring.

    Returns:
        The bytes of both files.

    Raises:
        RunFailed: if the disk is full or cannot be written.
    """
    stored: dict[str, np.ndarray] = {}
    layout: dict[str, dict[str, Any]] = {}
    for path in sorted(tensors):
        layout[path] = _store(path, tensors[path], stored)
    content = {
        "format": FORMAT,
        "network": dict(network),
        "finetuned": finetuned,
        "max_length": max_length,
        "compression": dict(compression),
        "tensors": layout,
    }

    try:
        save_file(stored, folder / FILE)
        (folder / FILE).chmod(0o644)  # the library gives nobody else the right to read
        (folder / INDEX).write_text(json.dumps(content, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise RunFailed(
            f"{folder}: cannot be written ({error}); free space there and give the same command"
        ) from error
    return size(folder)


def size(folder: pathlib.Path) -> int:
    """Returns the bytes of a model's files without its tokenizer."""
    return sum((folder / name).stat().st_size for name in (FILE, INDEX))


def _store(
    path: str, tensor: np.ndarray | Quantized, stored: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Put the arrays of a tensor into `stored`; returns its entry in `tensors`."""
    entry: dict[str, Any]
    if isinstance(tensor, Quantized):
        bits = tensor.bits
        matrix = [list(axes) for axes in tensor.matrix]
        entry = {"bits": bits, "group": tensor.group, "matrix": matrix}
        numbers = tensor.codes.ravel()
        stored[f"{path}.scale"] = np.ascontiguousarray(tensor.scale)
    else:
        bits = 32
        entry = {"bits": bits}
        numbers = np.asarray(tensor, np.float32).ravel()

    kept = numbers != 0
    # The bitmap pays if the zeros take more bits than it has.
    is_sparse = bool(len(numbers) < bits * (len(numbers) - kept.sum()))
    if is_sparse:
        stored[f"{path}.kept"] = np.packbits(kept, bitorder="little")
        numbers = numbers[kept]
    stored[path] = numbers if bits == 32 else pack(numbers, bits)
    return entry | {"shape": list(tensor.shape), "sparse": is_sparse}


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Returns int8 [n], each of `bits` bits, as uint8 [ceil(n * bits / 8)]."""
    raised = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    # _CHUNK is a multiple of 8, so that each chunk but the last fills whole bytes.
    chunks = [np.zeros(0, np.uint8)]
    for start in range(0, len(raised), _CHUNK):
        chunk = raised[start : start + _CHUNK, None]
        single = np.unpackbits(chunk, axis=1, count=bits, bitorder="little")  # [numbers, bits]
        chunks.append(np.packbits(single, bitorder="little"))
    return np.concatenate(chunks)


def unpack(packed: np.ndarray, bits: int, n: int) -> np.ndarray:
    """Returns the `n` numbers in `packed`, int8: the inverse of `pack`."""
    n_bytes = _CHUNK * bits // 8
    chunks = [np.zeros(0, np.uint8)]
    for start, first in zip(range(0, len(packed), n_bytes), range(0, n, _CHUNK), strict=False):
        count = min(_CHUNK, n - first)
        chunk = packed[start : start + n_bytes]
        single = np.unpackbits(chunk, count=count * bits, bitorder="little").reshape(count, bits)
        chunks.append(np.packbits(single, axis=1, bitorder="little")[:, 0])
    raised = np.concatenate(chunks)
    return (raised.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def is_packed(path: pathlib.Path) -> bool:
    """Returns whether the folder `path` holds a packed model."""
    return (path / INDEX).is_file()


def read_index(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the content of packed.json.

    Raises:
        UserError: if it is damaged or of a later format.
    """
    where = folder / INDEX
    content = read_json(where, _CURE)
    version = content.get("format")
    if version != FORMAT:
        raise UserError(f"{where}: format {version}, this cramjax reads {FORMAT}; update cramjax")
    kinds = {
        "network": dict,
        "finetuned": dict | None,
        "max_length": int,
        "compression": dict,
        "tensors": dict,
    }
    for key, kind in kinds.items():
        if key not in content or not isinstance(content[key], kind):
            raise UserError(f"{where}: {key} is missing or of another type; {_CURE}")
    return content


def read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray | Quantized]]:
    """Returns the content of packed.json, and the tensors by path.

    Memory is taken for bytes that are there, whatever packed.json claims: a tensor is compared with
    its arrays before it is made.

    Raises:
        UserError: if the files are damaged, do not fit each other, or are of a later format.
    """
    content = read_index(folder)
    file = folder / FILE
    # A pipe would be waited for.
    if not file.is_file():
        raise UserError(f"{file}: no such file; {_CURE}")
    try:
        stored = load_file(file)
    # TypeError and others: a number format that NumPy lacks.
    except (OSError, safetensors.SafetensorError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{file}: not readable ({error}); {_CURE}") from error

    tensors = {}
    for path, entry in content["tensors"].items():
        try:
            tensors[path] = _load(path, entry, stored)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{folder}: {FILE} does not fit {INDEX} at {path!r} ({error}); {_CURE}"
            ) from error
    return content, tensors


def values(
    tensors: Mapping[str, np.ndarray | Quantized], *, whole: bool = False
) -> dict[str, np.ndarray | Int8]:
    """Returns the parameters that tensors stand for, by path: float32, or some as `Int8`.

    With `whole`, large matrices of 8 bits without groups become `Int8`.
    """

    def value(tensor: np.ndarray | Quantized) -> np.ndarray | Int8:
        if not isinstance(tensor, Quantized):
            return tensor
        can_stay = whole and tensor.bits == 8 and not tensor.group
        if can_stay and tensor.codes[0].size >= LEAST_NUMBERS:
            return tensor.whole()
        return tensor.values()

    return {path: value(tensor) for path, tensor in tensors.items()}


def _load(
    path: str, entry: Mapping[str, Any], stored: Mapping[str, np.ndarray]
) -> np.ndarray | Quantized:
    """Returns a tensor from its entry in `tensors` and its arrays in `stored`.

    Raises:
        KeyError, ValueError, TypeError: if they do not fit each other.
    """
    shape, bits = _sizes(entry["shape"]), entry["bits"]
    if bits not in (32, *BITS):
        raise ValueError(f"{bits} bits")
    n = math.prod(shape)
    kept = None
    n_stored = n
    if entry["sparse"]:
        bitmap = _array(stored, f"{path}.kept", np.uint8, -(-n // 8))
        kept = np.unpackbits(bitmap, count=n, bitorder="little").astype(bool)
        n_stored = int(kept.sum())

    if bits == 32:
        numbers = _array(stored, path, np.float32, n_stored)
    else:
        numbers = unpack(_array(stored, path, np.uint8, -(-n_stored * bits // 8)), bits, n_stored)
    if kept is not None:
        dense = np.zeros(n, numbers.dtype)
        dense[kept] = numbers
        numbers = dense
    if bits == 32:
        return numbers.reshape(shape)

    matrix = tuple(_sizes(axes) for axes in entry["matrix"])
    if len(matrix) != 3 or sorted(sum(matrix, ())) != list(range(len(shape))):
        raise ValueError(f"its axes are {matrix}")
    folded = _folded_shape(shape, matrix)
    (group,) = _sizes([entry["group"]])
    return Quantized(
        codes=numbers.reshape(folded),
        scale=_scale(stored[f"{path}.scale"], folded, group),
        bits=bits,
        group=group,
        matrix=matrix,
        shape=shape,
    )


def _sizes(given: Any) -> tuple[int, ...]:
    """Returns a list of whole numbers as a tuple; raises ValueError for anything else."""
    if not isinstance(given, list) or not all(type(size) is int and size >= 0 for size in given):
        raise ValueError(f"{given!r:.60} is no list of sizes")
    return tuple(given)


def _array(stored: Mapping[str, np.ndarray], name: str, dtype: Any, n: int) -> np.ndarray:
    """Returns a stored array of `n` numbers; raises ValueError if it is another."""
    array = stored[name]
    if array.dtype != dtype or array.shape != (n,):
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, not {np.dtype(dtype)}[{n}]")
    return array


def _scale(scale: np.ndarray, folded: list[int], group: int) -> np.ndarray:
    """Returns `scale` if it is one for a matrix of the shape `folded`; raises ValueError if not."""
    batch, rows, columns = folded
    shapes = [(batch, 1, columns), (batch, 1, 1)]
    if group:
        shapes = [(batch, -(-rows // group), columns)]
    if scale.dtype not in (np.float16, np.float32) or scale.shape not in shapes:
        raise ValueError(f"its scales are {scale.dtype}{list(scale.shape)}")
    return scale
