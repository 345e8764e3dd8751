"""Measure the mock server: responses and streams per second, and the CPU time of each.

python tests/benchmarks/mock_server.py

The server runs in a process of its own, with four kept-alive connections. The clients read raw
bytes, so that nearly all of the time is the server's. It needs the standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

CONNECTIONS = 4
SECONDS = 3.0
SERVE = """
import sys, time
from lib.mock_server import MockServer
with MockServer() as server:
    print(server.url, flush=True)
    for line in sys.stdin:
        print(time.process_time(), flush=True)
"""


def chat_request(*, stream: bool) -> bytes:
    messages = [{"role": "user", "content": "Hello!"}]
    body = {"model": "mistral-small-latest", "messages": messages, "stream": stream}
    content = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer k\r\nContent-Length: "
    return f"{head}{len(content)}\r\n\r\n".encode() + content


def responses_received(port: int, *, stream: bool) -> int:
    """Send requests on one connection, one after the other, and count the responses."""
    request = chat_request(stream=stream)
    end = b"0\r\n\r\n" if stream else b"}}"
    count, stop_at = 0, time.monotonic() + SECONDS
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < stop_at:
            connection.sendall(request)
            received = b""
            while not received.endswith(end):
                received += connection.recv(65536)
            count += 1
    return count


def main() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin
    assert child.stdout

    def cpu_seconds() -> float:
        print(file=child.stdin, flush=True)
        return float(child.stdout.readline())

    with child:
        port = int(child.stdout.readline().rpartition(":")[2].partition("/")[0])
        print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, {CONNECTIONS} connections")
        for name, stream in (("responses", False), ("streams", True)):
            measure = partial(responses_received, stream=stream)
            before = cpu_seconds()
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                total = sum(pool.map(measure, [port] * CONNECTIONS))
            used = cpu_seconds() - before
            print(
                f"{total / SECONDS:,.0f} {name} per second, {used / total * 1e6:.0f} µs of CPU each"
            )
        child.stdin.close()


if __name__ == "__main__":
    main()
