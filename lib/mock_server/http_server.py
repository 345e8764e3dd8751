# SPDX-License-Identifier: MIT-0
"""Serve HTTP for the mock server: read requests, send responses, close every connection."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from .api import Request, Response, first_half, json_response, phrase
from .log import LoggedRequest

MAX_BODY_BYTES = 1024 * 1024


Respond = Callable[[Request], tuple[Response | None, LoggedRequest]]


class HTTPServer(ThreadingTCPServer):
    """Listen on loopback, with one thread per connection; ``stop`` closes all connections.

    ``respond(request)`` returns the response to a request and its log entry. If the response
    is None, the connection is closed without one.
    """

    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port
    request_queue_size = 128
    timeout = 0.5  # seconds after which ``serve`` looks again whether to stop

    def __init__(self, port: int, respond: Respond, request_id_header: str) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.respond = respond
        self.request_id_header = request_id_header
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._stopping = False
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Accept connections until ``stop`` is called."""
        while not self._stopping:
            self.handle_request()

    def opened(self, connection: socket.socket) -> None:
        """Remember a connection, or close it if the server is stopping."""
        with self._lock:
            self._connections.add(connection)
            if self._stopping:
                _disconnect(connection)

    def stop(self) -> None:
        """Close every connection and end ``serve``. Only ``server_close`` closes the port."""
        with self._lock:
            self._stopping = True
            for connection in self._connections:
                _disconnect(connection)
        with contextlib.suppress(OSError):  # there may be no file descriptor left
            socket.create_connection(self.socket.getsockname()).close()  # wakes ``serve`` at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that disconnected; report anything else, since it is a bug here."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _disconnect(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """Handle one connection: read requests of limited size, and send the responses."""

    server: HTTPServer
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # a response is sent in one piece, unless it has to wait in between
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.opened(self.connection)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not length:
            self.send_error(411)
        elif not re.fullmatch("[0-9]{1,12}", length):
            self.send_error(400)
        elif int(length) > MAX_BODY_BYTES:
            self.send_error(413)
        else:
            body = self.rfile.read(int(length))
            if len(body) == int(length):  # or the client has left
                self._respond(body)

    def do_GET(self) -> None:
        self._respond(b"")

    def _respond(self, body: bytes) -> None:
        path = re.sub("[^!-~]", "?", self.path.partition("?")[0])[:100]
        has_key = re.match(r"(?i)bearer +\S", self.headers.get("Authorization", ""))
        received = Request(self.command, path, bool(has_key), body)
        response, request = self.server.respond(received)
        try:
            if response is None or not self._wait_unless_closed(response.delay):
                self.close_connection = True
            else:
                self._send(response)
        finally:
            request.duration = time.monotonic() - request.arrived

    def _wait_unless_closed(self, seconds: float) -> bool:
        """Wait ``seconds``; return False if the client disconnects or the server stops first."""
        if not seconds:
            return True
        self.wfile.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            return not selector.select(seconds)

    def _send(self, response: Response) -> None:
        pieces = [piece.encode() for piece in response.pieces]
        framing = ("Content-Length", str(sum(map(len, pieces))))
        if response.stream:
            pieces = [b"%x\r\n%s\r\n" % (len(event), event) for event in pieces] + [b"0\r\n\r\n"]
            framing = ("Transfer-Encoding", "chunked")
        self.wfile.write(self._head(response, framing))
        if response.broken:
            pieces = first_half(pieces)
            self.close_connection = True  # the head does not announce it
        if response.seconds_per_byte:
            pieces = [bytes([byte]) for piece in pieces for byte in piece]
        for piece in pieces:
            if not self._wait_unless_closed(response.seconds_per_byte):
                self.close_connection = True
                return
            self.wfile.write(piece)
        self._wait_unless_closed(response.silence)

    def _head(self, response: Response, framing: tuple[str, str]) -> bytes:
        headers = [
            ("Date", self.date_time_string()),
            (self.server.request_id_header, str(uuid.uuid4())),
            *response.headers.items(),
            framing,
            *([("Connection", "close")] if self.close_connection else []),
        ]
        lines = [f"HTTP/1.1 {response.status} {phrase(response.status)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send http.server's own errors in the API's shape, without repeating the request."""
        self.close_connection = True
        self._send(json_response(code, {"detail": phrase(code)}))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the mock server has its own log, which contains no headers."""
