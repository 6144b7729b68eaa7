"""cramjax: a good BERT or T5 of your own, on one GPU, in one day.

`import cramjax` imports neither JAX nor TensorFlow. A public name imports its module on first use.
"""

import importlib
import sys
from typing import Any

from cramjax import stop

if sys.argv[:1] == ["-m"]:
    # A command of ours is about to be imported. Until `run_command` takes over, a signal ends it
    # without a traceback.
    stop.end_imports()

__version__ = "0.2.0"

_PUBLIC = {
    "get_config": "cramjax.config.resolve",
    "train": "cramjax.training.run",
    "LivePlot": "cramjax.notebook",
    "load": "cramjax.inference",
    "fill_mask": "cramjax.inference",
    "fill_spans": "cramjax.inference",
    "generate": "cramjax.inference",
    "load_finetuned": "cramjax.finetuning.prediction",
    "embed": "cramjax.finetuning.prediction",
    "classify": "cramjax.finetuning.prediction",
    "entities": "cramjax.finetuning.prediction",
    "answer": "cramjax.finetuning.prediction",
}
__all__ = sorted(_PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'cramjax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    # The import has set attributes for subpackages, and a public name must not become one of them.
    globals()[name] = value
    return value
