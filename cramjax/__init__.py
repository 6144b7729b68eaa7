"""cramjax: a good BERT or T5 of your own, on one GPU, in one day.

`import cramjax` imports neither JAX nor TensorFlow; each public name brings in what it needs when first used.
"""

import importlib
import os
import signal
import sys

if sys.argv[:1] == ["-m"]:
    # A command of ours is about to be imported: Ctrl-C ends it without a traceback, until `run_command` takes over.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))

__version__ = "0.2.0"

_PUBLIC = {
    "get_config": "cramjax.config.resolve",
    "train": "cramjax.training.run",
    "LivePlot": "cramjax.notebook",
    "load": "cramjax.inference",
    "fill_mask": "cramjax.inference",
    "fill_spans": "cramjax.inference",
    "generate": "cramjax.inference",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = (
            value  # the package attribute `train` must stay the function, not the subpackage
        )
        return value
    raise AttributeError(f"module 'cramjax' has no attribute {name!r}")
