# SPDX-License-Identifier: MIT-0
"""One chat call to the Mistral API over requests, whose every failure is a named error.

The client does not retry, wait or fall back: that is what the other files are for.
It makes sure that a call ends in an answer or in one error of ``errors.py``, that silence
never lasts longer than the timeout, and that the API key goes to the API and nowhere else.
Needs ``requests`` and ``errors.py``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import socket
import ssl
import sys
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from .errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStreamBrokenError,
    APITimeoutError,
    InvalidRequestError,
    MistralError,
    error_from_response,
)

DEFAULT_BASE_URL = "https://api.mistral.ai/v1"
MAX_ANSWER_BYTES = 8 * 1024 * 1024
LONGEST_TIMEOUT = 86400.0  # seconds; the system refuses what is very much longer
MAX_CONNECTIONS = 64  # kept open between calls; more threads than that still work
CUT_OFF = (
    ConnectionError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.IncompleteRead,
)
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Usage:
    """What the call cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class ChatCompletion:
    """The answer to a chat call. ``usage`` is None where the server doesn't tell it."""

    content: str
    model: str
    finish_reason: str
    usage: Usage | None


class MistralClient:
    """A thread-safe client: ``with MistralClient(key) as client: client.chat(messages)``.

    ``timeout`` is (seconds to connect, longest silence in seconds while the answer
    comes), or one number for both. ``base_url`` must be https, unless it is this very
    machine. A ``session`` of your own is used as it is, and left open.

    Raises ValueError for a key that no header can carry, a base URL or a timeout
    that cannot work; the message never shows the key.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = DEFAULT_BASE_URL,
        timeout: float | tuple[float, float] = (5.0, 60.0),
        session: requests.Session | None = None,
    ) -> None:
        self._auth = _BearerAuth(api_key)
        self._base_url, self._host, on_this_machine = _checked_base_url(base_url)
        self._timeout = _checked_timeout(timeout)
        # An empty proxy wins over one in the environment.
        self._proxies = {"http": "", "https": "", "all": ""} if on_this_machine else {}
        self._owns_session = session is None
        if session is None:
            session = requests.Session()
            for scheme in ("https://", "http://"):
                session.mount(scheme, HTTPAdapter(pool_maxsize=MAX_CONNECTIONS))
        self._session = session

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str = "mistral-small-latest",
        max_tokens: int | None = None,
        **parameters: Any,
    ) -> ChatCompletion:
        """Send one chat request and return the answer.

        ``messages`` are ``{"role": ..., "content": ...}``, the oldest first;
        ``parameters`` go to the API as they are (``temperature=0.2``).

        Raises InvalidRequestError (a ValueError) for a request that cannot be right, before
        it is sent, and a MistralError for everything that can go wrong afterwards.
        """
        if parameters.get("stream"):
            raise InvalidRequestError("chat() returns whole answers: for pieces, call stream()")
        payload = _payload(messages, model, max_tokens, parameters)
        return _completion(self._request("POST", "/chat/completions", payload))

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str = "mistral-small-latest",
        max_tokens: int | None = None,
        **parameters: Any,
    ) -> Generator[str, None, None]:
        """Send one chat request and yield the answer's text as it comes.

        The read timeout holds between two pieces, so a long answer needs no long
        timeout. Takes and raises what ``chat`` does; once text has come, what breaks is
        an APIStreamBrokenError with the text so far. The connection is closed when the
        reader stops early: at once on CPython, elsewhere with ``contextlib.closing``.
        """
        parameters["stream"] = True
        return self._pieces(_payload(messages, model, max_tokens, parameters))

    def models(self) -> list[str]:
        """The names of the models that this key may use. Raises MistralError.

        It is the usual health check, but a weak one: it succeeds for an account
        whose budget is used up, and every chat then fails with a 402.
        """
        answer = self._request("GET", "/models")
        try:
            return [str(model["id"]) for model in answer["data"]]
        except (KeyError, TypeError) as error:
            raise APIResponseValidationError("the answer is not a list of models") from error

    def close(self) -> None:
        """Close the connections, unless the session is the caller's own."""
        if self._owns_session:
            self._session.close()

    def __enter__(self) -> MistralClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={self._base_url!r})"

    def _request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> Any:
        with self._exchange(method, path, payload) as response:
            return _parsed(_read(response))

    def _pieces(self, payload: dict[str, Any]) -> Generator[str, None, None]:
        received: list[str] = []
        try:
            with self._exchange("POST", "/chat/completions", payload) as response:
                for event in _events(response):
                    if piece := _delta(event):
                        received.append(piece)
                        yield piece
        except MistralError as error:
            if not received:
                raise
            raise APIStreamBrokenError(str(error), "".join(received)) from error

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, payload: dict[str, Any] | None
    ) -> Iterator[requests.Response]:
        """Send a request, and hand out a 2xx answer to be read; all else is a MistralError."""
        body = None if payload is None else _to_json(payload)
        handled = sys.exc_info()[1]  # the caller may be in an except clause: no cause of ours
        try:
            with self._session.request(
                method,
                self._base_url + path,
                data=body,
                headers={"Content-Type": "application/json"},
                auth=self._auth,  # an Authorization header of our own would lose to ~/.netrc
                timeout=self._timeout,
                allow_redirects=False,
                proxies=dict(self._proxies),  # requests adds to it
                stream=True,
            ) as response:
                if not 200 <= response.status_code <= 299:
                    text = ""
                    with contextlib.suppress(urllib3.exceptions.HTTPError):
                        text = _read(response)[:MAX_ANSWER_BYTES].decode("utf-8", "replace")
                    raise error_from_response(
                        response.status_code, response.headers, text, secret=self._auth.key
                    )
                yield response
        except (OSError, urllib3.exceptions.HTTPError) as error:
            shown = "".join(traceback.format_exception(error))
            cause = None if self._auth.key in shown else error
            raise _connection_error(error, handled, self._host) from cause


class _BearerAuth(AuthBase):
    """Sets the Authorization header; a class, so that no repr shows the key."""

    def __init__(self, key: str) -> None:
        if not isinstance(key, str) or not key:
            raise ValueError("The API key is empty: set MISTRAL_API_KEY.")
        if not all("!" <= char <= "~" for char in key):
            raise ValueError(
                "The API key contains a space, a line break or a non-ASCII character, "
                "which no HTTP header can carry: copy it again."
            )
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.key}"
        request.register_hook("response", _forget_redirect)  # type: ignore[no-untyped-call]
        return request


def _forget_redirect(response: requests.Response, **_: object) -> None:
    """Even if it may not follow, requests reads a redirect's whole body and judges its target."""
    response.headers.pop("Location", None)


def _checked_base_url(url: str) -> tuple[str, str, bool]:
    """(URL without a slash at its end, host, is it this machine?), or ValueError."""
    # The URL itself is not shown: it may hold a password, or a key pasted by mistake.
    hint = "The base URL must look like https://api.mistral.ai/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:
        raise ValueError(f"{hint}: it has a host or a port that cannot be.") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise ValueError(f"{hint}: it has no https:// or no host.")
    if parts.username is not None or "?" in url or "#" in url:
        raise ValueError(f"{hint}: without a user name, a question mark or a #.")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ValueError("The base URL must begin with https://: http would show the key.")
    return url.rstrip("/"), host, _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked_timeout(timeout: float | tuple[float, float]) -> tuple[float, float]:
    try:
        connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        if 0 < connect <= LONGEST_TIMEOUT and 0 < read <= LONGEST_TIMEOUT:
            return float(connect), float(read)
    except (TypeError, ValueError):
        pass
    raise ValueError("timeout must be seconds above 0: (to connect, to read) or one for both")


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidRequestError for what the API would refuse, without spending a request on it."""
    if not isinstance(messages, (list, tuple)) or not messages:
        example = '[{"role": "user", "content": "Hello!"}]'
        raise InvalidRequestError(f"messages must be a list such as {example}")
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise InvalidRequestError(f"messages[{index}] needs a role: one of {', '.join(ROLES)}")
        content = message.get("content")
        if role in ("system", "user") and not (isinstance(content, (str, list)) and content):
            raise InvalidRequestError(f"messages[{index}] needs content: some text")


def _payload(
    messages: Sequence[Mapping[str, Any]],
    model: str,
    max_tokens: int | None,
    parameters: dict[str, Any],
) -> dict[str, Any]:
    _check_messages(messages)
    payload = {"model": model, "messages": [dict(item) for item in messages], **parameters}
    if max_tokens is not None:
        payload["max_tokens"] = max_tokens
    return payload


def _to_json(payload: dict[str, Any]) -> bytes:
    try:
        return json.dumps(payload, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the request cannot be written as JSON: {error}") from error


def _read(response: requests.Response) -> bytes:
    """The body, up to one byte more than may be."""
    content: bytes = response.raw.read(MAX_ANSWER_BYTES + 1, decode_content=True)
    return content


def _events(response: requests.Response) -> Iterator[Any]:
    """The server-sent events of a stream, parsed, up to its end mark."""
    if "text/event-stream" not in response.headers.get("Content-Type", ""):
        raise APIResponseValidationError("the answer is no stream of events")
    pending, size = bytearray(), 0
    # Without chunks there is no telling where a piece ends, so it is taken byte by byte.
    stream = response.raw.stream(65536 if response.raw.chunked else 1, decode_content=True)
    for received in stream:
        size += len(received)
        if size > MAX_ANSWER_BYTES:
            raise APIResponseValidationError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        pending += received
        if b"\n" not in received:
            continue
        *lines, pending = pending.split(b"\n")
        for line in lines:
            name, _, data = line.partition(b":")
            if name == b"data" and data.strip() == b"[DONE]":
                # Read the body's end, too: only then can the connection be used again.
                with contextlib.suppress(OSError, urllib3.exceptions.HTTPError):
                    next(stream, b"")
                return
            if name == b"data":
                yield _parsed(data)
    raise APIConnectionError("the stream ended without its end mark")


def _parsed(content: bytes | bytearray) -> Any:
    """A 2xx body as JSON; what is none of it gets an error that says what came instead."""
    if len(content) > MAX_ANSWER_BYTES:
        raise APIResponseValidationError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    text = content.strip()
    if not text:
        raise APIResponseValidationError("the answer is empty")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "an HTML page, not JSON" if text[:1] == b"<" else "cut off or no JSON"
        raise APIResponseValidationError(f"the answer is {what}") from error


def _completion(answer: Any) -> ChatCompletion:
    """The fields of a chat completion, each checked: a 2xx is no promise of a shape."""
    try:
        choice = answer["choices"][0]
        usage = answer.get("usage")
        return ChatCompletion(
            content=_text(choice["message"]),
            model=str(answer["model"]),
            finish_reason=str(choice["finish_reason"] or ""),
            usage=None if usage is None else _usage(usage),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        # From None: what int() says would show what the server sent, perhaps the key.
        raise APIResponseValidationError("the answer is JSON, but no chat completion") from None


def _delta(event: Any) -> str:
    """The text that one event of a stream adds."""
    try:
        return "".join(_chunk_text(choice["delta"].get("content")) for choice in event["choices"])
    except (KeyError, TypeError, AttributeError) as error:
        raise APIResponseValidationError("the stream holds no chat completion") from error


def _usage(usage: dict[str, Any]) -> Usage:
    return Usage(
        int(usage["prompt_tokens"]), int(usage["completion_tokens"]), int(usage["total_tokens"])
    )


def _text(message: dict[str, Any]) -> str:
    """The text of a message, which may have none beside its tool calls."""
    content = message["content"]
    if content is None and not message.get("tool_calls"):
        raise TypeError("the message has no content")
    return _chunk_text(content)


def _chunk_text(content: Any) -> str:
    """A string, a reasoning model's list of chunks, or None, as text."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(chunk["text"] for chunk in content if chunk["type"] == "text")
    if not isinstance(content, str):
        raise TypeError("the content is no text")
    return content


def _connection_error(
    error: Exception, handled: BaseException | None, host: str
) -> APIConnectionError:
    """Name what lies under an exception of requests or urllib3, however deep it is wrapped."""
    for reason in itertools.takewhile(lambda cause: cause is not handled, _causes(error)):
        if isinstance(reason, urllib3.exceptions.NewConnectionError):
            continue  # a timeout by its class alone: what it was raised from says what it is
        if isinstance(reason, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
            return APITimeoutError(f"{host} did not answer in time")
        if isinstance(reason, socket.gaierror):
            return APIConnectionError(f"the host {host} was not found")
        if isinstance(reason, ConnectionRefusedError):
            return APIConnectionError(f"{host} refused the connection")
        if isinstance(reason, ssl.SSLError):
            return APIConnectionError(f"no secure connection to {host}: {reason.reason}")
        if isinstance(reason, CUT_OFF):
            return APIConnectionError(f"{host} cut the connection off before the answer was whole")
    return APIConnectionError(f"the connection to {host} failed ({type(error).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, then what it was raised from or wraps, ever deeper."""
    while error is not None:
        yield error
        wrapped = [arg for arg in error.args if isinstance(arg, BaseException)]
        error = error.__cause__ or error.__context__ or next(iter(wrapped), None)
