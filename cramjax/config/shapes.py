"""The shapes of T5 by name: those of Scale Efficiently (arXiv 2109.10686), and of T5 v1.1.

A name is a size with knobs, as in the released `t5-efficient-*` checkpoints: `small-nl24` is small
with 24 + 24 layers.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from cramjax.config.families import RELATIVE_BUCKETS
from cramjax.errors import UserError

VOCAB_SIZE = 32128
"""Rows of the released embeddings: 32,000 pieces and 100 sentinels, padded to a multiple of 128."""


class Arrays(NamedTuple):
    """A number of arrays of one shape; a vector has one column."""

    n: int
    rows: int
    columns: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers that a name stands for.

    `version` is "1.0" (ReLU, tied embedding) or "1.1" (gated GELU, untied).
    """

    name: str
    n_layers: int
    n_decoder_layers: int
    d_model: int
    n_heads: int
    head_dim: int
    d_ff: int
    version: str = "1.0"

    def arrays(self, vocab_size: int = VOCAB_SIZE) -> list[Arrays]:
        """Returns the parameters with `vocab_size` rows in each embedding."""
        # A gated feed-forward has a third matrix, and untied logits a matrix of their own.
        is_v11 = self.version == "1.1"
        n_feed_forward = 3 if is_v11 else 2
        n_embeddings = 2 if is_v11 else 1

        # A decoder block attends twice: to itself and to the encoder.
        n_blocks = self.n_layers + self.n_decoder_layers
        n_attentions = self.n_layers + 2 * self.n_decoder_layers
        n_norms = 2 * self.n_layers + 3 * self.n_decoder_layers + 2
        return [
            Arrays(4 * n_attentions, self.d_model, self.n_heads * self.head_dim),
            Arrays(n_feed_forward * n_blocks, self.d_model, self.d_ff),
            Arrays(n_norms, self.d_model, 1),
            Arrays(2, RELATIVE_BUCKETS, self.n_heads),
            Arrays(n_embeddings, vocab_size, self.d_model),
        ]

    def count_params(self, vocab_size: int = VOCAB_SIZE) -> int:
        """Returns the number of parameters with an embedding of `vocab_size` rows."""
        return sum(n * rows * columns for n, rows, columns in self.arrays(vocab_size))

    def model(self) -> dict[str, int]:
        """Returns the keys of `config.model` that a shape decides."""
        names = ("n_layers", "n_decoder_layers", "d_model", "n_heads", "head_dim", "d_ff")
        return {name: getattr(self, name) for name in names}


def _size(
    name: str,
    n_layers: int,
    d_model: int,
    d_ff: int,
    n_heads: int,
    head_dim: int = 64,
    version: str = "1.0",
) -> Shape:
    return Shape(
        name=name,
        n_layers=n_layers,
        n_decoder_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        head_dim=head_dim,
        d_ff=d_ff,
        version=version,
    )


# The cards print 32 dimensions a head for tiny, mini and small; the weights have 64.
SIZES = {
    shape.name: shape
    for shape in (
        _size("tiny", 4, 256, 1024, 4),
        _size("mini", 4, 384, 1536, 8),
        _size("small", 6, 512, 2048, 8),
        _size("base", 12, 768, 3072, 12),
        _size("large", 24, 1024, 4096, 16),
        _size("xl", 24, 1024, 16384, 32, 128),
        _size("xxl", 24, 1024, 65536, 128, 128),
        _size("v1_1-small", 8, 512, 1024, 6, version="1.1"),
        _size("v1_1-base", 12, 768, 2048, 12, version="1.1"),
        _size("v1_1-large", 24, 1024, 2816, 16, version="1.1"),
        _size("v1_1-xl", 24, 2048, 5120, 32, version="1.1"),
        _size("v1_1-xxl", 24, 4096, 10240, 64, version="1.1"),
    )
}
_ALIASES = {"3b": "xl", "11b": "xxl"}

KNOBS = {
    "nl": ("n_layers", "n_decoder_layers"),
    "el": ("n_layers",),
    "dl": ("n_decoder_layers",),
    "dm": ("d_model",),
    "ff": ("d_ff",),
    "nh": ("n_heads",),
    "kv": ("head_dim",),
}
# Names are round, networks are not: ff2000 is 2048 wide, dm1000 is 1024.
_ROUNDED = {1000: 1024, 2000: 2048, 3000: 3072, 6000: 6144, 9000: 9216, 12000: 12288}


def _names(variants: dict[str, str]) -> tuple[str, ...]:
    """Returns the names of sizes with their knobs; "|" is the size without a knob."""
    names = []
    for size, words in variants.items():
        for word in words.split():
            name = size if word == "|" else f"{size}-{word}"
            names.append(name)
    return tuple(names)


# Checkpoints named google/t5-efficient-…, seen with their configuration or card.
RELEASED = _names(
    {
        "tiny": "| nl2 nl6 nl8 nl32 el2 el6 el8 el12 nh1 nh8 nh16 ff6000",
        "mini": "| nl24",
        "small": "| nl2 nl16 nl22 nl24 nl32 nl36 el8 el16 el32 el16-dl4 ff1000 ff6000 ff12000"
        " dm128 dm768 dm1000 kv32 kv128",
        "base": "| nl2 nl4 nl8 nl16 nl24 nl32 nl36 nl40 nl48 el2 el4 el6 el8 el16"
        " dm256 dm512 dm1000 dm2000 ff1000 ff2000 ff6000 ff9000 ff12000 kv16 kv32 kv128 kv256"
        " nh8 nh16 nh24 nh32",
        "large": "| nl8 nl10 nl16 nl20 nl32 nl36 el2 el4 el6 el8 dl12 kv16 kv32 kv128 kv256"
        " nh2 nh4 nh8 nh24 nh32 nh8-nl32",
        "xl": "| nl2 nl4 nl6 nl8 nl12 nl16 nl28",
        "xxl": "| nl4",
    }
)
# Recalled from the collection's list and not looked at: only the formula speaks for their numbers.
RECALLED = _names(
    {
        "tiny": "nl12 nl16 nl24 dl2 dl6 dl8 nh32 ff2000 ff3000 ff9000 ff12000",
        "mini": "nl6 nl8 nl12 nl16",
        "small": "nl4 nl8 nl20 nl40 nl48 el2 el4 el12 el48 el64 el16-dl1 el16-dl2 el16-dl8"
        " dl2 dl4 dl8 dl12 dl16 ff3000 ff9000 dm256 dm2000 kv16 kv256",
        "base": "dl2 dl4 dl6 dl8",
        "large": "nl2 nl4 nl12 dl2 dl4 dl6 dl8 dl16 dl32 dm128 dm256 dm512 dm768 dm2000",
    }
)


def parse(name: str) -> Shape:
    """Returns the shape called `name`: a size, then knobs as in `small-el16-dl4`.

    The prefixes "google/" and "t5-efficient-" may stand in front.

    Raises:
        UserError: for an unknown size or knob, a knob given twice, or a number no network has.
    """
    short = name.removeprefix("google/").removeprefix("t5-efficient-")
    match = re.fullmatch(r"(v1_1-[a-z]+|[^-]+)((?:-.+)?)", short)
    size, knobs = (match[1], match[2].split("-")[1:]) if match else (short, [])
    size = _ALIASES.get(size, size)
    if size not in SIZES:
        raise _unknown(name, short)

    given: dict[str, int] = {}
    for knob in knobs:
        if knob in ("sh", "skv", "shkv"):
            raise UserError(
                f"{name}: shared heads or key-values (-{knob}) have no stock class in transformers"
            )
        parts = re.fullmatch(r"([a-z]+)(\d+)", knob)
        if not parts or parts[1] not in KNOBS or int(parts[2]) < 1:
            raise _unknown(name, short)
        if parts[1] in given:
            raise UserError(f"{name}: -{parts[1]} is given twice")
        given[parts[1]] = int(parts[2])

    if given.keys() >= {"nl", "el", "dl"}:
        raise UserError(f"{name}: -nl says nothing beside -el and -dl")
    return _turned(dataclasses.replace(SIZES[size], name=short), size, given)


def _turned(shape: Shape, size: str, given: dict[str, int]) -> Shape:
    """Returns the shape of a size with its knobs turned."""
    changes: dict[str, int] = {}
    for knob in sorted(given, key=list(KNOBS).index):  # el and dl after nl
        value = given[knob]
        if knob in ("ff", "dm"):
            value = _ROUNDED.get(value, value)
        changes |= dict.fromkeys(KNOBS[knob], value)

    if size == "xxl" and "nl" in given:
        # xxl with fewer layers has less attention as well: so do the released xxl-nl4, and the 3.6
        # billion of NL12-XXL in the paper.
        changes = {"n_heads": 32, "head_dim": 64} | changes
    if size == "tiny" and given == {"el": 12}:
        # The released config.json has 12 decoder layers, whatever the name says.
        changes["n_decoder_layers"] = 12
    return dataclasses.replace(shape, **changes)


def _unknown(name: str, short: str) -> UserError:
    near = difflib.get_close_matches(short, [*SIZES, *RELEASED, *RECALLED], 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "python -m tools.shapes lists them"
    knobs = ", ".join(f"-{knob}" for knob in KNOBS)
    return UserError(
        f"{name}: no such shape; {hint} (sizes {', '.join(SIZES)}; knobs {knobs} and a number)"
    )


# The paper's rule (arXiv 2109.10686): add layers first, up to the depth where that stops paying.
DEEP_LAYERS = (32, 36)
STOCK_WIDTHS = ("tiny", "mini", "small", "base", "large", "xl")


def deep_narrow(fits: Callable[[Shape], bool]) -> Shape | None:
    """Returns the DeepNarrow shape under a limit, or None if not even one layer fits.

    It has the widest stock width that has room for 32 layers, with up to 36. If no width has that
    room, it is the narrowest with as many layers as fit.

    Args:
        fits: tells if a shape is within the limit; deeper or wider shapes need more.
    """
    low, high = DEEP_LAYERS
    for size in reversed(STOCK_WIDTHS):
        if fits(parse(f"{size}-nl{low}")):
            return _deepest(size, high, fits)
    return _deepest(STOCK_WIDTHS[0], low - 1, fits)


def _deepest(size: str, n_layers: int, fits: Callable[[Shape], bool]) -> Shape | None:
    """Returns the deepest shape of that width with at most `n_layers` layers, or None."""
    for n in range(n_layers, 0, -1):
        shape = parse(f"{size}-nl{n}")
        if fits(shape):
            return shape
    return None
