"""Models on the Hugging Face Hub, by id: fetched once into `huggingface_hub`'s cache, then found there."""

from __future__ import annotations

import pathlib
import re

from cramjax.errors import UserError

_ID = re.compile(r"(?P<repo>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[\w./-]+))?")
# Pickles, and weights for other frameworks, are left there.
_WANTED = ("config.json", "tokenizer.json", "*.safetensors", "model.safetensors.index.json")
_DIRECTORIES = ("onnx/*", "openvino/*", "original/*")


def is_hub_id(name: str) -> bool:
    """Whether `name` may be a model's id on the Hub ("NAME", "OWNER/NAME", with "@REVISION" or not) rather than a path on this machine."""
    return bool(_ID.fullmatch(name)) and not pathlib.Path(name.split("/")[0]).exists()


def download(name: str) -> pathlib.Path:
    """The folder with the model whose id is `name`, downloaded if it is not in the cache.

    Raises:
        UserError: where the Hub has no such model, does not let us have it, or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    found = _ID.fullmatch(name)
    try:
        path = huggingface_hub.snapshot_download(
            found["repo"],
            revision=found["revision"],
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_DIRECTORIES),
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name}: the Hub gives this model to those who accepted its terms; do so there and set HF_TOKEN"
        ) from error
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise UserError(
            f"{name}: no such directory, and no such model on the Hub; check the name (a private one needs HF_TOKEN)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name}: no such directory, and the Hub cannot be reached to look there; check the path or the network"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise UserError(
            f"{name}: the download from the Hub failed ({type(error).__name__}: {str(error).splitlines()[0]}); try again"
        ) from error
    return pathlib.Path(path)
