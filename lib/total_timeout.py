# SPDX-License-Identifier: MIT-0
"""End any ``requests`` call in time, whatever the server sends.

    session.mount("https://", TotalTimeoutAdapter())
    with total_timeout(30):
        session.get("https://example.org/", timeout=(5, 10))

The timeouts of requests limit one attempt to connect, and each silence. A server that sends
one byte every few seconds can hold such a call forever. Within a ``total_timeout``, the call
ends after 30 seconds, as a ``requests.Timeout``: connecting (to all addresses of the host
together), sending, the response's headers, its body and its decompression. A body that you
read after the block is limited, too.

Three things are not limited: the lookup of the host name, since nothing can interrupt it; a
response that a SOCKS or https:// proxy passes on byte by byte; and the waits between the retries of
``max_retries``. Needs ``requests``, and the urllib3 that comes with it, from 1.26 on.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

MIN_SECONDS, MAX_SECONDS = 0.001, 86400.0  # timeouts that every operating system takes
PIECE = 65536  # bytes to send at once


def total_timeout(seconds: float) -> Deadline:
    """Return a deadline for the calls of a block: ``with total_timeout(30): session.get(url)``.

    It limits what this thread or task sends through a TotalTimeoutAdapter. In nested blocks,
    the earlier deadline counts. Raises ValueError unless ``seconds`` is a number > 0.
    """
    if type(seconds) not in (int, float) or not seconds > 0:
        raise ValueError(f"seconds must be a number > 0, got {seconds!r}")
    return Deadline(seconds)


class Deadline:
    """The time by which calls must end. Thread-safe, but use it in one ``with`` at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds
        self._socket: Any = None  # in use by a call
        self._lock = threading.RLock()

    def __str__(self) -> str:
        return f"the total timeout of {round(self.seconds, 3):g} s"

    def __enter__(self) -> Deadline:
        self._outer = _current.get()
        if self._outer._at < self._at:
            self._at, self.seconds = self._outer._at, self._outer.seconds
        _current.set(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _current.set(self._outer)

    def remaining(self) -> float:
        """Return the seconds that are left: zero or less if the deadline has passed."""
        return self._at - time.monotonic()

    def shorten(self, seconds: float) -> None:
        """Leave ``seconds`` at most, from this moment on."""
        self._at = min(self._at, time.monotonic() + seconds)

    def expire(self) -> None:
        """Let the deadline pass now, from any thread or signal handler.

        A call that waits for the server ends at once. A call that is connecting ends as soon as it
        has connected.
        """
        self.shorten(0)
        with self._lock, contextlib.suppress(OSError):
            if self._socket:  # Its own shutdown() would make a TLS socket a plain one.
                with socket.fromfd(self._socket.fileno(), socket.AF_INET, socket.SOCK_STREAM) as s:
                    s.shutdown(socket.SHUT_RDWR)

    def check(self, timeout: float | None = None) -> float:
        """Return the seconds that are left, or ``timeout`` if less.

        Raises TimeoutError if the deadline has passed.
        """
        remaining = self.remaining()
        if remaining <= 0:
            raise TimeoutError(f"{self} has passed")
        return min(remaining, timeout or MAX_SECONDS)

    def limit(self, sock: Any, timeout: float | None) -> None:
        """Limit the socket's next operation to the time that is left, or to ``timeout`` if less."""
        self._socket = sock
        sock.settimeout(self.check(timeout))

    def release(self) -> None:
        """Forget the socket: the call no longer uses it."""
        with self._lock:
            self._socket = None


_NO_DEADLINE = Deadline(math.inf)
_current: ContextVar[Deadline] = ContextVar("deadline", default=_NO_DEADLINE)
_read_timeout: ContextVar[float | None] = ContextVar("read_timeout", default=None)


class TotalTimeoutAdapter(HTTPAdapter):
    """An adapter for requests: calls end by the deadline of their block. Thread-safe."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Use connections that know the deadline."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Use them for proxies, too, unless a proxy needs connections that speak SOCKS."""
        manager = super().proxy_manager_for(*args, **kwargs)
        if isinstance(manager, urllib3.ProxyManager):
            manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request and return its response, whose body may not have arrived."""
        timeout = kwargs.get("timeout")  # a number, a pair, None or an urllib3.Timeout
        read_timeout = timeout[1] if isinstance(timeout, tuple) else timeout
        _read_timeout.set(read_timeout if isinstance(read_timeout, (int, float)) else None)
        with _timeout_of(_current.get(), request=request):
            return super().send(request, *args, **kwargs)

    def build_response(self, *args: Any) -> requests.Response:
        """Return requests' response, with a body that ends by the deadline."""
        response = _LimitedResponse()
        vars(response).update(vars(super().build_response(*args)), deadline=_current.get())
        return response


class _LimitedResponse(requests.Response):
    deadline = _NO_DEADLINE

    def iter_content(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with _timeout_of(self.deadline, response=self):
            for piece in super().iter_content(*args, **kwargs):
                if not self._content_consumed and self.deadline.remaining() <= 0:  # type: ignore[attr-defined]
                    self.close()
                    self.deadline.check()
                yield piece


@contextlib.contextmanager
def _timeout_of(deadline: Deadline, **context: Any) -> Iterator[None]:
    """Raise requests.Timeout in place of any error that comes after the deadline."""
    try:
        yield
    except OSError as error:  # TimeoutError and all errors of requests are OSErrors
        if deadline.remaining() > 0:
            raise
        raise requests.Timeout(f"no complete response within {deadline}", **context) from error


class _Reader(io.RawIOBase):
    """Read from a socket; no read lasts beyond the deadline."""

    def __init__(self, sock: Any, raw: io.RawIOBase) -> None:
        self._socket = sock
        self._raw = raw
        self._timeout = sock.gettimeout()
        self._deadline = _current.get()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._deadline.limit(self._socket, self._timeout)
        count = self._raw.readinto(buffer)
        self._deadline.limit(self._socket, self._timeout)  # for the TLS handshake after CONNECT
        return count

    def close(self) -> None:
        self._deadline.release()
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """http.client's response, read with a deadline. Interim responses (1xx) are skipped.

    http.client skips only a 100. It takes any other interim response for the final one, and the
    final response would then go to the next caller that uses the connection.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Reader(sock, self.fp.detach()))

    def begin(self) -> None:
        super().begin()
        while 100 <= self.status <= 199:
            vars(self)["headers"] = None  # without this, begin() does nothing
            super().begin()


class _Connection(HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> socket.socket:
        """Try the host's addresses in order, until one connects or the deadline has passed.

        urllib3 alone would try all of them, and each could take the whole connect timeout.
        """
        deadline, host, timeout = _current.get(), self._dns_host, self.timeout
        try:
            found = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NewConnectionError(self, f"Failed to resolve {host!r}: {error}") from error
        addresses = [str(address[0]) for *_, address in found]
        try:
            while True:
                self._dns_host = addresses.pop(0)
                self.timeout = deadline.check(timeout)
                try:
                    connected = super()._new_conn()
                    left = min(self.timeout, deadline.remaining())
                    connected.settimeout(max(left, MIN_SECONDS))  # for a TLS handshake
                    return connected
                except (ConnectTimeoutError, NewConnectionError):
                    if not addresses:
                        raise
        finally:
            self._dns_host, self.timeout = host, timeout  # TLS checks this name

    def send(self, data: Any) -> None:
        """Send piece by piece. Each may take the read timeout, all of them the remaining time."""
        if self.sock is None:
            self.connect()
        timeout = self.sock.gettimeout()
        for start in range(0, len(data), PIECE):
            _current.get().limit(self.sock, _read_timeout.get())
            super().send(data[start : start + PIECE])
        self.sock.settimeout(timeout)


class _HTTPSConnection(_Connection, HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}
