"""Reads what errors of `huggingface_hub` say: their causes, and the pause that the Hub asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Names of classes: the release of huggingface_hub decides whether its HTTP library is
# httpx or httpx2.
_NETWORK = {"TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError"}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields the error and its causes; the library wraps the trouble with a single file."""
    while error is not None:
        yield error
        error = error.__cause__


def is_network(error: BaseException) -> bool:
    """Returns whether an error is trouble of the connection, by the HTTP library."""
    return bool(_NETWORK & {kind.__name__ for kind in type(error).__mro__})


def response_of(error: BaseException) -> Any:
    """Returns the answer of the Hub that an error or one of its causes holds, or None."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if response is not None:
            return response
    return None


def asked_s(response: Any) -> float | None:
    """Returns the seconds that an answer of the Hub asks to wait, or None."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):  # absent, or a date
        return None
