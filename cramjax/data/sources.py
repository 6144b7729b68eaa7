"""Opens the sources of text that `data.source` names.

The readers are in `text_source`, `installed_docs`, `hub_source` and `tfds_source`. They import
their libraries late, so that a source costs nothing unless it is named.
"""

from __future__ import annotations

import difflib
import math
from typing import Any

from cramjax.config import pairs
from cramjax.config.keep import Keep
from cramjax.config.mixing import BY_SIZE, is_by_size
from cramjax.config.views import DataConfig
from cramjax.data.pair_source import form_of, open_pairs, refuse_keep
from cramjax.data.source import TextSource
from cramjax.data.task_source import open_tasks, singles
from cramjax.errors import UserError

SCHEMES = ("installed-docs", "text", "pairs", "glue", "superglue", "hf", "tfds", "prepared")
_FORMS = (
    "installed-docs, text:GLOB, pairs:SOURCE_FILE,TARGET_FILE, glue:DIR, superglue:DIR, "
    "hf:OWNER/NAME:GLOB, tfds:NAME/CONFIG, prepared:DIR"
)


def open_sources(config: DataConfig) -> list[TextSource]:
    """Open the sources that `config.source` names: one, or several in a weighted mixture.

    The source that `config.heldout` names comes first, with a weight of 0: what it has in common
    with the others is a duplicate there, and is not trained on.

    Args:
        config: The `data` part of the configuration.

    Raises:
        UserError: for an unknown scheme, an invalid weight, or files that do not exist.
    """
    mixture = config.source
    if isinstance(mixture, str):
        mixture = [[mixture, 1.0]]
    if not mixture:
        raise UserError(
            "data.source=[]: name at least one source, as in data.source=installed-docs"
        )

    wanted: list[tuple[str, float, str | None]] = []
    for entry in mixture:
        spec, weight, prefix = _checked(entry)
        specs = singles(spec)
        if not is_by_size(config.source):
            weight /= len(specs)  # the entry's, whatever the number of its tasks
        wanted += [(single, weight, prefix) for single in specs]

    opened: list[TextSource] = []
    if config.heldout is not None:
        opened.append(open_heldout(config, config.heldout))
    for spec, weight, prefix in wanted:
        opened.append(_open(spec, weight, prefix, len(opened), config))
    return opened


def open_heldout(config: DataConfig, spec: str) -> TextSource:
    """Open the source `spec` of held-out text, whose weight is 0; arguments and errors as above."""
    return _open(spec, 0.0, None, 0, config)


def _checked(entry: Any) -> tuple[str, float, str | None]:
    """Check one entry of a mixture; returns source, weight and the prefix of its own, or None."""
    try:
        spec, weight, *prefixes = entry
        weight = 1.0 if weight == BY_SIZE else float(weight)
    except (TypeError, ValueError):
        raise UserError(
            f"data.source: {entry!r} must be a pair [source, weight], as in [['text:a.txt', 2]]"
        ) from None
    if not isinstance(spec, str) or not 0 < weight < math.inf:
        raise UserError(f"data.source: {entry!r} must be a source and a weight above 0")
    if len(prefixes) > 1 or not all(isinstance(prefix, str) for prefix in prefixes):
        raise UserError(
            f"data.source: {entry!r} must be a source, a weight and, for pairs, a prefix"
        )
    return spec, weight, prefixes[0] if prefixes else None


def _open(
    spec: str, weight: float, prefix: str | None, index: int, config: DataConfig
) -> TextSource:
    """Open the source `spec`, the one numbered `index` in the mixture."""
    scheme, _, address = spec.partition(":")
    common: dict[str, Any] = {"spec": spec, "weight": weight, "index": index}
    field = config.text_field
    form = form_of(config, prefix) if pairs.are_prepared(config) else None
    if prefix is not None and form is None:
        raise UserError(f"data.source={spec}: holds no pairs, so no prefix can stand before them")
    keep = Keep(config.keep) if config.keep is not None else None

    if scheme == "installed-docs" and not address:
        from cramjax.data.installed_docs import InstalledDocs

        refuse_keep(spec, keep)
        return InstalledDocs(**common)

    if scheme == "text" and address:
        from cramjax.data.text_source import TextFiles

        return TextFiles(
            **common, pattern=address, field=field, cache_dir=config.cache_dir, keep=keep
        )

    if scheme in pairs.SCHEMES and address and form is not None:
        common |= {"form": form, "cache_dir": config.cache_dir}
        if scheme == "pairs":
            return open_pairs(**common, address=address, keep=keep)
        refuse_keep(spec, keep)
        return open_tasks(**common)

    if scheme == "hf" and address:
        from cramjax.data.hub_source import open_hub

        common |= {"field": field, "form": form, "cache_dir": config.cache_dir}
        return open_hub(**common, address=address, keep=keep)

    if scheme == "tfds" and address:
        from cramjax.data.tfds_source import open_tfds

        return open_tfds(
            **common,
            name=address,
            field=field,
            form=form,
            allow_build=config.allow_build,
            keep=keep,
        )

    if scheme == "prepared":
        raise UserError(
            f"data.source={spec}: a prepared dataset cannot be part of a mixture; name it alone"
        )
    raise UserError(f"data.source={spec}: not a source; {_hint(scheme)}")


def _hint(scheme: str) -> str:
    """Suggest the scheme that was meant, or list all of them."""
    near = difflib.get_close_matches(scheme, SCHEMES, 1)
    if near and near[0] != scheme:
        return f"did you mean {near[0]}?"
    return f"sources: {_FORMS}"
