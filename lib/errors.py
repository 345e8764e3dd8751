# SPDX-License-Identifier: MIT-0
"""Define the exceptions that a call to the Mistral API can raise, and explain each one.

MistralError
 ├── APIConnectionError              no response: refused, host not found, disconnected
 │    ├── APITimeoutError            no response in time
 │    └── APIStreamBrokenError       the stream broke off after its first text
 ├── APIResponseValidationError      a 2xx response that is not a chat completion
 └── APIStatusError                  a response with an error status
      ├── BadRequestError            400
      ├── AuthenticationError        401
      ├── PaymentRequiredError       402
      ├── PermissionDeniedError      403
      ├── NotFoundError              404, and the 400 for an unknown model
      ├── RequestTimeoutError        408
      ├── ConflictError              409
      ├── UnprocessableEntityError   422
      ├── RateLimitError             429
      │    └── InsufficientQuotaError    a 429 that waiting cannot cure
      └── InternalServerError        5xx

Most names are those of the openai and anthropic SDKs, so their users already know them.
Every error has two attributes: ``retryable`` (may the same request succeed later?) and
``retry_after`` (the seconds that the server asked for, or None). ``ERROR_TABLE`` says what
each error means and what to do about it.

Most 4xx are not retryable, because the same request would fail again. 408, 409 and 429 are:
the request was fine, but it came at a bad time. Every 5xx is the server's failure and
retryable, including unusual ones such as 520 and 529.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple

MAX_MESSAGE_LENGTH = 500  # characters
UNKNOWN_MODEL = "1500"  # the error code in the real API's 400 for an unknown model


class MistralError(Exception):
    """The base class: ``except MistralError`` catches every failure of a call that was sent."""

    retryable: bool = False
    retry_after: float | None = None


class APIConnectionError(MistralError):
    """No response: the connection was refused or lost, or the host was not found."""

    retryable = True


class APITimeoutError(APIConnectionError):
    """No response in time. The server may still have done (and billed) the work."""


class APIStreamBrokenError(APIConnectionError):
    """A stream broke off after its first text; ``partial_text`` is the text up to there.

    Not retryable: the user has already seen this text, and a new response would start over
    with different wording. Only the caller can decide whether to restart, continue or stop.
    """

    retryable = False
    status_code = 200  # the response had started

    def __init__(self, message: str, partial_text: str) -> None:
        super().__init__(message, partial_text)
        self.partial_text = partial_text

    def __str__(self) -> str:
        return str(self.args[0])


class APIResponseValidationError(MistralError):
    """The server sent a 2xx status, but the body is not a chat completion."""

    status_code = 200


class APIStatusError(MistralError):
    """The server responded with an error status.

    ``message`` is readable text. ``code`` is the API's own error code, ``request_id`` the
    ID to quote to the API's support, ``retry_after`` the seconds that the server asked for;
    each of these three may be None.
    """

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

    def __str__(self) -> str:
        return self.message


class BadRequestError(APIStatusError):
    """400: the request is invalid."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing, wrong or expired."""


class PaymentRequiredError(APIStatusError):
    """402: the account's budget is used up."""


class PermissionDeniedError(APIStatusError):
    """403: the key is valid, but does not permit this request."""


class NotFoundError(APIStatusError):
    """404: no such path or model; also the real API's 400 for an unknown model."""


class RequestTimeoutError(APIStatusError):
    """408: the request took too long to arrive."""

    retryable = True


class ConflictError(APIStatusError):
    """409: the request collided with another."""

    retryable = True


class UnprocessableEntityError(APIStatusError):
    """422: a field is missing, unknown or of the wrong type."""


class RateLimitError(APIStatusError):
    """429: too many requests or tokens, or no capacity left for this model."""

    retryable = True


class InsufficientQuotaError(RateLimitError):
    """A permanent 429: the plan's limit for this model is zero, or its quota is used up."""

    retryable = False

    def __str__(self) -> str:
        return f"{self.message} (your plan lacks this model or its quota: waiting does not help)"


class InternalServerError(APIStatusError):
    """5xx: the server failed."""

    retryable = True


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


_BACK_OFF = "retry with exponential backoff"

ERROR_TABLE: tuple[ErrorInfo, ...] = (
    ErrorInfo(400, BadRequestError, "the request is invalid",
              "correct it; the same request will fail again"),
    ErrorInfo(401, AuthenticationError, "the API key is missing, wrong or expired",
              "check MISTRAL_API_KEY"),
    ErrorInfo(402, PaymentRequiredError, "the account's budget is used up",
              "raise the limit or add credit in the console"),
    ErrorInfo(403, PermissionDeniedError, "the key does not permit this request",
              "use a key or a model that the workspace allows"),
    ErrorInfo(404, NotFoundError, "there is no such model or path",
              "check the model's name and MISTRAL_BASE_URL"),
    ErrorInfo(408, RequestTimeoutError, "the request took too long to arrive", "retry"),
    ErrorInfo(409, ConflictError, "the request collided with another", "retry"),
    ErrorInfo(413, APIStatusError, "the request is too large", "send less text per request"),
    ErrorInfo(422, UnprocessableEntityError, "a field is missing, unknown or of the wrong type",
              "correct the field that the message names"),
    ErrorInfo(429, RateLimitError, "too many requests or tokens, or no capacity left",
              "wait, then send fewer requests per minute"),
    ErrorInfo(429, InsufficientQuotaError, "your plan does not include this model, or its quota "
              "is used up", "choose another model or upgrade the plan; waiting does not help"),
    ErrorInfo(500, InternalServerError, "the server failed", _BACK_OFF),
    ErrorInfo(502, InternalServerError, "a gateway got no valid response from the server",
              _BACK_OFF),
    ErrorInfo(503, InternalServerError, "the service is unavailable or overloaded",
              f"{_BACK_OFF}, or fall back"),
    ErrorInfo(504, InternalServerError, "a gateway waited too long for the server",
              "retry, or ask for a shorter answer"),
    ErrorInfo(None, InternalServerError, "the server or a gateway in front of it failed",
              _BACK_OFF),
    ErrorInfo(None, APITimeoutError, "no response came in time",
              "retry, allow more time or ask for a shorter answer"),
    ErrorInfo(None, APIStreamBrokenError, "the stream broke off",
              "keep partial_text, then decide whether to start again"),
    ErrorInfo(None, APIConnectionError, "no response came",
              "check the network and MISTRAL_BASE_URL, then retry"),
    ErrorInfo(None, APIResponseValidationError, "the response is not a chat completion",
              "check that MISTRAL_BASE_URL is the API and not another page"),
    ErrorInfo(None, APIStatusError, "the server sent an unexpected status",
              "check MISTRAL_BASE_URL and the request"),
)  # fmt: skip


def error_info(status_code: int) -> ErrorInfo:
    """Return the error table's row for an HTTP status.

    A status without a row of its own gets the row for any other 5xx, or the one for any
    unexpected status.
    """
    for row in ERROR_TABLE:
        if row.status == status_code:
            return row
    family = InternalServerError if 500 <= status_code <= 599 else APIStatusError
    return next(row for row in ERROR_TABLE if row.status is None and row.error is family)


def is_retryable_status(status_code: int) -> bool:
    """Return whether a request that got this HTTP status may succeed later.

    Use it to mark the errors of other libraries: ``error.retryable = is_retryable_status(503)``.
    """
    return error_info(status_code).retryable


def explain(error: BaseException) -> str:
    """Return one sentence that tells the user what happened and what to do about it."""
    last_failure = getattr(error, "last_failure", None)
    if last_failure is not None:  # a CircuitOpenError
        seconds = getattr(error, "retry_after", 0.0)
        return f"{error} (after {last_failure}): try again in {math.ceil(seconds)} s."
    row = _row_of(error)
    if row is None:
        return f"{type(error).__name__}: {error}"
    detail = str(error)
    if isinstance(error, APIStatusError):
        detail = f"{error.status_code}, {detail}"
        if error.retry_after is not None:
            detail += f"; the server asks for {error.retry_after:g} s"
    return f"{row.meaning[0].upper()}{row.meaning[1:]} ({detail}): {row.what_to_do}."


def _row_of(error: BaseException) -> ErrorInfo | None:
    """Return the row of the error's class and status, or of the nearest class with a row."""
    status = getattr(error, "status_code", None)
    for cls in type(error).__mro__:
        rows = {row.status: row for row in ERROR_TABLE if row.error is cls}
        if rows:
            return rows.get(status) or rows.get(None) or next(iter(rows.values()))
    return None


def error_from_response(status_code: int, headers: Mapping[str, str], body: str) -> APIStatusError:
    """Return the exception for an error response, whatever shape its body has.

    ``headers`` must be a case-insensitive mapping, such as ``response.headers`` of requests.
    """
    message, code, request_id = "", None, None
    try:
        fields = json.loads(body)
        message = _message_in(fields)
        if isinstance(fields, dict):
            nested = fields.get("error")
            source = nested if isinstance(nested, dict) else fields
            code = _text_or_none(source.get("code"))
            request_id = _text_or_none(fields.get("request_id"))
    except (ValueError, RecursionError):
        pass  # An HTML page of a gateway, or an empty body: the status gives the message.
    return _error_class(status_code, headers, code)(
        status_code,
        _one_line(message) or _phrase(status_code),
        code,
        _text_or_none(headers.get("mistral-correlation-id")) or request_id,
        parse_retry_after(headers.get("Retry-After")),
    )


def _error_class(
    status_code: int, headers: Mapping[str, str], code: str | None
) -> type[APIStatusError]:
    if status_code == 400 and code == UNKNOWN_MODEL:
        return NotFoundError
    if status_code == 429 and (
        headers.get("x-ratelimit-limit-req-minute") == "0" or code == "insufficient_quota"
    ):
        return InsufficientQuotaError
    error_class = error_info(status_code).error
    assert issubclass(error_class, APIStatusError)
    return error_class


def _message_in(body: Any) -> str:
    """Return the readable part of an error body, which may have any of the API's shapes."""
    if isinstance(body, str):
        return body
    if isinstance(body, list):
        return "; ".join(filter(None, map(_message_in, body)))
    if isinstance(body, dict):
        if isinstance(body.get("msg"), str):
            field = body.get("loc")
            where = ".".join(map(str, field)) if isinstance(field, list) else ""
            return f"{where}: {body['msg']}" if where else str(body["msg"])
        for name in ("message", "detail", "error"):
            if found := _message_in(body.get(name)):
                return found
    return ""


def _text_or_none(value: Any) -> str | None:
    return _one_line(str(value)) if isinstance(value, (str, int)) else None


def _one_line(text: str) -> str:
    """Return the text as one short line that is safe to print, without terminal codes."""
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE_LENGTH else text[: MAX_MESSAGE_LENGTH - 3] + "..."


def _phrase(status_code: int) -> str:
    """Return the standard name of a status ("Bad Gateway"), for a body without a message."""
    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return f"HTTP status {status_code}"


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
        return seconds if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:
            date = date.replace(tzinfo=timezone.utc)
        seconds = date.timestamp() - (time.time() if now is None else now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return seconds if seconds >= 0 else None
