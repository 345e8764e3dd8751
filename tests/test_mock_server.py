"""mock_server.py: it answers like the API, fails as it is told, and leaves nothing behind."""

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
from lib.mock_server.api import MODELS
from support import run_in_threads

KEY = "sk-0123456789-secret"
CHAT = "/v1/chat/completions"
HELLO = {"model": "mistral-small-latest", "messages": [{"role": "user", "content": "Hello!"}]}
HELLO_BODY = json.dumps(HELLO).encode()
HEAD = f"POST {CHAT} HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n".encode()
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(HELLO_BODY), HELLO_BODY)


class Reply(NamedTuple):
    """An HTTP answer, its JSON parsed where there is some."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)


def address(server: MockServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    return parts.hostname or "", parts.port or 0


def ask(
    server: MockServer,
    request: Any = HELLO,
    *,
    method: str = "POST",
    path: str = CHAT,
    authorization: str | None = f"Bearer {KEY}",
) -> Reply:
    """One request on a connection of its own; ``request`` is bytes, or JSON to be."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    headers = {} if authorization is None else {"Authorization": authorization}
    with contextlib.closing(http.client.HTTPConnection(*address(server), timeout=10)) as connection:
        connection.request(method, path, body if method == "POST" else None, headers)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read().decode())


def everything_from(connection: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return received


def exchange(server: MockServer, data: bytes, *, hang_up: bool = True) -> bytes:
    """Send bytes that need not be HTTP, say that no more will come, and read to the end."""
    with socket.create_connection(address(server), timeout=5) as connection:
        with contextlib.suppress(OSError):  # the server may have had enough by then
            connection.sendall(data)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
        return everything_from(connection)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


@contextlib.contextmanager
def request_under_way(server: MockServer) -> Iterator[socket.socket]:
    """A connection whose request the server has, and has not answered yet."""
    with socket.create_connection(address(server), timeout=10) as connection:
        before = len(server.log)
        connection.sendall(REQUEST)
        wait_until(lambda: len(server.log) > before)
        yield connection


@pytest.fixture(scope="module")
def fair() -> Iterator[MockServer]:
    """A server without faults, shared by the tests that change nothing about it."""
    with MockServer() as server:
        yield server


# The vocabulary


@pytest.mark.parametrize(
    ("script", "first"),
    [
        ("", []),
        ("  ", []),
        ("ok", [Fault("ok")]),
        ("400", [Fault("status", 400)]),
        ("599", [Fault("status", 599)]),
        ("429:2", [Fault("status", 429, 2.0)]),
        ("503:0.5", [Fault("status", 503, 0.5)]),
        ("slow:1.5", [Fault("slow", 200, 1.5)]),
        ("timeout", [Fault("timeout")]),
        ("drop", [Fault("drop")]),
        ("badjson", [Fault("badjson")]),
        ("cut", [Fault("cut")]),
        ("html:502", [Fault("html", 502)]),
        ("503*3", [Fault("status", 503)] * 3),
        ("503*1", [Fault("status", 503)]),
        ("503*", [Fault("status", 503)] * 9),
        ("429:2*2", [Fault("status", 429, 2.0)] * 2),
        ("html:502*2,slow:1*", [Fault("html", 502)] * 2 + [Fault("slow", 200, 1.0)] * 7),
        (" 503 ,\t429:2 ", [Fault("status", 503), Fault("status", 429, 2.0)]),
        ("drop*1000000,ok", [Fault("drop")] * 9),
    ],
)
def test_a_script_is_one_fault_a_request(script: str, first: list[Fault]) -> None:
    assert list(islice(parse_faults(script), 9)) == first


@pytest.mark.parametrize(
    "word",
    ["nonsense", "OK", "Drop", "5O3", "200", "399", "600", "5030", "50", "-503", "ok:1", "slow",
     "slow:", "slow:x", "slow:-1", "slow:1e3", "slow:inf", "slow:nan", "slow:1.", "timeout:5",
     "drop:1", "badjson:2", "cut:1", "html", "html:", "html:200", "html:600", "html:502.5",
     "429:", "429:soon", "429:-1", "*", "*3", "503**", "503*0", "503*-1", "503*x", "503*1.5",
     "503*2*3", "503*1000001", "503 *2", "503;ok", "slow:86401", "'"],
)  # fmt: skip
def test_a_word_that_it_does_not_know_is_named(word: str) -> None:
    for script in ("{}", "ok,{}", "{},ok", " {} "):
        with pytest.raises(ValueError, match=re.escape(f"'{word}'")):
            MockServer(script.format(word))


@pytest.mark.parametrize("digits", [8, 5000])
def test_a_number_of_any_length_is_named_with_its_word(digits: int) -> None:
    for word in ("503*" + "9" * digits, "429:" + "9" * digits, "slow:" + "9" * digits):
        with pytest.raises(ValueError, match=re.escape(f"'{word[:9]}")):
            MockServer(word)


@pytest.mark.parametrize("word", ["\x1b[31m", "५०३", "ok\r\nok", "\0", "\u202e"], ids=ascii)
def test_a_word_that_cannot_be_printed_is_named_in_ascii(word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(ascii(word)[1:-1])) as caught:
        MockServer(word)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("script", [",", "503,", ",503", "503,,ok", ", ,"])
def test_a_missing_word_is_a_mistake(script: str) -> None:
    with pytest.raises(ValueError, match="unknown fault ''"):
        MockServer(script)


def test_nothing_may_follow_a_word_that_never_ends() -> None:
    with pytest.raises(ValueError, match=r"'503\*' never ends"):
        MockServer("503*,ok")


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_below_one_request_is_a_mistake(limit: Any) -> None:
    with pytest.raises(ValueError, match="requests_per_minute"):
        MockServer(requests_per_minute=limit)


# What the faults do


def test_the_faults_come_one_a_request_and_then_all_is_well() -> None:
    with MockServer("503,429:2,html:502,400*2") as server:
        assert [ask(server).status for _ in range(7)] == [503, 429, 502, 400, 400, 200, 200]


def test_a_fault_for_ever_has_no_end() -> None:
    with MockServer("ok,503*") as server:
        assert [ask(server).status for _ in range(5)] == [200, 503, 503, 503, 503]


def test_a_status_can_come_with_retry_after_in_plain_digits() -> None:
    asked = ["2", "0.5", "0", "86400", "86399.25", "0.00001"]
    with MockServer(",".join(f"429:{seconds}" for seconds in asked) + ",429") as server:
        found = [ask(server).headers["Retry-After"] for _ in range(7)]
    assert found == [*asked, None]


def test_each_status_has_the_body_that_the_api_sends() -> None:
    parts = {
        400: '"code": "3051"',
        401: '{"detail": "Unauthorized"}',
        402: "API budget exhausted.",
        404: '{"detail": "Not Found"}',
        422: '"loc": ["body", "messages"]',
        429: '"code": "1300"',
        500: '"type": "internal_server_error"',
        503: '"type": "unreachable_backend"',
        418: '{"detail": "I\'m a Teapot"}',
    }
    with MockServer(",".join(map(str, parts))) as server:
        for status, part in parts.items():
            reply = ask(server)
            assert reply.status == status
            assert part in reply.text
            assert reply.headers["Content-Type"] == "application/json"
            assert isinstance(reply.body, dict)


def test_a_504_is_empty() -> None:
    with MockServer("504") as server:
        assert ask(server)[::2] == (504, "")


def test_html_is_a_gateways_page_and_so_is_a_520() -> None:
    with MockServer("html:502,520") as server:
        for status in (502, 520):
            reply = ask(server)
            assert (reply.status, reply.headers["Content-Type"]) == (status, "text/html")
            assert reply.text.startswith("<html>")


def test_badjson_is_a_200_that_arrives_whole_and_is_no_json() -> None:
    with MockServer("badjson") as server:
        reply = ask(server)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    with pytest.raises(ValueError, match=r"Unterminated|delimiter|Expecting"):
        json.loads(reply.text)


def test_cut_breaks_off_half_way() -> None:
    with MockServer("cut") as server, pytest.raises(http.client.IncompleteRead) as caught:
        ask(server)
    assert caught.value.partial.startswith(b'{"id": ')


def test_drop_closes_without_a_byte() -> None:
    with MockServer("drop") as server:
        assert exchange(server, REQUEST, hang_up=False) == b""


def test_timeout_never_answers() -> None:
    with MockServer("timeout*2") as server, request_under_way(server) as connection:
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        decided = server.respond("POST", CHAT, KEY, HELLO_BODY)[0]
    assert decided
    assert decided.delay == math.inf


def test_slow_answers_so_much_later() -> None:
    with MockServer("slow:0.05") as server:
        began = time.monotonic()
        reply = ask(server)
        assert reply.status == 200
        assert time.monotonic() - began >= 0.04


def test_a_slow_request_holds_nobody_else_up() -> None:
    with MockServer("slow:60") as server, request_under_way(server):
        assert ask(server).status == 200


# The limit


def test_the_limit_lets_so_many_through_in_any_minute(clock: FakeClock) -> None:
    with MockServer(requests_per_minute=2) as server:
        statuses = []
        for now in (0, 30, 59, 60, 60.5, 89, 90, 120):
            clock.now = 1000.0 + now
            statuses.append(ask(server).status)
    assert statuses == [200, 200, 429, 200, 429, 429, 200, 200]


def test_the_limit_tells_what_is_left_and_when_there_is_more(clock: FakeClock) -> None:
    with MockServer(requests_per_minute=2) as server:
        found = []
        for now in (0, 0, 0, 59.5, 60):
            clock.now = 1000.0 + now
            reply = ask(server)
            assert reply.headers["x-ratelimit-limit-req-minute"] == "2"
            found.append(
                (reply.headers["x-ratelimit-remaining-req-minute"], reply.headers["Retry-After"])
            )
    assert found == [("1", None), ("0", None), ("0", "60"), ("0", "1"), ("1", None)]


def test_a_limits_refusal_is_the_apis_own_429() -> None:
    with MockServer(requests_per_minute=1) as server:
        ask(server)
        reply = ask(server)
    assert (reply.status, reply.body["message"]) == (429, "Rate limit exceeded")


def test_whoever_waits_as_told_is_let_through(clock: FakeClock) -> None:
    with MockServer(requests_per_minute=3) as server:
        for step in (0, 7.3, 11.1, 2.2):
            clock.now += step
            reply = ask(server)
        clock.now += float(reply.headers["Retry-After"])
        assert ask(server).status == 200


def test_the_limit_holds_when_all_come_at_once() -> None:
    with MockServer(requests_per_minute=5) as server:
        statuses = run_in_threads(12, lambda: ask(server).status)
    assert Counter(statuses) == {200: 5, 429: 7}


def test_a_scripted_failure_uses_up_nothing_of_the_limit() -> None:
    with MockServer("503,html:502,ok", requests_per_minute=1) as server:
        assert [ask(server).status for _ in range(4)] == [503, 502, 200, 429]


def test_without_a_limit_there_are_no_headers_about_one(fair: MockServer) -> None:
    assert not [name for name in ask(fair).headers if name.lower().startswith("x-ratelimit")]


# The two endpoints without faults


def test_a_chat_completion_has_the_apis_shape(fair: MockServer) -> None:
    reply = ask(fair, {**HELLO, "max_tokens": 5, "temperature": 0.2, "stop": ["."]})
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert re.fullmatch(r"[0-9a-f-]{36}", reply.headers["mistral-correlation-id"])
    body = reply.body
    assert re.fullmatch(r"[0-9a-f]{32}", body.pop("id"))
    assert abs(body.pop("created") - time.time()) < 60
    assert body == {
        "object": "chat.completion",
        "model": "mistral-small-latest",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {
                    "role": "assistant",
                    "content": "Hello! How can I assist you today?",
                    "tool_calls": None,
                },
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8},
    }


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        ("Hello!", "Hello! How can I assist you today?"),
        ("Test retry logic", "Test retry logic response"),
        ("Grüße, 世界 🌍 \ud800", "Grüße, 世界 🌍 \ud800 response"),
        ([{"type": "text", "text": "One"}, {"type": "text", "text": "two"}], "One two response"),
        ([{"type": "image_url"}, "text"], " response"),
        (None, " response"),
        (5, "5 response"),
        ({"a": 1}, "{'a': 1} response"),
    ],
    ids=ascii,
)
def test_a_prompt_is_answered_with_its_own_words(
    fair: MockServer, content: Any, reply: str
) -> None:
    answer = ask(fair, {**HELLO, "messages": [{"role": "user", "content": content}]})
    assert answer.body["choices"][0]["message"]["content"] == reply


def test_the_last_message_is_the_prompt_and_all_of_them_are_counted(fair: MockServer) -> None:
    messages = [
        {"role": "system", "content": "Be very brief."},
        {"role": "user", "content": "One two"},
    ]
    body = ask(fair, {**HELLO, "messages": messages}).body
    assert body["choices"][0]["message"]["content"] == "One two response"
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_models_lists_what_a_chat_may_ask_for(fair: MockServer) -> None:
    reply = ask(fair, method="GET", path="/v1/models")
    assert reply.status == 200
    assert reply.body["object"] == "list"
    assert [model["id"] for model in reply.body["data"]] == list(MODELS)
    for model in reply.body["data"]:
        assert {"id", "object", "created", "owned_by", "capabilities"} <= set(model)
        assert model["object"] == "model"
        assert ask(fair, {**HELLO, "model": model["id"]}).body["model"] == model["id"]


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Basic c2stc2Vj", "x"])
@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/")])
def test_without_a_bearer_key_there_is_no_answer(
    fair: MockServer, authorization: str | None, method: str, path: str
) -> None:
    reply = ask(fair, method=method, path=path, authorization=authorization)
    assert (reply.status, reply.body) == (401, {"detail": "Unauthorized"})


@pytest.mark.parametrize("authorization", ["Bearer x", "bearer x", "BEARER  x "])
def test_any_bearer_key_will_do(fair: MockServer, authorization: str) -> None:
    assert ask(fair, authorization=authorization).status == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"model=x", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, HELLO_BODY + b"}"],
    ids=lambda body: ascii(body[:10]),
)
def test_a_body_that_is_no_json_is_a_400(fair: MockServer, body: bytes) -> None:
    reply = ask(fair, body)
    assert (reply.status, reply.body["message"]) == (400, "The body is not JSON")


@pytest.mark.parametrize(
    ("request_body", "fields"),
    [
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
    ],
    ids=str,
)
def test_wrong_fields_are_a_422_that_names_them(
    fair: MockServer, request_body: Any, fields: list[list[str]]
) -> None:
    reply = ask(fair, request_body)
    assert reply.status == 422
    complaints = reply.body["message"]["detail"]
    assert [complaint["loc"] for complaint in complaints] == fields
    assert all(complaint["msg"] and complaint["type"] for complaint in complaints)


def test_an_unknown_model_is_a_404(fair: MockServer) -> None:
    reply = ask(fair, {**HELLO, "model": "invalid-model-name"})
    assert (reply.status, reply.body["message"]) == (404, "Model not found")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", CHAT), ("POST", "/v1/models"), ("POST", "/v1"), ("GET", "/v1/models/"),
     ("POST", "/chat/completions"), ("POST", "/v1/embeddings"), ("GET", "/v1/../v1/models")],
)  # fmt: skip
def test_a_wrong_path_is_a_404(fair: MockServer, method: str, path: str) -> None:
    reply = ask(fair, method=method, path=path)
    assert reply.status == 404
    assert "POST /v1/chat/completions and GET /v1/models only" in reply.body["detail"]


def test_a_query_changes_nothing(fair: MockServer) -> None:
    assert ask(fair, path=CHAT + "?a=b").status == 200


@pytest.mark.parametrize("depth", [100, 400, 900, 20_000])
def test_nesting_of_any_depth_gets_an_answer(
    fair: MockServer, depth: int, capfd: pytest.CaptureFixture[str]
) -> None:
    body = HELLO_BODY.replace(b'"Hello!"', b"[" * depth + b"]" * depth)
    assert ask(fair, body).status in (200, 400)
    body = HELLO_BODY.replace(b'"Hello!"', b'{"a":' * depth + b"1" + b"}" * depth)
    assert ask(fair, body).status in (200, 400)
    assert capfd.readouterr() == ("", "")


# Bounds and bad manners


@pytest.mark.parametrize(
    ("head", "status"),
    [
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
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_a_request_that_it_will_not_read_is_refused_and_the_connection_closed(
    fair: MockServer, head: bytes, status: int
) -> None:
    answer = exchange(fair, HEAD + head + b"\r\n", hang_up=False)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in answer
    assert isinstance(json.loads(answer.partition(b"\r\n\r\n")[2]), dict)


def test_a_refusal_for_bad_http_does_not_speak_of_the_prompt(fair: MockServer) -> None:
    answer = exchange(fair, HEAD + b"Content-Length: many\r\n\r\n", hang_up=False)
    assert b"prompt" not in answer


def test_a_body_of_just_the_bound_is_read(fair: MockServer) -> None:
    assert ask(fair, HELLO_BODY.ljust(http_server.MAX_BODY_BYTES)).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_other_methods_are_refused(fair: MockServer, method: str) -> None:
    reply = ask(fair, method=method)
    assert (reply.status, reply.body) == (501, {"detail": "Not Implemented"})


def tls_hello() -> bytes:
    """The first bytes of somebody who came with https."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    "data",
    [
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
        HEAD[:20],
        HEAD,
        REQUEST[:-5],
        REQUEST + b"\r\n\r\ngarbage",
    ],
    ids=lambda data: ascii(data)[:40],
)
def test_garbage_and_half_a_request_end_quietly_and_the_next_one_is_served(
    fair: MockServer, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    exchange(fair, data)
    assert ask(fair).status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("data", [b"", HEAD[:20], HEAD, REQUEST[:-5]], ids=range(4))
def test_a_sender_who_falls_silent_is_given_up(
    monkeypatch: pytest.MonkeyPatch, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(http_server._Handler, "timeout", 0.05)
    with MockServer() as server:
        assert exchange(server, data, hang_up=False) == b""
        assert server.log == []
    assert capfd.readouterr() == ("", "")


def test_there_is_a_bound_on_silence() -> None:
    assert http_server._Handler.timeout == http_server.READ_TIMEOUT == 10.0


def test_a_client_that_hangs_up_half_way_through_a_big_answer_is_no_news(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The answer is larger than what the two ends' buffers hold, so sending it must fail."""
    words = "x" * 1_000_000
    body = json.dumps({**HELLO, "messages": [{"role": "user", "content": words}]}).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    with MockServer() as server:
        threads = set(threading.enumerate())
        for _ in range(3):
            with socket.create_connection(address(server), timeout=10) as connection:
                connection.sendall(request + body)
                connection.recv(1)
        wait_until(lambda: set(threading.enumerate()) <= threads)
    assert capfd.readouterr() == ("", "")


# Connections


def test_one_connection_serves_request_after_request(fair: MockServer) -> None:
    with contextlib.closing(http.client.HTTPConnection(*address(fair), timeout=10)) as connection:
        headers = {"Authorization": f"Bearer {KEY}"}
        for method, path, body in [
            ("POST", CHAT, HELLO_BODY),
            ("GET", "/v1/models", None),
            ("POST", CHAT, b"no json"),
            ("POST", CHAT, HELLO_BODY),
        ]:
            connection.request(method, path, body, headers)
            opened = connection.sock
            response = connection.getresponse()
            response.read()
            assert response.headers["Connection"] is None
            assert connection.sock is opened


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nConnection: Close\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_a_connection_is_closed_for_who_asks_or_speaks_http_1_0(
    fair: MockServer, request_bytes: bytes
) -> None:
    answer = exchange(fair, request_bytes, hang_up=False)
    assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")


def test_it_listens_on_loopback_only() -> None:
    with MockServer() as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server._server.socket.getsockname()[0] == "127.0.0.1"


def test_two_servers_take_two_free_ports_and_a_taken_one_is_an_error(fair: MockServer) -> None:
    with MockServer() as other:
        assert other.url != fair.url
        with pytest.raises(OSError, match=r".") as caught:
            MockServer(port=address(other)[1])
        assert caught.value.errno


# The log


def test_the_log_tells_each_request_in_the_order_of_arrival() -> None:
    with MockServer("503,timeout,drop,badjson,slow:0.01,cut,html:502") as server:
        ask(server)
        with request_under_way(server):
            pass
        exchange(server, REQUEST, hang_up=False)
        ask(server)
        ask(server)
        exchange(server, REQUEST, hang_up=False)
        ask(server, path=CHAT + f"?key={KEY}")
        ask(server, method="GET", path="/v1/models")
        ask(server, method="GET", path="/else", authorization=None)
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
    arrivals = [entry.arrived for entry in log]
    assert arrivals == sorted(arrivals)


def test_the_log_is_in_order_when_many_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer takes longest to work out, and still comes first."""
    work_out, delays = api.respond, iter([0.03, 0.0, 0.02])

    def slowly(method: str, path: str, key: str, body: bytes) -> api.Response:
        time.sleep(next(delays, 0.0))
        return work_out(method, path, key, body)

    monkeypatch.setattr(api, "respond", slowly)
    with MockServer("503,ok,429,ok", requests_per_minute=7) as server:
        statuses = run_in_threads(12, lambda: str(ask(server).status))
        log = server.log
    assert Counter(entry.outcome for entry in log) == Counter(statuses)
    assert [entry.outcome for entry in log] == ["503", "200", "429", *["200"] * 6, *["429"] * 3]
    assert [entry.arrived for entry in log] == sorted(entry.arrived for entry in log)


def test_the_log_handed_out_is_the_callers_own() -> None:
    with MockServer() as server:
        ask(server)
        server.log.clear()
        assert len(server.log) == 1


def test_the_log_keeps_the_latest_requests_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mock_server, "MAX_LOG_ENTRIES", 3)
    with MockServer("400,401,402,403,404") as server:
        for _ in range(5):
            ask(server)
        assert [entry.outcome for entry in server.log] == ["402", "403", "404"]


def test_a_path_in_the_log_is_short_and_printable() -> None:
    with MockServer() as server:
        exchange(server, b"GET /\x1b[31m\xff" + b"x" * 500 + b" HTTP/1.1\r\n\r\n")
        (entry,) = server.log
    assert entry.path == "/?[31m?" + "x" * 93


def test_no_secret_of_a_request_is_printed_or_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    secret = KEY.encode()
    with (
        caplog.at_level(logging.DEBUG),
        MockServer("503,drop,html:502,badjson,cut,slow:0.01") as server,
    ):
        for _ in range(8):
            exchange(server, REQUEST)
        for data in (
            b"GET /v1/models?key=%s HTTP/1.1\r\nAuthorization: Bearer %s\r\n\r\n",
            b"BREW /%s HTTP/1.1\r\nAuthorization: Bearer %s\r\n\r\n",
            b"GET / HTTP/9.%s\r\nAuthorization: %s\r\n\r\n",
            b"%s%s\r\n\r\n",
            b"POST / HTTP/1.1\r\nAuthorization: Bearer %s\r\nContent-Length: %s\r\n\r\n",
        ):
            assert secret not in exchange(server, data % (secret, secret))
        said = repr(server.log) + "".join(capfd.readouterr()) + caplog.text
    assert "POST /v1/chat/completions -> 503" in said
    assert KEY not in said


# The end


@pytest.mark.parametrize(
    ("faults", "data"),
    [
        ("", b""),
        ("", HEAD[:20]),
        ("", REQUEST[:-5]),
        ("", REQUEST),
        ("timeout", REQUEST),
        ("slow:60", REQUEST),
        ("drop", REQUEST),
        ("cut", REQUEST),
    ],
    ids=["connected", "half a head", "half a body", "kept alive", "timeout", "slow", "drop", "cut"],
)
def test_the_end_leaves_no_thread_and_no_port(faults: str, data: bytes) -> None:
    threads = set(threading.enumerate())
    with contextlib.ExitStack() as clients:
        with MockServer(faults) as server:
            connection = clients.enter_context(socket.create_connection(address(server), 10))
            connection.sendall(data)
            wait_until(lambda: server.log or data != REQUEST)
            began = time.monotonic()
        assert time.monotonic() - began < 5, "it waited for the client"
        assert set(threading.enumerate()) <= threads
        everything_from(connection)  # ends, as the server hung up


def test_an_exception_ends_the_server_too() -> None:
    threads = set(threading.enumerate())
    server = MockServer("timeout")
    with contextlib.suppress(KeyboardInterrupt), server, request_under_way(server):
        raise KeyboardInterrupt
    assert set(threading.enumerate()) <= threads
    with pytest.raises(OSError, match=r"."):  # refused; on Windows, after some seconds
        socket.create_connection(address(server), timeout=0.5)
    with MockServer(port=address(server)[1]) as again:
        assert again.url == server.url
        assert ask(again).status == 200


def test_a_connection_that_is_taken_while_the_server_stops_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken, opened = threading.Event(), http_server.HTTPServer.opened

    def opened_late(self: http_server.HTTPServer, connection: socket.socket) -> None:
        taken.set()
        wait_until(lambda: self._stopping)
        opened(self, connection)

    monkeypatch.setattr(http_server.HTTPServer, "opened", opened_late)
    with contextlib.ExitStack() as clients:
        with MockServer() as server:
            clients.enter_context(socket.create_connection(address(server), 10))
            assert taken.wait(10)
            began = time.monotonic()
        assert time.monotonic() - began < 5, "it waited for the client"


def test_many_clients_at_the_end_are_all_let_go() -> None:
    threads = set(threading.enumerate())
    with contextlib.ExitStack() as clients:
        with MockServer("timeout*5,slow:60*5") as server:
            for _ in range(20):
                connection = clients.enter_context(socket.create_connection(address(server), 10))
                connection.sendall(REQUEST)
        assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("fault", ["timeout", "slow:60"])
def test_a_client_that_hangs_up_while_it_waits_frees_its_thread(fault: str) -> None:
    with MockServer(fault) as server:
        threads = set(threading.enumerate())
        with request_under_way(server):
            assert len(set(threading.enumerate()) - threads) == 1
        wait_until(lambda: set(threading.enumerate()) <= threads)
        assert not server._server._connections


# The command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--faults", "nonsense"], "'nonsense'"),
        (["--faults", "503,"], "unknown fault ''"),
        (["--tpm", "-5"], "--tpm must be an integer >= 1, got -5"),
        (["--seed", "x"], "--seed"),
        (["--rpm", "0"], "--rpm must be an integer >= 1, got 0"),
        (["--rpm", "many"], "--rpm"),
        (["--port", "70000"], "--port must be an integer from 0 to 65535"),
        (["--port", "-1"], "--port must be an integer from 0 to 65535"),
        (["--port", "http"], "--port"),
        (["--fault", "503"], "--fault"),
        (["503"], "503"),
    ],
)
def test_a_wrong_argument_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["mock_server", *arguments])
    with pytest.raises(SystemExit) as caught:
        command.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert said in err.splitlines()[-1]


def test_a_taken_port_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fair: MockServer
) -> None:
    port = address(fair)[1]
    monkeypatch.setattr(sys, "argv", ["mock_server", "--port", str(port)])
    assert command.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"Can't listen on port {port} (")
    assert err.count("\n") == 1


class TestFaultsByChance:
    """A word with @ hits a share of all requests that follow; a seed decides which."""

    @staticmethod
    def drawn(script: str, seed: int, count: int = 1000) -> list[str]:
        faults = parse_faults(script, seed)
        return [next(faults).kind for _ in range(count)]

    def test_the_same_seed_hits_the_same_requests(self) -> None:
        assert self.drawn("503@20%", 1) == self.drawn("503@20%", 1)
        assert self.drawn("503@20%", 1) != self.drawn("503@20%", 2)

    def test_the_share_is_as_asked_and_several_words_share_the_requests(self) -> None:
        kinds = Counter(self.drawn("ok*10,503@20%,drop@5%", 3, 4010)[10:])
        assert 700 < kinds["status"] < 900
        assert 140 < kinds["drop"] < 260
        assert set(kinds) == {"ok", "status", "drop"}

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            ("503@20", "a share is a percentage up to 100, such as 503@20%"),
            ("503@101%", "a share is a percentage up to 100"),
            ("503@20%,ok", "words with @ come last"),
            ("503@60%,drop@50%", "add up to more than 100 %"),
            ("rain@20%", "unknown fault 'rain@20%'"),
        ],
    )
    def test_a_mistake_is_explained(self, script: str, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_faults(script)


class TestDiagnosis:
    @pytest.mark.parametrize(
        ("script", "message"),
        [
            ("503 503", "'503 503': separate words with commas"),
            ("429x3", "did you mean 429*3?"),
            ("Timeout", "did you mean timeout?"),
            ("slow", "slow needs seconds, up to a day: slow:1.5"),
            ("html", "html needs a status from 400 to 599: html:502"),
            ("ok:2", "ok takes no number"),
            ("200", "a status is a number from 400 to 599"),
        ],
    )
    def test_a_mistake_is_explained(self, script: str, message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_faults(script)

    def test_the_quotes_that_cmd_exe_passes_on_are_dropped(self) -> None:
        assert next(parse_faults("'503*'")).status == 503


class TestTokensPerMinute:
    def test_the_window_debits_what_was_used_and_says_what_is_left(self) -> None:
        with MockServer(tokens_per_minute=20) as server:
            replies = [ask(server) for _ in range(3)]
        assert [reply.status for reply in replies] == [200, 200, 429]
        name = "x-ratelimit-remaining-tokens-minute"
        assert [reply.headers[name] for reply in replies] == ["12", "4", "4"]
        assert int(replies[2].headers["Retry-After"]) == 60

    def test_models_are_not_limited_and_tell_no_limits(self) -> None:
        with MockServer(tokens_per_minute=1, requests_per_minute=1) as server:
            for _ in range(3):
                reply = ask(server, method="GET", path="/v1/models")
                assert reply.status == 200
                assert not [name for name in reply.headers if "ratelimit" in name]


def test_noquota_is_a_429_with_a_limit_of_zero() -> None:
    with MockServer("noquota") as server:
        reply = ask(server)
    assert (reply.status, reply.headers["x-ratelimit-limit-req-minute"]) == (429, "0")


def test_drip_sends_the_body_byte_by_byte() -> None:
    with MockServer("drip:0.001") as server:
        started_at = time.monotonic()
        assert ask(server).status == 200
        assert time.monotonic() - started_at > 0.1
    assert (server.log[0].duration or 0) > 0.1
