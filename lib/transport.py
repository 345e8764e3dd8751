# SPDX-License-Identifier: MIT-0
"""Send HTTP requests with an API key, within a total timeout, and name connection errors.

A read timeout is not a total timeout. requests limits each read, not the whole call, so a
server that sends one byte every few seconds can hold a call forever. Here each read may
last as long as the read timeout or the time left for the call, whichever is shorter, so
the call ends when its total timeout has passed.

The API key goes into the Authorization header and nowhere else. If a response repeats it in
its headers or in an error message, it is redacted here. Only this file uses urllib3.
Needs ``requests`` and ``errors.py``.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import json
import math
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

from .errors import APIConnectionError, APITimeoutError, error_from_response

MAX_RESPONSE_BYTES = 8 * 1024 * 1024
MAX_CONNECTIONS = 64  # kept open between calls; more threads than this still work
DRAIN_SECONDS = 0.5  # to read the end of a stream after its last event
REDACTED = "[redacted]"
DROPPED_CONNECTION = (
    ConnectionError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.IncompleteRead,
)
TIMEOUTS = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)


class Transport:
    """Send requests to one base URL with one key. Thread-safe.

    A ``session`` of your own is used as it is and not closed. With it, or with a SOCKS proxy,
    the total timeout limits the connection attempt and each read, but not a body that arrives
    byte by byte.
    Raises ValueError for an invalid base URL, and for a key that an HTTP header cannot
    carry; the message never shows the key.
    """

    def __init__(self, api_key: str, base_url: str, session: requests.Session | None) -> None:
        self._auth = _BearerAuth(api_key)
        self.base_url, self._host, on_this_machine = _check_base_url(base_url)
        # An empty proxy takes precedence over one in the environment.
        self._proxies = {"http": "", "https": "", "all": ""} if on_this_machine else {}
        self._owns_session = session is None
        if session is None:
            session = requests.Session()
            for scheme in ("https://", "http://"):
                session.mount(scheme, _DeadlineAdapter(pool_maxsize=MAX_CONNECTIONS))
        self._session = session

    @contextlib.contextmanager
    def send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout: tuple[float, float],
        total_timeout: float,
    ) -> Iterator[Response]:
        """Send a request and yield its 2xx response; raise a MistralError for anything else.

        ``timeout`` is (connect timeout, read timeout) in seconds. ``total_timeout`` is the
        seconds for the whole call, which ends with the ``with`` block.
        """
        deadline = _deadlines.current = _Deadline(total_timeout)
        try:
            with self._session.request(
                method,
                self.base_url + path,
                data=body,
                headers={"Content-Type": "application/json"},
                auth=self._auth,  # requests lets ~/.netrc replace a header, but not this
                timeout=(min(timeout[0], total_timeout), min(timeout[1], total_timeout)),
                allow_redirects=False,
                proxies=dict(self._proxies),  # a copy, since requests changes it
                stream=True,
            ) as raw:
                response = Response(raw, deadline, self._auth.key)
                if not 200 <= raw.status_code <= 299:
                    text = response.error_text()
                    raise error_from_response(raw.status_code, response.headers, text)
                yield response
        except (OSError, ValueError, urllib3.exceptions.HTTPError) as error:
            # A traceback also shows the cause: leave out a cause that contains the key.
            traceback_text = "".join(traceback.format_exception(error))
            cause = None if self._auth.key in traceback_text else error
            raise _connection_error(error, self._host, deadline) from cause

    def close(self) -> None:
        """Close the connections, unless you passed a session of your own."""
        if self._owns_session:
            self._session.close()


class Response:
    """An HTTP response whose body has not been read yet. Its headers are redacted."""

    def __init__(self, raw: requests.Response, deadline: _Deadline, key: str) -> None:
        self.headers: Mapping[str, str] = CaseInsensitiveDict(
            {name: value.replace(key, REDACTED) for name, value in raw.headers.items()}
        )
        self._raw = raw.raw
        self._deadline = deadline
        self._key = key

    def read(self) -> bytes:
        """Return the body, but at most MAX_RESPONSE_BYTES + 1 bytes of it."""
        content: bytes = self._raw.read(MAX_RESPONSE_BYTES + 1, decode_content=True)
        return content

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives."""
        # Without chunked encoding, a larger read would wait until its buffer is full.
        size = 65536 if getattr(self._raw, "chunked", False) else 1
        yield from self._raw.stream(size, decode_content=True)

    def drain(self, chunks: Iterator[bytes]) -> None:
        """Read the end of the body, for DRAIN_SECONDS at most, to make the connection reusable.

        With a session of your own, it can take as long as the read timeout.
        """
        self._deadline.shorten(DRAIN_SECONDS)
        with contextlib.suppress(OSError, ValueError, urllib3.exceptions.HTTPError):
            next(chunks, b"")

    def error_text(self) -> str:
        """Return the body of an error response, redacted, or "" if it can't be read."""
        text = ""
        with contextlib.suppress(ValueError, urllib3.exceptions.HTTPError):
            text = self.read()[:MAX_RESPONSE_BYTES].decode("utf-8", "replace")
        with contextlib.suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text))  # JSON may write the key with escapes (\u0041)
        return self.redact(text)

    def redact(self, text: str) -> str:
        """Return the text (plain, or JSON from ``json.dumps``) with the key redacted."""
        return text.replace(json.dumps(self._key)[1:-1], REDACTED).replace(self._key, REDACTED)


class _Deadline:
    """The time by which a call must end, on the monotonic clock."""

    def __init__(self, total_timeout: float) -> None:
        self.total_timeout = total_timeout
        self._at = time.monotonic() + total_timeout

    def shorten(self, seconds: float) -> None:
        self._at = min(self._at, time.monotonic() + seconds)

    def remaining(self) -> float:
        return self._at - time.monotonic()


class _Deadlines(threading.local):
    current: _Deadline | None = None


_deadlines = _Deadlines()  # carries a call's deadline through requests and urllib3 to its socket


class _DeadlineReader(io.RawIOBase):
    """Read from a socket; no read lasts beyond the call's deadline."""

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self._socket = connection
        self._file = connection.makefile("rb", buffering=0)
        self._read_timeout = connection.gettimeout() or math.inf
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self._deadline.remaining()
        if remaining <= 0:
            raise TimeoutError("the total timeout has passed")
        self._socket.settimeout(min(self._read_timeout, remaining))
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _DeadlineResponse(http.client.HTTPResponse):
    """http.client's response; status line, headers and body come from a _DeadlineReader."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        if _deadlines.current is not None:
            self.fp.close()
            self.fp = io.BufferedReader(_DeadlineReader(sock, _deadlines.current))


class _DeadlineConnection(HTTPConnection):
    """Connect, and read the response, before the call's deadline."""

    response_class = _DeadlineResponse

    def _new_conn(self) -> socket.socket:
        """Try the host's addresses in order, until one connects or the deadline has passed.

        urllib3 alone would try all of them, and each could take the whole connect timeout.
        """
        host, timeout = self._dns_host, self.timeout or math.inf
        deadline = _deadlines.current or _Deadline(math.inf)
        try:
            found = socket.getaddrinfo(host, self.port, allowed_gai_family(), socket.SOCK_STREAM)
        except OSError:
            return super()._new_conn()  # urllib3 raises its own error for it
        addresses = [str(address[0]) for *_, address in found] or [host]
        try:
            while True:
                self._dns_host = addresses.pop(0)
                self.timeout = min(timeout, max(deadline.remaining(), 0.001))
                try:
                    return super()._new_conn()
                except (ConnectTimeoutError, NewConnectionError):
                    if not addresses or deadline.remaining() <= 0:
                        raise
        finally:
            self._dns_host = host  # TLS checks this name


class _DeadlineHTTPSConnection(_DeadlineConnection, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _DeadlineConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _DeadlineHTTPSConnection


class _DeadlineAdapter(HTTPAdapter):
    """requests' adapter; its connections respect a call's deadline, also via an HTTP proxy."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._use_deadlines(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        if isinstance(manager, urllib3.ProxyManager):  # a SOCKS proxy needs its own connections
            self._use_deadlines(manager)
        return manager

    def _use_deadlines(self, manager: Any) -> None:
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


class _BearerAuth(AuthBase):
    """Set the Authorization header. Its repr does not show the key."""

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
    """Drop the Location header.

    With it, requests reads a redirect's body and parses the target, although it must not follow.
    """
    response.headers.pop("Location", None)


def _check_base_url(url: str) -> tuple[str, str, bool]:
    """Return (URL without a trailing slash, host, whether it is this machine), or raise ValueError.

    The message does not show the URL: it may contain a password, or a key pasted by mistake.
    """
    hint = "The base URL must look like https://api.mistral.ai/v1"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port  # an invalid port raises ValueError
        host.encode("idna")
    except ValueError:
        raise ValueError(f"{hint}: its host or port is not valid.") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise ValueError(f"{hint}: it has no https:// or no host.")
    if parts.username is not None or "?" in url or "#" in url:
        raise ValueError(f"{hint}: without a user name, a question mark or a #.")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("The base URL must start with https://: http would expose the key.")
    return url.rstrip("/"), host, is_loopback(host)


def is_loopback(host: str) -> bool:
    """Return True if the host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connection_error(error: Exception, host: str, deadline: _Deadline) -> APIConnectionError:
    """Return an error that names the root cause of a requests or urllib3 exception."""
    for reason in _causes(error):
        if isinstance(reason, urllib3.exceptions.NewConnectionError):
            continue  # its class derives from a timeout, but only its cause says what happened
        if isinstance(reason, TIMEOUTS):
            if deadline.remaining() <= 0:
                total = f"within the total timeout of {deadline.total_timeout:g} s"
                return APITimeoutError(f"{host} did not respond {total}")
            return APITimeoutError(f"{host} did not respond in time")
        if isinstance(reason, socket.gaierror):
            return APIConnectionError(f"the host {host} was not found")
        if isinstance(reason, ConnectionRefusedError):
            return APIConnectionError(f"{host} refused the connection")
        if isinstance(reason, ssl.SSLError):
            return APIConnectionError(f"no secure connection to {host}: {reason.reason}")
        if isinstance(reason, DROPPED_CONNECTION):
            return APIConnectionError(
                f"{host} closed the connection before the response was complete"
            )
    return APIConnectionError(f"the connection to {host} failed ({type(error).__name__})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception, then every exception that it was raised from or wraps.

    ``__context__`` is not followed, since it may be an unrelated exception that the caller
    is handling. NewConnectionError is different: in urllib3 1.26, its context is the
    socket's error.
    """
    seen, waiting = set[int](), [error]
    while waiting:
        error = waiting.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        wrapped = [error.__cause__, getattr(error, "reason", None), *error.args]
        if isinstance(error, urllib3.exceptions.NewConnectionError):
            wrapped.append(error.__context__)
        waiting += [cause for cause in wrapped if isinstance(cause, BaseException)]
