"""Files of a Hugging Face dataset: listed once and pinned to a commit, downloaded part by part as they are needed."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from cramjax.config.errors import UserError
from cramjax.data.sources import Drop, Part
from cramjax.data.text_source import FORMATS, file_format, read_file

ATTEMPTS = 6
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 120.0
_ALTERNATIVES = (
    "text on this machine is read with --config.data.source=installed-docs or text:PATH_OR_GLOB, "
    "data prepared elsewhere with prepared:DIR"
)
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubPart(Part):
    """One file of the dataset."""

    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubFiles:
    """`files` (name, bytes) of the dataset `repo` at the commit `revision`."""

    spec: str
    weight: float
    index: int
    repo: str
    revision: str
    files: tuple[tuple[str, int | None], ...]
    field: str

    def parts(self) -> list[HubPart]:
        """A part a file; nothing is downloaded."""
        return [
            HubPart(
                source=self.index,
                name=f"hf:{self.repo}/{name}",
                key=f"{self.revision}:{name}",
                n_bytes=size,
                file=name,
            )
            for name, size in self.files
        ]

    def read(self, part: HubPart, drop: Drop) -> Iterator[str]:
        """Download the file (a broken download is resumed), then read it like a local one."""
        from huggingface_hub import hf_hub_download

        path = _patiently(
            lambda: hf_hub_download(self.repo, part.file, repo_type="dataset", revision=self.revision), part.name
        )
        return read_file(path, self.field, drop)


def open_hub(*, spec: str, weight: float, index: int, address: str, field: str, cache_dir: str) -> HubFiles:
    """The files that `address` ("OWNER/NAME:GLOB", optionally "OWNER/NAME@REVISION:GLOB") names.

    The listing is kept in `cache_dir`: the same commit is used from then on, and a prepared dataset is found without a network.

    Raises:
        UserError: for an address of another form, no such dataset or file, no permission, or no network.
    """
    match = re.fullmatch(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?:(?P<glob>.+)", address)
    if not match:
        raise UserError(f"data.source={spec}: must have the form hf:OWNER/NAME:GLOB, as in hf:allenai/c4:en/*.json.gz")
    listing = pathlib.Path(cache_dir) / "hub" / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.json"
    if listing.exists():
        found = json.loads(listing.read_text())
    else:
        found = _list_files(match["repo"], match["revision"], match["glob"], spec)
        listing.parent.mkdir(parents=True, exist_ok=True)
        temporary = listing.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"address": address, **found}, indent=1))
        temporary.replace(listing)
    files = tuple((name, size) for name, size in found["files"])
    return HubFiles(
        spec=spec,
        weight=weight,
        index=index,
        repo=match["repo"],
        revision=found["revision"],
        files=files,
        field=field,
    )


def _list_files(repo: str, revision: str | None, pattern: str, spec: str) -> dict[str, Any]:
    from huggingface_hub import HfApi

    info = _patiently(lambda: HfApi().dataset_info(repo, revision=revision, files_metadata=True), f"hf:{repo}")
    files = sorted(
        (entry.rfilename, entry.size)
        for entry in info.siblings or ()
        if fnmatch.fnmatchcase(entry.rfilename, pattern) and file_format(entry.rfilename)[0] in FORMATS
    )
    if not files:
        raise UserError(f"data.source={spec}: the dataset has no {', '.join(FORMATS)} file that matches {pattern}")
    return {"revision": info.sha, "files": files}


def _patiently(action: Callable[[], Result], what: str) -> Result:
    """`action()`, repeated with growing pauses while the Hub is busy or the connection breaks."""
    from huggingface_hub import errors

    pause_s = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
            if isinstance(error, errors.LocalEntryNotFoundError):
                _refuse(what, "the Hugging Face Hub cannot be reached", error)
            _refuse(what, "there is no such dataset or file, or it is private and HF_TOKEN is not set", error)
        except errors.OfflineModeIsEnabled as error:
            _refuse(what, "HF_HUB_OFFLINE is set", error)
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status in (401, 403):
                _refuse(what, f"access is refused ({status}); set HF_TOKEN to a token that may read it", error)
            if status == 404:
                _refuse(what, "there is no such dataset or file", error)
            if attempt == ATTEMPTS or status not in (408, 429, 500, 502, 503, 504):
                _refuse(what, f"the Hub answered {status}", error)
            pause_s = _retry_after_s(error) or pause_s
        except Exception as error:  # the HTTP library's own: name resolution, refused or broken connections
            if attempt == ATTEMPTS or _is_no_network(error):
                _refuse(what, "the Hugging Face Hub cannot be reached", error)
        time.sleep(min(pause_s, LONGEST_PAUSE_S))
        pause_s *= 2
    raise AssertionError("the last attempt returns or raises")


def _refuse(what: str, why: str, error: Exception) -> None:
    raise UserError(f"{what}: {why}; {_ALTERNATIVES}") from error


def _is_no_network(error: Exception) -> bool:
    return type(error).__name__ == "ConnectError" or isinstance(error, ConnectionRefusedError)


def _retry_after_s(error: Any) -> float | None:
    try:
        return float(error.response.headers.get("Retry-After"))
    except (TypeError, ValueError):
        return None
