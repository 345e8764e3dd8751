"""The mock server: it limits, logs, survives any request, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import os
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import FakeClock, RunMain
from lib.mock_server import MockServer, http_server, log
from lib.mock_server import __main__ as command
from lib.mock_server.faults import VOCABULARY
from mock_client import (
    CHAT,
    HEAD,
    HELLO,
    KEY,
    MODELS,
    REQUEST,
    address,
    connect,
    raw_request,
    read_all,
    request,
    request_in_progress,
    send_bytes,
    statuses,
    wait_until,
)
from support import finish, run_in_threads, start


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    """A server without faults, shared by the tests that change nothing about it."""
    with MockServer() as server:
        yield server


class TestRateLimit:
    @pytest.mark.parametrize("window", [60, 2])
    def test_window_slides(self, window: float, clock: FakeClock) -> None:
        expected = {  # by the part of a window that has passed: status, remaining, Retry-After
            0.0: (200, "1", None),
            0.5: (200, "0", None),
            0.75: (429, "0", 0.25),
            1.0: (200, "0", None),
            1.25: (429, "0", 0.25),
            1.5: (200, "0", None),
            2.5: (200, "1", None),
        }
        with MockServer(requests_per_minute=2, window=window) as server:
            for part, (status, remaining, retry_after) in expected.items():
                clock.now = 1000.0 + part * window
                reply = request(server)
                assert reply.status == status
                assert reply.headers["x-ratelimit-limit-req-minute"] == "2"
                assert reply.headers["x-ratelimit-remaining-req-minute"] == remaining
                wait = str(math.ceil(retry_after * window)) if retry_after else None
                assert reply.headers["Retry-After"] == wait

    def test_limit_holds_under_threads(self) -> None:
        with MockServer(requests_per_minute=20) as server:
            assert Counter(run_in_threads(40, lambda: request(server).status)) == {200: 20, 429: 20}

    def test_injected_error_is_not_counted(self) -> None:
        with MockServer("503,html:502,noquota,drop,ok", requests_per_minute=1) as server:
            assert statuses(server, 3) == [503, 502, 429]
            assert send_bytes(server, REQUEST) == b""
            assert statuses(server, 2) == [200, 429]

    def test_tokens_are_debited_as_used(self, clock: FakeClock) -> None:
        with MockServer(tokens_per_minute=20) as server:
            replies = [request(server)]
            clock.now += 10
            replies += [request(server) for _ in range(2)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        name = "x-ratelimit-remaining-tokens-minute"
        assert [reply.headers[name] for reply in replies] == ["12", "4", "4"]
        assert replies[2].headers["Retry-After"] == "50"

    def test_a_request_larger_than_the_limit_needs_an_empty_window(self, clock: FakeClock) -> None:
        with MockServer(tokens_per_minute=5) as server:
            assert statuses(server, 2) == [200, 429]
            clock.now += 60
            assert request(server).headers["x-ratelimit-remaining-tokens-minute"] == "0"

    @pytest.mark.parametrize(("requests", "tokens"), [(1, 100), (100, 8)])
    def test_a_request_must_fit_both_limits(self, requests: int, tokens: int) -> None:
        with MockServer(requests_per_minute=requests, tokens_per_minute=tokens) as server:
            assert statuses(server, 2) == [200, 429]

    def test_models_and_a_server_without_limits_send_no_headers(self, server: MockServer) -> None:
        assert "ratelimit" not in str(request(server).headers)
        with MockServer(tokens_per_minute=1, requests_per_minute=1) as limited:
            for _ in range(3):
                reply = request(limited, method="GET", path="/v1/models")
                assert reply.status == 200
                assert "ratelimit" not in str(reply.headers)


WRONG_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"requests_per_minute": 0}, "requests_per_minute must be an integer >= 1, got 0"),
    ({"tokens_per_minute": 1.5}, "tokens_per_minute must be an integer >= 1, got 1.5"),
    ({"tokens_per_minute": True}, "tokens_per_minute must be an integer >= 1, got True"),
    ({"dialect": "gpt"}, "dialect must be one of mistral, openai, got 'gpt'"),
    ({"window": 0}, "window must be a number of seconds > 0, got 0"),
    ({"window": float("nan")}, "window must be a number of seconds > 0, got nan"),
]


@pytest.mark.parametrize(("argument", "message"), WRONG_ARGUMENTS)
def test_wrong_argument(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MockServer(**argument)


REJECTED_HEADERS: list[tuple[bytes, int]] = [
    (b"", 411),
    (b"Transfer-Encoding: chunked\r\n", 411),
    (b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", 411),
    (b"Content-Length: abc\r\n", 400),
    (b"Content-Length: -1\r\n", 400),
    (b"Content-Length: 0000000000001\r\n", 400),
    (b"Content-Length: " + b"9" * 5000 + b"\r\n", 400),
    (b"Content-Length: 1048577\r\n", 413),
    (b"X: x\r\n" * 200, 431),
]
GARBAGE = [
    b"\xff\xfe garbage \x1b[31m\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the first bytes of https
    b"GET /v1/models HTTP/9.9\r\n\r\n",
    b"GET " + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nno colon\r\n: no name\r\n\xff: \xff\r\n\r\n",
    REQUEST + b"\r\n\r\ngarbage",
    *(b"", HEAD[:20], HEAD, REQUEST[:-5]),  # incomplete
]


class TestBadRequests:
    """Requests are bounded, and bad ones neither stop the server nor print anything."""

    @pytest.fixture(autouse=True)
    def prints_nothing(self, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
        yield
        assert capfd.readouterr() == ("", "")

    def test_bad_headers_are_rejected_and_the_connection_is_closed(
        self, server: MockServer
    ) -> None:
        for headers, status in REJECTED_HEADERS:
            received = send_bytes(server, HEAD + headers + b"\r\n")
            assert received.startswith(b"HTTP/1.1 %d " % status), headers[:50]
            assert b"\r\nConnection: close\r\n" in received
            assert isinstance(json.loads(received.partition(b"\r\n\r\n")[2]), dict)

    def test_body_is_read_up_to_the_bound(self, server: MockServer) -> None:
        body = json.dumps(HELLO).encode().ljust(http_server.MAX_BODY_BYTES)
        assert request(server, body).status == 200

    def test_deep_nesting_gets_a_response(self, server: MockServer) -> None:
        for depth in (100, 900, 20_000):
            nested = b"[" * depth + b"1" + b"]" * depth
            body = json.dumps(HELLO).encode().replace(b'"Hello!"', nested)
            assert request(server, body).status in (400, 422)

    def test_garbage_does_not_stop_the_server(self, server: MockServer) -> None:
        for data in GARBAGE:
            send_bytes(server, data, more_may_follow=False)
            assert request(server).status == 200

    def test_half_a_body_is_no_request(self) -> None:
        with MockServer() as server:
            assert send_bytes(server, REQUEST[:-5], more_may_follow=False) == b""
            assert server.log == []

    def test_client_that_leaves_during_a_large_response_frees_its_thread(self) -> None:
        """The response is larger than both ends' buffers, so sending it must fail."""
        message = {"role": "user", "content": "x" * 1_000_000}
        data = raw_request({**HELLO, "messages": [message]})
        with MockServer() as server:
            threads = set(threading.enumerate())
            for _ in range(3):
                with connect(server) as connection:
                    connection.sendall(data)
                    connection.recv(1)
            wait_until(lambda: set(threading.enumerate()) <= threads)


class TestConnections:
    def test_connection_is_kept_open(self, server: MockServer) -> None:
        hello = json.dumps(HELLO).encode()
        requests = [("POST", CHAT, hello), ("GET", MODELS, None), ("POST", CHAT, b"no")]
        with contextlib.closing(http.client.HTTPConnection(*address(server), timeout=10)) as client:
            client.connect()
            opened = client.sock
            for method, path, body in [*requests, *requests]:
                client.request(method, path, body, {"Authorization": f"Bearer {KEY}"})
                response = client.getresponse()
                response.read()
                assert response.headers["Connection"] is None
                assert client.sock is opened

    @pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's")
    def test_it_listens_on_loopback_only(self, server: MockServer) -> None:
        """A server that listens on all addresses would also be reached at 127.0.0.2."""
        assert server.url.startswith("http://127.0.0.1:")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", address(server)[1]), timeout=10)

    def test_a_defect_of_a_reply_is_printed(self, capfd: pytest.CaptureFixture[str]) -> None:
        def reply(body: Any) -> str:
            raise ZeroDivisionError

        with MockServer(replies=reply) as server:
            assert send_bytes(server, REQUEST) == b""
        assert "ZeroDivisionError" in capfd.readouterr().err


class TestLog:
    def test_one_entry_per_request_in_the_order_of_arrival(self) -> None:
        with MockServer("503,timeout,drop,badjson,slow:0.01,cut,html:502") as server:
            request(server)
            with request_in_progress(server):
                assert server.log[-1].duration is None
            for _ in range(4):
                send_bytes(server, REQUEST, more_may_follow=False)
            request(server, path=f"{CHAT}?key={KEY}")
            request(server, method="GET", path="/v1/models")
            request(server, method="GET", path="/else", authorization=None)
            log = server.log
        assert [(entry.method, entry.path, entry.outcome) for entry in log] == [
            ("POST", CHAT, "503"),
            ("POST", CHAT, "timeout"),
            ("POST", CHAT, "drop"),
            ("POST", CHAT, "200 (badjson)"),
            ("POST", CHAT, "200 (slow)"),
            ("POST", CHAT, "200 (cut)"),
            ("POST", CHAT, "502 (html)"),
            ("GET", "/v1/models", "200"),
            ("GET", "/else", "401"),
        ]
        assert [entry.arrived for entry in log] == sorted(entry.arrived for entry in log)

    def test_faults_are_in_the_order_of_arrival(self) -> None:
        words = ["503", "429", "500", "402"] * 10
        with MockServer(",".join(words)) as server:
            received = run_in_threads(40, lambda: str(request(server).status))
            log = server.log
        assert [entry.outcome for entry in log] == words
        assert Counter(received) == Counter(words)
        assert [entry.arrived for entry in log] == sorted(entry.arrived for entry in log)

    def test_body_is_parsed(self) -> None:
        with MockServer("drop") as server:
            send_bytes(server, REQUEST)
            request(server, b"no JSON")
            request(server, method="GET", path=MODELS)
            assert [entry.body for entry in server.log] == [HELLO, None, None]
            assert [entry.model for entry in server.log] == ["mistral-small-latest", None, None]
            server.log.clear()  # a copy
            assert len(server.log) == 3

    @pytest.mark.parametrize(("name", "bound"), [("MAX_ENTRIES", 3), ("MAX_BYTES", 300)])
    def test_log_keeps_the_latest_requests(
        self, name: str, bound: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(log, name, bound)
        with MockServer("400,401,402,403,404") as server:
            statuses(server, 5)
            assert [entry.outcome for entry in server.log] == ["402", "403", "404"]

    def test_path_is_short_and_printable(self) -> None:
        with MockServer() as server:
            send_bytes(server, b"GET /\x1b[31m\xff" + b"x" * 500 + b" HTTP/1.0\r\n\r\n")
            (entry,) = server.log
        assert entry.path == "/?[31m?" + "x" * 93

    def test_no_secret_is_printed_or_logged(
        self, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        secret = KEY.encode()
        caplog.set_level(logging.DEBUG)
        with MockServer("503,drop,html:502,badjson,cut,slow:0.01") as server:
            for _ in range(8):
                send_bytes(server, REQUEST, more_may_follow=False)
            for data in (
                b"BREW /?key=%s HTTP/1.1\r\nAuthorization: Bearer %s\r\n\r\n",
                b"GET / HTTP/9.%s\r\nAuthorization: %s\r\n\r\n",
                b"POST / HTTP/1.1\r\nAuthorization: Bearer %s\r\nContent-Length: %s\r\n\r\n",
            ):
                received = send_bytes(server, data % (secret, secret), more_may_follow=False)
                assert secret not in received
            printed = repr(server.log) + "".join(capfd.readouterr()) + caplog.text
        assert "POST /v1/chat/completions -> 503" in printed
        assert KEY not in printed


class TestShutdown:
    """Leaving the context closes the port and every connection, and ends every thread."""

    @pytest.fixture(autouse=True)
    def leaves_no_thread(self, server: MockServer) -> Iterator[None]:
        threads = set(threading.enumerate())
        yield
        assert set(threading.enumerate()) <= threads

    @pytest.mark.parametrize(
        ("faults", "data"),
        [
            pytest.param("", b"", id="connected"),
            pytest.param("", REQUEST[:-5], id="half the body"),
            pytest.param("", REQUEST, id="kept alive"),
            pytest.param("timeout", REQUEST, id="timeout"),
            pytest.param("drip:60", REQUEST, id="drip"),
            pytest.param("stall", REQUEST, id="stall"),
        ],
    )
    def test_open_connections_are_closed(self, faults: str, data: bytes) -> None:
        with contextlib.ExitStack() as clients:
            with MockServer(faults) as server:
                connection = clients.enter_context(connect(server))
                connection.sendall(data)
                wait_until(lambda: server.log or data != REQUEST)
                started_at = time.monotonic()
            assert time.monotonic() - started_at < 5, "it waited for the client"
            read_all(connection)  # returns because the server closed the connection

    def test_an_exception_ends_the_server_and_frees_its_port(self) -> None:
        server = MockServer("timeout")
        with contextlib.suppress(KeyboardInterrupt), server, request_in_progress(server):
            raise KeyboardInterrupt
        with pytest.raises(OSError, match=r"."):  # refused; on Windows, after some seconds
            socket.create_connection(address(server), timeout=0.5)
        with MockServer(port=address(server)[1]) as again:
            assert again.url == server.url
            assert request(again).status == 200

    @pytest.mark.skipif(os.name != "posix", reason="the limit is POSIX's")
    def test_it_ends_without_a_file_descriptor_to_spare(self) -> None:
        program = """
import resource
from lib.mock_server import MockServer
with MockServer():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    raise ZeroDivisionError
"""
        assert finish(start("-c", program), 20).err.endswith("\nZeroDivisionError\n")

    def test_a_connection_that_opens_during_the_shutdown_is_closed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        accepted, opened = threading.Event(), http_server.HTTPServer.opened

        def opened_late(self: http_server.HTTPServer, connection: socket.socket) -> None:
            accepted.set()
            wait_until(lambda: self.socket.fileno() == -1)  # closed, and waiting for its threads
            opened(self, connection)

        monkeypatch.setattr(http_server.HTTPServer, "opened", opened_late)
        with contextlib.ExitStack() as clients:
            with MockServer() as server:
                clients.enter_context(connect(server))
                assert accepted.wait(10)
                started_at = time.monotonic()
            assert time.monotonic() - started_at < 5, "it waited for the client"

    @pytest.mark.parametrize("fault", ["timeout", "drip:60", "stall"])
    def test_a_client_that_disconnects_frees_its_thread(self, fault: str) -> None:
        with MockServer(fault) as server:
            threads = set(threading.enumerate())
            with request_in_progress(server):
                assert len(set(threading.enumerate()) - threads) == 1
            wait_until(lambda: set(threading.enumerate()) <= threads)

    def test_a_server_that_was_never_entered_frees_its_port(self) -> None:
        server = MockServer()
        server.__exit__()
        with MockServer(port=address(server)[1]) as again:
            assert again.url == server.url
            again.__exit__()  # twice does no harm


class TestCommand:
    """``python -m lib.mock_server``; test_command_line.py runs it in a process."""

    def test_wrong_argument_is_one_sentence_and_exit_2(self, run_main: RunMain) -> None:
        for arguments, message in {
            ("--faults", "nonsense"): "unknown fault 'nonsense': use ok, ",
            ("--tpm", "-5"): "--tpm must be an integer >= 1, got -5",
            ("--rpm", "0"): "--rpm must be an integer >= 1, got 0",
            ("--seed", "x"): "--seed",
            ("--port", "65536"): "--port must be an integer from 0 to 65535",
            ("--port", "-1"): "--port must be an integer from 0 to 65535",
            ("--dialect", "gpt"): "--dialect",
            ("--fault", "503"): "--fault",
            ("503",): "503",
        }.items():
            code, out, err = run_main(command.main, *arguments)
            assert (code, out) == (2, "")
            assert message in err.splitlines()[-1]

    def test_taken_port_is_one_sentence_and_exit_1(
        self, run_main: RunMain, server: MockServer
    ) -> None:
        port = address(server)[1]
        code, out, err = run_main(command.main, "--port", str(port))
        assert (code, out) == (1, "")
        reason = r"\(.+\); choose another with --port\.\n"
        assert re.fullmatch(rf"Can't listen on port {port} {reason}", err)

    def test_options_are_passed_on(
        self, run_main: RunMain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        created = []

        def create(*args: object, **kwargs: object) -> MockServer:
            created.append((*args, kwargs))
            raise OSError

        monkeypatch.setattr(command, "MockServer", create)
        run_main(command.main)
        run_main(
            command.main,
            "--faults=503",
            "--rpm=6",
            "--tpm=9",
            "--port=0",
            "--seed=3",
            "--dialect=openai",
        )
        names = ("requests_per_minute", "tokens_per_minute", "port", "seed", "dialect")
        assert created == [
            ("", dict(zip(names, (None, None, 8080, 0, "mistral"), strict=True))),
            ("503", dict(zip(names, (6, 9, 0, 3, "openai"), strict=True))),
        ]

    def test_help_explains_every_word(self, run_main: RunMain) -> None:
        out = run_main(command.main, "--help").out
        for word in VOCABULARY:
            assert re.search(
                rf"^  {re.escape(word.example)} +{re.escape(word.meaning)}$", out, re.M
            )
