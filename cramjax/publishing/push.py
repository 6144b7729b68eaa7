"""Pushes an exported directory to the Hugging Face Hub as one commit.

Trouble of the network or of the Hub is waited for and tried again.
"""

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
from cramjax.hub import replies

ATTEMPTS = 6
FIRST_PAUSE_S = 2.0  # doubled from one attempt to the next
PATIENCE_S = 360.0  # all pauses together; the Hub counts requests in windows of 300 s

_TIMEOUT_S = (10.0, 60.0, 60.0, None)  # to connect, read, write, and wait for a pooled connection
_TOKENS = "https://huggingface.co/settings/tokens"
_BUSY = (408, 429)  # and all from 500 on
_CONFLICT = (409, 412)
_REFUSED = (401, 403)
# Xet stores the Hub's large files. Its client repeats requests for minutes by itself, which would
# multiply with our attempts.
_XET = {
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
    "HF_XET_CLIENT_CONNECT_TIMEOUT": "10s",
    "HF_XET_CLIENT_READ_TIMEOUT": "60s",
}


def push(
    directory: pathlib.Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str,
    tell: Callable[[str], None],
) -> str:
    """Push all files of `directory` in one commit.

    Files that the Hub has are not sent again, so a failed push can be repeated.

    Args:
        directory: an export, with its config.json.
        repo_id: USER/NAME; created if it does not exist.
        private: make a new repository private. An existing one stays as it is.
        revision: the branch, created if it does not exist; None for the main one.
        message: of the commit.
        tell: gets a line before each new attempt, and one if `private` is set but the repository
            is public.

    Returns:
        The address of the commit, or of the branch's last commit if nothing changed.

    Raises:
        UserError: if the name, the directory or HF_TOKEN is wrong, or the Hub refuses.
        RunFailed: if the last attempt failed.
    """
    token = check(repo_id)
    files = _files(directory)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    tell_once = functools.cache(tell)  # attempts repeat the same notice
    pause_s, waited_s = FIRST_PAUSE_S, 0.0
    with _single_requests():
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _prepare(api, repo_id, private, revision, tell_once)
                return _commit(api, repo_id, files, revision, message)
            except Exception as error:  # three libraries raise too many kinds to list
                trouble, asked_s = _diagnosis(error, repo_id, directory, token)

            wait_s = pause_s if asked_s is None else asked_s
            if attempt == ATTEMPTS or waited_s + wait_s > PATIENCE_S:
                if asked_s is not None:
                    trouble += f", asks for a pause of {asked_s:.0f} s"
                trouble += f" (attempt {attempt} of {ATTEMPTS})"
                raise _failure(repo_id, trouble, directory)

            tell(
                f"{repo_id}: {trouble}; trying again in {wait_s:.0f} s "
                f"(attempt {attempt + 1} of {ATTEMPTS})"
            )
            time.sleep(wait_s)
            pause_s *= 2
            waited_s += wait_s
    raise AssertionError("the last attempt returns or raises")


def check(repo_id: str) -> str:
    """Returns the token from the environment.

    Raises:
        UserError: if there is no token, or `repo_id` cannot name a repository.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id}: must have the form USER/NAME ({error})") from None
    if "/" not in repo_id:
        raise UserError(f"{repo_id}: must have the form USER/NAME")
    return _token()


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError(
            f"HF_TOKEN is not set; make a token with write permission under {_TOKENS} "
            "and set HF_TOKEN to it"
        )
    # An HTTP library that refuses such a header shows it.
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"HF_TOKEN holds a character that no token has; copy it anew from {_TOKENS}"
        )
    return token


def _files(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns name in the repository → file, without the folders that the Hub refuses."""
    from huggingface_hub.utils import FORBIDDEN_FOLDERS

    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; name one that holds an export")
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: holds no config.json; name a directory that holds an export")

    files = {}
    home = directory.resolve()
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        # A link out of the export is not part of it.
        is_inside = path.is_file() and path.resolve().is_relative_to(home)
        if is_inside and not set(FORBIDDEN_FOLDERS) & set(name.parts):
            files[name.as_posix()] = path
    return files


@contextlib.contextmanager
def _single_requests() -> Iterator[None]:
    """Within the block each request is made once (twice by Xet), and ends in time.

    huggingface_hub repeats some requests up to five times, silently, and pauses as long as the
    server likes. That would multiply with our attempts. It also waits for an answer without end.
    """
    from huggingface_hub import get_session

    for name, value in _XET.items():
        os.environ.setdefault(name, value)

    # All requests of the library go through this one client.
    client = get_session()
    timeout = client.timeout
    client.timeout = _TIMEOUT_S
    client.request = functools.partial(_request_once, client.request)
    try:
        yield
    finally:
        del client.request  # the method of its class again
        client.timeout = timeout


def _request_once(request: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make a request, and raise trouble as a kind of error that huggingface_hub does not repeat."""
    from huggingface_hub.utils import hf_raise_for_status

    if "timeout" in kwargs and kwargs["timeout"] is None:
        kwargs["timeout"] = _TIMEOUT_S
    try:
        response = request(*args, **kwargs)
    except Exception as error:
        if replies.is_network(error):
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        raise

    # create_repo repeats this answer without end or pause.
    is_contended = (
        response.status_code == 409
        and "another conflicting operation is in progress" in response.text
    )
    if response.status_code in _BUSY or response.status_code >= 500 or is_contended:
        hf_raise_for_status(response)
    return response


def _prepare(
    api: Any, repo_id: str, private: bool, revision: str | None, tell: Callable[[str], None]
) -> None:
    """Create the repository and the branch if they do not exist."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and api.repo_info(repo_id).private is False:
        tell(
            f"{repo_id}: exists and stays public; "
            f"make it private under {api.endpoint}/{repo_id}/settings"
        )
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _commit(
    api: Any, repo_id: str, files: dict[str, pathlib.Path], revision: str | None, message: str
) -> str:
    """Make one commit; upload_folder would make several of a slow or large upload."""
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return commit.commit_url


def _diagnosis(
    error: Exception, repo_id: str, directory: pathlib.Path, token: str
) -> tuple[str, float | None]:
    """Returns passing trouble in words, and the pause in seconds that the Hub asks for (or None).

    Raises:
        UserError: if the Hub refuses.
        RunFailed: for any other trouble that does not pass.

    Both are raised without `error` as their cause: its message may hold the token.
    """
    from huggingface_hub import errors

    causes = list(replies.causes(error))
    response, network = replies.response_of(error), None
    for cause in causes:
        if network is None and isinstance(cause, ConnectionError | TimeoutError):
            network = cause
    status = _xet_status(network) if response is None else response.status_code
    said = _plain(getattr(error, "server_message", None) or error, hide=token)

    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        raise UserError(f"{repo_id}: HF_HUB_OFFLINE is set; unset it to push") from None
    if status is None:
        if network is None:
            raise _failure(repo_id, f"{type(error).__name__}: {said}", directory) from None
        return f"the connection failed ({_plain(network, hide=token)})", None

    if status in _BUSY or status >= 500:
        asked_s = None if response is None else replies.asked_s(response)
        return f"the Hub answered {status}", asked_s
    if status in _CONFLICT:
        return f"another change got in between ({status})", None
    raise _refusal(repo_id, status, said, directory) from None


def _refusal(repo_id: str, status: int, said: str, directory: pathlib.Path) -> UserError:
    """Returns the error for a status that does not pass."""
    if status in _REFUSED:
        return UserError(
            f"{repo_id}: the token in HF_TOKEN is not accepted or may not write there "
            f"({status}: {said}); make one with write permission under {_TOKENS} "
            "and set HF_TOKEN to it"
        )
    if status == 404:
        return UserError(
            f"{repo_id}: the Hub finds no such repository or branch ({said}); check the name"
        )
    return UserError(
        f"{repo_id}: the Hub does not take the export in {directory} ({status}: {said})"
    )


def _failure(repo_id: str, reason: str, directory: pathlib.Path) -> RunFailed:
    return RunFailed(
        f"{repo_id}: not pushed, {reason}; the export is kept in {directory}, "
        "and the same command goes on where it stopped"
    )


def _xet_status(error: BaseException | None) -> int | None:
    """Returns the status in an error of Xet's client, or None.

    That client raises the same kind for a refusal and for a broken connection.
    """
    match = re.search(r"HTTP status (?:client|server) error \((\d{3})", str(error))
    return int(match[1]) if match else None


def _plain(said: Any, *, hide: str) -> str:
    """Returns a message of the library in one line of at most 300 characters, without the token."""
    return " ".join(str(said).replace(hide, "***").split())[:300]
