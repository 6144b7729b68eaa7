"""Fetches models from the Hugging Face Hub by id, once, into the cache of `huggingface_hub`."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import re
import threading
import time
from collections.abc import Iterator

from cramjax.errors import UserError
from cramjax.hub import replies

NOTICE_S = 30.0
"""Seconds between two lines about a download that goes on."""

_log = logging.getLogger("cramjax")

_ID = re.compile(r"(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[\w./-]+))?")
# Pickles and the weights for other frameworks are not downloaded.
_WANTED = (
    *("config.json", "tokenizer.json", "*.safetensors", "model.safetensors.index.json"),
    # Of sentence-transformers.
    *("modules.json", "sentence_bert_config.json", "*_Pooling/config.json"),
)
_DIRECTORIES = ("onnx/*", "openvino/*", "original/*")


def is_hub_id(name: str) -> bool:
    """Returns whether `name` may be the id of a model on the Hub, not a path on this machine.

    An id is "NAME" or "OWNER/NAME", with or without "@REVISION".
    """
    return bool(_ID.fullmatch(name)) and not pathlib.Path(name.split("/")[0]).exists()


def download(name: str) -> pathlib.Path:
    """Returns the folder with the model of an id; downloads it if it is not in the cache.

    A download that takes long says so now and then: the bars of the library move by 10 MB.

    Raises:
        UserError: if the Hub has no such model, refuses it, or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    parts = _ID.fullmatch(name)
    if parts is None:
        raise UserError(f"{name}: cannot be the id of a model on the Hub; check the name")
    try:
        with _waiting(name):
            path = huggingface_hub.snapshot_download(
                parts["repo"],
                revision=parts["revision"],
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_DIRECTORIES),
            )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name}: the Hub gives this model only to users who accepted its terms; "
            "accept them there and set HF_TOKEN"
        ) from error
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise UserError(
            f"{name}: no such directory, and no such model on the Hub; "
            "check the name (a private one needs HF_TOKEN)"
        ) from error
    except Exception as error:  # three libraries raise too many kinds to list
        raise _failure(name, error) from error
    return pathlib.Path(path)


@contextlib.contextmanager
def _waiting(name: str) -> Iterator[None]:
    """Says every `NOTICE_S` seconds that a download goes on."""
    over = threading.Event()

    def tell() -> None:
        started = time.monotonic()
        while not over.wait(NOTICE_S):
            waited_s = time.monotonic() - started
            _log.warning(
                "%s: downloading from the Hub since %.0f s; Ctrl-C ends it, and the same command "
                "goes on with the files that are complete",
                name,
                waited_s,
            )

    thread = threading.Thread(target=tell, name="cramjax-download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _failure(name: str, error: Exception) -> UserError:
    """Returns the mistake behind any other trouble of a download."""
    response = replies.response_of(error)
    if response is not None and response.status_code == 429:
        asked_s = replies.asked_s(response)
        pause = "a while" if asked_s is None else f"{asked_s:.0f} s"
        return UserError(
            f"{name}: the Hub limits the rate of requests (429); wait {pause} and try again, "
            "or set HF_TOKEN, which raises the limit"
        )
    if isinstance(error, ValueError) and "filename" in str(error).lower():
        return UserError(
            f"{name}: the repository holds a file whose name leads out of its folder; "
            "do not use this model"
        )

    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and response is None:
        return UserError(
            f"{name}: no such directory, and the Hub cannot be reached to look there; "
            "check the path or the network"
        )
    if any(map(replies.is_network, replies.causes(error))):
        return UserError(
            f"{name}: the connection to the Hub failed ({type(error).__name__}); try again, "
            "it goes on with the files that are complete"
        )
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"{name}: the download from the Hub failed ({type(error).__name__}: {reason}); try again"
    )
