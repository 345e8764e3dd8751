# SPDX-License-Identifier: MIT-0
"""Call the Mistral API: send a chat, stream its answer, or list the models.

    with MistralClient(api_key) as client:
        print(client.chat([{"role": "user", "content": "Hello!"}]).content)

A call returns a completion or raises one of the errors in ``errors.py``, since the client
checks what you send and what comes back. It does not retry, pace or fall back; the other
files do that. Needs ``requests``, ``errors.py``, ``transport.py`` and
``total_timeout.py``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from .errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStreamBrokenError,
    InvalidRequestError,
    MistralError,
    error_from_response,
)
from .total_timeout import total_timeout
from .transport import MAX_RESPONSE_BYTES, Response, Transport

DEFAULT_BASE_URL = "https://api.mistral.ai/v1"
MAX_TIMEOUT = 86400.0  # seconds; operating systems reject much longer timeouts
ROLES = ("system", "user", "assistant", "tool")


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
    """The response to a chat call. ``usage`` is None if the server did not report it."""

    content: str
    model: str
    finish_reason: str
    usage: Usage | None
    limits: Limits = Limits()


@dataclass(frozen=True)
class _Options:
    """The timeouts of a client's calls, in seconds."""

    timeout: tuple[float, float]
    total_timeout: float


class MistralClient:
    """Call the Mistral API. Thread-safe.

    ``timeout`` is (connect timeout, read timeout) in seconds, or one number for both. The
    read timeout is the longest silence allowed, not the total time: a response that keeps
    arriving can take much longer. ``total_timeout`` is the seconds that a whole call may
    take; for a stream, this includes the time that you spend on its pieces. ``base_url``
    must start with https://, unless its host is this machine. A ``session`` of your own is
    used as it is and not closed.

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

    def with_options(
        self,
        *,
        timeout: float | tuple[float, float] | None = None,
        total_timeout: float | None = None,
    ) -> MistralClient:
        """Return a client with different timeouts that shares this client's connections."""
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
        content, headers = self._request("POST", "/chat/completions", payload)
        return _completion(content, _limits(headers))

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
        timeout. Takes the same arguments and raises the same errors as ``chat``. Once text
        has arrived, a failure raises an APIStreamBrokenError with the text so far.
        """
        parameters["stream"] = True
        payload = _payload(messages, model, max_tokens, parameters)
        return ChatStream(self._transport, payload, self._options)

    def models(self) -> list[str]:
        """Return the names of the models that this key may use. Raises MistralError.

        It is the usual health check, but a weak one: it succeeds even if the account's
        budget is used up and every chat fails with a 402.
        """
        content, _ = self._request("GET", "/models", None)
        try:
            return [str(model["id"]) for model in content["data"]]
        except (KeyError, TypeError):
            raise APIResponseValidationError("the response is not a list of models") from None

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
        self, method: str, path: str, payload: bytes | None
    ) -> tuple[Any, Mapping[str, str]]:
        options = self._options
        with self._transport.send(
            method, path, payload, options.timeout, total_timeout(options.total_timeout)
        ) as response:
            return _parse_json(response.read()), response.headers


class ChatStream(Iterator[str]):
    """Iterate over the text of a streamed response: ``for piece in stream``.

    ``limits`` is known after the first piece, ``finish_reason`` and ``usage`` when the
    stream has ended. Close the stream if you stop early, to close its connection:
    ``with client.stream(...) as stream`` does that.
    """

    def __init__(self, transport: Transport, payload: bytes, options: _Options) -> None:
        self.finish_reason = ""
        self.usage: Usage | None = None
        self.limits = Limits()
        self._pieces = self._read(transport, payload, options)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop reading. Closes the connection, unless the stream has already ended."""
        self._pieces.close()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read(
        self, transport: Transport, payload: bytes, options: _Options
    ) -> Generator[str, None, None]:
        received: list[str] = []
        try:
            with transport.send(
                "POST",
                "/chat/completions",
                payload,
                options.timeout,
                total_timeout(options.total_timeout),
            ) as response:
                self.limits = _limits(response.headers)
                for event in _parse_sse(response):
                    if isinstance(event, dict) and "choices" not in event:
                        raise _error_in_stream(event, response)
                    if piece := self._text_of(event):
                        received.append(piece)
                        yield piece
        except MistralError as error:
            if not received:
                raise
            raise APIStreamBrokenError(str(error), "".join(received)) from error

    def _text_of(self, event: Any) -> str:
        """Return the text in an event; store its finish reason and usage."""
        try:
            for choice in event["choices"]:
                self.finish_reason = str(choice.get("finish_reason") or self.finish_reason)
            if event.get("usage") is not None:
                self.usage = _usage(event["usage"])
            return "".join(
                _content_text(choice["delta"].get("content")) for choice in event["choices"]
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise APIResponseValidationError("the stream is not a chat completion") from None


def _check_timeout(timeout: float | tuple[float, float]) -> tuple[float, float]:
    both = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    if len(both) == 2 and all(map(_is_timeout, both)):
        return both
    raise ValueError(
        f"timeout must be a number of seconds > 0, or a pair (connect, read), got {timeout!r}"
    )


def _check_total_timeout(total_timeout: float) -> float:
    if not _is_timeout(total_timeout):
        raise ValueError(f"total_timeout must be a number of seconds > 0, got {total_timeout!r}")
    return total_timeout


def _is_timeout(seconds: float) -> bool:
    return type(seconds) in (int, float) and 0 < seconds <= MAX_TIMEOUT


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidRequestError for messages that the API would reject."""
    if not isinstance(messages, (list, tuple)) or not messages:
        example = '[{"role": "user", "content": "Hello!"}]'
        raise InvalidRequestError(f"messages must be a list such as {example}")
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
    parameters: dict[str, Any],
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


def _parse_sse(response: Response) -> Iterator[Any]:
    """Yield the parsed server-sent events (SSE) of a stream, up to its end mark, [DONE]."""
    content_type = response.headers.get("Content-Type", "no content type")
    if "text/event-stream" not in content_type.lower():
        raise APIResponseValidationError(f"expected an event stream, got {content_type}")
    pending, size = bytearray(), 0
    chunks = response.chunks()
    for received in chunks:
        size += len(received)
        if size > MAX_RESPONSE_BYTES:
            raise _too_long()
        pending += received
        if b"\n" not in received:
            continue
        *lines, pending = pending.split(b"\n")
        for line in lines:
            name, _, data = line.partition(b":")
            if name == b"data" and data.strip() == b"[DONE]":
                response.drain(chunks)
                return
            if name == b"data":
                yield _parse_json(data)
    raise APIConnectionError("the stream ended without its end mark, [DONE]")


def _parse_json(content: bytes | bytearray) -> Any:
    """Parse a 2xx body; raise APIResponseValidationError saying what came instead of JSON."""
    if len(content) > MAX_RESPONSE_BYTES:
        raise _too_long()
    text = content.strip()
    if not text:
        raise APIResponseValidationError("the response is empty")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "an HTML page, not JSON" if text[:1] == b"<" else "truncated or not JSON"
        raise APIResponseValidationError(f"the response is {what}") from error


def _too_long() -> APIResponseValidationError:
    return APIResponseValidationError(f"the response is longer than {MAX_RESPONSE_BYTES} bytes")


def _error_in_stream(event: dict[str, Any], response: Response) -> MistralError:
    """Return the error that the server reported inside a stream, with its own message."""
    if "error" not in event and event.get("object") != "error":
        return APIResponseValidationError("the stream is not a chat completion")
    nested = event.get("error")
    source = nested if isinstance(nested, dict) else event
    status = source.get("raw_status_code", source.get("code"))
    if not isinstance(status, int) or not 400 <= status <= 599:
        status = 500
    return error_from_response(status, {}, response.redact(json.dumps(event)))


def _limits(headers: Mapping[str, str]) -> Limits:
    def number(name: str) -> int | None:
        text = headers.get(f"x-ratelimit-{name}-minute", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None

    return Limits(
        requests_per_minute=number("limit-req"),
        remaining_requests=number("remaining-req"),
        tokens_per_minute=number("limit-tokens"),
        remaining_tokens=number("remaining-tokens"),
    )


def _completion(content: Any, limits: Limits) -> ChatCompletion:
    """Return the chat completion in a 2xx body; check each field, since any may be missing."""
    try:
        choice = content["choices"][0]
        usage = content.get("usage")
        return ChatCompletion(
            content=_message_text(choice["message"]),
            model=str(content["model"]),
            finish_reason=str(choice["finish_reason"] or ""),
            usage=None if usage is None else _usage(usage),
            limits=limits,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        # "from None", since a message of int() would quote the server's text, perhaps the key.
        raise APIResponseValidationError(
            "the response is JSON, but not a chat completion"
        ) from None


def _usage(usage: dict[str, Any]) -> Usage:
    return Usage(
        int(usage["prompt_tokens"]), int(usage["completion_tokens"]), int(usage["total_tokens"])
    )


def _message_text(message: dict[str, Any]) -> str:
    """Return the text of a message. One with tool calls may have no text."""
    content = message["content"]
    if content is None and not message.get("tool_calls"):
        raise TypeError("the message has no content")
    return _content_text(content)


def _content_text(content: Any) -> str:
    """Return a string, a reasoning model's list of chunks, or None as text."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(chunk["text"] for chunk in content if chunk["type"] == "text")
    if not isinstance(content, str):
        raise TypeError("the content is not text")
    return content
