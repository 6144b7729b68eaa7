"""The shapes of T5 by name: those of Scale Efficiently (arXiv 2109.10686), and of T5 v1.1.

A name is a size with knobs, as the released `t5-efficient-*` checkpoints are called: `small-nl24` is small with 24 + 24 layers.
"""

from __future__ import annotations

import dataclasses
import difflib
import re

from cramjax.errors import UserError

VOCAB_SIZE = 32128
"""Rows of the released embeddings: 32,000 pieces and 100 sentinels, padded to a multiple of 128."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers a name stands for. `version`: "1.0" (ReLU, tied embedding) or "1.1" (gated GELU, untied)."""

    name: str
    n_layers: int
    n_decoder_layers: int
    d_model: int
    n_heads: int
    head_dim: int
    d_ff: int
    version: str = "1.0"

    def count_params(self, vocab_size: int = VOCAB_SIZE) -> int:
        """Parameters with an embedding of `vocab_size` rows (and as many logits where they are not tied)."""
        d, inner = self.d_model, self.n_heads * self.head_dim
        feed_forward = (2 if self.version == "1.0" else 3) * d * self.d_ff
        encoder = self.n_layers * (4 * d * inner + feed_forward + 2 * d)
        decoder = self.n_decoder_layers * (8 * d * inner + feed_forward + 3 * d)
        embeddings = (1 if self.version == "1.0" else 2) * vocab_size * d
        return encoder + decoder + 2 * d + 2 * 32 * self.n_heads + embeddings

    def model(self) -> dict[str, int]:
        """The keys of `config.model` that a shape decides."""
        names = ("n_layers", "n_decoder_layers", "d_model", "n_heads", "head_dim", "d_ff")
        return {name: getattr(self, name) for name in names}


def _size(
    name: str,
    n_layers: int,
    d_model: int,
    d_ff: int,
    n_heads: int,
    head_dim: int = 64,
    version="1.0",
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


# The cards print 32 dimensions a head for tiny, mini and small; weights and parameter counts have 64.
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

# Checkpoints named google/t5-efficient-…, seen with their configuration or card.
RELEASED = tuple(
    f"{size}-{knobs}" if knobs else size
    for size, variants in {
        "tiny": "| nl2 nl6 nl8 nl32 el2 el6 el8 el12 nh1 nh8 nh16 ff6000",
        "mini": "| nl24",
        "small": "| nl2 nl16 nl22 nl24 nl32 nl36 el8 el16 el32 el16-dl4 ff1000 ff6000 ff12000 dm128 dm768 dm1000 kv32 kv128",
        "base": "| nl2 nl4 nl8 nl16 nl24 nl32 nl36 nl40 nl48 el2 el4 el6 el8 el16 dm256 dm512 dm1000 dm2000 ff1000 ff2000"
        " ff6000 ff9000 ff12000 kv16 kv32 kv128 kv256 nh8 nh16 nh24 nh32",
        "large": "| nl8 nl10 nl16 nl20 nl32 nl36 el2 el4 el6 el8 dl12 kv16 kv32 kv128 kv256 nh2 nh4 nh8 nh24 nh32 nh8-nl32",
        "xl": "| nl2 nl4 nl6 nl8 nl12 nl16 nl28",
        "xxl": "| nl4",
    }.items()
    for knobs in (word.strip("|") for word in variants.split())
)
# Recalled from the collection's list and not looked at: only the formula speaks for their numbers.
RECALLED = tuple(
    f"{size}-{knobs}"
    for size, variants in {
        "tiny": "nl12 nl16 nl24 dl2 dl6 dl8 nh32 ff2000 ff3000 ff9000 ff12000",
        "mini": "nl6 nl8 nl12 nl16",
        "small": "nl4 nl8 nl20 nl40 nl48 el2 el4 el12 el48 el64 el16-dl1 el16-dl2 el16-dl8 dl2 dl4 dl8 dl12 dl16 ff3000 ff9000"
        " dm256 dm2000 kv16 kv256",
        "base": "dl2 dl4 dl6 dl8",
        "large": "nl2 nl4 nl12 dl2 dl4 dl6 dl8 dl16 dl32 dm128 dm256 dm512 dm768 dm2000",
    }.items()
    for knobs in variants.split()
)


def parse(name: str) -> Shape:
    """The shape called `name`: a size, then knobs as in `small-el16-dl4`; "t5-efficient-" and "google/" in front are left out.

    Raises:
        UserError: for an unknown size or knob, a knob given twice, or a number no network has.
    """
    short = name.removeprefix("google/").removeprefix("t5-efficient-")
    match = re.fullmatch(r"(v1_1-[a-z]+|[^-]+)((?:-.+)?)", short)
    size, knobs = (match[1], match[2].split("-")[1:]) if match else (short, [])
    size = _ALIASES.get(size, size)
    if size not in SIZES:
        raise _unknown(name, short)
    shape, given = SIZES[size], {}
    for knob in knobs:
        found = re.fullmatch(r"([a-z]+)(\d+)", knob)
        if knob in ("sh", "skv", "shkv"):
            raise UserError(
                f"{name}: shared heads or key-values (-{knob}) have no stock class in transformers"
            )
        if not found or found[1] not in KNOBS or int(found[2]) < 1:
            raise _unknown(name, short)
        if found[1] in given:
            raise UserError(f"{name}: -{found[1]} is given twice")
        given[found[1]] = int(found[2])
    if given.keys() >= {"nl", "el", "dl"}:
        raise UserError(f"{name}: -nl says nothing beside -el and -dl")
    return _turned(dataclasses.replace(shape, name=short), size, given)


def _turned(shape: Shape, size: str, given: dict[str, int]) -> Shape:
    changes: dict[str, int] = {}
    for knob in sorted(given, key=list(KNOBS).index):  # el and dl after nl
        value = _ROUNDED.get(given[knob], given[knob]) if knob in ("ff", "dm") else given[knob]
        changes |= dict.fromkeys(KNOBS[knob], value)
    if size == "xxl" and "nl" in given:
        # Cutting xxl's layers cut its attention as well: the released xxl-nl4, and the paper's 3.6 billion of NL12-XXL, say so.
        changes = {"n_heads": 32, "head_dim": 64} | changes
    if size == "tiny" and given == {"el": 12}:
        changes["n_decoder_layers"] = (
            12  # as its released config.json has it, whatever the name says
        )
    return dataclasses.replace(shape, **changes)


def _unknown(name: str, short: str) -> UserError:
    near = difflib.get_close_matches(short, [*SIZES, *RELEASED, *RECALLED], 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else "python -m tools.shapes lists them"
    return UserError(
        f"{name}: no such shape; {hint} (sizes {', '.join(SIZES)}; knobs {', '.join('-' + knob for knob in KNOBS)} and a number)"
    )


# The paper's rule (arXiv 2109.10686): add layers before anything else, up to where that stops paying.
DEEP_LAYERS = (32, 36)
STOCK_WIDTHS = ("tiny", "mini", "small", "base", "large", "xl")


def deep_narrow(fits) -> Shape | None:
    """The DeepNarrow shape under a limit: the widest stock width that has room for 32 layers, with up to 36.

    Where no width has, the narrowest with as many layers as there is room for; None if there is room for none.

    Args:
        fits: shape → whether it is within the limit; the deeper or wider, the less so.
    """
    low, high = DEEP_LAYERS
    for size in reversed(STOCK_WIDTHS):
        if fits(parse(f"{size}-nl{low}")):
            return next(
                shape for n in range(high, low - 1, -1) if fits(shape := parse(f"{size}-nl{n}"))
            )
    deep = (parse(f"{STOCK_WIDTHS[0]}-nl{n}") for n in range(low - 1, 0, -1))
    return next((shape for shape in deep if fits(shape)), None)
