"""Reads files of a Hugging Face dataset: pinned to a commit, downloaded when they are needed."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import hashlib
import logging
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from cramjax.config.keep import Keep
from cramjax.data.first_bytes import FORMATS, file_format
from cramjax.data.formats import read_file
from cramjax.data.pair_records import read_pairs
from cramjax.data.pair_text import PairForm
from cramjax.data.source import Drop, Part
from cramjax.errors import UserError
from cramjax.files import check_types, read_json, write_json

_LOG = logging.getLogger("cramjax")
ATTEMPTS = 7
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 120.0
# HTTP answers of a server that may answer otherwise a little later.
_BUSY = (408, 429, 500, 502, 503, 504)
# Errors of this machine, which no other attempt and nothing on the Hub could mend.
_LOCAL_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_ALTERNATIVES = (
    "text on this machine is read with --config.data.source=installed-docs or text:PATH_OR_GLOB, "
    "data prepared elsewhere with prepared:DIR"
)
_ADDRESS = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?:(?P<glob>.+)")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubPart(Part):
    """One file of the dataset."""

    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubFiles:
    """Some files of a dataset on the Hub.

    Attributes:
        spec: See `TextSource`.
        weight: See `TextSource`.
        index: Index of this source in the mixture.
        repo: "OWNER/NAME" of the dataset.
        revision: Commit of the dataset.
        files: (name, bytes or None) of each file.
        field: Field of a record that holds its text.
        form: The fields of its pair in place of one text, or None.
        keep: Which records are kept, or None for all.
    """

    spec: str
    weight: float
    index: int
    repo: str
    revision: str
    files: tuple[tuple[str, int | None], ...]
    field: str
    form: PairForm | None = None
    keep: Keep | None = None

    def parts(self) -> list[HubPart]:
        """Make each file a part; nothing is downloaded."""
        parts = []
        for name, n_bytes in self.files:
            part = HubPart(
                source=self.index,
                name=f"hf:{self.repo}/{name}",
                key=f"{self.revision}:{name}",
                n_bytes=n_bytes,
                file=name,
            )
            parts.append(part)
        return parts

    def read(self, part: HubPart, drop: Drop) -> Iterator[str]:
        """Download the file, and read it like a local one; a broken download is resumed."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars

        # Several processes download at once, and the preparation shows how far it is.
        disable_progress_bars()

        def download() -> str:
            return hf_hub_download(
                self.repo, part.file, repo_type="dataset", revision=self.revision
            )

        path = patiently(download, part.name)
        if self.form is not None:
            return read_pairs(path, self.form, drop, keep=self.keep, name=part.name)
        return read_file(path, self.field, drop, keep=self.keep)


def open_hub(
    *,
    spec: str,
    weight: float,
    index: int,
    address: str,
    field: str,
    cache_dir: str,
    form: PairForm | None = None,
    keep: Keep | None = None,
) -> HubFiles:
    """List the files that `address` names.

    The list is kept in `cache_dir`: the same commit is used from then on, and a prepared dataset
    is found without a network.

    Args:
        spec: The specification in `data.source`.
        weight: Share of the mixture.
        index: Index of this source in the mixture.
        address: "OWNER/NAME:GLOB" or "OWNER/NAME@REVISION:GLOB".
        field: Field of a record that holds its text.
        cache_dir: Where prepared data are.
        form: The fields of its pair in place of one text, or None.
        keep: Which records are kept, or None for all.

    Raises:
        UserError: for an address of another form, an unknown dataset or file, missing permission,
            or no network.
    """
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UserError(
            f"data.source={spec}: must have the form hf:OWNER/NAME:GLOB, as in "
            "hf:allenai/c4:en/*.json.gz"
        )

    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    path = pathlib.Path(cache_dir) / "hub" / f"{digest}.json"
    if path.exists():
        cure = "delete it; the files are then listed again"
        listing = read_json(path, cure)
        check_types(listing, {"revision": (str,), "files": (list,)}, path, cure)
    else:
        listing = _list_files(match["repo"], match["revision"], match["glob"], spec)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"address": address, **listing})

    return HubFiles(
        spec=spec,
        weight=weight,
        index=index,
        repo=match["repo"],
        revision=listing["revision"],
        files=tuple((name, n_bytes) for name, n_bytes in listing["files"]),
        field=field,
        form=form,
        keep=keep,
    )


def _list_files(repo: str, revision: str | None, pattern: str, spec: str) -> dict[str, Any]:
    """List the files that match a pattern.

    Returns:
        "revision": the commit; "files": sorted (name, bytes).
    """
    from huggingface_hub import HfApi, RepoFile, errors

    api = HfApi()

    def find_commit() -> str | None:
        return api.dataset_info(repo, revision=revision, expand=["sha"]).sha

    commit = patiently(find_commit, f"hf:{repo}", first_contact=True)

    # Only the folder before the first wildcard, because large datasets have many others.
    folder = re.split(r"[*?[]", pattern)[0].rpartition("/")[0] or None

    def list_folder() -> list[Any]:
        try:
            return list(
                api.list_repo_tree(
                    repo, folder, recursive=True, revision=commit, repo_type="dataset"
                )
            )
        except errors.EntryNotFoundError:
            return []

    files = []
    for entry in patiently(list_folder, f"hf:{repo}"):
        is_text_file = isinstance(entry, RepoFile) and file_format(entry.path) in FORMATS
        if is_text_file and fnmatch.fnmatchcase(entry.path, pattern):
            files.append((entry.path, entry.size))
    if not files:
        raise UserError(
            f"data.source={spec}: the dataset has no {', '.join(FORMATS)} file that matches "
            f"{pattern}"
        )
    return {"revision": commit, "files": sorted(files)}


def patiently(action: Callable[[], Result], what: str, *, first_contact: bool = False) -> Result:
    """Repeat an action with growing pauses while the Hub is busy or the connection breaks.

    Args:
        action: The action.
        what: Its object, for messages.
        first_contact: Give up at once if no connection can be made at all: then the machine has
            no network.

    Raises:
        UserError: if the trouble will not pass, or after `ATTEMPTS`.
    """
    from huggingface_hub import errors

    pause_s = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            # Not only the Hub's errors: those of its HTTP library change with its releases.
            if getattr(error, "errno", None) in _LOCAL_TROUBLE:
                raise
            # A download raises this error for any trouble; the trouble itself is its cause.
            cause: BaseException = error
            if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
                cause = error.__cause__

            problem, may_pass = _diagnosis(cause)
            has_no_network = first_contact and type(cause).__name__ == "ConnectError"
            if not may_pass or has_no_network or attempt == ATTEMPTS:
                _refuse(what, problem, error)
            wait_s = min(_retry_after_s(cause) or pause_s, LONGEST_PAUSE_S)

        _LOG.warning("%s: %s; trying again in %.0f s", what, problem, wait_s)
        time.sleep(wait_s)
        pause_s *= 2
    raise AssertionError("the last attempt returns or raises")


def _diagnosis(error: BaseException) -> tuple[str, bool]:
    """Describe an error in words, and tell if it may pass."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", False
    if isinstance(error, errors.HFValidationError):
        return "not a name that a dataset can have", False
    if isinstance(error, errors.GatedRepoError):
        return "access is gated; accept its conditions on its page and set HF_TOKEN", False
    # After the gated one, which is a kind of these.
    not_found = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.RemoteEntryNotFoundError,
    )
    if isinstance(error, not_found):
        return "there is no such dataset or file, or it is private and HF_TOKEN is not set", False

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"access is refused ({status}); set HF_TOKEN to a token that may read it", False
    if status == 404:
        return "there is no such dataset or file", False
    if status is not None:
        return f"the Hub answered {status}", status in _BUSY

    first_line = str(error).strip().partition("\n")[0]
    return f"the Hugging Face Hub cannot be reached ({type(error).__name__}: {first_line})", True


def _refuse(what: str, problem: str, error: Exception) -> NoReturn:
    raise UserError(f"{what}: {problem}; {_ALTERNATIVES}") from error


def _retry_after_s(error: Any) -> float | None:
    """Return the pause that a busy server asks for, in seconds."""
    try:
        return max(0.0, float(error.response.headers.get("Retry-After")))
    except (AttributeError, TypeError, ValueError):
        return None
