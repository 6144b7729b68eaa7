"""Pushing an exported directory to the Hugging Face Hub as one commit, with new attempts while the network or the Hub is in trouble."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from cramjax.errors import RunFailed, UserError

ATTEMPTS = 6
FIRST_PAUSE_S = 2.0  # doubled from one attempt to the next
PATIENCE_S = 360.0  # all waits together; the Hub counts requests in windows of 300 s
_TIMEOUT_S = (10.0, 60.0, 60.0, None)  # to connect, read, write, and get a connection of the pool
_TOKENS = "https://huggingface.co/settings/tokens"
_BUSY = (408, 429)  # and all from 500 on
_CONFLICT = (409, 412)
_REFUSED = (401, 403)
# Of Xet, the Hub's storage of large files, whose client is by itself as patient as all of our attempts together: minutes an upload.
_XET = {
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
    "HF_XET_CLIENT_CONNECT_TIMEOUT": "10s",
    "HF_XET_CLIENT_READ_TIMEOUT": "60s",
}
# Classes of the HTTP library, which is httpx or httpx2 by the release of huggingface_hub.
_NETWORK = {"TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError"}


def push(
    directory: pathlib.Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str,
    tell: Callable[[str], None],
) -> str:
    """Push all files of `directory` in one commit; what the Hub already has is not sent again, so that a failed push can be repeated.

    Args:
        directory: an export, with its config.json. repo_id: USER/NAME, created where it does not exist.
        private: whether a repository that is created is private; one that exists stays as it is.
        revision: the branch, created where it does not exist; the main one if None. message: of the commit.
        tell: gets a line when there is to be another attempt, and where the repository is public though `private` is set.

    Returns:
        The address of the commit; of the branch's last commit if nothing has changed.

    Raises:
        UserError: for a wrong name or directory, and where HF_TOKEN is missing or the Hub refuses.
        RunFailed: when the last attempt has failed.
    """
    token, files = check(repo_id), _files(directory)
    from huggingface_hub import HfApi

    api, notice = (
        HfApi(token=token),
        functools.cache(tell),
    )  # cached: the same notice once, however many attempts
    pause_s, waited_s = FIRST_PAUSE_S, 0.0
    with _single_requests():
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _prepare(api, repo_id, private, revision, notice)
                return _commit(api, repo_id, files, revision, message)
            except Exception as error:  # of the library, its HTTP library, and its Rust half: too many kinds to list
                trouble, asked_s = _diagnosis(error, repo_id, directory, token)
            wait_s = pause_s if asked_s is None else asked_s
            if attempt == ATTEMPTS or waited_s + wait_s > PATIENCE_S:
                asked = "" if asked_s is None else f", asks for a pause of {asked_s:.0f} s"
                raise _failed(
                    repo_id, f"{trouble}{asked} (attempt {attempt} of {ATTEMPTS})", directory
                )
            tell(
                f"{repo_id}: {trouble}; trying again in {wait_s:.0f} s (attempt {attempt + 1} of {ATTEMPTS})"
            )
            time.sleep(wait_s)
            pause_s, waited_s = 2 * pause_s, waited_s + wait_s
    raise AssertionError("the last attempt returns or raises")


def check(repo_id: str) -> str:
    """The token to push with, from the environment. Raises UserError where there is none, or `repo_id` is no name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id}: must have the form USER/NAME ({error})") from None
    if "/" not in repo_id:
        raise UserError(f"{repo_id}: must have the form USER/NAME")
    return _token()


def _files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name in the repository → file, without the folders that the Hub takes no files in."""
    from huggingface_hub.utils import FORBIDDEN_FOLDERS

    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; name one that holds an export")
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: holds no config.json; name a directory that holds an export")
    found = {
        path.relative_to(directory): path for path in sorted(directory.rglob("*")) if path.is_file()
    }
    return {
        name.as_posix(): path
        for name, path in found.items()
        if not set(FORBIDDEN_FOLDERS) & set(name.parts)
    }


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError(
            f"HF_TOKEN is not set; make a token with write permission under {_TOKENS} and set HF_TOKEN to it"
        )
    # An HTTP library that refuses such a header shows it.
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"HF_TOKEN holds a character that no token has; copy it anew from {_TOKENS}"
        )
    return token


@contextlib.contextmanager
def _single_requests() -> Iterator[None]:
    """Let every request be made once (of Xet, twice), and end in time.

    huggingface_hub repeats some requests up to five times, silently, pausing as long as the server likes, which multiplies with our
    attempts; and it waits for an answer without end.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http, hf_raise_for_status

    for name, value in _XET.items():
        os.environ.setdefault(name, value)
    before = _http._GLOBAL_CLIENT_FACTORY  # no public name gives what set_client_factory replaces

    def factory() -> Any:
        client = before()
        client.timeout, request = _TIMEOUT_S, client.request

        def once(*args: Any, **kwargs: Any) -> Any:
            if "timeout" in kwargs and kwargs["timeout"] is None:
                kwargs["timeout"] = _TIMEOUT_S
            try:
                response = request(*args, **kwargs)
            except Exception as error:
                if _NETWORK & {kind.__name__ for kind in type(error).__mro__}:
                    raise ConnectionError(
                        f"{type(error).__name__}: {error}"
                    ) from error  # a kind that is not repeated
                raise
            # The last is repeated without end or pause by create_repo.
            endless = (
                response.status_code == 409
                and "another conflicting operation is in progress" in response.text
            )
            if response.status_code in _BUSY or response.status_code >= 500 or endless:
                hf_raise_for_status(response)
            return response

        client.request = once
        return client

    set_client_factory(factory)
    try:
        yield
    finally:
        set_client_factory(before)


def _prepare(
    api: Any, repo_id: str, private: bool, revision: str | None, notice: Callable[[str], None]
) -> None:
    """The repository and the branch, created where they do not exist."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and api.repo_info(repo_id).private is False:
        notice(
            f"{repo_id}: exists and stays public; make it private under {api.endpoint}/{repo_id}/settings"
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _commit(
    api: Any, repo_id: str, files: dict[str, pathlib.Path], revision: str | None, message: str
) -> str:
    """One commit, by create_commit: upload_folder makes several of a slow or large upload."""
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    return api.create_commit(
        repo_id, operations, commit_message=message, revision=revision
    ).commit_url


def _diagnosis(
    error: Exception, repo_id: str, directory: pathlib.Path, token: str
) -> tuple[str, float | None]:
    """What is the matter, in words, and the pause in seconds that the Hub asks for; trouble that does not pass is raised.

    Raised without the error as its cause, whose message may hold the token.
    """
    from huggingface_hub import errors

    causes = list(_causes(error))
    response = next(
        (cause.response for cause in causes if getattr(cause, "response", None) is not None), None
    )
    network = next(
        (cause for cause in causes if isinstance(cause, ConnectionError | TimeoutError)), None
    )
    status = response.status_code if response is not None else _xet_status(network)
    said = _plain(getattr(error, "server_message", None) or error, hide=token)
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        raise UserError(f"{repo_id}: HF_HUB_OFFLINE is set; unset it to push") from None
    if status in _BUSY or (status or 0) >= 500:
        return f"the Hub answered {status}", None if response is None else _asked_s(response)
    if status in _CONFLICT:
        return f"another change got in between ({status})", None
    if status in _REFUSED:
        raise UserError(
            f"{repo_id}: the token in HF_TOKEN is not accepted or may not write there ({status}: {said}); "
            f"make one with write permission under {_TOKENS} and set HF_TOKEN to it"
        ) from None
    if status == 404:
        raise UserError(
            f"{repo_id}: the Hub finds no such repository or branch ({said}); check the name"
        ) from None
    if status is not None:
        raise UserError(
            f"{repo_id}: the Hub does not take the export in {directory} ({status}: {said})"
        ) from None
    if network is None:
        raise _failed(repo_id, f"{type(error).__name__}: {said}", directory) from None
    return f"the connection failed ({_plain(network, hide=token)})", None


def _failed(repo_id: str, why: str, directory: pathlib.Path) -> RunFailed:
    return RunFailed(
        f"{repo_id}: not pushed, {why}; the export is kept in {directory}, and the same command goes on where it stopped"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what stands behind it; a file's trouble is wrapped by the library."""
    while error is not None:
        yield error
        error = error.__cause__


def _xet_status(error: BaseException | None) -> int | None:
    """The status in an error of Xet's client, whose kind is the same for a refusal and for a broken connection."""
    match = re.search(r"HTTP status (?:client|server) error \((\d{3})", str(error))
    return int(match[1]) if match else None


def _asked_s(response: Any) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):  # absent, or a date
        return None


def _plain(said: Any, *, hide: str) -> str:
    """A message of the library in one line of bearable length, without the token."""
    return " ".join(str(said).replace(hide, "***").split())[:300]
