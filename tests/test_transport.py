"""lib/transport.py: where the key goes, when a call ends, what a connection error is called."""

from __future__ import annotations

import contextlib
import gc
import gzip
import itertools
import json
import logging
import os
import pickle
import random
import re
import socket
import threading
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from responses import RequestsMock
from urllib3.connectionpool import HTTPSConnectionPool

from conftest import FakeClock
from lib import client as client_module
from lib import response as response_module
from lib.client import MistralClient
from lib.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APIStreamBrokenError,
    APITimeoutError,
    AuthenticationError,
    MistralError,
    explain,
)
from lib.mock_server import MockServer
from lib.response import MAX_RESPONSE_BYTES
from lib.total_timeout import TotalTimeoutAdapter
from support import (
    CERTIFICATE,
    CHAT_URL,
    Handler,
    RawServer,
    completion,
    raw_response,
    read_request,
    refusing_url,
    run,
    serving,
)

KEY = "sk-0123456789-secret"
HELLO = [{"role": "user", "content": "Hello!"}]
COMPLETION = json.dumps(completion("Hi")).encode()
GOOD_RESPONSE = raw_response("200 OK", COMPLETION)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_HEAD = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Type: text/event-stream\r\n\r\n")
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "Hello "}}]}\n\n'


Call = Callable[[MistralClient], object]


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


CHUNKED_RESPONSE = CHUNKED + chunk(COMPLETION) + chunk(b"")
STREAM = STREAM_HEAD + chunk(EVENT) + chunk(EVENT) + chunk(b"data: [DONE]\n\n") + chunk(b"")


def chat(client: MistralClient) -> object:
    return client.chat(HELLO)


def stream(client: MistralClient) -> object:
    return list(client.stream(HELLO))


def client_of(server: RawServer | MockServer, **options: Any) -> MistralClient:
    return MistralClient(KEY, base_url=server.url, **options)


def failure(base_url: str, call: Call = chat, key: str = KEY, **options: Any) -> MistralError:
    """Return the error that one call ends in."""
    with MistralClient(key, base_url=base_url, **options) as client:
        with pytest.raises(MistralError) as caught:
            call(client)
        return caught.value


def failure_after(response: bytes, *, then: str = "hang up", timeout: float = 5) -> MistralError:
    """Return the error that a server's response ends in."""
    with RawServer(response, then=then) as server:
        return failure(server.url, timeout=timeout)


@pytest.fixture(params=["session of the client", "session of your own"])
def session(request: pytest.FixtureRequest) -> Iterator[requests.Session | None]:
    """None, or a session of your own: the client is as careful with both."""
    with requests.Session() as session:
        yield session if request.param == "session of your own" else None


class TestConnectionError:
    """The message names what happened. Only a wait that was too long is an APITimeoutError."""

    def test_no_connection(self) -> None:
        with refusing_url() as refused, MockServer() as server:
            for url, message in (
                (refused, "127.0.0.1 refused the connection"),
                ("https://no-such-host.invalid/v1",
                 "the address of no-such-host.invalid was not found"),
                (server.url.replace("http:", "https:"), "no secure connection to 127.0.0.1: "),
            ):  # fmt: skip
                error = failure(url)
                assert type(error) is APIConnectionError
                assert str(error).startswith(message)

    def test_read_timeout(self) -> None:
        for response in (
            b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
            CHUNKED + b"400\r\n{", b"HTTP/1.1 200 OK\r\n\r\n{",
        ):  # fmt: skip
            error = failure_after(response, then="silence", timeout=0.03)
            assert type(error) is APITimeoutError, response
            assert str(error) == "127.0.0.1 did not respond in time"

    def test_truncated_response(self) -> None:
        for response in (
            b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nServ",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + COMPLETION,
            CHUNKED, CHUNKED + b"400\r\n" + COMPLETION, CHUNKED + chunk(COMPLETION),
        ):  # fmt: skip
            error = failure_after(response)
            assert type(error) is APIConnectionError, response
            assert str(error) == "127.0.0.1 closed the connection before the response was complete"

    def test_malformed_response(self) -> None:
        for response in (
            b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n", CHUNKED + b"-5\r\nHello\r\n",
            raw_response("200 OK", b"not gzip", "Content-Encoding: gzip"),
            raw_response("200 OK", b"hello", "Content-Length: 6"),
        ):  # fmt: skip
            assert type(failure_after(response)) is APIConnectionError, response

    @pytest.mark.parametrize(
        ("raised", "message"),
        [
            (requests.ConnectTimeout("x"), "api.mistral.ai did not respond in time"),
            (requests.exceptions.InvalidURL("x"),
             "the connection to api.mistral.ai failed (InvalidURL)"),
            (OSError("no route\n"), "the connection to api.mistral.ai failed (no route)"),
        ],
    )  # fmt: skip
    def test_errors_of_requests(self, api: RequestsMock, raised: Exception, message: str) -> None:
        api.post(CHAT_URL, body=raised)
        error = failure("https://api.mistral.ai/v1")
        assert isinstance(error, APITimeoutError if "in time" in message else APIConnectionError)
        assert str(error) == message
        assert error.__cause__ is raised

    @pytest.mark.parametrize("path", ["/no/such/file", __file__])
    def test_a_ca_file(self, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
        """One that is missing, and one that holds no certificate."""
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", path)
        with MockServer() as server:
            error = failure(server.url.replace("http:", "https:"))
        assert type(error) is APIConnectionError
        assert path in str(error)

    def test_a_cause_that_wraps_itself(self, api: RequestsMock) -> None:
        cause = requests.ConnectionError()
        cause.args = (cause,)
        api.post(CHAT_URL, body=cause)
        assert "failed (ConnectionError)" in str(failure("https://api.mistral.ai/v1"))

    def test_what_the_caller_is_handling_is_not_its_cause(self, api: RequestsMock) -> None:
        """A fallback written by hand calls the next API inside an except clause."""
        api.post(CHAT_URL, body=requests.ConnectionError("odd"))
        api.add_passthru("http://127.0.0.1")
        with refusing_url() as url:
            try:
                raise TimeoutError("the caller's own")
            except TimeoutError:
                odd, refused = failure("https://api.mistral.ai/v1"), failure(url)
        assert type(odd) is type(refused) is APIConnectionError
        assert str(refused) == "127.0.0.1 refused the connection"

    def test_the_next_call_works(self) -> None:
        with MockServer("drop,503,cut,badjson") as server, client_of(server) as client:
            for _ in range(4):
                with pytest.raises(MistralError):
                    client.chat(HELLO)
            assert client.chat(HELLO).content == "Hello! How can I assist you today?"


class TestErrorBody:
    def test_the_status_counts_even_if_the_body_cannot_be_read(self) -> None:
        """A wrong key must not look like a lost connection, which would be retried."""
        for response in (
            raw_response("401 No", b"not gzip at all", "Content-Encoding: gzip"),
            b"HTTP/1.1 401 No\r\nContent-Length: 100\r\n\r\n{",
            b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{",
            raw_response("401 No", b"\xff\xfe\xfd"),
            raw_response("401 No", b"[" * 100_000),
        ):
            error = failure_after(response)
            assert type(error) is AuthenticationError, response[:100]
            assert str(error) == "Unauthorized"


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> int:
    """A bound that the good response just meets."""
    for module in (client_module, response_module):
        monkeypatch.setattr(module, "MAX_RESPONSE_BYTES", len(COMPLETION))
    return len(COMPLETION)


class TestResponseBound:
    def test_a_response_that_just_meets_it_is_read(self, bound: int) -> None:
        with RawServer(GOOD_RESPONSE) as server, client_of(server) as client:
            assert client.chat(HELLO).content == "Hi"

    def test_no_more_of_an_endless_response_is_read(self, bound: int) -> None:
        for head, message in (
            (b"HTTP/1.1 200 OK\r\n\r\n", f"the response is longer than {bound} bytes"),
            (b"HTTP/1.1 500 Oops\r\n\r\n", "Internal Server Error"),
            (b"HTTP/1.1 302 Found\r\nLocation: /v2\r\n\r\n", "Found"),
        ):
            with RawServer(head, b"<" * 65536, repeat=1000) as server:
                assert str(failure(server.url)) == message
                assert server.client_left.wait(10)
                assert server.responses_sent == 0, "the client took all of 64 MB"


def gzipped(body: bytes, encoding: str = "gzip") -> bytes:
    return raw_response("200 OK", body, f"Content-Encoding: {encoding}")


class TestCompression:
    """The client asks for none, and reads it all the same."""

    @pytest.mark.parametrize("encoding", ["gzip", "X-GZip", "deflate", "identity", "utf-8"])
    def test_it_is_read(self, encoding: str, session: requests.Session | None) -> None:
        compress: dict[str, Callable[[bytes], bytes]] = {
            "deflate": zlib.compress,
            "identity": bytes,
            "utf-8": bytes,
        }
        body = compress.get(encoding, gzip.compress)(COMPLETION)
        with (
            RawServer(gzipped(body, encoding)) as server,
            client_of(server, session=session) as client,
        ):
            assert client.chat(HELLO).content == "Hi"
        assert b"\r\nAccept-Encoding: identity\r\n" in server.requests[0]

    def test_a_stream(self) -> None:
        """Each event is there as soon as it has arrived."""
        compressor = zlib.compressobj(wbits=31)
        event = compressor.compress(EVENT) + compressor.flush(zlib.Z_SYNC_FLUSH)
        head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        with (
            RawServer(head + chunk(event), then="silence") as server,
            client_of(server, timeout=5).stream(HELLO) as pieces,
        ):
            assert next(pieces) == "Hello "

    def test_damaged_or_unknown(self) -> None:
        damaged = failure_after(gzipped(gzip.compress(COMPLETION)[:10] + b"\xff" * 99))
        assert str(damaged) == "127.0.0.1 sent a body that cannot be decompressed"
        for encoding in ("br", "zstd", "gzip, gzip"):
            error = failure_after(gzipped(gzip.compress(gzip.compress(COMPLETION)), encoding))
            assert type(error) is APIResponseValidationError, encoding

    def test_a_small_response_that_unpacks_to_a_huge_one(self) -> None:
        body = gzip.compress(b"\n" * 20_000_000, compresslevel=1)
        tracemalloc.start()
        try:
            error = failure_after(gzipped(body))
            assert tracemalloc.get_traced_memory()[1] < 40_000_000
        finally:
            tracemalloc.stop()
        assert str(error) == f"the response is longer than {MAX_RESPONSE_BYTES} bytes"

    def test_the_total_timeout_limits_it_and_the_time_of_its_reader(self, clock: FakeClock) -> None:
        compressor = zlib.compressobj(wbits=31)
        body = compressor.compress(EVENT + b"\n" * 5_000_000) + compressor.flush()
        response = gzipped(body).replace(
            b"\r\n\r\n", b"\r\nContent-Type: text/event-stream\r\n\r\n", 1
        )
        with RawServer(response) as server, client_of(server).stream(HELLO) as pieces:
            next(pieces)
            clock.now += 600
            with pytest.raises(APIStreamBrokenError, match="within the total timeout of 600 s"):
                next(pieces)


SHARE_A_CLIENT_WITH_A_CHILD = """
import os, sys
from lib.client import MistralClient
from lib.errors import MistralError
client = MistralClient("k", base_url=sys.argv[1], timeout=5)
def ask():
    print(client.chat([{"role": "user", "content": "Hello!"}]).content, end=" ", flush=True)
stream = client.stream([{"role": "user", "content": "Hello!"}])
print(next(stream), end="", flush=True)
ask()
child = os.fork()
if not child:
    ask()
    ask()
    try:
        next(stream)
    except MistralError:
        print("broken", end=" ", flush=True)
    os._exit(0)
os.waitpid(child, 0)
ask()
print(*stream, end=" ", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
class TestFork:
    """Two processes on one connection would get each other's answers."""

    def test_a_child_has_connections_of_its_own(self) -> None:
        numbers = itertools.count()

        def answer_with_the_number(connection: socket.socket, stopping: threading.Event) -> None:
            number = next(numbers)
            while request := read_request(connection):
                body = json.dumps(completion(str(number))).encode()
                streams = b'"stream": true' in request
                connection.sendall(STREAM if streams else raw_response("200 OK", body))

        with serving(answer_with_the_number) as url:
            outcome = run("-c", SHARE_A_CLIENT_WITH_A_CHILD, url)
        assert outcome == (0, "Hello 1 2 2 broken 1 Hello  ", "")


class TestConnections:
    def test_one_serves_call_after_call(self) -> None:
        for response in (
            GOOD_RESPONSE,
            CHUNKED_RESPONSE,
            raw_response("200 OK", gzip.compress(COMPLETION), "Content-Encoding: gzip"),
            raw_response("503 Oops", b'{"message": "No"}'),
            raw_response("200 OK", b"<html>"),
        ):
            with RawServer(response, then="next") as server, client_of(server) as client:
                for _ in range(3):
                    with contextlib.suppress(MistralError):
                        assert client.chat(HELLO).content == "Hi"
            assert (len(server.requests), server.connections) == (3, 1), response

    def test_an_interim_response_of_a_session_of_your_own_goes_to_no_other_caller(self) -> None:
        """requests takes a 103 for the response; it is an error, and its connection is closed."""
        early = b"HTTP/1.1 103 Early Hints\r\n\r\n" + GOOD_RESPONSE
        with (
            RawServer(early) as server,
            requests.Session() as session,
            client_of(server, session=session) as client,
        ):
            for _ in range(2):
                with pytest.raises(APIConnectionError, match="an interim response"):
                    client.chat(HELLO)
            session.mount("http://", TotalTimeoutAdapter())
            assert client.chat(HELLO).content == "Hi"

    def test_threads_share_a_client(self) -> None:
        prompts = [f"Question {number}" for number in range(48)]
        with MockServer() as server, client_of(server) as client:

            def ask(prompt: str) -> str:
                return client.chat([{"role": "user", "content": prompt}]).content

            with ThreadPoolExecutor(16) as pool:
                assert list(pool.map(ask, prompts)) == [f"{prompt} response" for prompt in prompts]
            assert [entry.outcome for entry in server.log] == ["200"] * 48

    def test_close(self) -> None:
        with RawServer(GOOD_RESPONSE, then="next") as server:
            with client_of(server) as client:
                client.chat(HELLO)
                assert not server.client_left.is_set()
            assert server.client_left.wait(10)

    def test_a_session_of_your_own_is_used_as_it_is_and_left_open(self) -> None:
        with RawServer(GOOD_RESPONSE, then="next") as server, requests.Session() as session:
            session.headers["User-Agent"] = "my-project/1.0"
            for _ in range(2):
                with client_of(server, session=session) as client:
                    client.chat(HELLO)
            session.get(server.url, timeout=5)
            assert (len(server.requests), server.connections) == (3, 1)
        assert b"User-Agent: my-project/1.0\r\n" in server.requests[0]

    def test_with_options_shares_them_and_does_not_close_them(self) -> None:
        with RawServer(GOOD_RESPONSE, then="next") as server, client_of(server) as client:
            with client.with_options(timeout=3, total_timeout=7) as other:
                other.chat(HELLO)
            client.chat(HELLO)
            assert (len(server.requests), server.connections) == (2, 1)

    def test_nothing_is_left_open(self) -> None:
        gc.collect()  # leftovers of other tests do not count
        threads = threading.active_count()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for response in (GOOD_RESPONSE, b"", raw_response("503 Oops"), CHUNKED + b"400\r\n{"):
                with RawServer(response) as server:
                    with contextlib.suppress(MistralError), client_of(server) as client:
                        client.chat(HELLO)
                    assert server.client_left.wait(10)
            gc.collect()
        assert [str(warning.message) for warning in caught] == []
        assert threading.active_count() == threads


class TestRedirect:
    def test_neither_the_call_nor_the_key_follows_it(self) -> None:
        """Not even to another port of the same host, where the path is the right one."""
        with RawServer(GOOD_RESPONSE) as other:
            location = f"Location: {other.url}/chat/completions"
            for status in (301, 303, 307):
                response = raw_response(f"{status} Moved", b'{"detail": "Gone"}', location)
                assert failure_after(response).args[:2] == (status, "Gone")
            assert other.connections == 0

    def test_a_malformed_location(self) -> None:
        for location in ("http://[::1", "http://h:port/", "\xff"):
            error = failure_after(raw_response("302 Found", b"", f"Location: {location}"))
            assert isinstance(error, APIStatusError), location


def dripping(first: bytes) -> Handler:
    def drip(connection: socket.socket, stopping: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(first)
        for _ in range(200):
            stopping.wait(0.01)
            connection.sendall(b" ")

    return drip


class TestTotalTimeout:
    """tests/test_total_timeout.py holds what a server can do; here, the call says it in words."""

    @pytest.mark.parametrize("call", [chat, stream])
    def test_silence(self, call: Call, session: requests.Session | None) -> None:
        with MockServer("timeout") as server:
            error = failure(server.url, call, timeout=60, total_timeout=0.05, session=session)
        assert type(error) is APITimeoutError
        assert str(error) == "127.0.0.1 did not respond within the total timeout of 0.05 s"

    def test_a_body_that_drips(self, session: requests.Session | None) -> None:
        with serving(dripping(b"HTTP/1.1 200 OK\r\n\r\n")) as url:
            error = failure(url, timeout=60, total_timeout=0.05, session=session)
        assert type(error) is APITimeoutError

    @pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
    def test_a_header_that_drips(self, monkeypatch: pytest.MonkeyPatch, tls: bool) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", CERTIFICATE)
        with serving(dripping(b"HTTP/1.1 503 Busy\r\nX-Filler: "), tls=tls) as url:
            error = failure(url, timeout=60, total_timeout=0.1)
        assert type(error) is APITimeoutError

    def test_an_upload(self) -> None:
        """Neither the connect timeout nor a server that reads no further is called a lost one."""
        large = [{"role": "user", "content": "x" * 8_000_000}]
        for options in ({"timeout": (10, 0.05)}, {"timeout": 60, "total_timeout": 0.05}):
            with serving(lambda _, stopping: stopping.wait(10)) as url:
                error = failure(url, lambda client: client.chat(large), **options)
            assert type(error) is APITimeoutError


ODD = (b"", b"-5", b"\xff", b"\x00", b"\r\n", b"99999999999", b"{", b"]", b"null", b'"')


def mutated(original: bytes, chance: random.Random) -> bytes:
    """Return the response with a few of its words dropped or replaced, or cut short."""
    words = re.findall(rb"\w+|\W", original)
    for _ in range(chance.choice([1, 1, 2, 5])):
        words[chance.randrange(len(words))] = chance.choice(ODD)
    return b"".join(words[: chance.randrange(len(words))] if chance.random() < 0.1 else words)


def one_each(responses: Iterable[bytes]) -> Handler:
    """Serve each connection the next of the responses."""
    remaining = iter(responses)

    def answer(connection: socket.socket, stopping: threading.Event) -> None:
        response = next(remaining)
        connection.recv(65536)
        connection.sendall(response.removesuffix(SILENCE))
        if response.endswith(SILENCE):
            stopping.wait(10)

    return answer


SILENCE = b"then silence"
BOMB = zlib.compress(b" " * 10_000_000, level=1)
ENCODINGS: dict[bytes, Callable[[bytes], bytes]] = {
    b"": bytes, b"gzip": gzip.compress, b"deflate": zlib.compress, b"br": bytes, b"identity": bytes,
    b"gzip, gzip": gzip.compress, b"x-gzip": lambda body: gzip.compress(body)[:-9],
    b"GZIP": lambda body: BOMB,
}  # fmt: skip


def framed(body: bytes, content_type: bytes, chance: random.Random) -> bytes:
    """Return a response with this body, in one of the ways in which a server can wrap it."""
    encoding = chance.choice([b"", *ENCODINGS])
    body = ENCODINGS[encoding](body)
    cuts = sorted(chance.sample(range(len(body)), 3))
    parts = [body[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)]
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(part), chance.choice([b"", b" ;a=b"]), part)
                      for part in parts if part)  # fmt: skip
    trailer = chance.choice([b"0\r\n\r\n", b"0\r\nX: 1\r\n\r\n", b"0\r\n" + b"X: 1\r\n" * 99, b""])
    length = len(body) + chance.choice([0, 0, 0, -5, 5])
    framing, payload = chance.choice([
        (b"", body), (b"Connection: close\r\n", body), (b"Content-Length: %d\r\n" % length, body),
        (b"Transfer-Encoding: chunked\r\n", chunks + trailer),
        (b"Content-Length: 5\r\ntransfer-encoding: CHUNKED\r\n", chunks + trailer),
    ])  # fmt: skip
    return b"".join([
        chance.choice([b"", b"HTTP/1.1 100 Go\r\n\r\n" * 9, b"HTTP/1.1 103 Hint\r\nA: b\r\n\r\n"]),
        chance.choice([b"HTTP/1.1 200 OK\r\n"] * 5 + [b"HTTP/1.0 200\r\n", b"HTTP/1.1 304 X\r\n",
                      b"HTTP/1.1 204 X\r\n", b"HTTP/1.1 503 X\r\n", b"HTTP/1.1 101 X\r\n"]),
        b"Content-Type: ", content_type, b"\r\n",
        encoding and b"Content-Encoding: %s\r\n" % encoding, framing, b"\r\n", payload,
        chance.choice([b""] * 15 + [SILENCE]),
    ])  # fmt: skip


CASES = 1000 if "SOAK_CALLS" in os.environ else 50


class TestFuzz:
    """Whatever a server sends, a call ends in a completion or in a MistralError."""

    @pytest.mark.parametrize(
        ("original", "call"), [(CHUNKED_RESPONSE, chat), (STREAM, stream)], ids=["chat", "stream"]
    )
    def test_mutated_responses(self, original: bytes, call: Call) -> None:
        chance = random.Random(27)
        responses = [mutated(original, chance) for _ in range(CASES)]
        with serving(one_each(responses)) as url, MistralClient(KEY, base_url=url) as client:
            results = [result_of(call, client) for _ in responses]
        assert 0 < results.count(None) < len(results)

    @pytest.mark.parametrize(
        ("body", "content_type", "call"),
        [(COMPLETION, b"application/json", lambda client: client.chat(HELLO).content),
         (2 * EVENT + b"data: [DONE]\n\n", b"text/event-stream", stream)],
        ids=["chat", "stream"],
    )  # fmt: skip
    def test_framings_and_encodings(self, body: bytes, content_type: bytes, call: Call) -> None:
        """The completion is the one that was sent, and it takes no longer than allowed."""
        chance = random.Random(28)
        responses = [framed(body, content_type, chance) for _ in range(CASES)]
        with (
            serving(one_each(responses)) as url,
            MistralClient(KEY, base_url=url, total_timeout=0.05) as client,
        ):
            started_at = time.monotonic()
            results = [result_of(call, client) for _ in responses]
            assert time.monotonic() - started_at < len(responses)
        assert 0 < results.count(None) < len(results)
        assert all(result in (None, "Hi", ["Hello ", "Hello "]) for result in results)


def result_of(call: Call, client: MistralClient) -> object:
    """Return what a call returns, or None if it ends in a MistralError."""
    try:
        return call(client)
    except MistralError:
        return None


def assert_bearer(request: bytes, key: str = KEY) -> None:
    assert request.lower().count(b"\r\nauthorization:") == 1
    assert f"\r\nAuthorization: Bearer {key}\r\n".encode() in request


class TestAuthorization:
    """The header holds the client's key, and nothing replaces it."""

    def test_credentials_of_a_netrc_or_a_session(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session: requests.Session | None
    ) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login somebody password else\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        if session is not None:
            session.headers["Authorization"] = "Bearer another"
        for auth in (None, ("somebody", "else")):
            if session is not None:
                session.auth = auth
            with RawServer(raw_response("503 Oops")) as server:
                failure(server.url, session=session)
            assert_bearer(server.requests[0])

    def test_a_key_of_any_printable_ascii(self) -> None:
        key = "".join(map(chr, range(33, 127)))
        with RawServer(raw_response("503 Oops")) as server:
            failure(server.url, key=key)
        assert_bearer(server.requests[0], key)


class TestProxy:
    """One in the environment or a session is used for other hosts, never for this machine."""

    @pytest.fixture(autouse=True)
    def no_proxy_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)

    @pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "ALL_PROXY"])
    def test_not_for_loopback(
        self, monkeypatch: pytest.MonkeyPatch, name: str, session: requests.Session | None
    ) -> None:
        with RawServer(b"") as proxy, RawServer(raw_response("429 Slow down")) as server:
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            if session is not None:
                session.proxies = {"http": proxy.url, "all": proxy.url}
            scheme = "https" if name == "https_proxy" else "http"
            failure(server.url.replace("http", scheme), session=session, timeout=0.05)
            assert (proxy.connections, server.connections) == (0, 1)

    def test_for_other_hosts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It does not see the key."""
        with RawServer(raw_response("407 Proxy Authentication Required")) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
            assert type(failure("https://no-such-host.invalid/v1")) is APIConnectionError
        assert proxy.requests[0].startswith(b"CONNECT no-such-host.invalid:443 HTTP/1")
        assert KEY.encode() not in b"".join(proxy.requests)

    @pytest.mark.parametrize(
        ("response", "message"),
        [
            (b"HTTP/1.1 407 Log in\x1b[31m\r\n\r\n",
             "the connection to the proxy failed (Tunnel connection failed: 407 Log in[31m)"),
            (None, "the proxy refused the connection"),
            (b"", "api.mistral.ai (through a proxy) closed the connection before the response was "
             "complete"),
        ],
    )  # fmt: skip
    def test_one_that_fails_is_named(
        self, monkeypatch: pytest.MonkeyPatch, response: bytes | None, message: str
    ) -> None:
        with RawServer(response or b"") as server, refusing_url() as refused:
            monkeypatch.setenv("HTTPS_PROXY", refused if response is None else server.url)
            error = failure("https://api.mistral.ai/v1")
        assert type(error) is APIConnectionError
        # urllib3 1.26 knows that this one is the proxy's.
        assert str(error) in (
            message,
            message.replace("api.mistral.ai (through a proxy)", "the proxy"),
        )

    def test_a_socks_proxy_keeps_its_own_connections(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Others cannot speak SOCKS. PySocks need not be installed: this stands for its pools."""

        class SocksPool(HTTPSConnectionPool):
            def urlopen(self, *args: Any, **kwargs: Any) -> Any:
                raise ConnectionRefusedError

        manager = urllib3.PoolManager()
        manager.pool_classes_by_scheme = {"https": SocksPool}
        monkeypatch.setattr("requests.adapters.SOCKSProxyManager", lambda *_, **__: manager)
        monkeypatch.setenv("HTTPS_PROXY", "socks5h://127.0.0.1:9")
        error = failure("https://no-such-host.invalid/v1")
        assert str(error) == "no-such-host.invalid (through a proxy) refused the connection"


class TestApiKey:
    def test_one_that_no_header_can_carry_is_rejected_and_not_shown(self) -> None:
        wrong: list[Any] = [
            "sk-hidden\n", "sk-hid den", "sk-hidden\r\nX-Evil: 1", "sk-hidden\0", "sk-hidden\x7f",
            "sk-hidden-é", "", None, b"sk-hidden",
        ]  # fmt: skip
        for key in wrong:
            with pytest.raises(ValueError, match=r"^The API key ") as caught:
                MistralClient(key)
            assert "hid" not in everything_shown(caught.value)


class TestBaseUrl:
    def test_loopback_and_every_https_host(self) -> None:
        for url in (
            "http://127.9.9.9/v1", "HTTP://LOCALHOST", "http://[::1]:8080/v1",
            "HTTPS://API.MISTRAL.AI/v1", "https://10.0.0.1:8443", "https://müller.example/v1",
        ):  # fmt: skip
            MistralClient(KEY, base_url=url).close()

    def test_the_key_goes_over_http_to_no_other_machine(self) -> None:
        for host in (
            "api.mistral.ai", "localhost.example.com", "127.0.0.1.example.com", "0.0.0.0",
            "10.0.0.1", "[::2]", "127.1",
        ):  # fmt: skip
            with pytest.raises(ValueError, match="http would expose the key"):
                MistralClient(KEY, base_url=f"http://{host}/v1")

    def test_one_that_cannot_work_is_rejected_and_not_shown(self) -> None:
        """It may hold a password, or a key in the wrong place."""
        for url in (
            "https://somebody:hidden@api.mistral.ai/v1", "https://hidden@api.mistral.ai/v1",
            "https://@hidden.mistral.ai/v1", "https://somebody:hid\u2100den@api.mistral.ai/v1",
            "https://api.mistral.ai/v1?key=hidden", "https://api.mistral.ai/v1#hidden",
            "https://api.mistral.ai:hidden/v1", "https://hidden..mistral.ai/v1",
            f"https://{'hidden' * 11}.example.com/v1", "https://api.mistral.ai/v1 hidden",
            "https://api.mistral.ai/v1\nhidden", "https:///v1/hidden", "//hidden/v1", "hidden", "",
            "ftp://hidden.example.com/v1", "http://127.0.0.1%2f.hidden.example.com",
            "http://hidden.example.com\\[::1]", "https://api.mistral.ai\\@hidden.example.com",
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"^The base URL must look like ") as caught:
                MistralClient(KEY, base_url=url)
            assert "hid" not in everything_shown(caught.value)

    def test_slashes_at_its_end(self) -> None:
        with RawServer(GOOD_RESPONSE) as server:
            MistralClient(KEY, base_url=server.url + "//").chat(HELLO)
        assert server.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


def everything_shown(error: BaseException) -> str:
    """Return all that a log, a console or a debugger's first look could show of an error."""
    whole = "".join(traceback.format_exception(error))
    return "\n".join([str(error), repr(error), repr(vars(error)), explain(error), whole])


class TestRedaction:
    """The key is in no message, log, traceback or repr, even if a server sends it back."""

    def test_a_server_that_echoes_the_key(self, caplog: pytest.LogCaptureFixture) -> None:
        key = KEY.encode()
        for response in (
            raw_response("401 No", b'{"message": "Bad key %s"}' % key),
            raw_response("422 No", b'{"detail": [{"loc": ["%s"], "msg": "%s"}]}' % (key, key)),
            raw_response("401 No", b'{"message": "\\u0073%s"}' % key[1:]),
            raw_response("401 No", b'\r\n\xef\xbb\xbf {"message": "\\u0073%s"}' % key[1:]),
            raw_response("401 No", b'{"message": "%s"}' % (b"x" * 490 + key)),
            raw_response("429 No", b"", f"Retry-After: {KEY}", f"mistral-correlation-id: {KEY}"),
            raw_response(f"401 {KEY}"),
            raw_response("502 No", b"<html>%s</html>" % key),
            raw_response("302 No", b"", f"Location: http://[{KEY}"),
            raw_response("200 OK", b"Bearer " + key),
            raw_response("200 OK", b'{"message": "%s' % key),
            raw_response("200 OK", b'{"error": {"message": "Bad key %s"}}' % key),
            raw_response(
                "200 OK", COMPLETION.replace(b"{", b'{"error": "\\u0073%s",' % key[1:], 1)
            ),
            raw_response("200 OK", COMPLETION.replace(b'"stop"', b'"error", "%s": 1' % key)),
            key + b"\r\n\r\n",
            b"HTTP/1.1 %s OK\r\n\r\n" % key,
            CHUNKED + key + b"\r\n",
            raw_response("200 OK", b"", f"Content-Length: {KEY}"),
            raw_response("200 OK", b"x", f"Content-Encoding: gzip, {KEY}"),
        ):
            with caplog.at_level(logging.DEBUG):
                error = failure_after(response)
            assert KEY not in everything_shown(error), response
            assert KEY not in caplog.text, response

    @pytest.mark.parametrize("key", [KEY, 'a"b\\c'])
    def test_the_rest_stays_readable(self, key: str) -> None:
        body = {"message": f"Key {key} is unknown", "code": f"bad-{key}"}
        response = raw_response(
            "401 No", json.dumps(body).encode(), f"mistral-correlation-id: {key}"
        )
        with RawServer(response) as server:
            error = failure(server.url, key=key)
        assert error.args[1:4] == ("Key [redacted] is unknown", "bad-[redacted]", "[redacted]")

    def test_every_other_failure(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG), refusing_url() as refused:
            errors: list[BaseException] = [failure(refused)]
            for fault in ("401", "drop", "timeout", "badjson", "cut"):
                with MockServer(fault) as server:
                    errors.append(failure(server.url, timeout=0.05))
            with MistralClient(KEY) as client, pytest.raises(ValueError, match="JSON") as invalid:
                client.chat(HELLO, temperature=float("nan"))
        shown = [everything_shown(error) for error in (*errors, invalid.value)]
        assert KEY not in f"{shown} {caplog.text}"

    def test_the_variables_in_a_traceback(self) -> None:
        """Tools such as Sentry show them; those of requests hold the key."""
        for response in (b"", KEY.encode() + b"\r\n\r\n", CHUNKED + b"400\r\n{"):
            error: BaseException | None = failure_after(response)
            while error is not None:
                frames = traceback.TracebackException.from_exception(
                    error, capture_locals=True
                ).stack
                shown = [str(frame.locals) for frame in frames if frame.filename != __file__]
                assert KEY not in f"{shown} {error!r}"
                assert getattr(error, "request", None) is None  # its headers hold the key
                error = error.__cause__ or error.__context__

    def test_a_client_cannot_be_pickled(self) -> None:
        with MistralClient(KEY) as client, pytest.raises(TypeError, match="it holds the API key"):
            pickle.dumps(client)

    def test_a_client(self) -> None:
        with MistralClient(KEY, base_url="https://api.mistral.ai/v1/") as client:
            assert repr(client) == "MistralClient(base_url='https://api.mistral.ai/v1')"
            inside = [vars(part) for part in vars(client).values() if hasattr(part, "__dict__")]
            assert KEY not in f"{client} {vars(client)} {inside}"
