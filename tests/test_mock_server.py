"""The mock server: it responds like the API, fails on demand, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import re
import socket
import ssl
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
from lib import mock_server
from lib.mock_server import Fault, MockServer, api, http_server, parse_faults
from lib.mock_server import __main__ as command
from support import Outcome, run_in_threads

KEY = "sk-0123456789-secret"
CHAT = "/v1/chat/completions"
HELLO = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello!"}]}
HELLO_BODY = json.dumps(HELLO).encode()
HEAD = f"POST {CHAT} HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n".encode()
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(HELLO_BODY), HELLO_BODY)


class Reply(NamedTuple):
    """What a client receives."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


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
def request_in_progress(server: MockServer) -> Iterator[socket.socket]:
    """Give a connection whose request has reached the server."""
    with connect(server) as connection:
        before = len(server.log)
        connection.sendall(REQUEST)
        wait_until(lambda: len(server.log) > before)
        yield connection


@pytest.fixture(scope="module")
def server() -> Iterator[MockServer]:
    """A server without faults, shared by the tests that change nothing about it."""
    with MockServer() as server:
        yield server


FAULTS_BY_SCRIPT: dict[str, list[Fault]] = {  # the first nine
    "": [],
    "  ": [],
    "''": [],  # the quotes that cmd.exe passes on
    "'503*2'": [Fault("status", 503)] * 2,
    "ok": [Fault("ok")],
    "400,599": [Fault("status", 400), Fault("status", 599)],
    "429:2,503:0.5": [Fault("status", 429, 2.0), Fault("status", 503, 0.5)],
    "slow:1.5,slow:86400,drip:0.2": [
        Fault("slow", 200, 1.5), Fault("slow", 200, 86400.0), Fault("drip", 200, 0.2),
    ],
    "timeout,drop,badjson,cut,noquota": [
        Fault("timeout"), Fault("drop"), Fault("badjson"), Fault("cut"), Fault("noquota"),
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
    "503*2*3", "503*1000001", "503 *2", "503;ok", "slow:86401", "'", "503*" + "9" * 8,
    "503*" + "9" * 5000, "429:" + "9" * 5000, "slow:" + "9" * 5000,
]  # fmt: skip
DIAGNOSES = {
    "503,,ok": "unknown fault ''",
    ",": "unknown fault ''",
    "503,": "unknown fault ''",
    "503 503": "'503 503': separate words with commas",
    "429x3": "did you mean 429*3?",
    "Timeout": "did you mean timeout?",
    "slow": "slow needs seconds, up to a day: slow:1.5",
    "html": "html needs a status from 400 to 599: html:502",
    "ok:2": "ok takes no number",
    "200": "a status is a number from 400 to 599",
    "503*0": "repeat it 1 to 1000000 times, or always with a bare *",
    "503*,ok": "'503*' never ends, so nothing may follow it",
    "503@20": "a share is a percentage up to 100, such as 503@20%",
    "503@101%": "a share is a percentage up to 100",
    "503@20%,ok": "words with @ come last",
    "503@60%,drop@50%": "add up to more than 100 %",
    "rain@20%": "unknown fault 'rain@20%': use ok, a status",
}


def rejection(script: str) -> str:
    """Return the message with which a fault script is rejected, or "" if it is accepted."""
    try:
        MockServer(script)._server.server_close()
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

    def test_unprintable_word_is_named_in_ascii(self) -> None:
        for word in ("\x1b[31m", "५०३", "ok\r\nok", "\0", "\u202e"):
            message = rejection(word)
            assert ascii(word)[1:-1] in message
            assert message.isascii()
            assert message.isprintable()


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


BODIES = {
    "400": ("application/json", '"type": "invalid_request_error"'),
    "401": ("application/json", '{"detail": "Unauthorized"}'),
    "402": ("application/json", "API budget exhausted."),
    "404": ("application/json", '{"detail": "Not Found"}'),
    "418": ("application/json", '{"detail": "I\'m a Teapot"}'),
    "422": ("application/json", '"loc": ["body", "messages"]'),
    "429": ("application/json", '"code": "1300"'),
    "500": ("application/json", '"type": "internal_server_error"'),
    "503": ("application/json", '"type": "unreachable_backend"'),
    "599": ("application/json", '{"detail": "HTTP status 599"}'),
    "504": (None, ""),
    "520": ("text/html", "<h1>520 HTTP status 520</h1>"),
    "html:502": ("text/html", "<h1>502 Bad Gateway</h1>"),
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
        with MockServer(",".join(BODIES)) as server:
            for word, (content_type, part) in BODIES.items():
                reply = request(server)
                assert str(reply.status) == word.removeprefix("html:")
                assert reply.headers["Content-Type"] == content_type
                assert part in reply.text
                assert content_type != "application/json" or isinstance(reply.json, dict)
                assert part or not reply.text

    def test_noquota_is_a_429_with_a_limit_of_zero(self) -> None:
        with MockServer("noquota") as server:
            reply = request(server)
        assert (reply.status, reply.headers["x-ratelimit-limit-req-minute"]) == (429, "0")
        assert reply.headers["x-ratelimit-remaining-req-minute"] == "0"

    def test_badjson_is_a_complete_200_that_is_not_json(self) -> None:
        with MockServer("badjson") as server:
            reply = request(server)
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
        with pytest.raises(ValueError, match=r"Unterminated|delimiter|Expecting"):
            json.loads(reply.text)

    def test_cut_sends_half_the_body(self) -> None:
        with MockServer("cut") as server, pytest.raises(http.client.IncompleteRead) as caught:
            request(server)
        assert caught.value.partial.startswith(b'{"id": ')
        assert abs(len(caught.value.partial) - (caught.value.expected or 0)) <= 1

    def test_drop_closes_without_a_byte(self) -> None:
        with MockServer("drop") as server:
            assert send_bytes(server, REQUEST) == b""

    def test_timeout_never_responds(self) -> None:
        with MockServer("timeout*2") as server, request_in_progress(server) as connection:
            connection.settimeout(0.05)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            response = server.respond("POST", CHAT, KEY, HELLO_BODY)[0]
        assert response
        assert response.delay == math.inf

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


class TestStream:
    """A chat request with ``stream`` gets server-sent events."""

    STREAM = json.dumps({**HELLO, "stream": True}).encode()

    def events(self, faults: str = "") -> list[str]:
        with MockServer(faults) as server:
            reply = request(server, self.STREAM)
        assert (reply.status, reply.headers["Content-Type"]) == (200, "text/event-stream")
        return reply.text.removesuffix("\n\n").split("\n\n")

    def test_one_event_per_word_then_the_usage_and_the_end_mark(self) -> None:
        *events, end = self.events()
        assert end == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
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

    def test_cut_breaks_off_between_two_events(self) -> None:
        with MockServer("cut") as server:
            received = send_bytes(
                server, HEAD + b"Content-Length: %d\r\n\r\n" % len(self.STREAM) + self.STREAM
            )
        assert received.count(b"data: ") == 5
        assert received.endswith(b"}\n\n\r\n")  # and no last chunk

    def test_badjson_truncates_an_event(self) -> None:
        events = self.events("badjson")
        assert len(events) == 5
        for event in events[:-1]:
            json.loads(event.removeprefix("data: "))
        with pytest.raises(ValueError, match=r"Unterminated|delimiter|Expecting"):
            json.loads(events[-1].removeprefix("data: "))


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

            def status() -> int:
                response = server.respond("POST", CHAT, KEY, HELLO_BODY)[0]
                return response.status if response else 0

            assert Counter(run_in_threads(40, status, interleaved=True)) == {200: 20, 429: 20}

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
    ({**HELLO, "store": True, "a": 1}, [["body", "store"], ["body", "a"]]),
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
    """What the two endpoints send without faults, in the real API's shapes."""

    def test_chat_completion(self, server: MockServer) -> None:
        reply = request(server, {**HELLO, "max_tokens": 5, "temperature": 0.2, "stop": ["."]})
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
        assert re.fullmatch(r"[0-9a-f-]{36}", reply.headers["mistral-correlation-id"])
        body = reply.json
        assert re.fullmatch(r"[0-9a-f]{32}", body.pop("id"))
        assert abs(body.pop("created") - time.time()) < 60
        content = "Hello! How can I assist you today?"
        message = {"role": "assistant", "content": content, "tool_calls": None}
        assert body == {
            "object": "chat.completion",
            "model": "mistral-small-latest",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8},
        }

    def test_reply_repeats_the_prompt(self, server: MockServer) -> None:
        for content, text in REPLIES:
            body = {**HELLO, "messages": [{"role": "user", "content": content}]}
            assert request(server, body).json["choices"][0]["message"]["content"] == text

    def test_last_message_is_the_prompt_and_usage_counts_all(self, server: MockServer) -> None:
        messages = [
            {"role": "system", "content": "Be very brief."},
            {"role": "user", "content": "One two"},
        ]
        body = request(server, {**HELLO, "messages": messages}).json
        assert body["choices"][0]["message"]["content"] == "One two response"
        assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}

    def test_models_are_those_that_chat_accepts(self, server: MockServer) -> None:
        reply = request(server, method="GET", path="/v1/models")
        assert (reply.status, reply.json["object"]) == (200, "list")
        assert [model["id"] for model in reply.json["data"]] == list(api.MODELS)
        for model in reply.json["data"]:
            assert {"id", "object", "created", "owned_by", "capabilities"} <= set(model)
            assert (model["object"], model["capabilities"]["completion_chat"]) == ("model", True)
            assert request(server, {**HELLO, "model": model["id"]}).json["model"] == model["id"]

    def test_missing_key_is_a_401(self, server: MockServer) -> None:
        for authorization in (None, "", "Bearer", "Bearer ", "Basic c2stc2Vj", "x"):
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/")):
                reply = request(server, method=method, path=path, authorization=authorization)
                assert (reply.status, reply.json) == (401, {"detail": "Unauthorized"})

    def test_any_key_is_accepted(self, server: MockServer) -> None:
        for authorization in ("Bearer x", "bearer x", "BEARER  x "):
            assert request(server, authorization=authorization).status == 200

    def test_a_body_that_is_not_json_is_a_400(self) -> None:
        for body in (b"", b"{", b"model=x", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, b"{}}"):
            response = api.respond("POST", CHAT, KEY, body)
            assert response.status == 400
            assert "The body is not JSON" in response.body

    def test_wrong_fields_are_a_422_that_names_them(self) -> None:
        for body, fields in WRONG_FIELDS:
            response = api.respond("POST", CHAT, KEY, json.dumps(body).encode())
            errors = json.loads(str(response.body))["message"]["detail"]
            assert (response.status, [error["loc"] for error in errors]) == (422, fields)
            assert all(error["msg"] and error["type"] for error in errors)

    def test_unknown_model_is_a_404(self, server: MockServer) -> None:
        reply = request(server, {**HELLO, "model": "invalid-model-name"})
        assert (reply.status, reply.json["message"]) == (404, "Model not found")

    def test_wrong_path_is_a_404_that_names_the_endpoints(self, server: MockServer) -> None:
        for method, path in (
            ("GET", "/"), ("GET", CHAT), ("POST", "/v1/models"), ("POST", "/v1"),
            ("GET", "/v1/models/"), ("POST", "/chat/completions"), ("POST", "/v1/embeddings"),
            ("GET", "/v1/../v1/models"),
        ):  # fmt: skip
            reply = request(server, method=method, path=path)
            assert reply.status == 404
            assert "POST /v1/chat/completions and GET /v1/models only" in reply.json["detail"]


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
        assert request(server, HELLO_BODY.ljust(http_server.MAX_BODY_BYTES)).status == 200

    def test_deep_nesting_gets_a_response(self, server: MockServer) -> None:
        for depth in (100, 400, 900, 20_000):
            for left, right in ((b"[", b"]"), (b'{"a":', b"}")):
                nested = left * depth + b"1" + right * depth
                body = HELLO_BODY.replace(b'"Hello!"', nested)
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
        assert http_server._Handler.timeout == http_server.READ_TIMEOUT == 10.0
        monkeypatch.setattr(http_server._Handler, "timeout", 0.05)
        with MockServer() as server:
            for data in (b"", *INCOMPLETE):
                assert send_bytes(server, data) == b""
            assert server.log == []

    def test_client_that_leaves_during_a_large_response_frees_its_thread(self) -> None:
        """The response is larger than both ends' buffers, so sending it must fail."""
        message = {"role": "user", "content": "x" * 1_000_000}
        body = json.dumps({**HELLO, "messages": [message]}).encode()
        with MockServer() as server:
            threads = set(threading.enumerate())
            for _ in range(3):
                with connect(server) as connection:
                    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                    connection.recv(1)
            wait_until(lambda: set(threading.enumerate()) <= threads)


class TestConnections:
    def test_connection_is_kept_open(self, server: MockServer) -> None:
        requests = [("POST", CHAT, HELLO_BODY), ("GET", "/v1/models", None), ("POST", CHAT, b"no")]
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

    def test_it_listens_on_loopback_only(self, server: MockServer) -> None:
        assert server.url.startswith("http://127.0.0.1:")
        assert server._server.socket.getsockname()[0] == "127.0.0.1"

    def test_a_free_port_is_taken_and_a_taken_one_is_an_error(self, server: MockServer) -> None:
        with MockServer() as other:
            assert other.url != server.url
            with pytest.raises(OSError, match=r".") as caught:
                MockServer(port=address(other)[1])
            assert caught.value.errno

    def test_a_defect_of_the_server_is_printed(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with MockServer() as server:
            monkeypatch.setattr(server._server, "respond", lambda *_: 1 / 0)
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
            request(server, path=CHAT + f"?key={KEY}")
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

    def test_order_holds_under_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first response takes longest to compute, and still comes first."""
        compute, delays = api.respond, iter([0.03, 0.0, 0.02])

        def compute_slowly(method: str, path: str, key: str, body: bytes) -> api.Response:
            time.sleep(next(delays, 0.0))
            return compute(method, path, key, body)

        monkeypatch.setattr(api, "respond", compute_slowly)
        with MockServer("503,ok,429,ok", requests_per_minute=7) as server:
            received = run_in_threads(12, lambda: str(request(server).status))
            log = server.log
        assert Counter(entry.outcome for entry in log) == Counter(received)
        assert [entry.outcome for entry in log] == ["503", "200", "429", *["200"] * 6, *["429"] * 3]
        assert [entry.arrived for entry in log] == sorted(entry.arrived for entry in log)

    def test_log_is_a_copy(self) -> None:
        with MockServer() as server:
            request(server)
            server.log.clear()
            assert len(server.log) == 1

    def test_log_keeps_the_latest_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mock_server, "MAX_LOG_ENTRIES", 3)
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
            wait_until(lambda: self._stopping)
            opened(self, connection)

        monkeypatch.setattr(http_server.HTTPServer, "opened", opened_late)
        with contextlib.ExitStack() as clients:
            with MockServer() as server:
                clients.enter_context(connect(server))
                assert accepted.wait(10)
                started_at = time.monotonic()
            assert time.monotonic() - started_at < 5, "it waited for the client"

    @pytest.mark.parametrize("fault", ["timeout", "slow:60", "drip:60"])
    def test_a_client_that_disconnects_frees_its_thread(self, fault: str) -> None:
        with MockServer(fault) as server:
            threads = set(threading.enumerate())
            with request_in_progress(server):
                assert len(set(threading.enumerate()) - threads) == 1
            wait_until(lambda: set(threading.enumerate()) <= threads)
            assert not server._server._connections


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
            created.append((*args, *kwargs.items()))
            raise OSError

        monkeypatch.setattr(command, "MockServer", create)
        run()
        run("--faults=503", "--rpm=6", "--tpm=9", "--port=0", "--seed=3")
        names = ("requests_per_minute", "tokens_per_minute", "port", "seed")
        assert created == [
            ("", *zip(names, (None, None, 8080, 0), strict=True)),
            ("503", *zip(names, (6, 9, 0, 3), strict=True)),
        ]
