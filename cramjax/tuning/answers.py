"""Answers of a search, kept beside the compiled programs: the next start need not search."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib.version

from cramjax.errors import UserError
from cramjax.files import write_json


class Answer:
    """The answer to one question, as a file.

    An unreadable file is no answer. An answer that cannot be written is forgotten.
    """

    def __init__(self, question: Mapping[str, Any] | None):
        """Name the file; nothing is read or written for None.

        Args:
            question: values of JSON, all that the answer depends on, beside the versions of JAX.
        """
        asked = dict(question or {}) | {
            "jax": jax.__version__,
            "jaxlib": jaxlib.version.__version__,
        }
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        # JAX defines its options at run time.
        folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        self._path = None
        if folder and question is not None:
            self._path = pathlib.Path(folder) / "cramjax" / f"{name}.json"

    def read(self) -> dict[str, Any] | None:
        """Returns the content of the file, or None."""
        if self._path is None:
            return None
        try:
            answer = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def write(self, answer: Mapping[str, Any]) -> None:
        """Keep `answer` for the next start."""
        if self._path is None:
            return
        with contextlib.suppress(OSError, UserError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, dict(answer))
