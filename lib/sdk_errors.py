# SPDX-License-Identifier: MIT-0
"""Read other libraries' errors: what the server said, and whether a retry makes sense.

Copy this file alone: it needs the standard library only.

    >>> class APIStatusError(Exception):        # what openai and anthropic raise
    ...     status_code = 503
    >>> try:
    ...     with marked():
    ...         raise APIStatusError("Service unavailable.")
    ... except APIStatusError as error:
    ...     print(error.retryable, error.retry_after, error.status_code)
    True None 503

The helpers look at three attributes of an error: ``retryable``, ``retry_after`` and
``status_code``. Libraries keep these facts in different places: httpx has the status only in
``error.response``, aiohttp calls it ``status``, litellm keeps the headers of the response
somewhere else, and instructor wraps the error of another library. ``mark`` finds them.

It knows the errors of requests, urllib3, httpx, aiohttp, openai, anthropic, mistralai,
litellm, langchain, pydantic-ai and instructor by their shape and by the names of their
classes, so it imports none of them. `make bench-sdks` checks it with the real ones.
"""

from __future__ import annotations

import contextlib
import math
import operator
import re
import time
from collections.abc import Iterator, Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

E = TypeVar("E", bound=BaseException)


class Facts(NamedTuple):
    """What an error says. ``status_code`` is None if there was no response."""

    retryable: bool
    retry_after: float | None = None
    status_code: int | None = None


UNKNOWN = Facts(retryable=False)  # no facts; compared with `is`

# An error is recognized by the name of its class, or of its nearest base class in this table.
KNOWN_CLASSES: dict[str, Facts] = {
    **dict.fromkeys((  # the URL is wrong: nothing was sent
        "InvalidURL", "InvalidSchema", "MissingSchema", "LocationParseError", "UnsupportedProtocol",
    ), Facts(retryable=False)),
    **dict.fromkeys((  # a timeout, or a connection that failed or was lost
        "TimeoutError", "ConnectionError",  # Python, asyncio, requests, urllib3
        "Timeout", "ChunkedEncodingError",  # requests, litellm
        "ProtocolError", "NewConnectionError", "MaxRetryError",  # urllib3
        "TransportError",  # httpx, mistralai, langchain-mistralai
        "ClientConnectionError", "ClientPayloadError",  # aiohttp
        "APIConnectionError", "APITimeoutError",  # openai, anthropic, litellm, langchain-openai
        "ModelConnectionError", "ModelTimeoutError",  # pydantic-ai
    ), Facts(retryable=True)),
}  # fmt: skip

# Where the other errors keep their facts. A dot leads from one attribute to the next.
STATUS = ("status_code", "status", "response.status_code")
HEADERS = ("response.headers", "headers", "litellm_response_headers")
BODY = ("body", "message", "response.text")

HTTP_STATUSES = range(100, 600)
RETRYABLE_STATUSES = {408, 409, 429, *range(500, 600)}
LIMIT_HEADERS = ("x-ratelimit-limit-req-minute", "x-ratelimit-limit-tokens-minute")
USED_UP = re.compile(r"""["']insufficient_quota["']""")
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
MAX_DEPTH = 10  # of errors that were raised from each other, and of groups in groups


def mark(error: E) -> E:
    """Set ``retryable``, ``retry_after`` and ``status_code`` where missing; return the error.

    ``retry_after`` is in seconds. A status that a library invented for a timeout or a lost
    connection becomes None. An error of no known shape is left as it is. An exception group is
    retryable if all of its members are. Never raises, even if reading an attribute does.
    """
    with contextlib.suppress(Exception):
        _add_missing(_facts_of(error), error)
    return error


@contextlib.contextmanager
def marked() -> Iterator[None]:
    """Mark the error that leaves the block: ``with marked(): client.chat(...)``."""
    try:
        yield
    except Exception as error:
        mark(error)
        raise


def _add_missing(facts: Facts, error: BaseException) -> None:
    if facts is UNKNOWN:
        return
    is_foreign = _get(error, "retryable") is None
    for name, value in facts._asdict().items():
        if _get(error, name) is None or (is_foreign and name == "status_code"):
            with contextlib.suppress(Exception):  # a class may forbid it
                setattr(error, name, value)


def _facts_of(error: object, depth: int = 0) -> Facts:
    """Return the facts of a group's members, or else of the error, or else of its cause."""
    if not isinstance(error, BaseException) or depth > MAX_DEPTH:
        return UNKNOWN
    members = _get(error, "exceptions")
    if members and isinstance(members, (list, tuple)):
        return _facts_of_all([_facts_of(member, depth + 1) for member in members])
    for cls in type(error).__mro__:
        if cls.__name__ in KNOWN_CLASSES:
            return KNOWN_CLASSES[cls.__name__]
    status = next(filter(HTTP_STATUSES.__contains__, _values(error, STATUS)), None)
    if status is None:
        return _facts_of(error.__cause__, depth + 1)
    headers = _headers(error)
    return Facts(_may_succeed_later(error, status, headers), _retry_after(headers), status)


def _facts_of_all(members: list[Facts]) -> Facts:
    """Return what a group of errors says: the longest wait, and the worst status."""
    retryable, waits, statuses = zip(*members, strict=True)
    wait = max(filter(None, waits), default=None)
    return Facts(all(retryable), wait, max(filter(None, statuses), default=None))


def _may_succeed_later(error: BaseException, status: int, headers: Mapping[str, str]) -> bool:
    """Return whether a request that got this response may succeed later."""
    if status == 429 and _quota_is_used_up(error, headers):
        return False
    server_says = headers.get("x-should-retry", "")
    return {"true": True, "false": False}.get(server_says, status in RETRYABLE_STATUSES)


def _quota_is_used_up(error: BaseException, headers: Mapping[str, str]) -> bool:
    """Return whether a 429 is permanent: the limit is zero, or the quota is used up."""
    body = ""
    with contextlib.suppress(Exception):  # its __str__ may raise
        body = " ".join(map(str, _values(error, BODY)))
    return "0" in map(headers.get, LIMIT_HEADERS) or bool(USED_UP.search(body))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asked for, or None if it asked for nothing usable."""
    milliseconds = _seconds(headers.get("retry-after-ms", ""))
    return _seconds(headers.get("retry-after", "")) if milliseconds is None else milliseconds / 1000


def _seconds(text: str) -> float | None:
    """Return the seconds of a number or until an HTTP date; None if negative or malformed."""
    text = text.strip()
    with contextlib.suppress(ValueError, TypeError, IndexError, OverflowError):
        seconds = float(text) if NUMBER.fullmatch(text) else _timestamp(text) - time.time()
        return seconds if 0 <= seconds < math.inf else None
    return None


def _timestamp(http_date: str) -> float:
    date = parsedate_to_datetime(http_date)
    return date.replace(tzinfo=date.tzinfo or timezone.utc).timestamp()


def _headers(error: BaseException) -> dict[str, str]:
    """Return all headers that the error carries, with names in lower case."""
    headers: dict[str, str] = {}
    for found in _values(error, HEADERS):
        with contextlib.suppress(Exception):
            headers.update({str(name).lower(): str(value) for name, value in found.items()})
    return headers


def _values(error: BaseException, paths: tuple[str, ...]) -> list[Any]:
    """Return what the error has at these paths; what it does not have is left out."""
    found = []
    for path in paths:
        with contextlib.suppress(Exception):  # httpx: a streamed response may have no text yet
            found.append(operator.attrgetter(path)(error))
    return found


def _get(error: BaseException, name: str) -> Any:
    """Return an attribute, or None if there is none or its property fails."""
    with contextlib.suppress(Exception):
        return getattr(error, name, None)
