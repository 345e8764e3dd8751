# SPDX-License-Identifier: MIT-0
"""Call the Mistral API: send a chat, stream its answer, or list the models.

    with MistralClient(api_key) as client:
        print(client.chat([{"role": "user", "content": "Hello!"}]).content)

A call returns a completion or raises one of the errors in ``errors.py``, since the client
checks what you send and what comes back. It does not retry, pace or fall back; the other
files do that. Needs ``requests``, and ``errors.py``, ``transport.py``, ``total_timeout.py`` and
``event_stream.py`` beside it.

A response is read for what is in it: what the server left out, or wrote in another way than
Mistral does, is left empty, since you have paid for the rest. Only what holds no answer at
all is an error. So are errors that a server reports inside a 200.
"""

from __future__ import annotations

import codecs
import copy
import itertools
import json
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import requests

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
from .total_timeout import Deadline, total_timeout
from .transport import MAX_RESPONSE_BYTES, Response, Transport

T = TypeVar("T")
Fields = dict[str, Any]  # a JSON object
NOTHING: Fields = {}  # what a field that is missing counts as
NO_ITEMS: list[Any] = []

DEFAULT_BASE_URL = "https://api.mistral.ai/v1"
MAX_TIMEOUT = 86400.0  # seconds; operating systems reject much longer timeouts
ROLES = ("system", "user", "assistant", "tool")
CLOSED = "the stream was closed before its end"
MAX_JSON_VALUES = 200_000  # arrays and objects; each needs up to 250 bytes, four numbers as much
INSTEAD_OF_JSON = {"": "empty", "<": "an HTML page, not JSON"}  # by the first character
TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass(frozen=True)
class Usage:
    """The tokens that a call used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class Limits:
    """The account's rate limits and what is left of them, from a response's headers.

    A number that the server did not send is None.
    """

    requests_per_minute: int | None = None
    remaining_requests: int | None = None
    tokens_per_minute: int | None = None
    remaining_tokens: int | None = None


@dataclass(frozen=True)
class ChatCompletion:
    """The response to a chat call. What the server left out is "", empty or None.

    ``content`` is the answer's text, without the thoughts of a reasoning model.
    ``finish_reason`` says why the model stopped: "stop", "length" (the answer is cut off),
    "tool_calls", "content_filter"... ``tool_calls`` are the functions that the model wants
    you to call, as the API sends them. ``usage`` is None if the server did not report it.
    """

    content: str
    model: str
    finish_reason: str
    usage: Usage | None
    limits: Limits = Limits()
    tool_calls: tuple[Fields, ...] = field(default=(), hash=False)


@dataclass(frozen=True)
class _Options:
    """The timeouts of a client's calls, in seconds."""

    timeout: tuple[float, float]
    total_timeout: float


class MistralClient:
    """Call the Mistral API. Thread-safe.

    ``timeout`` is (connect timeout, read timeout) in seconds, or one number for both. The
    read timeout is the longest silence allowed, not the total time: a response that keeps
    arriving can take much longer. ``total_timeout`` limits a whole call, in seconds, except
    for the look-up of the host's name; in a stream, your own processing time counts too.
    ``base_url`` must start with https://, unless its host is this machine. A ``session`` of
    your own is used as it is and not closed.

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
        self._options = _Options(_check_timeout(timeout), _check_total_timeout(total_timeout))
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
        client._options = _Options(
            self._options.timeout if timeout is None else _check_timeout(timeout),
            self._options.total_timeout
            if total_timeout is None
            else _check_total_timeout(total_timeout),
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
        return self._request("POST", "/chat/completions", payload, _completion)

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str = "mistral-small-latest",
        max_tokens: int | None = None,
        **parameters: Any,
    ) -> ChatStream:
        """Return a stream of the completion's text; reading the first piece sends the request.

        The read timeout applies between two pieces, so a long response does not need a long
        read timeout; the client's total timeout ends it all the same. Takes the same arguments
        and raises the same errors as ``chat``. Once text has arrived, a failure raises an
        APIStreamBrokenError with the text so far, and so does a stream that ends without a
        finish reason or its end mark.
        """
        parameters["stream"] = True
        payload = _payload(messages, model, max_tokens, parameters)
        return ChatStream(self._transport, payload, self._options)

    def models(self) -> list[str]:
        """Return the names of the models that this key may use. Raises MistralError.

        It is the usual health check, but a weak one: it succeeds even if the account's
        budget is used up and every chat fails with a 402.
        """
        return self._request("GET", "/models", None, _model_names)

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

    def _request(
        self, method: str, path: str, payload: bytes | None, read: Callable[[Fields, Limits], T]
    ) -> T:
        """Send a request and return what ``read`` finds in its response."""
        timeout, deadline = self._options.timeout, total_timeout(self._options.total_timeout)
        with self._transport.send(method, path, payload, timeout, deadline) as response:
            content = _parse_json(response.read())
            _raise_reported_error(content, response)
            return read(content, _limits(response.headers))


class ChatStream(Iterator[str]):
    """Iterate over the text of a streamed response: ``for piece in stream``.

    ``limits`` is known after the first piece; ``finish_reason``, ``tool_calls`` and ``usage``
    when the stream has ended. Close the stream if you stop early, to close its connection:
    ``with client.stream(...) as stream`` does that.

    One thread reads a stream; any thread, and a signal handler, may close it.
    """

    def __init__(self, transport: Transport, payload: bytes, options: _Options) -> None:
        self.finish_reason = ""
        self.tool_calls: list[Fields] = []
        self.usage: Usage | None = None
        self.limits = Limits()
        self._pieces = self._read(transport, payload, options)
        self._received: list[str] = []
        self._tool_calls: dict[int, Fields] = {}  # the last one of each index
        self._size = 0  # characters
        self._is_whole = False
        self._is_closed = False
        self._deadline: Deadline | None = None
        self._reading = threading.Lock()

    def __next__(self) -> str:
        with self._reading:
            for piece in self._pieces:
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
        self._deadline = deadline = total_timeout(options.total_timeout)
        if self._is_closed:
            return
        try:
            with transport.send(
                "POST", "/chat/completions", payload, options.timeout, deadline
            ) as response:
                self.limits = _limits(response.headers)
                for piece in filter(None, self._texts(response)):
                    self._received.append(piece)
                    yield piece
        except MistralError as error:
            if isinstance(error, APIStatusError) or not self.finish_reason:
                if not self._received and not self._is_closed:
                    raise
                message = CLOSED if self._is_closed else str(error)
                raise APIStreamBrokenError(message, "".join(self._received)) from error
        self._is_whole = True

    def _texts(self, response: Response) -> Iterator[str]:
        """Yield the text of each event, as well-formed Unicode: "" for an event without text."""
        decoder = codecs.getincrementaldecoder("utf-16-le")("replace")  # joins surrogate pairs
        chunks = response.chunks()
        for event in _events(chunks, response.headers.get("Content-Type", "no content type")):
            if event.data.strip() == "[DONE]":
                response.drain(chunks)
                break
            fields = _event_fields(event)
            yield decoder.decode(self._take(fields).encode("utf-16-le", "surrogatepass"))
            _raise_reported_error(fields, response)
            if self._size > MAX_RESPONSE_BYTES:
                raise _too_long()
        else:
            if not self.finish_reason:
                raise APIConnectionError(
                    "the stream ended without a finish reason or its end mark, [DONE]"
                )
        yield decoder.decode(b"", final=True)

    def _take(self, event: Fields) -> str:
        """Store what an event says about the whole answer; return its text."""
        choice = _choice(event)
        delta = _at(choice, "delta", _at(choice, "message", NOTHING))
        text = _content_text(delta.get("content"))
        for piece in _objects(delta, "tool_calls"):
            self._add_to_tool_call(_at(piece, "index", 0), piece)
        self.finish_reason = _at(choice, "finish_reason", "") or self.finish_reason
        self.usage = _usage(event) or self.usage
        self._size += len(text)
        return text

    def _add_to_tool_call(self, index: int, piece: Fields) -> None:
        """Add a piece to the call with this index, or begin a call if the piece has a new ID."""
        call = self._tool_calls.get(index, {})
        if not call or _at(piece, "id", "") not in ("", call["id"]):
            function = {"name": "", "arguments": ""}
            call = {"id": _at(piece, "id", ""), "type": "function", "function": function}
            self._tool_calls[index] = call
            self.tool_calls.append(call)
        function, more = call["function"], _at(piece, "function", NOTHING)
        function["name"] = function["name"] or _at(more, "name", "")
        function["arguments"] += _at(more, "arguments", "")
        self._size += len(_at(more, "arguments", ""))


def _check_timeout(timeout: float | tuple[float, float]) -> tuple[float, float]:
    both = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    if len(both) == 2 and all(map(_is_timeout, both)):
        return both
    raise ValueError(
        f"timeout must be a number of seconds > 0 and <= {MAX_TIMEOUT:g}, or a pair "
        f"(connect, read), got {timeout!r}"
    )


def _check_total_timeout(total_timeout: float) -> float:
    if not _is_timeout(total_timeout):
        raise ValueError(
            f"total_timeout must be a number of seconds > 0 and <= {MAX_TIMEOUT:g}, "
            f"got {total_timeout!r}"
        )
    return total_timeout


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
        if max(stream.size, len(body)) > MAX_RESPONSE_BYTES:
            raise _too_long()
    text = body.decode("utf-8-sig", "replace").strip()
    if text.startswith("{"):
        yield Event(text)
    elif not found and "text/event-stream" not in content_type.lower():
        raise APIResponseValidationError(f"expected an event stream, got {content_type}")


def _event_fields(event: Event) -> Fields:
    """Return the JSON object in an event. One without text, such as a ping, need not hold one."""
    try:
        content = _loads(event.data)
    except (ValueError, RecursionError) as error:
        if event.name in ("", "message") and event.data.strip():
            raise APIResponseValidationError("an event is truncated or not JSON") from error
        content = event.data
    fields = {"error": content} if event.name == "error" else content
    return fields if isinstance(fields, dict) else {}


def _parse_json(content: bytes) -> Fields:
    """Parse a 2xx body; raise APIResponseValidationError saying what came instead of JSON."""
    if len(content) > MAX_RESPONSE_BYTES:
        raise _too_long()
    text = content.decode("utf-8-sig", "replace").strip()
    try:
        fields = _loads(text)
    except (ValueError, RecursionError) as error:
        what = INSTEAD_OF_JSON.get(text[:1], "truncated or not JSON")
        raise APIResponseValidationError(f"the response is {what}") from error
    return fields if isinstance(fields, dict) else {}


def _loads(text: str) -> Any:
    """Parse JSON, unless its values would need much more memory than their text."""
    if text.count("{") + text.count("[") + text.count(",") / 4 > MAX_JSON_VALUES:
        raise APIResponseValidationError(
            f"the response holds more than {MAX_JSON_VALUES} arrays and objects"
        )
    return json.loads(text)


def _too_long() -> APIResponseValidationError:
    return APIResponseValidationError(f"the response is longer than {MAX_RESPONSE_BYTES} bytes")


def _raise_reported_error(content: Fields, response: Response) -> None:
    """Raise the error that the server reports inside a 200, with its own message."""
    for place in (content, _choice(content)):
        says_error = "error" in (place.get("object"), place.get("finish_reason"))
        if says_error or any(map(place.get, ("error", "errors"))):
            report = {"title": "the model stopped because of an error", **place}
            raise error_from_response(500, response.headers, response.redact(json.dumps(report)))


def _limits(headers: Mapping[str, str]) -> Limits:
    def number(name: str) -> int | None:
        text = headers.get(f"x-ratelimit-{name}-minute", "")
        return int(text) if re.fullmatch("[0-9]{1,15}", text) else None

    return Limits(
        requests_per_minute=number("limit-req"),
        remaining_requests=number("remaining-req"),
        tokens_per_minute=number("limit-tokens"),
        remaining_tokens=number("remaining-tokens"),
    )


def _model_names(content: Fields, _limits: Limits) -> list[str]:
    names = [_at(model, "id", "") for model in _at(content, "data", [None])]
    if not all(names):
        raise APIResponseValidationError("the response is not a list of models")
    return names


def _completion(content: Fields, limits: Limits) -> ChatCompletion:
    """Return the chat completion in a 2xx body."""
    choice = _choice(content)
    message = _at(choice, "message", NOTHING)
    finish_reason = _at(choice, "finish_reason", "")
    if not message and not finish_reason:
        raise APIResponseValidationError("the response is JSON, but not a chat completion")
    text = _content_text(message.get("content"))
    return ChatCompletion(
        content=text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"),
        model=_at(content, "model", ""),
        finish_reason=finish_reason,
        usage=_usage(content),
        limits=limits,
        tool_calls=tuple(_objects(message, "tool_calls")),
    )


def _at(content: Any, name: str, default: T) -> T:
    """Return a field of a JSON object, or the default if there is none of the default's type."""
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, type(default)) else default


def _choice(content: Fields) -> Fields:
    """Return the choice with the index 0, or without any, of a completion or an event."""
    return next((each for each in _objects(content, "choices") if not each.get("index")), {})


def _objects(content: Fields, name: str) -> list[Fields]:
    """Return the objects in a field that is a list."""
    return [each for each in _at(content, name, NO_ITEMS) if isinstance(each, dict)]


def _usage(content: Fields) -> Usage | None:
    """Return the tokens of a call. One number that is missing follows from the other two."""
    fields = _at(content, "usage", NOTHING)
    known = {name: int(fields[name]) for name in TOKENS if _is_count(fields.get(name))}
    total = known.get("total_tokens", sum(known.values()))
    rest = max(0, total - sum(known.get(name, 0) for name in TOKENS[:2]))
    prompt, completion = (known.get(name, rest) for name in TOKENS[:2])
    return Usage(prompt, completion, total) if len(known) >= 2 else None


def _is_count(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e15


def _content_text(content: Any) -> str:
    """Return a string, or a reasoning model's list of chunks, as text; "" for anything else."""
    chunks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return "".join(_at(chunk, "text", "") for chunk in chunks if _at(chunk, "type", "") == "text")
