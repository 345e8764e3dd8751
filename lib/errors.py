# SPDX-License-Identifier: MIT-0
"""What can go wrong in a call to the Mistral API: one tree of exceptions, one table.

MistralError
 ├── APIConnectionError              no answer: refused, host not found, cut off
 │    ├── APITimeoutError            no answer in time
 │    └── APIStreamBrokenError       a streamed answer that stopped half way
 ├── APIResponseValidationError      a 2xx answer that is no chat completion
 └── APIStatusError                  an answer that says no
      ├── BadRequestError            400
      ├── AuthenticationError        401
      ├── PaymentRequiredError       402
      ├── PermissionDeniedError      403
      ├── NotFoundError              404
      ├── UnprocessableEntityError   422
      ├── RateLimitError             429
      └── InternalServerError        5xx

The names are those of the openai and anthropic SDKs, so their users know them
already. Each error carries the two facts that every recovery needs:
``retryable`` (may the same request succeed later?) and ``retry_after`` (seconds
that the server asked for, or None). ``ERROR_TABLE`` says what each one means.
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

MAX_MESSAGE_LENGTH = 500


class MistralError(Exception):
    """The root: ``except MistralError`` catches all that a call can raise."""

    retryable: bool = False
    retry_after: float | None = None


class APIConnectionError(MistralError):
    """No answer came: connection refused, host not found, or cut off half way."""

    retryable = True


class APITimeoutError(APIConnectionError):
    """No answer came in time. The server may still have done (and billed) the work."""


class APIStreamBrokenError(APIConnectionError):
    """A streamed answer stopped half way; ``partial_text`` is what had come until then.

    Not retryable: the reader has seen the text, and a new answer begins anew with other
    words. Only who asked knows whether to start over, to go on from there or to stop.
    """

    retryable = False

    def __init__(self, message: str, partial_text: str) -> None:
        super().__init__(message, partial_text)
        self.partial_text = partial_text

    def __str__(self) -> str:
        return str(self.args[0])


class APIResponseValidationError(MistralError):
    """The server said 2xx, but the body is no chat completion."""


class APIStatusError(MistralError):
    """The server answered with an error status.

    ``message`` is readable text, ``code`` the API's own error code or None,
    ``request_id`` what to quote to support or None, ``retry_after`` seconds or None.
    """

    def __init__(
        self,
        status_code: int,
        message: str,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        # All of them go to Exception, so that the error survives pickle and copy.
        super().__init__(status_code, message, code, request_id, retry_after)
        self.status_code = status_code
        self.message = message
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.retryable = error_info(status_code).retryable

    def __str__(self) -> str:
        return self.message


class BadRequestError(APIStatusError):
    """400: the request is invalid. An unknown model is a 400 too, on the real API."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing, wrong or expired."""


class PaymentRequiredError(APIStatusError):
    """402: the account's budget is used up."""


class PermissionDeniedError(APIStatusError):
    """403: the key is valid, but not for this."""


class NotFoundError(APIStatusError):
    """404: no such path, or no such model."""


class UnprocessableEntityError(APIStatusError):
    """422: a field is missing, unknown or of the wrong type."""


class RateLimitError(APIStatusError):
    """429: too many requests or tokens, or no capacity left for this model."""


class InternalServerError(APIStatusError):
    """5xx: the fault is the server's."""


class InvalidRequestError(ValueError):
    """The request cannot be right, so it was not sent: a mistake in the calling program.

    Not a MistralError, since nothing went wrong at the API; but marked like one, so that
    it is not retried, opens no circuit and is not hidden by a fallback.
    """

    retryable = False


class ErrorInfo(NamedTuple):
    """One line of the error table; ``status`` is None where any other one is meant."""

    status: int | None
    error: type[MistralError]
    meaning: str
    retryable: bool
    what_to_do: str


ERROR_TABLE: tuple[ErrorInfo, ...] = (
    ErrorInfo(400, BadRequestError, "the request is invalid, or the model unknown",
             False, "correct it, the same request will fail again"),
    ErrorInfo(401, AuthenticationError, "the API key is missing, wrong or expired",
             False, "check MISTRAL_API_KEY"),
    ErrorInfo(402, PaymentRequiredError, "the account's budget is used up",
             False, "raise the limit or add credit in the console"),
    ErrorInfo(403, PermissionDeniedError, "the key may not do this",
             False, "use a key or a model that the workspace allows"),
    ErrorInfo(404, NotFoundError, "there is no such model or path",
             False, "check the model's name and MISTRAL_BASE_URL"),
    ErrorInfo(408, APIStatusError, "the request took too long to arrive",
             True, "try again"),
    ErrorInfo(409, APIStatusError, "the request collided with another",
             True, "try again"),
    ErrorInfo(413, APIStatusError, "the request is too large",
             False, "send less text at a time"),
    ErrorInfo(422, UnprocessableEntityError, "a field is missing, unknown or of the wrong type",
             False, "correct the field that the message names"),
    ErrorInfo(429, RateLimitError, "too many requests or tokens, or no capacity left",
             True, "wait, then send fewer a minute"),
    ErrorInfo(500, InternalServerError, "the server failed",
             True, "try again with growing waits"),
    ErrorInfo(502, InternalServerError, "a gateway got no good answer from the server",
             True, "try again with growing waits"),
    ErrorInfo(503, InternalServerError, "the service is unavailable or overloaded",
             True, "try again with growing waits, or fall back"),
    ErrorInfo(504, InternalServerError, "a gateway waited too long for the server",
             True, "try again, or ask for a shorter answer"),
    ErrorInfo(None, InternalServerError, "the server or a gateway before it failed",
             True, "try again with growing waits"),
    ErrorInfo(None, APITimeoutError, "no answer came in time",
             True, "try again, allow more time or ask for a shorter answer"),
    ErrorInfo(None, APIStreamBrokenError, "the answer stopped half way",
             False, "keep partial_text, then decide whether to start over"),
    ErrorInfo(None, APIConnectionError, "no answer came",
             True, "check the network and MISTRAL_BASE_URL, then try again"),
    ErrorInfo(None, APIResponseValidationError, "the answer is no chat completion",
             False, "check that MISTRAL_BASE_URL is the API and no other page"),
    ErrorInfo(None, APIStatusError, "the server gave an unexpected answer",
             False, "check MISTRAL_BASE_URL and the request"),
)  # fmt: skip

_BY_STATUS = {row.status: row for row in ERROR_TABLE if row.status is not None}
_BY_CLASS = {row.error: row for row in ERROR_TABLE if row.status is None}


def error_info(status_code: int) -> ErrorInfo:
    """The table's row for an HTTP status; one that it doesn't list gets its family's."""
    family = InternalServerError if 500 <= status_code <= 599 else APIStatusError
    return _BY_STATUS.get(status_code, _BY_CLASS[family])


def explain(error: BaseException) -> str:
    """One sentence for a person: what happened, and what to do about it."""
    if not isinstance(error, MistralError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, APIStatusError):
        row, detail = error_info(error.status_code), f"{error.status_code}, {error.message}"
    else:
        families = (_BY_CLASS[cls] for cls in type(error).__mro__ if cls in _BY_CLASS)
        row, detail = next(families, _BY_CLASS[APIStatusError]), str(error)
    wait = "" if error.retry_after is None else f"; the server asks for {error.retry_after:g} s"
    return f"{row.meaning[0].upper()}{row.meaning[1:]} ({detail}{wait}): {row.what_to_do}."


def error_from_response(
    status_code: int, headers: Mapping[str, str], body: str, *, secret: str = ""
) -> APIStatusError:
    """The exception for an error answer, whatever shape its body has.

    ``headers`` must look names up in any case, as those of requests do. ``secret``
    is blotted out of the message: some servers echo the key that they refuse.
    """
    message, code, request_id = "", None, None
    try:
        fields = json.loads(body)
        message = _message_in(fields)
        if isinstance(fields, dict):
            nested = fields.get("error")
            source = nested if isinstance(nested, dict) else fields
            code = _text_or_none(source.get("code"), secret)
            request_id = _text_or_none(fields.get("request_id"), secret)
    except (ValueError, RecursionError):
        pass  # A gateway's HTML page, an empty body: the status has to say it all.
    error_class = error_info(status_code).error
    assert issubclass(error_class, APIStatusError)
    return error_class(
        status_code,
        _one_line(message, secret) or _phrase(status_code),
        code,
        _text_or_none(headers.get("mistral-correlation-id"), secret) or request_id,
        parse_retry_after(headers.get("Retry-After")),
    )


def _message_in(body: Any) -> str:
    """The human part of an error body, in any of the shapes that the API uses."""
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


def _text_or_none(value: Any, secret: str) -> str | None:
    return _one_line(str(value), secret) if isinstance(value, (str, int)) else None


def _one_line(text: str, secret: str) -> str:
    """Text that is safe to print: no secret, no line breaks or terminal codes, not endless."""
    if secret:
        text = text.replace(secret, "[redacted]")
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE_LENGTH else text[: MAX_MESSAGE_LENGTH - 3] + "..."


def _phrase(status_code: int) -> str:
    """The status's own name, for an answer whose body says nothing."""
    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return f"HTTP status {status_code}"


def parse_retry_after(value: str | None, now: float | None = None) -> float | None:
    """Seconds to wait, from a Retry-After header; None where it says nothing usable.

    Takes a number of seconds or any HTTP date (RFC 9110, 10.2.3); a date without
    a zone is UTC. ``now`` is in seconds since the epoch, by default the clock's.
    What is malformed, negative, infinite, not a number or past counts as absent.

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
