"""The mock server: it responds like the API, fails on demand, and leaves nothing behind."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from conftest import FakeClock
from lib.mock_server import Fault, MockServer, http_server, log, parse_faults
from lib.mock_server import __main__ as command
from lib.mock_server.dialects import MISTRAL
from lib.mock_server.faults import VOCABULARY
from support import Outcome, run_in_threads

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


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return not connection.recv(1) and False
    except TimeoutError:
        return True


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    """A server without faults, shared by the tests that change nothing about it."""
    with MockServer() as server:
        yield server


@pytest.fixture(scope="module")
def openai() -> Iterator[MockServer]:
    with MockServer(dialect="openai") as server:
        yield server


FAULTS_BY_SCRIPT: dict[str, list[Fault]] = {  # the first nine
    "": [],
    "  ": [],
    "''": [],  # the quotes that cmd.exe passes on
    "'503*2'": [Fault("status", 503)] * 2,
    "ok": [Fault("ok")],
    "400,599": [Fault("status", 400), Fault("status", 599)],
    "429:2,503:0.5": [Fault("status", 429, 2.0), Fault("status", 503, 0.5)],
    "slow:1.5,slow:99999,drip:0.2": [
        Fault("slow", 200, 1.5), Fault("slow", 200, 99999.0), Fault("drip", 200, 0.2),
    ],
    "timeout,drop,badjson,cut,noquota": [
        Fault("timeout"), Fault("drop"), Fault("badjson"), Fault("cut"), Fault("noquota"),
    ],
    "truncate,stall,streamerror": [Fault("truncate"), Fault("stall"), Fault("streamerror")],
    "toolong,length,empty,filter": [
        Fault("toolong"), Fault("length"), Fault("empty"), Fault("filter"),
    ],
    "html:502": [Fault("html", 502)],
    "503*3": [Fault("status", 503)] * 3,
    "503*1": [Fault("status", 503)],
    "html:502*2,slow:1*": [Fault("html", 502)] * 2 + [Fault("slow", 200, 1.0)] * 7,
    " 503 ,\t429:2*2 ": [Fault("status", 503), *[Fault("status", 429, 2.0)] * 2],
    "drop*1000000,ok": [Fault("drop")] * 9,
    "drop@100%": [Fault("drop")] * 9,
}  # fmt: skip
UNKNOWN_WORDS = [
    "nonsense", "OK", "Drop", "5O3", "200", "399", "600", "5030", "50", "-503", "ok:1", "slow",
    "slow:", "slow:x", "slow:-1", "slow:1e3", "slow:inf", "slow:nan", "slow:1.", "timeout:5",
    "drop:1", "badjson:2", "cut:1", "html", "html:", "html:200", "html:600", "html:502.5",
    "429:", "429:soon", "429:-1", "*", "*3", "503**", "503*0", "503*-1", "503*x", "503*1.5",
    "503*2*3", "503*1000001", "503 *2", "503;ok", "slow:100000", "'", "503*" + "9" * 8,
    "503*" + "9" * 5000, "429:" + "9" * 5000, "slow:" + "9" * 5000, "status", "STATUS", "SECONDS",
]  # fmt: skip
DIAGNOSES = {
    "503,,ok": "unknown fault ''",
    ",": "unknown fault ''",
    "503,": "unknown fault ''",
    "503 503": "'503 503': separate words with commas",
    "429x3": "did you mean 429*3?",
    "Timeout": "did you mean timeout?",
    "Slow:2": "did you mean slow:1.5?",
    "stream-error": "did you mean streamerror?",
    "slow": "slow needs seconds, below 100000: slow:1.5",
    "html": "html needs a status from 400 to 599: html:502",
    "ok:2": "ok takes no number",
    "stall:2": "stall takes no number",
    "200": "a status is a number from 400 to 599",
    "503*0": "repeat it 1 to 1000000 times, or always with a bare *",
    "503*,ok": "'503*' never ends, so nothing may follow it",
    "503@20": "a share is a percentage up to 100, such as 503@20%",
    "503@101%": "a share is a percentage up to 100",
    "503@20%,ok": "words with @ come last",
    "503@60%,drop@50%": "add up to more than 100 %",
    "rain@20%": "unknown fault 'rain@20%': use ok, 503, 429:2, ",
}


def rejection(script: Any) -> str:
    """Return the message with which a fault script is rejected, or "" if it is accepted."""
    try:
        MockServer(script).__exit__()
    except ValueError as error:
        return str(error)
    return ""


class TestFaultScript:
    def test_a_word_is_one_fault(self) -> None:
        parsed = {script: list(islice(parse_faults(script), 9)) for script in FAULTS_BY_SCRIPT}
        assert parsed == FAULTS_BY_SCRIPT

    @pytest.mark.parametrize("script", ["{}", "ok,{}", "{},ok", " {} "])
    def test_unknown_word_is_named(self, script: str) -> None:
        messages = {word: rejection(script.format(word)) for word in UNKNOWN_WORDS}
        assert [word for word, message in messages.items() if f"'{word}'" not in message] == []

    def test_mistake_is_diagnosed(self) -> None:
        for script, diagnosis in DIAGNOSES.items():
            assert diagnosis in rejection(script)
            assert diagnosis in rejection({"mistral-small-latest": script})

    def test_unprintable_word_is_named_in_ascii(self) -> None:
        for word in ("\x1b[31m", "५०३", "ok\r\nok", "\0", "\u202e"):
            message = rejection(word)
            assert ascii(word)[1:-1] in message
            assert message.isascii()
            assert message.isprintable()

    def test_faults_by_model(self) -> None:
        faults = {"mistral-large-latest": "503*", "mistral-small-latest": "ok,drop"}
        with MockServer(faults) as server:
            large, medium = (
                {**HELLO, "model": f"mistral-{name}-latest"} for name in ("large", "medium")
            )
            received = [request(server, body).status for body in (large, medium, HELLO, large)]
            assert received == [503, 200, 200, 503]
            assert send_bytes(server, REQUEST) == b""
            assert request(server, method="GET", path=MODELS).status == 200
            assert request(server, b"no JSON").status == 400
            assert request(server, {"model": ["x"]}).status == 422


class TestShares:
    """A word with @ hits a share of all requests that follow; a seed decides which."""

    @staticmethod
    def drawn(script: str, *seed: int, count: int = 1000) -> list[str]:
        return [fault.kind for fault in islice(parse_faults(script, *seed), count)]

    def test_same_seed_hits_the_same_requests(self) -> None:
        assert self.drawn("503@20%", 1) == self.drawn("503@20%", 1)
        assert self.drawn("503@20%", 1) != self.drawn("503@20%", 2)
        assert self.drawn("503@20%") == self.drawn("503@20%", 0)

    def test_several_words_share_the_requests(self) -> None:
        kinds = Counter(self.drawn("ok*10,503@20%,drop@5%", 3, count=4010)[10:])
        assert 700 < kinds["status"] < 900
        assert 140 < kinds["drop"] < 260
        assert set(kinds) == {"ok", "status", "drop"}

    def test_seed_of_the_server(self) -> None:
        with MockServer("503@50%", seed=7) as server:
            failed = [status == 503 for status in statuses(server, 9)]
        assert failed == [kind == "status" for kind in self.drawn("503@50%", 7, count=9)]

    def test_shares_may_add_up_to_all_requests(self) -> None:
        assert set(self.drawn("503@60%,drop@40%")) == {"status", "drop"}


ERRORS = {  # by fault word: the status, the content type, and a part of the body
    "400": (400, "application/json", "The request is invalid"),
    "401": (401, "application/json", '{"detail": "Unauthorized"}'),
    "402": (402, "application/json", "API budget exhausted."),
    "404": (404, "application/json", '{"detail": "Not Found"}'),
    "418": (418, "application/json", '{"detail": "I\'m a Teapot"}'),
    "422": (422, "application/json", '"loc": ["body", "messages"]'),
    "429": (429, "application/json", '"code": "1300"'),
    "500": (500, "application/json", '"type": "internal_server_error"'),
    "503": (503, "application/json", '"type": "unreachable_backend"'),
    "599": (599, "application/json", '{"detail": "HTTP status 599"}'),
    "504": (504, None, ""),
    "520": (520, "text/html", "<h1>520 HTTP status 520</h1>"),
    "html:502": (502, "text/html", "<h1>502 Bad Gateway</h1>"),
    "toolong": (400, "application/json", '"code": "3051"'),
    "noquota": (429, "application/json", '"code": "1300"'),
}


class TestFaults:
    """What each fault does to a request, over a real socket."""

    def test_one_fault_per_request_and_then_none(self) -> None:
        with MockServer("503,429:2,html:502,400*2") as server:
            assert statuses(server, 7) == [503, 429, 502, 400, 400, 200, 200]

    def test_retry_after_is_in_plain_digits(self) -> None:
        seconds = ["2", "0.5", "0", "86400", "86399.25", "0.00001"]
        with MockServer(",".join(f"429:{value}" for value in seconds) + ",429") as server:
            received = [request(server).headers["Retry-After"] for _ in range(7)]
        assert received == [*seconds, None]

    def test_status_and_body_are_those_of_the_real_api(self) -> None:
        with MockServer(",".join(ERRORS)) as server:
            for status, content_type, part in ERRORS.values():
                reply = request(server)
                assert (reply.status, reply.headers["Content-Type"]) == (status, content_type)
                assert part in reply.text
                assert content_type != "application/json" or isinstance(reply.json, dict)
                assert part or not reply.text

    def test_noquota_is_a_limit_of_zero(self) -> None:
        with MockServer("noquota") as server:
            headers = request(server).headers
        assert headers["x-ratelimit-limit-req-minute"] == "0"
        assert headers["x-ratelimit-remaining-req-minute"] == "0"

    def test_badjson_is_a_complete_200_that_is_not_json(self) -> None:
        with MockServer("badjson") as server:
            reply = request(server)
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
        with pytest.raises(ValueError, match=r"Unterminated|delimiter|Expecting"):
            json.loads(reply.text)

    @pytest.mark.parametrize("body", [HELLO, STREAM], ids=["plain", "stream"])
    def test_cut_announces_nothing(self, body: Any) -> None:
        """With Connection: close, Node's fetch takes half of a stream for the whole."""
        with MockServer("cut") as server:
            head, _, half = send_bytes(server, raw_request(body)).partition(b"\r\n\r\n")
            whole = request(server, body).text
        assert b"close" not in head
        assert 0.4 * len(whole) < len(half) < 0.6 * len(whole) + 60
        assert body is HELLO or half.endswith(b"}\n\n\r\n")  # between two events; no last chunk

    @pytest.mark.parametrize("body", [HELLO, STREAM], ids=["plain", "stream"])
    def test_stall_sends_half_and_then_nothing(self, body: Any) -> None:
        with MockServer("cut,stall") as server:
            half = send_bytes(server, raw_request(body))
            with request_in_progress(server, body) as connection:
                received = b""
                while len(received) < len(half):
                    received += connection.recv(65536)
                assert len(received) == len(half)
                assert is_silent(connection)

    @pytest.mark.parametrize("fault", ["streamerror", "truncate"])
    def test_a_fault_of_streams_makes_a_plain_response_useless(self, fault: str) -> None:
        with MockServer(fault) as server:
            reply = request(server)
        assert reply.status == 200
        if fault == "streamerror":
            assert reply.json["message"] == "Simulated failure"
        else:
            with pytest.raises(ValueError, match=r"Unterminated|delimiter|Expecting"):
                json.loads(reply.text)

    def test_drop_closes_without_a_byte(self) -> None:
        with MockServer("drop") as server:
            assert send_bytes(server, REQUEST) == b""

    def test_timeout_never_responds(self) -> None:
        with MockServer("timeout") as server, request_in_progress(server) as connection:
            assert is_silent(connection)

    def test_slow_responds_later_and_delays_nobody_else(self) -> None:
        with MockServer("slow:0.05,slow:60") as server:
            started_at = time.monotonic()
            assert request(server).status == 200
            assert time.monotonic() - started_at >= 0.04
            with request_in_progress(server):
                assert request(server).status == 200

    def test_drip_sends_the_body_byte_by_byte(self) -> None:
        with MockServer("drip:0.0005") as server:
            started_at = time.monotonic()
            assert request(server).status == 200
            assert time.monotonic() - started_at > 0.1
        assert (server.log[0].duration or 0) > 0.1


ANSWERS = {  # by fault word: the answer, why it ends, its tokens
    "length": ("Hello! How can", "length", 3),
    "empty": ("", "stop", 0),
    "filter": ("", "content_filter", 0),
}


class TestAnswerFaults:
    """Faults of a complete response, streamed or not, that holds no complete answer."""

    def test_answer_and_its_finish_reason(self) -> None:
        with MockServer(",".join(ANSWERS)) as server:
            for text, reason, tokens in ANSWERS.values():
                reply = request(server)
                assert (reply.status, reply.content) == (200, text)
                assert reply.choice["finish_reason"] == reason
                assert reply.json["usage"]["completion_tokens"] == tokens

    def test_answer_of_a_stream(self) -> None:
        with MockServer(",".join(ANSWERS)) as server:
            for text, reason, _ in ANSWERS.values():
                reply = request(server, STREAM)
                choices = [chunk["choices"][0] for chunk in reply.chunks]
                assert "".join(choice["delta"]["content"] for choice in choices) == text
                assert choices[-1]["finish_reason"] == reason
                assert reply.text.endswith("data: [DONE]\n\n")

    def test_an_error_stays_an_error(self) -> None:
        with MockServer("length,empty,filter") as server:
            assert [request(server, {}).status for _ in range(3)] == [422] * 3


class TestStream:
    """A chat request with ``stream`` gets server-sent events."""

    def reply(self, faults: str = "") -> Reply:
        with MockServer(faults) as server:
            reply = request(server, STREAM)
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/event-stream")
        return reply

    def test_one_event_per_word_then_the_usage_and_the_end_mark(self) -> None:
        reply = self.reply()
        assert reply.text.endswith("\n\ndata: [DONE]\n\n")
        chunks = reply.chunks
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert {chunk["model"] for chunk in chunks} == {"mistral-small-latest"}
        assert all(len(chunk["id"]) == 32 and chunk["created"] for chunk in chunks)
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        assert [choice["delta"]["content"] for choice in choices] == [
            "Hello! ", "How ", "can ", "I ", "assist ", "you ", "today?", "",
        ]  # fmt: skip
        assert choices[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in choices] == [None] * 7 + ["stop"]
        assert {choice["index"] for choice in choices} == {0}
        assert chunks[-1]["usage"] == {
            "prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8,
        }  # fmt: skip

    def test_badjson_cuts_an_event_short(self) -> None:
        *events, last = self.reply("badjson").text.removesuffix("\n\n").split("\n\n")
        assert len(events) == 4
        for event in events:
            json.loads(event.removeprefix("data: "))
        with pytest.raises(ValueError, match=r"Unterminated|delimiter|Expecting"):
            json.loads(last.removeprefix("data: "))

    def test_truncate_ends_cleanly_without_finish_reason_and_end_mark(self) -> None:
        reply = self.reply("truncate")  # http.client raises if a chunked body breaks off
        assert "[DONE]" not in reply.text
        assert [chunk["choices"][0]["finish_reason"] for chunk in reply.chunks] == [None] * 4

    def test_streamerror_is_an_event_in_the_middle(self) -> None:
        *chunks, error = self.reply("streamerror").chunks
        assert len(chunks) == 4
        assert (error["object"], error["code"]) == ("error", "1000")


class TestRateLimit:
    def test_window_slides_over_60_seconds(self, clock: FakeClock) -> None:
        received = []
        with MockServer(requests_per_minute=2) as server:
            for now in (0, 30, 59, 60, 60.5, 89, 90, 120):
                clock.now = 1000.0 + now
                received.append(request(server).status)
        assert received == [200, 200, 429, 200, 429, 429, 200, 200]

    def test_headers_say_what_remains_and_when_to_retry(self, clock: FakeClock) -> None:
        received = []
        with MockServer(requests_per_minute=2) as server:
            for now in (0, 0, 0, 59.5, 60):
                clock.now = 1000.0 + now
                reply = request(server)
                assert reply.headers["x-ratelimit-limit-req-minute"] == "2"
                remaining = reply.headers["x-ratelimit-remaining-req-minute"]
                received.append((remaining, reply.headers["Retry-After"]))
                assert reply.status == 200 or reply.json["message"] == "Rate limit exceeded"
        assert received == [("1", None), ("0", None), ("0", "60"), ("0", "1"), ("1", None)]

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

    def test_models_are_not_limited(self) -> None:
        with MockServer(tokens_per_minute=1, requests_per_minute=1) as server:
            for _ in range(3):
                reply = request(server, method="GET", path="/v1/models")
                assert reply.status == 200
                assert not [name for name in reply.headers if "ratelimit" in name]

    def test_no_limit_sends_no_headers(self, server: MockServer) -> None:
        assert not [name for name in request(server).headers if "ratelimit" in name.lower()]

    def test_window_may_be_shorter(self, clock: FakeClock) -> None:
        received = []
        with MockServer(requests_per_minute=1, window=2) as server:
            for now in (0, 1.5, 2, 3.5, 4):
                clock.now = 1000.0 + now
                reply = request(server)
                received.append((reply.status, reply.headers["Retry-After"]))
        assert received == [(200, None), (429, "1"), (200, None), (429, "1"), (200, None)]

    @pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
    def test_limit_below_1_is_an_error(self, name: str) -> None:
        limit: Any
        for limit in (0, -1, 1.5, float("nan"), True):
            with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got {limit}"):
                MockServer("", **{name: limit})


WRONG_FIELDS: list[tuple[Any, list[list[str]]]] = [
    ([], [["body"]]),
    (None, [["body"]]),
    ("text", [["body"]]),
    ({}, [["body", "model"], ["body", "messages"]]),
    ({"messages": HELLO["messages"]}, [["body", "model"]]),
    ({"model": "mistral-small-latest"}, [["body", "messages"]]),
    ({**HELLO, "model": None}, [["body", "model"]]),
    ({**HELLO, "model": ["mistral-small-latest"]}, [["body", "model"]]),
    ({**HELLO, "messages": []}, [["body", "messages"]]),
    ({**HELLO, "messages": None}, [["body", "messages"]]),
    ({**HELLO, "messages": {"role": "user"}}, [["body", "messages"]]),
    ({**HELLO, "messages": ["Hello!"]}, [["body", "messages", "role"]]),
    ({**HELLO, "messages": [{"content": "Hello!"}]}, [["body", "messages", "role"]]),
    ({**HELLO, "messages": [{"role": 5}]}, [["body", "messages", "role"]]),
    ({**HELLO, "max_completion_tokens": 5}, [["body", "max_completion_tokens"]]),
    ({**HELLO, "store": True, "a.b": 1}, [["body", "store"], ["body", "a.b"]]),
    (
        {**HELLO, "stream_options": {"include_usage": True}},
        [["body", "stream_options", "include_usage"]],
    ),
]
REPLIES: list[tuple[Any, str]] = [
    ("Hello!", "Hello! How can I assist you today?"),
    ("Test retry logic", "Test retry logic response"),
    ("Grüße, 世界 🌍 \ud800", "Grüße, 世界 🌍 \ud800 response"),
    ([{"type": "text", "text": "One"}, {"type": "text", "text": "two"}], "One two response"),
    ([{"type": "image_url"}, "text"], " response"),
    (None, " response"),
    (5, "5 response"),
    ({"a": 1}, "{'a': 1} response"),
]


class TestEndpoints:
    """What the endpoints send without faults, in the real API's shapes."""

    def test_chat_completion(self, server: MockServer) -> None:
        reply = request(server, {**HELLO, "max_tokens": 7, "temperature": 0.2, "stop": ["."]})
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
        assert re.fullmatch(r"[0-9a-f-]{36}", reply.headers["mistral-correlation-id"])
        body = reply.json
        assert re.fullmatch(r"[0-9a-f]{32}", body.pop("id"))
        assert abs(body.pop("created") - time.time()) < 60
        message = {"role": "assistant", "content": GREETING, "tool_calls": None}
        assert body == {
            "object": "chat.completion",
            "model": "mistral-small-latest",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8},
        }

    def test_max_tokens_cut_a_longer_answer(self, server: MockServer) -> None:
        for body in (HELLO, STREAM):
            reply = request(server, {**body, "max_tokens": 2})
            last = reply.chunks[-1] if body is STREAM else reply.json
            assert "can" not in reply.text
            assert last["choices"][0]["finish_reason"] == "length"
            assert last["usage"]["completion_tokens"] == 2

    def test_reply_repeats_the_prompt(self, server: MockServer) -> None:
        for content, text in REPLIES:
            body = {**HELLO, "messages": [{"role": "user", "content": content}]}
            assert request(server, body).content == text

    def test_last_message_is_the_prompt_and_usage_counts_all(self, server: MockServer) -> None:
        messages = [
            {"role": "system", "content": "Be very brief."},
            {"role": "user", "content": "One two"},
        ]
        reply = request(server, {**HELLO, "messages": messages})
        assert reply.content == "One two response"
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        assert reply.json["usage"] == usage

    def test_models_are_those_that_chat_accepts(self, server: MockServer) -> None:
        reply = request(server, method="GET", path=MODELS)
        assert (reply.status, reply.json["object"]) == (200, "list")
        assert [model["id"] for model in reply.json["data"]] == list(MISTRAL.models)
        for model in reply.json["data"]:
            assert {"id", "object", "created", "owned_by", "capabilities"} <= set(model)
            assert (model["object"], model["capabilities"]["completion_chat"]) == ("model", True)
            assert request(server, {**HELLO, "model": model["id"]}).json["model"] == model["id"]
            assert request(server, method="GET", path=f"{MODELS}/{model['id']}").json == model

    @pytest.mark.parametrize("encoding", ["float", "base64"])
    def test_embeddings(self, server: MockServer, encoding: str) -> None:
        body = {
            "model": "mistral-embed",
            "input": ["one two", "three"],
            "encoding_format": encoding,
        }
        reply = request(server, body, path="/v1/embeddings")
        assert (reply.status, reply.json["usage"]["total_tokens"]) == (200, 3)
        assert [item["index"] for item in reply.json["data"]] == [0, 1]
        for item in reply.json["data"]:
            vector = item["embedding"]
            if encoding == "base64":
                raw = base64.b64decode(vector)
                vector = list(struct.unpack(f"<{len(raw) // 4}f", raw))
            assert vector == [0.5, -0.5, 0.5, -0.5]

    def test_missing_key_is_a_401(self, server: MockServer) -> None:
        for authorization in (None, "", "Bearer", "Bearer ", "Basic c2stc2Vj", "x"):
            for method, path in (("POST", CHAT), ("GET", MODELS), ("GET", "/")):
                reply = request(server, method=method, path=path, authorization=authorization)
                assert (reply.status, reply.json) == (401, {"detail": "Unauthorized"})

    def test_any_key_is_accepted(self, server: MockServer) -> None:
        for authorization in ("Bearer x", "bearer x", "BEARER  x "):
            assert request(server, authorization=authorization).status == 200

    def test_a_body_that_is_not_json_is_a_400(self, server: MockServer) -> None:
        for body in (b"", b"{", b"model=x", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, b"{}}"):
            reply = request(server, body)
            assert (reply.status, reply.json["message"]) == (400, "The body is not JSON")

    def test_wrong_fields_are_a_422_that_names_them(self, server: MockServer) -> None:
        for body, fields in WRONG_FIELDS:
            reply = request(server, body)
            errors = reply.json["message"]["detail"]
            assert (reply.status, [error["loc"] for error in errors]) == (422, fields)
            assert all(error["msg"] and error["type"] for error in errors)

    def test_unknown_model_is_a_404(self, server: MockServer) -> None:
        reply = request(server, {**HELLO, "model": "invalid-model-name"})
        assert (reply.status, reply.json["message"]) == (404, "Model not found")

    def test_wrong_path_is_a_404_that_names_the_endpoints(self, server: MockServer) -> None:
        for method, path in (
            ("GET", "/"), ("GET", CHAT), ("POST", MODELS), ("POST", "/v1"), ("GET", "/v1/models/"),
            ("GET", "/v1/models/x"), ("GET", "/v1/modelsx"), ("POST", "/chat/completions"),
            ("GET", "/v1/../v1/models"),
        ):  # fmt: skip
            reply = request(server, method=method, path=path)
            assert reply.status == 404
            assert "the mock serves POST /v1/chat/completions, " in reply.json["detail"]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}
SCHEMA = {  # what pydantic makes of nested classes
    "$defs": {"Line": {"properties": {"text": {"minLength": 6, "type": "string"}}}},
    "type": "object",
    "properties": {
        "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}, "minItems": 2},
        "tags": {"type": "array", "items": {"type": "string"}},
        "kind": {"enum": ["a", "b"]},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "age": {"type": "integer", "minimum": 18},
        "share": {"type": "number", "maximum": 0.5},
        "on": {"type": "string", "format": "date"},
        "ok": {"type": ["boolean", "null"]},
        "v": {"const": 3},
    },
}
FITTING = {
    "lines": [{"text": "textxx"}] * 2, "tags": [], "kind": "a", "next": None, "age": 18,
    "share": 0.5, "on": "2026-01-31", "ok": True, "v": 3,
}  # fmt: skip
WRONG_TOOLS: list[dict[str, Any]] = [
    {"tools": 5}, {"tools": [5]}, {"tools": [{}]}, {"tools": [{"function": {}}]},
    {"tools": [WEATHER], "tool_choice": {"function": {"name": "other"}}},
    {"response_format": 5}, {"response_format": {"schema": {}}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/x"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
]  # fmt: skip


class TestTools:
    """What agents and structured outputs need: tools are called, JSON fits its schema."""

    @staticmethod
    def called(reply: Reply) -> list[str]:
        return [call["function"]["name"] for call in reply.choice["message"]["tool_calls"] or []]

    @staticmethod
    def after(calls: list[Any], **changes: Any) -> dict[str, Any]:
        messages = [
            *HELLO["messages"],
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "22 degrees", "tool_call_id": calls[0]["id"]},
        ]
        return {**HELLO, "tools": [WEATHER, TIME], "messages": messages, **changes}

    def test_tool_is_called_once_and_answered_after_its_result(self, server: MockServer) -> None:
        first = request(server, {**HELLO, "tools": [WEATHER, TIME]})
        assert first.choice["finish_reason"] == "tool_calls"
        (call,) = first.choice["message"]["tool_calls"]
        assert call["type"] == "function"
        assert json.loads(call["function"]["arguments"]) == {"city": "text", "days": 1}
        second = request(server, self.after([call]))
        assert (second.content, self.called(second)) == ("22 degrees response", [])

    def test_tool_choice(self, server: MockServer) -> None:
        body = {**HELLO, "tools": [WEATHER, TIME]}
        named = {"type": "function", "function": {"name": "time"}}
        for choice, names in {"auto": ["weather"], "any": ["weather"], "none": []}.items():
            assert self.called(request(server, {**body, "tool_choice": choice})) == names
        assert self.called(request(server, {**body, "tool_choice": named})) == ["time"]

    def test_required_tools_are_each_called_once(self, server: MockServer) -> None:
        calls = request(server, {**HELLO, "tools": [WEATHER]}).choice["message"]["tool_calls"]
        second = request(server, self.after(calls, tool_choice="required"))
        assert self.called(second) == ["time"]
        both = [*calls, *second.choice["message"]["tool_calls"]]
        assert self.called(request(server, self.after(both, tool_choice="required"))) == []

    def test_tool_call_is_streamed(self, server: MockServer) -> None:
        chunks = request(server, {**STREAM, "tools": [WEATHER]}).chunks
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        (call,) = deltas[0]["tool_calls"]
        assert (call["index"], call["function"]["name"]) == (0, "weather")
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    def test_json_fits_its_schema(self, server: MockServer) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        assert json.loads(request(server, {**HELLO, "response_format": wanted}).content) == FITTING
        for kind, text in {"json_object": "{}", "text": GREETING}.items():
            assert request(server, {**HELLO, "response_format": {"type": kind}}).content == text

    def test_wrong_shape_is_a_422(self, server: MockServer) -> None:
        for fields in WRONG_TOOLS:
            assert request(server, {**HELLO, **fields}).status == 422, fields


class TestReplies:
    def test_list_has_one_for_each_completion(self) -> None:
        """A request that fails uses none up."""
        with MockServer("503,429,drop", replies=["one", "two"]) as server:
            assert statuses(server, 2) == [503, 429]
            assert send_bytes(server, REQUEST) == b""
            assert [request(server).content for _ in range(3)] == ["one", "two", GREETING]

    def test_function_gets_the_body(self) -> None:
        def reply(body: Any) -> str | None:
            return {"Hello!": "Bonjour!", "": ""}.get(body["messages"][0]["content"])

        with MockServer(replies=reply) as server:
            for prompt, text in {"Hello!": "Bonjour!", "": "", "Hi": "Hi response"}.items():
                body = {**HELLO, "messages": [{"role": "user", "content": prompt}]}
                assert request(server, body).content == text
                streamed = request(server, {**body, "stream": True}).chunks
                deltas = [chunk["choices"][0]["delta"]["content"] for chunk in streamed]
                assert "".join(deltas) == text

    def test_a_function_that_waits_delays_nobody_else(self) -> None:
        go_on = threading.Event()

        def reply(body: Any) -> None:
            assert body["max_tokens"] == 50 or go_on.wait(10)

        waits = {**HELLO, "max_tokens": 60}
        with MockServer(replies=reply) as server, request_in_progress(server, waits):
            assert request(server, {**HELLO, "max_tokens": 50}).status == 200
            go_on.set()


class TestOpenAIDialect:
    """A program that is written for the OpenAI API can be tested unchanged."""

    def test_any_model_and_field_is_accepted(self, openai: MockServer) -> None:
        fields = {"seed": 1, "max_completion_tokens": 2, "logit_bias": {}, "store": True}
        reply = request(openai, {**HELLO, "model": "gpt-4o", **fields})
        assert (reply.status, reply.content) == (200, "Hello! How")
        assert reply.choice["finish_reason"] == "length"
        assert reply.headers["x-request-id"]
        assert request(openai, method="GET", path=f"{MODELS}/my-model").json["id"] == "my-model"

    def test_usage_of_a_stream_on_request(self, openai: MockServer) -> None:
        plain = request(openai, STREAM).chunks
        with_usage = request(openai, {**STREAM, "stream_options": {"include_usage": True}}).chunks
        assert not any(chunk.get("usage") for chunk in plain)
        assert with_usage[-1]["choices"] == []
        assert with_usage[-1]["usage"]["total_tokens"] == 8
        assert len(with_usage) == len(plain) + 1

    def test_error_bodies(self) -> None:
        codes = {
            "400": None, "401": "invalid_api_key", "429": "rate_limit_exceeded", "500": None,
            "418": None, "noquota": "insufficient_quota", "toolong": "context_length_exceeded",
        }  # fmt: skip
        with MockServer(",".join(codes), dialect="openai") as server:
            for code in codes.values():
                error = request(server).json["error"]
                assert error["code"] == code
                assert {"message", "type", "param"} <= set(error)
            assert request(server, authorization=None).json["error"]["code"] == "invalid_api_key"
            assert request(server, b"{").status == 400
            missing = request(server, {"model": "gpt-4o"})
            assert (missing.status, missing.json["error"]["param"]) == (400, "messages")
            assert "the mock serves" in request(server, path="/v1/x").json["error"]["message"]

    def test_error_event_of_a_stream(self) -> None:
        with MockServer("streamerror", dialect="openai") as server:
            assert request(server, STREAM).chunks[-1]["error"]["message"] == "Simulated failure"

    def test_limit_headers(self, clock: FakeClock) -> None:
        with MockServer(dialect="openai", requests_per_minute=1, tokens_per_minute=50) as server:
            assert statuses(server, 1) == [200]
            clock.now += 15
            headers = request(server).headers
        assert headers["x-ratelimit-limit-requests"] == "1"
        assert headers["x-ratelimit-remaining-tokens"] == "42"
        assert headers["x-ratelimit-reset-requests"] == "45.000s"
        assert headers["Retry-After"] == "45"

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ({"dialect": "gpt"}, "dialect must be one of mistral, openai, got 'gpt'"),
            ({"window": 0}, "window must be a number of seconds > 0, got 0"),
            ({"window": float("nan")}, "window must be a number of seconds > 0, got nan"),
        ],
    )
    def test_wrong_argument(self, argument: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            MockServer(**argument)


def tls_hello() -> bytes:
    """Return the first bytes of a client that speaks https."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


REJECTED_HEADERS: list[tuple[bytes, int]] = [
    (b"", 411),
    (b"Transfer-Encoding: chunked\r\n", 411),
    (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 411),
    (b"Content-Length: many\r\n", 400),
    (b"Content-Length: -1\r\n", 400),
    (b"Content-Length: +5\r\n", 400),
    (b"Content-Length: 1_000\r\n", 400),
    (b"Content-Length: 5, 5\r\n", 400),
    (b"Content-Length: " + b"9" * 5000 + b"\r\n", 400),
    (b"Content-Length: 1048577\r\n", 413),
    (b"Content-Length: 999999999999\r\n", 413),
    (b"X: " + b"x" * 70_000 + b"\r\n", 431),
    (b"X: x\r\n" * 200, 431),
]
GARBAGE = [
    b"",
    b"\r\n" * 10,
    b"\0" * 100_000,
    b"\xff\xfe garbage \x1b[31m\r\n\r\n",
    bytes(range(256)) * 10,
    b"GET\r\n\r\n",
    b"GET /v1/models\r\n\r\n",
    b"GET /v1/models HTTP/9.9\r\n\r\n",
    b"GET /v1/models FTP/1.0\r\n\r\n",
    b"GET " + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nno colon\r\n: no name\r\n\xff: \xff\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    tls_hello(),
    REQUEST + b"\r\n\r\ngarbage",
]
INCOMPLETE = [HEAD[:20], HEAD, REQUEST[:-5]]


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
            assert b"prompt" not in received  # it is not the API's 400, which is about the prompt

    def test_body_is_read_up_to_the_bound(self, server: MockServer) -> None:
        body = json.dumps(HELLO).encode().ljust(http_server.MAX_BODY_BYTES)
        assert request(server, body).status == 200

    def test_deep_nesting_gets_a_response(self, server: MockServer) -> None:
        for depth in (100, 400, 900, 20_000):
            for left, right in ((b"[", b"]"), (b'{"a":', b"}")):
                nested = left * depth + b"1" + right * depth
                body = json.dumps(HELLO).encode().replace(b'"Hello!"', nested)
                assert request(server, body).status in (200, 400)

    def test_other_methods_are_a_501(self, server: MockServer) -> None:
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
            reply = request(server, method=method)
            assert (reply.status, reply.json) == (501, {"detail": "Not Implemented"})

    def test_garbage_does_not_stop_the_server(self, server: MockServer) -> None:
        for data in (*GARBAGE, *INCOMPLETE):
            send_bytes(server, data, more_may_follow=False)
            assert request(server).status == 200

    def test_silent_sender_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert http_server.HTTPServer.read_timeout == 10.0
        monkeypatch.setattr(http_server.HTTPServer, "read_timeout", 0.05)
        with MockServer() as server:
            for data in (b"", *INCOMPLETE):
                assert send_bytes(server, data) == b""
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

    def test_connection_is_closed_on_request_and_for_http_1_0(self, server: MockServer) -> None:
        for data in (
            b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nConnection: Close\r\n\r\n",
            b"GET /v1/models HTTP/1.0\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
        ):
            received = send_bytes(server, data)
            assert received.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
            assert b"\r\nConnection: close\r\n" in received

    @pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's")
    def test_it_listens_on_loopback_only(self, server: MockServer) -> None:
        """A server that listens on all addresses would also be reached at 127.0.0.2."""
        assert server.url.startswith("http://127.0.0.1:")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", address(server)[1]), timeout=10)

    def test_a_free_port_is_taken_and_a_taken_one_is_an_error(self, server: MockServer) -> None:
        with MockServer() as other:
            assert other.url != server.url
            with pytest.raises(OSError, match=r".") as caught:
                MockServer(port=address(other)[1])
            assert caught.value.errno

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

    def test_log_is_a_copy(self) -> None:
        with MockServer() as server:
            request(server)
            server.log.clear()
            assert len(server.log) == 1

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
                b"GET /v1/models?key=%s HTTP/1.1\r\nAuthorization: Bearer %s\r\n\r\n",
                b"BREW /%s HTTP/1.1\r\nAuthorization: Bearer %s\r\n\r\n",
                b"GET / HTTP/9.%s\r\nAuthorization: %s\r\n\r\n",
                b"%s%s\r\n\r\n",
                b"POST / HTTP/1.1\r\nAuthorization: Bearer %s\r\nContent-Length: %s\r\n\r\n",
            ):
                assert secret not in send_bytes(
                    server, data % (secret, secret), more_may_follow=False
                )
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
            pytest.param("", HEAD[:20], id="half the headers"),
            pytest.param("", REQUEST[:-5], id="half the body"),
            pytest.param("", REQUEST, id="kept alive"),
            pytest.param("timeout", REQUEST, id="timeout"),
            pytest.param("slow:60", REQUEST, id="slow"),
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

    @pytest.mark.parametrize("fault", ["timeout", "slow:60", "drip:60", "stall"])
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

    @pytest.fixture
    def run(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., Outcome]:
        def run(*arguments: str) -> Outcome:
            monkeypatch.setattr(sys, "argv", ["mock_server", *arguments])
            try:
                code = command.main()
            except SystemExit as error:
                code = int(error.code or 0)
            return Outcome(code, *capsys.readouterr())

        return run

    def test_wrong_argument_is_one_sentence_and_exit_2(self, run: Callable[..., Outcome]) -> None:
        for arguments, message in {
            ("--faults", "nonsense"): "unknown fault 'nonsense': use ok, ",
            ("--faults", "503,"): "unknown fault ''",
            ("--tpm", "-5"): "--tpm must be an integer >= 1, got -5",
            ("--rpm", "0"): "--rpm must be an integer >= 1, got 0",
            ("--rpm", "many"): "--rpm",
            ("--seed", "x"): "--seed",
            ("--port", "65536"): "--port must be an integer from 0 to 65535",
            ("--port", "-1"): "--port must be an integer from 0 to 65535",
            ("--port", "http"): "--port",
            ("--dialect", "gpt"): "--dialect",
            ("--fault", "503"): "--fault",
            ("503",): "503",
        }.items():
            code, out, err = run(*arguments)
            assert (code, out) == (2, "")
            assert message in err.splitlines()[-1]

    def test_taken_port_is_one_sentence_and_exit_1(
        self, run: Callable[..., Outcome], server: MockServer
    ) -> None:
        port = address(server)[1]
        code, out, err = run("--port", str(port))
        assert (code, out) == (1, "")
        reason = r"\(.+\); choose another with --port\.\n"
        assert re.fullmatch(rf"Can't listen on port {port} {reason}", err)

    def test_options_are_passed_on(
        self, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        created = []

        def create(*args: object, **kwargs: object) -> MockServer:
            created.append((*args, kwargs))
            raise OSError

        monkeypatch.setattr(command, "MockServer", create)
        run()
        run("--faults=503", "--rpm=6", "--tpm=9", "--port=0", "--seed=3", "--dialect=openai")
        names = ("requests_per_minute", "tokens_per_minute", "port", "seed", "dialect")
        assert created == [
            ("", dict(zip(names, (None, None, 8080, 0, "mistral"), strict=True))),
            ("503", dict(zip(names, (6, 9, 0, 3, "openai"), strict=True))),
        ]

    def test_help_explains_every_word(self, run: Callable[..., Outcome]) -> None:
        out = run("--help").out
        for word in VOCABULARY:
            assert re.search(
                rf"^  {re.escape(word.example)} +{re.escape(word.meaning)}$", out, re.M
            )
