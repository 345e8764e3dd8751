"""lib/transport.py: a call ends in time, and whatever a server sends ends in a named error."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import requests

from lib.client import ChatCompletion, Limits, MistralClient
from lib.errors import APIConnectionError, APITimeoutError, MistralError
from lib.mock_server import MockServer
from support import completion, raw_response, refusing_url, run_in_threads

HELLO = [{"role": "user", "content": "Hello!"}]
JSON = json.dumps(completion("Hello!")).encode()
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: "
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "Hello "}}]}\n\n'
STREAM = (
    CHUNKED + b"text/event-stream\r\n\r\n"
    + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (EVENT, EVENT, b"data: [DONE]\n\n"))
    + b"0\r\n\r\n"
)  # fmt: skip


@contextlib.contextmanager
def serving(responses: Iterable[bytes], seconds_per_byte: float = 0) -> Iterator[str]:
    """A server that sends each connection the next of the responses, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    stopping = threading.Event()

    def serve() -> None:
        for response in responses:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                if stopping.is_set():
                    return
                connection.recv(65536)
                if not seconds_per_byte:
                    connection.sendall(response)
                    continue
                for position in range(len(response)):
                    connection.sendall(response[position : position + 1])
                    if stopping.wait(seconds_per_byte):
                        return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        stopping.set()
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname()).close()
        thread.join()
        listener.close()


def chat(client: MistralClient) -> object:
    return client.chat(HELLO)


def stream(client: MistralClient) -> object:
    return list(client.stream(HELLO))


class TestTotalTimeout:
    """No read timeout ends a response that drips byte by byte; the total timeout does."""

    @pytest.mark.parametrize(
        ("response", "call"),
        [
            (b"HTTP/1.1 200 OK\r\nX-Filler: " + b"x" * 1000, chat),
            (raw_response("200 OK", JSON), chat),
            (CHUNKED + b"application/json\r\n\r\n" + b"0" * 1000, chat),
            (raw_response("503 Busy", JSON), chat),
            (STREAM, stream),
        ],
        ids=["headers", "body", "chunk size", "error body", "stream"],
    )
    def test_it_ends_a_response_that_drips(
        self, response: bytes, call: Callable[[MistralClient], object]
    ) -> None:
        with serving([response], 0.02) as url:
            client = MistralClient("k", base_url=url, timeout=1, total_timeout=0.5)
            started_at = time.monotonic()
            with pytest.raises(APITimeoutError, match=r"within the total timeout of 0\.5 s"):
                call(client)
        assert 0.4 < time.monotonic() - started_at < 2  # it would take 3 s and more

    def test_it_includes_the_time_that_a_streams_reader_takes(self) -> None:
        with serving([STREAM]) as url:
            client = MistralClient("k", base_url=url, total_timeout=0.2)
            pieces = client.stream(HELLO)
            assert next(pieces) == "Hello "

    def test_the_shorter_of_the_timeouts_holds(self) -> None:
        with MockServer("timeout,timeout") as server:
            client = MistralClient("k", base_url=server.url, timeout=0.2, total_timeout=60)
            with pytest.raises(APITimeoutError, match="in time"):
                chat(client)
            client = client.with_options(timeout=60, total_timeout=0.3)
            with pytest.raises(APITimeoutError, match=r"within the total timeout of 0\.3 s"):
                chat(client)

    def test_a_connection_is_used_again_after_a_call_that_was_nearly_too_long(self) -> None:
        """A call leaves no short timeout behind on its connection."""
        with MockServer("slow:0.3,slow:0.6") as server:
            client = MistralClient("k", base_url=server.url, total_timeout=0.5)
            chat(client)
            chat(client.with_options(total_timeout=5))

    def test_a_session_of_your_own_gets_read_timeouts_no_longer_than_the_total(self) -> None:
        with MockServer("timeout") as server, requests.Session() as session:
            client = MistralClient("k", base_url=server.url, total_timeout=0.3, session=session)
            with pytest.raises(APITimeoutError):
                chat(client)

    @pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "60", None, True])
    def test_a_wrong_one(self, value: Any) -> None:
        with pytest.raises(ValueError, match="total_timeout must be a number of seconds > 0, got"):
            MistralClient("k", total_timeout=value)


class TestWithOptions:
    def test_it_shares_the_connections_and_closes_nothing(self) -> None:
        with MockServer() as server, MistralClient("k", base_url=server.url) as client:
            with client.with_options(timeout=3, total_timeout=7) as other:
                chat(other)
            chat(client)
            assert len(server._server._connections) == 1

    def test_threads_with_different_options_do_not_mix_them_up(self) -> None:
        with MockServer("slow:0.3*8") as server, MistralClient("k", base_url=server.url) as client:
            options = iter([0.1, 5] * 4)

            def call() -> str:
                total_timeout = next(options)
                try:
                    chat(client.with_options(total_timeout=total_timeout))
                except APITimeoutError as error:
                    return str(error).rpartition("timeout of ")[2]
                return "ok"

            assert sorted(run_in_threads(8, call)) == ["0.1 s"] * 4 + ["ok"] * 4


class TestLimits:
    @pytest.mark.parametrize(
        ("headers", "limits"),
        [
            ([], Limits()),
            (
                [
                    "x-ratelimit-limit-req-minute: 60",
                    "x-ratelimit-remaining-req-minute: 0",
                    "x-ratelimit-limit-tokens-minute: 50000",
                    "X-RateLimit-Remaining-Tokens-Minute: 49990",
                ],
                Limits(60, 0, 50000, 49990),
            ),
            (["x-ratelimit-limit-req-minute: -1", "x-ratelimit-limit-tokens-minute: x"], Limits()),
            (["x-ratelimit-limit-req-minute: " + "9" * 5000], Limits()),
        ],
        ids=["none", "all", "malformed", "endless"],
    )
    def test_they_are_read_from_the_headers(self, headers: list[str], limits: Limits) -> None:
        with serving([raw_response("200 OK", JSON, *headers)]) as url:
            assert MistralClient("k", base_url=url).chat(HELLO).limits == limits


class TestConnectionErrorName:
    """What it is called follows what it was raised from, never what the caller handles."""

    def test_inside_an_except_clause(self) -> None:
        with refusing_url() as url:
            try:
                raise TimeoutError("the caller's own")
            except TimeoutError:
                with pytest.raises(APIConnectionError, match="refused the connection") as caught:
                    chat(MistralClient("k", base_url=url))
        assert not isinstance(caught.value, APITimeoutError)


def mutated(original: bytes, chance: random.Random) -> bytes:
    """The response with a few bytes changed, dropped, doubled or replaced by something odd."""
    data = bytearray(original)
    for _ in range(chance.choice([1, 1, 2, 5])):
        position = chance.randrange(len(data))
        length = chance.choice([1, 1, 3, 20])
        odd = [b"", b"-5", b"\xff", b"\x00", b"\r\n", b"99999999999", b"{", b"]", b"null", b'"',
               data[position : position + length] * 2]  # fmt: skip
        data[position : position + length] = chance.choice(odd)
    return bytes(data[: chance.randrange(1, len(data) + 1)] if chance.random() < 0.1 else data)


ODD_FRAMING = [
    STREAM.replace(b"\r\n\r\n4", b"\r\n\r\n-5\r\n4"),
    CHUNKED + b"application/json\r\n\r\n-5\r\nHello\r\n0\r\n\r\n",
    CHUNKED + b"application/json\r\n\r\nzz\r\nHello\r\n0\r\n\r\n",
    CHUNKED + b"application/json\r\nContent-Encoding: gzip\r\n\r\n5\r\nHello\r\n0\r\n\r\n",
    raw_response("200 OK", JSON).replace(b"Content-Length: ", b"Content-Length: -"),
]


class TestFuzz:
    """Whatever a server sends ends in a completion or in a MistralError."""

    @pytest.mark.parametrize("call", [chat, stream])
    def test_odd_framing(self, call: Callable[[MistralClient], object]) -> None:
        with serving(ODD_FRAMING) as url:
            for _ in ODD_FRAMING:
                with contextlib.suppress(MistralError):
                    call(MistralClient("k", base_url=url, timeout=5))

    @pytest.mark.parametrize(
        ("original", "call"), [(raw_response("200 OK", JSON), chat), (STREAM, stream)]
    )
    def test_a_thousand_mutated_responses(
        self, original: bytes, call: Callable[[MistralClient], object]
    ) -> None:
        chance = random.Random(27)
        responses = [mutated(original, chance) for _ in range(1000)]
        ends = {"result": 0, "error": 0}
        with serving(responses) as url, MistralClient("k", base_url=url, timeout=5) as client:
            for _ in responses:
                try:
                    assert isinstance(call(client), (ChatCompletion, list))
                    ends["result"] += 1
                except MistralError:
                    ends["error"] += 1
        assert min(ends.values()) > 10
