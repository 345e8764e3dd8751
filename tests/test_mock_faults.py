"""The mock server's faults: their words, and what each does to a response."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import islice
from typing import Any

import pytest

from lib.mock_server import Fault, MockServer, parse_faults
from mock_client import (
    HELLO,
    MODELS,
    REQUEST,
    STREAM,
    Reply,
    assert_silent,
    raw_request,
    request,
    request_in_progress,
    send_bytes,
    statuses,
)

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
    "timeout,drop,filter": [Fault("timeout"), Fault("drop"), Fault("filter")],
    "html:502": [Fault("html", 502)],
    "503*3": [Fault("status", 503)] * 3,
    "html:502*2,slow:1*": [Fault("html", 502)] * 2 + [Fault("slow", 200, 1.0)] * 7,
    " 503 ,\t429:2*2 ": [Fault("status", 503), *[Fault("status", 429, 2.0)] * 2],
    "drop*1000000,ok": [Fault("drop")] * 9,
    "drop@100%": [Fault("drop")] * 9,
    "drop@100.0%": [Fault("drop")] * 9,
}  # fmt: skip
UNKNOWN_WORDS = [
    "nonsense", "OK", "Drop", "5O3", "200", "399", "600", "5030", "-503", "ok:1", "slow", "slow:",
    "slow:-1", "slow:1e3", "slow:inf", "slow:1.", "timeout:5", "html", "html:200", "html:502.5",
    "429:", "429:soon", "429:-1", "*", "503**", "503*0", "503*-1", "503*1.5", "503*2*3",
    "503*1000001", "503 *2", "503;ok", "slow:100000", "'", "503*" + "9" * 5000,
    "429:" + "9" * 5000, "slow:" + "9" * 5000, "status", "STATUS", "SECONDS",
]  # fmt: skip
DIAGNOSES = {
    "503,,ok": "unknown fault ''",
    ",": "unknown fault ''",
    "503,": "unknown fault ''",
    "503 503": "'503 503': separate words with commas",
    "429x3": "did you mean 429*3?",
    "429x3y": "use ok, 503, 429:2, ",
    "Timeout": "did you mean timeout?",
    "Slow:2": "did you mean slow:1.5?",
    "stream-error": "did you mean streamerror?",
    "slow": "slow needs seconds, below 100000: slow:1.5",
    "html": "html needs a status from 400 to 599: html:502",
    "ok:2": "ok takes no number",
    "stall:2": "stall takes no number",
    "200": "a status is a number from 400 to 599",
    "429:soon": "seconds, below 100000, follow a colon",
    "503*0": "repeat it 1 to 1000000 times, or always with a bare *",
    "503*,ok": "'503*' never ends, so nothing may follow it",
    "503@20": "a share is a percentage up to 100, such as 503@20%",
    "503@100.1%": "a share is a percentage up to 100",
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
        odd = ("\x1b[31m", "५०३", "ok\r\nok", "\0", "\u202e", "429x\u0663")
        for word in (*odd, "503*\x1b", "503@\x1b", "503@20%,\x1b", "\x1b*,ok"):
            message = rejection(word)
            assert any(ascii(each)[1:-1] in message for each in word.split(","))
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
        assert self.drawn("503@20%", 1) != self.drawn("503@20%", 2)
        assert self.drawn("503@20%") == self.drawn("503@20%", 0)
        with MockServer("503@50%", seed=7) as server:
            failed = [status == 503 for status in statuses(server, 9)]
        assert failed == [kind == "status" for kind in self.drawn("503@50%", 7, count=9)]

    def test_several_words_share_the_requests(self) -> None:
        kinds = Counter(self.drawn("ok*10,503@20%,drop@5%", 3, count=4010)[10:])
        assert 700 < kinds["status"] < 900
        assert 140 < kinds["drop"] < 260
        assert set(kinds) == {"ok", "status", "drop"}

    def test_shares_may_add_up_to_all_requests(self) -> None:
        assert set(self.drawn("503@60%,drop@40%")) == {"status", "drop"}
        assert "ok" not in self.drawn("503@34%,drop@55%,cut@11%")  # 0.34 + 0.55 + 0.11 > 1
        assert "ok" not in self.drawn("503@89.4%,drop@2.2%,cut@8.4%")  # as floats, above 100


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

    def test_retry_after_is_in_plain_digits(self) -> None:
        seconds = ["2", "0.5", "0", "86400", "86399.25", "0.00001"]
        with MockServer(",".join(f"429:{value}" for value in seconds) + ",504:2,429") as server:
            received = [request(server).headers["Retry-After"] for _ in range(8)]
        assert received == [*seconds, "2", None]

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
            assert request(server).headers["x-ratelimit-limit-req-minute"] == "0"

    @pytest.mark.parametrize("fault", ["badjson", "truncate"])
    def test_json_is_cut_short_in_a_complete_200(self, fault: str) -> None:
        with MockServer(fault) as server:
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
                assert_silent(connection)

    def test_streamerror_without_a_stream_is_only_the_error(self) -> None:
        with MockServer("streamerror") as server:
            reply = request(server)
        assert (reply.status, reply.json["message"]) == (200, "Simulated failure")

    def test_timeout_never_responds(self) -> None:
        with MockServer("timeout") as server, request_in_progress(server) as connection:
            assert_silent(connection)

    def test_slow_responds_later_and_delays_nobody_else(self) -> None:
        with MockServer("slow:0.05,slow:60") as server:
            started_at = time.monotonic()
            assert request(server).status == 200
            assert time.monotonic() - started_at >= 0.04
            with request_in_progress(server):
                assert request(server).status == 200

    def test_drip_sends_the_body_byte_by_byte(self) -> None:
        with MockServer("drip:0.0002") as server:
            started_at = time.monotonic()
            assert request(server).status == 200
            assert time.monotonic() - started_at > 0.05
        assert (server.log[0].duration or 0) > 0.05


ANSWERS = {  # by fault word: the answer, why it ends, its tokens
    "length": ("Hello! How can", "length", 3),
    "empty": ("", "stop", 0),
    "filter": ("", "content_filter", 0),
}


class TestAnswerFaults:
    """Faults of a complete response, streamed or not, that holds no complete answer."""

    def test_answer_and_its_finish_reason(self) -> None:
        with MockServer(",".join(f"{word}*2" for word in ANSWERS)) as server:
            for text, reason, tokens in ANSWERS.values():
                reply, streamed = request(server), request(server, STREAM)
                assert (reply.status, reply.content) == (200, text)
                assert reply.choice["finish_reason"] == reason
                assert reply.json["usage"]["completion_tokens"] == tokens
                choices = [chunk["choices"][0] for chunk in streamed.chunks]
                assert "".join(choice["delta"]["content"] for choice in choices) == text
                assert choices[-1]["finish_reason"] == reason

    def test_an_empty_answer_calls_no_tool(self) -> None:
        tool = {"type": "function", "function": {"name": "weather"}}
        with MockServer("empty") as server:
            message = request(server, {**HELLO, "tools": [tool]}).choice["message"]
        assert message == {"role": "assistant", "content": "", "tool_calls": None}


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
