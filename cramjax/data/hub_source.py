"""Files of a Hugging Face dataset: listed once and pinned to a commit, downloaded part by part as they are needed."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import hashlib
import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from cramjax.data.source import Drop, Part
from cramjax.data.text_source import FORMATS, file_format, read_file
from cramjax.errors import UserError

_LOG = logging.getLogger("cramjax")
ATTEMPTS = 7
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 120.0
_BUSY = (408, 429, 500, 502, 503, 504)
# Nothing that another attempt, or the Hub, could mend.
_LOCAL_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
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
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # several processes download at once, and the preparation shows how far it is
        path = _patiently(
            lambda: hf_hub_download(
                self.repo, part.file, repo_type="dataset", revision=self.revision
            ),
            part.name,
        )
        return read_file(path, self.field, drop)


def open_hub(
    *, spec: str, weight: float, index: int, address: str, field: str, cache_dir: str
) -> HubFiles:
    """The files that `address` ("OWNER/NAME:GLOB", optionally "OWNER/NAME@REVISION:GLOB") names.

    The listing is kept in `cache_dir`: the same commit is used from then on, and a prepared dataset is found without a network.

    Raises:
        UserError: for an address of another form, no such dataset or file, no permission, or no network.
    """
    match = re.fullmatch(
        r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?:(?P<glob>.+)", address
    )
    if not match:
        raise UserError(
            f"data.source={spec}: must have the form hf:OWNER/NAME:GLOB, as in hf:allenai/c4:en/*.json.gz"
        )
    listing = (
        pathlib.Path(cache_dir)
        / "hub"
        / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.json"
    )
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
    """The commit, and names and bytes of the files that match; of large datasets only the folder in question is listed."""
    from huggingface_hub import HfApi, RepoFile, errors

    api, folder = HfApi(), re.split(r"[*?[]", pattern)[0].rpartition("/")[0] or None
    commit = _patiently(
        lambda: api.dataset_info(repo, revision=revision, expand=["sha"]).sha,
        f"hf:{repo}",
        first_contact=True,
    )

    def tree() -> list[Any]:
        try:
            return list(
                api.list_repo_tree(
                    repo, folder, recursive=True, revision=commit, repo_type="dataset"
                )
            )
        except errors.EntryNotFoundError:
            return []

    files = sorted(
        (entry.path, entry.size)
        for entry in _patiently(tree, f"hf:{repo}")
        if isinstance(entry, RepoFile)
        and fnmatch.fnmatchcase(entry.path, pattern)
        and file_format(entry.path)[0] in FORMATS
    )
    if not files:
        raise UserError(
            f"data.source={spec}: the dataset has no {', '.join(FORMATS)} file that matches {pattern}"
        )
    return {"revision": commit, "files": files}


def _patiently(action: Callable[[], Result], what: str, *, first_contact: bool = False) -> Result:
    """`action()`, repeated with growing pauses while the Hub is busy or the connection breaks.

    At `first_contact` a connection that cannot be made at all means a machine without a network: no second attempt.
    """
    from huggingface_hub import errors

    pause_s = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:  # the Hub's errors, and those of its HTTP library, which changes with its releases
            if getattr(error, "errno", None) in _LOCAL_TROUBLE:
                raise
            # Of a download this is what any trouble becomes; what it was stands behind it.
            hidden = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
            cause = hidden or error
            why, temporary = _diagnosis(cause)
            hopeless = first_contact and type(cause).__name__ == "ConnectError"
            if not temporary or hopeless or attempt == ATTEMPTS:
                _refuse(what, why, error)
            wait_s = min(_retry_after_s(cause) or pause_s, LONGEST_PAUSE_S)
        _LOG.warning("%s: %s; trying again in %.0f s", what, why, wait_s)
        time.sleep(wait_s)
        pause_s *= 2
    raise AssertionError("the last attempt returns or raises")


def _diagnosis(error: BaseException) -> tuple[str, bool]:
    """What is the matter, in words, and whether it may pass."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", False
    if isinstance(error, errors.HFValidationError):
        return "not a name that a dataset can have", False
    if isinstance(error, errors.GatedRepoError):
        return "access is gated; accept its conditions on its page and set HF_TOKEN", False
    if isinstance(
        error,
        (
            errors.RepositoryNotFoundError,
            errors.RevisionNotFoundError,
            errors.RemoteEntryNotFoundError,
        ),
    ):
        return "there is no such dataset or file, or it is private and HF_TOKEN is not set", False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"access is refused ({status}); set HF_TOKEN to a token that may read it", False
    if status == 404:
        return "there is no such dataset or file", False
    if status is not None:
        return f"the Hub answered {status}", status in _BUSY
    first = str(error).strip().partition("\n")[0]
    return f"the Hugging Face Hub cannot be reached ({type(error).__name__}: {first})", True


def _refuse(what: str, why: str, error: Exception) -> NoReturn:
    raise UserError(f"{what}: {why}; {_ALTERNATIVES}") from error


def _retry_after_s(error: Any) -> float | None:
    try:
        return max(0.0, float(error.response.headers.get("Retry-After")))
    except (AttributeError, TypeError, ValueError):
        return None
