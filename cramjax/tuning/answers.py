"""What a search has found, kept beside the compiled programs, so that the next start need not
search.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib

from cramjax.errors import UserError
from cramjax.files import write_json


class Answer:
    """The answer to one question, as a file; unreadable it is no answer, and where it cannot be
    written it is forgotten.
    """

    def __init__(self, question: Mapping[str, Any] | None):
        """`question`: all that the answer depends on, beside the versions of JAX, as in JSON; None:
        nothing is kept.
        """
        asked = dict(question or {}) | {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        folder = jax.config.jax_compilation_cache_dir
        self._path = None
        if folder and question is not None:
            self._path = pathlib.Path(folder) / "cramjax" / f"{name}.json"

    def read(self) -> dict[str, Any] | None:
        """What was written, or None."""
        if self._path is None:
            return None
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, found: Mapping[str, Any]) -> None:
        """Keep it for the next start."""
        if self._path is None:
            return
        with contextlib.suppress(OSError, UserError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, dict(found))
