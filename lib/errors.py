# SPDX-License-Identifier: MIT-0
"""Define the exceptions that a call to the Mistral API can raise, and explain each one.

MistralError
 ├── APIConnectionError                no response came
 │    ├── APITimeoutError              the call took too long
 │    └── APIStreamBrokenError         the stream broke off
 ├── APIResponseValidationError        the server sent a success status, but no answer
 └── APIStatusError                    the server sent an unexpected status
      ├── BadRequestError              400: the request is invalid
      │    └── ContextLengthError      400: the prompt is longer than the model's context
      ├── AuthenticationError          401: the API key is missing, wrong or expired
      ├── PaymentRequiredError         402: the account's budget is used up
      ├── PermissionDeniedError        403: the key does not permit this request
      ├── NotFoundError                404: there is no such model or path
      ├── RequestTimeoutError          408: the request took too long to arrive
      ├── ConflictError                409: the request collided with another
      ├── UnprocessableEntityError     422: a field is missing, unknown or of the wrong type
      ├── RateLimitError               429: too many requests or tokens, or no capacity left
      │    └── InsufficientQuotaError  429: your plan lacks this model, or its quota is used up
      └── InternalServerError          the server or a gateway in front of it failed

Most names are those of the openai and anthropic SDKs, so their users already know them.
Each class says what it means, what to do about it, and whether it is ``retryable``: True if the
same request may succeed later. ``explain(error)`` turns this into one sentence. ``retry_after`` is
the seconds that the server asked for, or None.

Most 4xx are not retryable, because the same request would fail again. 408, 409 and 429 are:
the request was valid, but the server could not handle it at that moment. Every 5xx is the
server's failure and retryable, including unusual ones such as 520 and 529.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple

MAX_MESSAGE_LENGTH = 500  # characters
MAX_BODY_LENGTH = 1024 * 1024  # characters of an error's body that are read
BLANK = "\ufeff \t\r\n"  # may stand around JSON: a byte order mark, spaces and line ends
BACK_OFF = "retry with exponential backoff"


class MistralError(Exception):
    """The base class: ``except MistralError`` catches every failure of a call that was sent."""

    status: ClassVar[int | None] = None  # the HTTP status that the class stands for, if it is one
    meaning: str = ""
    what_to_do: str = ""
    retryable: bool = False
    retry_after: float | None = None
    another_model_may_help: bool = False  # so a fallback to another model makes sense


class APIConnectionError(MistralError):
    """The connection was refused or lost, or the host was not found."""

    meaning = "no response came"
    what_to_do = "check the network and MISTRAL_BASE_URL, then retry"
    retryable = True


class APITimeoutError(APIConnectionError):
    """The call took too long. The server may still have done (and billed) the work."""

    meaning = "the call took too long"
    what_to_do = "retry, allow more time or ask for a shorter answer"


class APIStreamBrokenError(APIConnectionError):
    """A stream broke off after its first text; ``partial_text`` is the text up to there.

    Not retryable: the user has already seen this text, and a new response would start over
    with different wording. Only the caller can decide whether to restart, continue or stop.
    """

    meaning = "the stream broke off"
    what_to_do = "keep partial_text, then decide whether to start again"
    retryable = False
    status_code = 200  # the response had started

    def __init__(self, message: str, partial_text: str) -> None:
        super().__init__(message, partial_text)
        self.partial_text = partial_text

    def __str__(self) -> str:
        return str(self.args[0])


class APIResponseValidationError(MistralError):
    """A 2xx response holds nothing that can be used: another page, or JSON that was cut off."""

    meaning = "the server sent a success status, but no answer"
    what_to_do = "check that MISTRAL_BASE_URL is the API and not another page"
    status_code = 200


class APIStatusError(MistralError):
    """The server reported an error.

    ``message`` is readable text. ``code`` is the API's own error code, ``request_id`` the
    ID to quote to the API's support, ``retry_after`` the seconds that the server asked for;
    each of these three may be None.
    """

    meaning = "the server sent an unexpected status"
    what_to_do = "check MISTRAL_BASE_URL and the request"
    # Statuses that share the class, but have a row of their own in the error table.
    by_status: ClassVar[dict[int, tuple[str, str]]] = {
        413: ("the request is too large", "send less text per request"),
    }

    def __init__(
        self,
        status_code: int,
        message: str,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        # Exception needs all arguments, so that the error can be pickled and copied.
        super().__init__(status_code, message, code, request_id, retry_after)
        self.status_code = status_code
        self.message = message
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        general = self.meaning, self.what_to_do
        self.meaning, self.what_to_do = self.by_status.get(status_code, general)

    def __str__(self) -> str:
        return self.message


class BadRequestError(APIStatusError):
    """400 Bad Request."""

    status = 400
    meaning = "the request is invalid"
    what_to_do = "correct it; the same request will fail again"


class ContextLengthError(BadRequestError):
    """The 400 whose code says that the prompt and the answer do not fit into the model."""

    meaning = "the prompt is longer than the model's context"
    what_to_do = "shorten it, or use a model with a larger context"
    another_model_may_help = True


class AuthenticationError(APIStatusError):
    """401 Unauthorized."""

    status = 401
    meaning = "the API key is missing, wrong or expired"
    what_to_do = "check MISTRAL_API_KEY"


class PaymentRequiredError(APIStatusError):
    """402 Payment Required."""

    status = 402
    meaning = "the account's budget is used up"
    what_to_do = "raise the limit or add credit in the console"


class PermissionDeniedError(APIStatusError):
    """403 Forbidden."""

    status = 403
    meaning = "the key does not permit this request"
    what_to_do = "use a key or a model that the workspace allows"


class NotFoundError(APIStatusError):
    """404 Not Found, and the 400 of the real API for an unknown model."""

    status = 404
    meaning = "there is no such model or path"
    what_to_do = "check the model's name and MISTRAL_BASE_URL"
    another_model_may_help = True


class RequestTimeoutError(APIStatusError):
    """408 Request Timeout."""

    status = 408
    meaning = "the request took too long to arrive"
    what_to_do = "retry"
    retryable = True


class ConflictError(APIStatusError):
    """409 Conflict."""

    status = 409
    meaning = "the request collided with another"
    what_to_do = "retry"
    retryable = True


class UnprocessableEntityError(APIStatusError):
    """422 Unprocessable Entity."""

    status = 422
    meaning = "a field is missing, unknown or of the wrong type"
    what_to_do = "correct the field that the message names"


class RateLimitError(APIStatusError):
    """429 Too Many Requests."""

    status = 429
    meaning = "too many requests or tokens, or no capacity left"
    what_to_do = "wait, then send fewer requests per minute"
    retryable = True


class InsufficientQuotaError(RateLimitError):
    """A 429 that stays: the limit is 0, or the code says that the quota is used up."""

    meaning = "your plan lacks this model, or its quota is used up"
    what_to_do = "choose another model or upgrade the plan; waiting does not help"
    retryable = False

    def __str__(self) -> str:
        return f"{self.message} ({self.meaning})"


class InternalServerError(APIStatusError):
    """Any 5xx."""

    meaning = "the server or a gateway in front of it failed"
    what_to_do = BACK_OFF
    retryable = True
    by_status: ClassVar[dict[int, tuple[str, str]]] = {
        500: ("the server failed", BACK_OFF),
        502: ("a gateway got no valid response from the server", BACK_OFF),
        503: ("the service is unavailable or overloaded", f"{BACK_OFF}, or fall back"),
        504: ("a gateway waited too long for the server", "retry, or ask for a shorter answer"),
    }


class InvalidRequestError(ValueError):
    """The request is invalid, so it was not sent: the calling program has a bug.

    It is not a MistralError, since nothing went wrong at the API. It is marked as not
    retryable, so it is not retried, does not open a circuit and is not hidden by a fallback.
    """

    retryable = False


class ErrorInfo(NamedTuple):
    """One row of the error table.

    ``status`` is None for connection errors, and for any status without a row of its own.
    """

    status: int | None
    error: type[MistralError]
    meaning: str
    what_to_do: str

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.error.retryable


def _rows(*classes: type[MistralError]) -> Iterator[ErrorInfo]:
    """Yield the rows of these classes and of all classes below them."""
    for error in classes:
        for status, texts in vars(error).get("by_status", {}).items():
            yield ErrorInfo(status, error, *texts)
        yield ErrorInfo(error.status, error, error.meaning, error.what_to_do)
        yield from _rows(*error.__subclasses__())


# By status; rows without a status come last.
ERROR_TABLE: tuple[ErrorInfo, ...] = tuple(
    sorted(_rows(*MistralError.__subclasses__()), key=lambda row: row.status or math.inf)
)
_FIRST_ROW = {row.status or row.error: row for row in reversed(ERROR_TABLE)}


def error_info(status_code: int) -> ErrorInfo:
    """Return the error table's row for an HTTP status.

    A status without a row of its own gets the row for any other 5xx, or the one for any
    unexpected status.
    """
    family = InternalServerError if 500 <= status_code <= 599 else APIStatusError
    return _FIRST_ROW.get(status_code, _FIRST_ROW[family])


def is_retryable_status(status_code: int) -> bool:
    """Return whether a request that got this HTTP status may succeed later.

    Use it to mark the errors of other libraries: ``error.retryable = is_retryable_status(503)``.
    """
    return error_info(status_code).retryable


def explain(error: BaseException) -> str:
    """Return one sentence that tells the user what happened and what to do about it.

    Any exception with the attributes ``meaning`` and ``what_to_do`` is explained in this way.
    """
    last_failure = getattr(error, "last_failure", None)
    if last_failure is not None:  # a CircuitOpenError
        seconds = math.ceil(getattr(error, "retry_after", 0.0))
        advice = f"try again in {seconds} s" if seconds else "a probe is under way, try again soon"
        return f"{error} (after {last_failure}): {advice}."
    meaning = getattr(error, "meaning", "")
    if not meaning:
        return f"{type(error).__name__}: {error}"
    detail = str(error)
    if isinstance(error, APIStatusError):
        detail, status = error.message.rstrip("."), str(error.status_code)
        detail = detail if status in detail else f"{status}, {detail}"
        if error.retry_after is not None:
            detail += f"; the server asks for {error.retry_after:g} s"
    return f"{meaning[0].upper()}{meaning[1:]} ({detail}): {getattr(error, 'what_to_do', '')}."


# What a ``code`` or ``type`` in an error's body says beyond the status.
ERRORS_BY_CODE: Mapping[str | None, type[APIStatusError]] = {
    "1500": NotFoundError,  # Mistral's 400 for an unknown model
    "3051": ContextLengthError,  # Mistral
    "context_length_exceeded": ContextLengthError,  # OpenAI, Azure and others
    "exceed_context_size_error": ContextLengthError,  # llama.cpp
    "insufficient_quota": InsufficientQuotaError,  # OpenAI
}
# Where servers and gateways write a message and a status.
MESSAGE_FIELDS = (
    "msg", "message", "Message", "detail", "error_description", "error", "errors", "fault",
    "faultstring", "title",
)  # fmt: skip
STATUS_FIELDS = ("raw_status_code", "http_status_code", "status_code", "status", "code")
LIMIT_HEADERS = ("x-ratelimit-limit-req-minute", "x-ratelimit-limit-tokens-minute")
_ERROR_STATUS = re.compile("[45][0-9][0-9]")
_PLAIN_TEXT = re.compile(r"[\d\s]*[^\W\d_]")  # not HTML, JSON that was cut off, or binary data


def error_from_response(status_code: int, headers: Mapping[str, str], body: str) -> APIStatusError:
    """Return the exception for an error response, whatever shape its body has.

    A status in the body takes precedence over the response's, since gateways pass on the errors of
    other servers. For an error in a 200, pass 500. ``headers`` must be a case-insensitive mapping,
    such as ``response.headers`` of requests.
    """
    message, facts = _read_body(body)
    named = ERRORS_BY_CODE.get(facts.get("code"), ERRORS_BY_CODE.get(facts.get("type")))
    texts = [facts.get(name, "") for name in STATUS_FIELDS]
    status = int(next(filter(_ERROR_STATUS.fullmatch, texts), status_code))
    if status == 500 and named:
        status = named.status or 500
    return _error_class(status, named, headers)(
        status,
        _one_line(message) or _phrase(status),
        _first_line(facts.get("code", "")),
        _first_line(headers.get("mistral-correlation-id", ""), facts.get("request_id", "")),
        read_retry_after(headers),
    )


def _error_class(
    status: int, named: type[APIStatusError] | None, headers: Mapping[str, str]
) -> type[APIStatusError]:
    if status == 429 and "0" in map(headers.get, LIMIT_HEADERS):
        return InsufficientQuotaError
    if named and status in (400, named.status):
        return named
    error_class = error_info(status).error
    assert issubclass(error_class, APIStatusError)
    return error_class


def _read_body(body: str) -> tuple[str, dict[str, str]]:
    """Return the message in a body, and what its fields say."""
    text = body[:MAX_BODY_LENGTH].strip(BLANK)
    try:
        content = json.loads(text)
        return _message_in(content), _facts_in(content)
    except (ValueError, RecursionError):
        return (text if _PLAIN_TEXT.match(text) else ""), {}


def _message_in(content: Any) -> str:
    """Return the readable part of an error body, whatever shape it has."""
    if isinstance(content, str):
        return content
    messages = filter(None, map(_message_in, _parts(content)))
    if isinstance(content, list):
        return "; ".join(messages)
    message = next(messages, "")
    if message and isinstance(content.get("loc"), list):
        return f"{'.'.join(map(str, content['loc']))}: {message}"
    return message


def _facts_in(content: Any) -> dict[str, str]:
    """Return the texts and numbers of a body's objects; those of inner objects count more."""
    facts: dict[str, str] = {}
    if isinstance(content, dict):
        facts = {name: str(each) for name, each in content.items() if isinstance(each, (str, int))}
    for part in reversed(_parts(content)):  # so that the first one counts most
        facts.update(_facts_in(part))
    return facts


def _parts(content: Any) -> list[Any]:
    """Return the items of a list, or the fields of an object that may hold a message."""
    if isinstance(content, dict):
        return [content[name] for name in MESSAGE_FIELDS if name in content]
    return content if isinstance(content, list) else []


def _one_line(text: str) -> str:
    """Return the text as one short line that is safe to print, without terminal codes."""
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE_LENGTH else text[: MAX_MESSAGE_LENGTH - 3] + "..."


def _first_line(*texts: str) -> str | None:
    """Return the first text that says something, as one line."""
    return next(filter(None, map(_one_line, texts)), None)


def _phrase(status_code: int) -> str:
    """Return the standard name of a status ("Bad Gateway"), for a body without a message."""
    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return f"HTTP status {status_code}"


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait that a response's headers ask for, or None.

    ``retry-after-ms`` is more exact than ``Retry-After``, so it is used if it is there.
    """
    milliseconds = parse_retry_after(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    return parse_retry_after(headers.get("Retry-After"))


def parse_retry_after(value: str | None, now: float | None = None) -> float | None:
    """Return the seconds to wait from a Retry-After header, or None if it is unusable.

    Accepts a number of seconds or any HTTP date (RFC 9110, 10.2.3); a date without
    a zone is UTC. ``now`` is in seconds since the epoch, by default the current time.
    Returns None for anything malformed, negative or infinite, and for a date in the past.

    >>> parse_retry_after("2")
    2.0
    >>> parse_retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=50.0)
    10.0
    >>> parse_retry_after("1e400") is None
    True
    """
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        seconds = float(text)
    else:
        seconds = _timestamp(text) - (time.time() if now is None else now)
    return seconds if 0 <= seconds < math.inf else None


def _timestamp(date: str) -> float:
    """Return an HTTP date in seconds since the epoch, or NaN if the text is not a date."""
    try:
        parsed = parsedate_to_datetime(date)
        return parsed.replace(tzinfo=parsed.tzinfo or timezone.utc).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan
