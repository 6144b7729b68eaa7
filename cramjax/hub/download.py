"""Fetches models from the Hugging Face Hub by id, once, into the cache of `huggingface_hub`."""

from __future__ import annotations

import pathlib
import re

from cramjax.errors import UserError

_ID = re.compile(r"(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[\w./-]+))?")
# Pickles and the weights for other frameworks are not downloaded.
_WANTED = ("config.json", "tokenizer.json", "*.safetensors", "model.safetensors.index.json")
_DIRECTORIES = ("onnx/*", "openvino/*", "original/*")


def is_hub_id(name: str) -> bool:
    """Returns whether `name` may be the id of a model on the Hub, not a path on this machine.

    An id is "NAME" or "OWNER/NAME", with or without "@REVISION".
    """
    return bool(_ID.fullmatch(name)) and not pathlib.Path(name.split("/")[0]).exists()


def download(name: str) -> pathlib.Path:
    """Returns the folder with the model of an id; downloads it if it is not in the cache.

    Raises:
        UserError: if the Hub has no such model, refuses it, or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    parts = _ID.fullmatch(name)
    if parts is None:
        raise UserError(f"{name}: cannot be the id of a model on the Hub; check the name")
    try:
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
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name}: no such directory, and the Hub cannot be reached to look there; "
            "check the path or the network"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name}: the download from the Hub failed ({type(error).__name__}: {reason}); "
            "try again"
        ) from error
    return pathlib.Path(path)
