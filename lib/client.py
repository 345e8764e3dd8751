# SPDX-License-Identifier: MIT-0
"""Call the Mistral API: send a chat, stream its answer, or list the models.

    with MistralClient(api_key) as client:
        print(client.chat([{"role": "user", "content": "Hello!"}]).content)

A call returns a completion or raises one of the errors in ``errors.py``, since the client
checks what you send, and ``completion.py`` what comes back. The client does not retry, pace or
fall back; the other files do that. Needs ``requests``, and beside it ``errors.py``,
``completion.py``, ``event_stream.py``, ``transport.py``, ``response.py`` and
``total_timeout.py``.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from .completion import (
    ChatCompletion,
    Fields,
    Limits,
    StreamedAnswer,
    Usage,
    model_names,
    parse_body,
    parse_event,
    read_completion,
    read_limits,
    reported_error,
)
from .errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APIStreamBrokenError,
    InvalidRequestError,
    MistralError,
    error_from_response,
)
from .event_stream import Event, EventStream
from .response import MAX_RESPONSE_BYTES, Response
from .total_timeout import Deadline, total_timeout
from .transport import Transport

__all__ = [
    "DEFAULT_BASE_URL", "MAX_TIMEOUT",
    "ChatCompletion", "ChatStream", "Limits", "MistralClient", "Usage",
]  # fmt: skip

DEFAULT_BASE_URL = "https://api.mistral.ai/v1"
MAX_TIMEOUT = 86400.0  # seconds; operating systems reject much longer timeouts
ROLES = ("system", "user", "assistant", "tool")
CLOSED = "the stream was closed before its end"


class MistralClient:
    """Call the Mistral API. Thread-safe.

    ``timeout`` is (connect timeout, read timeout) in seconds, or one number for both. The
    read timeout is the longest silence allowed, not the total time: a response that keeps
    arriving can take much longer. ``total_timeout`` limits a whole call, in seconds, except for the
    lookup of the host name; in a stream, your own processing time counts too. ``base_url`` must
    start with https://, unless its host is this machine. A ``session`` of your own is used as it is
    and not closed.

    Raises ValueError for an invalid base URL or timeout, and for a key that an HTTP header
    cannot carry; the message never shows the key.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = DEFAULT_BASE_URL,
        timeout: float | tuple[float, float] = (5.0, 60.0),
        total_timeout: float = 600.0,
        session: requests.Session | None = None,
    ) -> None:
        self._options = _checked(timeout, total_timeout)
        self._transport = Transport(api_key, base_url, session)
        self._owns_transport = True

    @property
    def total_timeout(self) -> float:
        """The seconds that a whole call may take."""
        return self._options.total_timeout

    def with_options(
        self,
        *,
        timeout: float | tuple[float, float] | None = None,
        total_timeout: float | None = None,
    ) -> MistralClient:
        """Return a client with different timeouts that shares this client's connections.

        The timeouts are in seconds; None means those of this client.
        """
        client = copy.copy(self)
        client._owns_transport = False
        client._options = _checked(
            self._options.timeout if timeout is None else timeout,
            self._options.total_timeout if total_timeout is None else total_timeout,
        )
        return client

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str = "mistral-small-latest",
        max_tokens: int | None = None,
        **parameters: Any,
    ) -> ChatCompletion:
        """Send one chat request and return its completion.

        ``messages`` is a list of ``{"role": ..., "content": ...}``, oldest first.
        ``parameters`` are passed to the API unchanged (``temperature=0.2``).

        Raises InvalidRequestError (a ValueError) for an invalid request, which is not sent,
        and a MistralError for every failure after that.
        """
        if parameters.get("stream"):
            raise InvalidRequestError("chat() returns whole responses: call stream() for pieces")
        payload = _payload(messages, model, max_tokens, parameters)
        return read_completion(*self._request("POST", "/chat/completions", payload))

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str = "mistral-small-latest",
        max_tokens: int | None = None,
        **parameters: Any,
    ) -> ChatStream:
        """Return a stream of the completion's text; reading the first piece sends the request.

        The read timeout applies between two pieces, so a long response does not need a long read
        timeout. The client's total timeout limits the whole stream. Takes the same arguments and
        raises the same errors as ``chat``. Once text has arrived, a failure raises an
        APIStreamBrokenError with the text so far, and so does a stream that ends without a finish
        reason or its end mark.
        """
        parameters["stream"] = True
        payload = _payload(messages, model, max_tokens, parameters)
        return ChatStream(self._transport, payload, self._options)

    def models(self) -> list[str]:
        """Return the names of the models that this key may use. Raises MistralError.

        It is the usual health check, but a weak one: it succeeds even if the account's
        budget is used up and every chat fails with a 402.
        """
        fields, _ = self._request("GET", "/models", None)
        return model_names(fields)

    def close(self) -> None:
        """Close the connections, unless they belong to another client or your own session."""
        if self._owns_transport:
            self._transport.close()

    def __enter__(self) -> MistralClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self._transport.base_url!r})"

    def _request(self, method: str, path: str, payload: bytes | None) -> tuple[Fields, Limits]:
        timeout, deadline = self._options.timeout, total_timeout(self._options.total_timeout)
        with self._transport.send(method, path, payload, timeout, deadline) as response:
            body = response.read()
            _check_size(len(body))
            fields = parse_body(body)
            _raise_reported_error(fields, response)
            return fields, read_limits(response.headers)


class ChatStream(Iterator[str]):
    """Iterate over the text of a streamed response: ``for piece in stream``.

    ``limits`` is known after the first piece; ``finish_reason``, ``tool_calls`` and ``usage``
    when the stream has ended. Close the stream if you stop early, to close its connection:
    ``with client.stream(...) as stream`` does that.

    One thread reads a stream; any thread, and a signal handler, may close it.
    """

    def __init__(self, transport: Transport, payload: bytes, options: _Options) -> None:
        self.limits = Limits()
        self._answer = StreamedAnswer()
        self._pieces = self._read(transport, payload, options)
        self._received: list[str] = []
        self._is_whole = False
        self._is_closed = False
        self._deadline: Deadline | None = None
        self._reading = threading.Lock()

    @property
    def finish_reason(self) -> str:
        """Why the model stopped: "" if the server has not said so."""
        return self._answer.finish_reason

    @property
    def tool_calls(self) -> list[Fields]:
        """The functions that the model wants you to call."""
        return self._answer.tool_calls

    @property
    def usage(self) -> Usage | None:
        """The tokens that the call used: None if the server has not reported them."""
        return self._answer.usage

    def __next__(self) -> str:
        with self._reading:
            piece = next(self._pieces, None)
        if piece is not None:
            return piece
        if self._is_closed and not self._is_whole:
            raise APIStreamBrokenError(CLOSED, "".join(self._received))
        raise StopIteration

    def close(self) -> None:
        """Stop reading, and close the connection, unless the stream has already ended.

        If the answer is not whole, the next read raises an APIStreamBrokenError, and so does a
        read that waits in another thread: at once, but with a session of your own only when
        something arrives or its read timeout has passed.
        """
        self._is_closed = True
        if self._reading.acquire(blocking=False):
            try:
                self._pieces.close()
            finally:
                self._reading.release()
        elif self._deadline is not None:
            self._deadline.expire()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read(
        self, transport: Transport, payload: bytes, options: _Options
    ) -> Generator[str, None, None]:
        """Send the request and yield the text of its response, piece by piece."""
        self._deadline = deadline = total_timeout(options.total_timeout)
        if self._is_closed:
            return
        try:
            with transport.send(
                "POST", "/chat/completions", payload, options.timeout, deadline
            ) as response:
                self.limits = read_limits(response.headers)
                for piece in filter(None, self._texts(response)):
                    self._received.append(piece)
                    yield piece
        except MistralError as error:
            if isinstance(error, APIStatusError) or not self.finish_reason:
                if self._is_closed:
                    return
                if self._received:
                    raise APIStreamBrokenError(str(error), "".join(self._received)) from error
                raise
        self._is_whole = True

    def _texts(self, response: Response) -> Iterator[str]:
        """Yield the text of each event: "" for an event without text."""
        chunks = response.chunks()
        for event in _events(chunks, response.headers.get("Content-Type", "no content type")):
            if event.data.strip() == "[DONE]":
                response.drain(chunks)
                break
            fields = parse_event(event)
            yield self._answer.add(fields)
            _raise_reported_error(fields, response)
            _check_size(self._answer.size)
        else:
            if not self.finish_reason:
                raise APIConnectionError(
                    "the stream ended without a finish reason or its end mark, [DONE]"
                )
        yield self._answer.end()


@dataclass(frozen=True)
class _Options:
    """The timeouts of a client's calls, in seconds."""

    timeout: tuple[float, float]
    total_timeout: float


def _checked(timeout: float | tuple[float, float], total_timeout: float) -> _Options:
    """Return the options, or raise ValueError for a wrong one."""
    both = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    seconds = f"a number of seconds > 0 and <= {MAX_TIMEOUT:g}"
    if len(both) != 2 or not all(map(_is_timeout, both)):
        raise ValueError(f"timeout must be {seconds}, or a pair (connect, read), got {timeout!r}")
    if not _is_timeout(total_timeout):
        raise ValueError(f"total_timeout must be {seconds}, got {total_timeout!r}")
    return _Options(both, total_timeout)


def _is_timeout(seconds: float) -> bool:
    return type(seconds) in (int, float) and 0 < seconds <= MAX_TIMEOUT


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidRequestError for messages that the API would reject."""
    if not isinstance(messages, (list, tuple)) or not messages:
        example = '[{"role": "user", "content": "Hello!"}]'
        came = repr(messages) if not messages else type(messages).__name__
        raise InvalidRequestError(f"messages must be a list such as {example}, got {came}")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise InvalidRequestError(f"messages[{index}] needs a role: one of {', '.join(ROLES)}")
        content = message.get("content")
        if role in ("system", "user") and not (isinstance(content, (str, list)) and content):
            raise InvalidRequestError(f"messages[{index}] needs non-empty content")


def _payload(
    messages: Sequence[Mapping[str, Any]],
    model: str,
    max_tokens: int | None,
    parameters: Fields,
) -> bytes:
    """Check a request and return it as JSON; raise InvalidRequestError if it is invalid."""
    _check_messages(messages)
    payload = {"model": model, "messages": [dict(item) for item in messages], **parameters}
    if max_tokens is not None:
        payload["max_tokens"] = max_tokens
    try:
        return json.dumps(payload, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the request cannot be written as JSON: {error}") from error


def _events(chunks: Iterator[bytes], content_type: str) -> Iterator[Event]:
    """Yield the events of a response. If it holds none, but one JSON object, yield that."""
    stream, found = EventStream(), False
    body = bytearray()  # as long as no event has been found
    for received in itertools.chain(chunks, [b"\n\n"]):  # the last event may lack its end
        body += received
        for event in stream.feed(received):
            found = True
            yield event
        if found:
            body.clear()
        _check_size(max(stream.size, len(body)))
    text = body.decode("utf-8-sig", "replace").strip()
    if text.startswith("{"):
        yield Event(text)
    elif not found and "text/event-stream" not in content_type.lower():
        raise APIResponseValidationError(f"expected an event stream, got {content_type}")


def _check_size(size: int) -> None:
    if size > MAX_RESPONSE_BYTES:
        raise APIResponseValidationError(f"the response is longer than {MAX_RESPONSE_BYTES} bytes")


def _raise_reported_error(fields: Fields, response: Response) -> None:
    """Raise the error that the server reports inside a 200, with its own message."""
    report = reported_error(fields)
    if report:
        raise error_from_response(500, response.headers, response.redact(json.dumps(report)))
