"""Where text comes from: a source lists parts and reads one of them; what a specification means is decided here.

The readers are in `text_source`, `installed_docs`, `hub_source` and `tfds_source`. Cleaning, tokenizing and packing come after.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from cramjax.errors import UserError

SCHEMES = ("installed-docs", "text", "hf", "tfds", "prepared")
# Called with a reason and "file:position" for every record that is left out or repaired.
Drop = Callable[[str, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The unit of reading and of restart: `source` its index in the mixture, `name` what a person recognises.

    `key` changes when the content may have changed; `n_bytes` is its size where that is known.
    """

    source: int
    name: str
    key: str
    n_bytes: int | None


class Source(Protocol):
    """A corpus in parts. Sources are picklable: parts are read by other processes."""

    spec: str
    weight: float
    revision: str | None

    def parts(self) -> list[Part]:
        """All parts, in a fixed order; lists files, opens none."""
        ...

    def read(self, part: Part, drop: Drop) -> Iterator[str]:
        """The documents of a part as they come; `drop` is told of every record that does not."""
        ...


def open_sources(data: Any) -> list[Source]:
    """The sources that `data.source` (config.data) names: one, or the parts of a weighted mixture.

    Raises:
        UserError: for a scheme there is not, a weight that is none, or files that are not there.
    """
    mixture = [[data.source, 1.0]] if isinstance(data.source, str) else data.source
    sources = []
    for index, entry in enumerate(mixture):
        spec, weight = _entry(entry)
        sources.append(_open(spec, weight, index, data))
    if not sources:
        raise UserError(
            "data.source=[]: name at least one source, as in data.source=installed-docs"
        )
    return sources


def _entry(entry: Any) -> tuple[str, float]:
    try:
        spec, weight = entry
        weight = float(weight)
    except (TypeError, ValueError):
        raise UserError(
            f"data.source: {entry!r} must be a pair [source, weight], as in [['text:a.txt', 2]]"
        ) from None
    if not isinstance(spec, str) or not 0 < weight < math.inf:
        raise UserError(f"data.source: {entry!r} must be a source and a weight above 0")
    return spec, weight


def _open(spec: str, weight: float, index: int, data: Any) -> Source:
    scheme, _, rest = spec.partition(":")
    common = {"spec": spec, "weight": weight, "index": index}
    if scheme == "installed-docs" and not rest:
        from cramjax.data.installed_docs import InstalledDocs

        return InstalledDocs(**common)
    if scheme == "text" and rest:
        from cramjax.data.text_source import TextFiles

        return TextFiles(**common, pattern=rest, field=data.text_field)
    if scheme == "hf" and rest:
        from cramjax.data.hub_source import open_hub

        return open_hub(**common, address=rest, field=data.text_field, cache_dir=data.cache_dir)
    if scheme == "tfds" and rest:
        from cramjax.data.tfds_source import open_tfds

        return open_tfds(**common, name=rest, field=data.text_field, allow_build=data.allow_build)
    if scheme == "prepared":
        raise UserError(
            f"data.source={spec}: a prepared dataset cannot be part of a mixture; name it alone"
        )
    near = difflib.get_close_matches(scheme, SCHEMES, 1)
    hint = (
        f"did you mean {near[0]}?"
        if near and near[0] != scheme
        else "sources: installed-docs, text:GLOB, hf:OWNER/NAME:GLOB, tfds:NAME/CONFIG, prepared:DIR"
    )
    raise UserError(f"data.source={spec}: not a source; {hint}")
