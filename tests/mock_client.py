"""A client of the mock server for its own tests: it sends bytes, and shows what came back."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from lib.mock_server import MockServer

KEY = "sk-0123456789-secret"
CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
HELLO = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello!"}]}
STREAM = {**HELLO, "stream": True}
GREETING = "Hello! How can I assist you today?"
HEAD = f"POST {CHAT} HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n".encode()


def raw_request(body: Any) -> bytes:
    """Return the bytes of a chat request."""
    data = json.dumps(body).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(data), data)


REQUEST = raw_request(HELLO)


class Reply(NamedTuple):
    """What a client receives."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def choice(self) -> Any:
        return self.json["choices"][0]

    @property
    def content(self) -> Any:
        return self.choice["message"]["content"]

    @property
    def chunks(self) -> list[Any]:
        """The events of a stream, without its end mark."""
        events = self.text.removesuffix("\n\n").split("\n\n")
        assert all(event.startswith("data: ") for event in events)
        return [json.loads(event[6:]) for event in events if event != "data: [DONE]"]


def address(server: MockServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return parts.hostname or "", parts.port or 0


def connect(server: MockServer) -> socket.socket:
    return socket.create_connection(address(server), timeout=10)


def request(
    server: MockServer,
    body: Any = HELLO,
    *,
    method: str = "POST",
    path: str = CHAT,
    authorization: str | None = f"Bearer {KEY}",
) -> Reply:
    """Send one request on a connection of its own."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if authorization is None else {"Authorization": authorization}
    with contextlib.closing(http.client.HTTPConnection(*address(server), timeout=10)) as connection:
        connection.request(method, path, data if method == "POST" else None, headers)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read().decode())


def statuses(server: MockServer, count: int) -> list[int]:
    return [request(server).status for _ in range(count)]


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return received


def send_bytes(server: MockServer, data: bytes, *, more_may_follow: bool = True) -> bytes:
    """Send bytes that need not be HTTP, and return everything that comes back."""
    with connect(server) as connection:
        with contextlib.suppress(OSError):  # the server may have closed the connection already
            connection.sendall(data)
            if not more_may_follow:
                connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


@contextlib.contextmanager
def request_in_progress(server: MockServer, body: Any = HELLO) -> Iterator[socket.socket]:
    """Give a connection whose request has reached the server."""
    with connect(server) as connection:
        before = len(server.log)
        connection.sendall(raw_request(body))
        wait_until(lambda: len(server.log) > before)
        yield connection


def assert_silent(connection: socket.socket) -> None:
    connection.settimeout(0.05)
    with pytest.raises(TimeoutError):
        connection.recv(1)
