"""ChatStream of lib/client.py: text as it comes, and what had come when the stream broke."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from responses import RequestsMock

from conftest import FakeClock, RunScript
from examples import streaming
from lib import client as client_module
from lib.client import ChatStream, Limits, MistralClient, Usage
from lib.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStreamBrokenError,
    APITimeoutError,
    InternalServerError,
    MistralError,
    RateLimitError,
)
from lib.mock_server import MockServer
from support import CHAT_URL, RawServer, completion, raw_response

HELLO = [{"role": "user", "content": "Hello!"}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"  # ends with the connection
END = "data: [DONE]\n\n"
USAGE = {"prompt_tokens": 4, "completion_tokens": 36, "total_tokens": 40}
UPSTREAM = {"message": "Upstream is busy", "code": 429}


def data(content: Any) -> str:
    return f"data: {json.dumps(content)}\n\n"


def event(text: Any, finish_reason: str | None = None, index: int | None = 0, **more: Any) -> str:
    """Return a stream's event with a piece of text."""
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish_reason}
    return data({"object": "chat.completion.chunk", "choices": [choice], **more})


def chunk(text: str) -> bytes:
    body = text.encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


class Read(NamedTuple):
    """What a reader has of a stream."""

    pieces: list[str]
    error: MistralError | None
    stream: ChatStream

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def read_from(base_url: str, *, timeout: float = 10) -> Read:
    """Read one stream until it ends or breaks."""
    pieces: list[str] = []
    with MistralClient("test-key", base_url=base_url, timeout=timeout) as client:
        stream = client.stream(HELLO)
        try:
            pieces.extend(stream)
        except MistralError as error:
            return Read(pieces, error, stream)
    return Read(pieces, None, stream)


def read(*events: str, head: bytes = HEAD) -> Read:
    """Read a stream that holds these events."""
    with RawServer(head, *map(chunk, filter(None, events)), chunk("")) as server:
        return read_from(server.url)


@contextlib.contextmanager
def stream_of(*response: bytes) -> Iterator[ChatStream]:
    """A stream from a server that sends this, and then nothing."""
    with (
        RawServer(*response, then="silence") as server,
        MistralClient("key", base_url=server.url) as client,
        client.stream(HELLO) as stream,
    ):
        yield stream


def read_whole(*events: str) -> Read:
    """Read a stream that must not break."""
    result = read(*events)
    assert result.error is None
    return result


class TestLesson:
    def test_all_streams_share_one_retry_budget(self, clock: FakeClock) -> None:
        """A Retrier per stream would send three requests for each, however long the outage."""
        with MockServer("drop*") as server, MistralClient("key", base_url=server.url) as client:
            for _ in range(10):
                with pytest.raises(APIConnectionError):
                    streaming.print_stream(client)
            assert len(server.log) <= 10 + 11  # ten tokens, and what the waits earn

    def test_half_an_answer_that_ends_like_a_whole_one(self, run_script: RunScript) -> None:
        code, out, _ = run_script("streaming", "--faults", "ok,truncate")
        assert code == 0
        assert "Broken off after 17 characters: the stream ended without a finish reason" in out
        assert "Kept: 'Hello! How can I '" in out


class TestPieces:
    def test_they_make_the_whole_text(self) -> None:
        with MockServer() as server, MistralClient("key", base_url=server.url) as client:
            pieces = list(client.stream(HELLO))
            assert len(pieces) > 1
            assert "".join(pieces) == client.chat(HELLO).content

    @pytest.mark.parametrize("chunked", [True, False])
    def test_a_piece_is_yielded_before_the_next_has_been_sent(self, chunked: bool) -> None:
        head = HEAD if chunked else HEAD.replace(b"Transfer-Encoding: chunked\r\n", b"")
        first = chunk(event("Hel")) if chunked else event("Hel").encode()
        with stream_of(head, first) as stream:
            assert next(stream) == "Hel"

    def test_an_event_in_two_chunks(self) -> None:
        assert read_whole(event("Hello")[:20], event("Hello")[20:], END).text == "Hello"

    def test_surrogate_pairs_that_were_split_are_joined(self) -> None:
        result = read_whole(event("Hi \ud83d"), event("\ude00!"), event("\ud83d", "stop"), END)
        assert result.text == "Hi \U0001f600!\ufffd"
        assert all(piece.encode() for piece in result.pieces)

    def test_only_the_first_of_several_choices(self) -> None:
        result = read_whole(
            event("Paris"), event("Rome", index=1), event(" is big.", "stop"),
            event(" is old.", "length", index=1), END,
        )  # fmt: skip
        assert (result.text, result.stream.finish_reason) == ("Paris is big.", "stop")
        assert read_whole(event("Paris", index=None), END).text == "Paris"


WITHOUT_TEXT = {
    "data without a value": "data:\n\n",
    "data without a colon": "data\n\n",
    "a blank": "data: \n\n",
    "null": data(None),
    "a list": data([]),
    "a ping with text": "event: ping\ndata: 2026-01-01\n\n",
    "a ping with JSON": 'event: ping\ndata: {"type": "ping"}\n\n',
    "a keep-alive object": data({"type": "keepalive", "sequence_number": 3}),
    "a role": data({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}),
    "no content": event(None),
    "Azure's filter results": data({"id": "", "choices": [], "prompt_filter_results": [{}]}),
    "Azure's filter annotations": data(
        {"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}}]}
    ),
    "a delta of null": data({"choices": [{"index": 0, "delta": None, "finish_reason": None}]}),
    "choices of null": data({"choices": None}),
    "choices of another type": data({"choices": {}}),
    "choices that are not objects": data({"choices": ["a"]}),
    "errors that are none": data({"error": None, "errors": [], "choices": []}),
    "an empty error": "event: error\ndata: {}\n\n",
    "a delta beside the message": data(
        {"choices": [{"index": 0, "delta": {}, "message": {"content": "ab"}}]}
    ),
    "usage that is empty": event("", usage={}),
}


class TestEventsWithoutText:
    """Servers, gateways and proxies send them to keep a connection open, or to say more."""

    @pytest.mark.parametrize("kind", WITHOUT_TEXT)
    def test_one_is_skipped(self, kind: str) -> None:
        nothing = WITHOUT_TEXT[kind]
        result = read_whole(nothing, event("a"), nothing, event("b", "stop"), nothing, END)
        assert (result.text, result.stream.finish_reason) == ("ab", "stop")

    def test_thousands_of_them_use_up_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The bound is for the text, not for its packing: a model may think for long."""
        monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 1000)
        thought = event([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}])
        result = read_whole(*[thought * 20] * 20, event("answer", "stop"), END)
        assert result.text == "answer"


class TestFraming:
    """test_event_stream.py has the rules; these are whole answers in unusual frames."""

    @pytest.mark.parametrize(
        "mark", ["data: [DONE]", "data:[DONE]", "data: [DONE]\r", "data: [DONE] "]
    )
    def test_the_end_mark_needs_no_line_end(self, mark: str) -> None:
        assert read_whole(event("Hi") + mark).text == "Hi"

    def test_a_stream_that_ends_with_the_connection(self) -> None:
        with RawServer(CLOSING, (event("Hi") + "data: [DONE]").encode()) as server:
            assert read_from(server.url)[:2] == (["Hi"], None)

    def test_the_last_event_needs_no_line_end(self) -> None:
        assert read_whole(event("a"), event("b", "stop").rstrip()).text == "ab"

    @pytest.mark.parametrize(
        "content_type", ["Text/Event-Stream; charset=utf-8", "text/plain", "text/html", ""]
    )
    def test_a_content_type_that_is_wrong(self, content_type: str) -> None:
        """The openai client does not look at it, so some proxies get away with theirs."""
        head = HEAD.replace(b"text/event-stream", content_type.encode())
        assert read(event("Hi"), END, head=head)[:2] == (["Hi"], None)

    @pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
    def test_a_server_that_does_not_stream(self, content_type: str) -> None:
        body = json.dumps(completion("Hello!"), indent=2).encode()
        with RawServer(raw_response("200 OK", body, f"Content-Type: {content_type}")) as server:
            pieces, error, stream = read_from(server.url)
        assert (pieces, error) == (["Hello!"], None)
        assert (stream.finish_reason, stream.usage) == ("stop", Usage(4, 36, 40))


class TestBrokenStream:
    def test_a_disconnect(self) -> None:
        with MockServer("cut") as server:
            pieces, error, _ = read_from(server.url)
        assert isinstance(error, APIStreamBrokenError)
        assert pieces
        assert error.partial_text == "".join(pieces)
        assert str(error) == "127.0.0.1 closed the connection before the response was complete"
        assert type(error.__cause__) is APIConnectionError

    def test_silence_longer_than_the_read_timeout(self) -> None:
        with RawServer(HEAD, chunk(event("Hel")), then="silence") as server:
            pieces, error, _ = read_from(server.url, timeout=0.2)
        assert pieces == ["Hel"]
        assert isinstance(error, APIStreamBrokenError)
        assert isinstance(error.__cause__, APITimeoutError)

    def test_a_missing_end_mark(self) -> None:
        pieces, error, _ = read(event("Hello"))
        assert pieces == ["Hello"]
        assert isinstance(error, APIStreamBrokenError)
        assert str(error) == "the stream ended without a finish reason or its end mark, [DONE]"

    @pytest.mark.parametrize(
        ("fault", "name"), [("drop", "APIConnectionError"), ("429:2", "RateLimitError")]
    )
    def test_before_the_first_piece_the_error_is_retryable(self, fault: str, name: str) -> None:
        with MockServer(fault) as server:
            pieces, error, _ = read_from(server.url)
        assert (pieces, type(error).__name__) == ([], name)
        assert getattr(error, "retryable", False)


class TestValidationError:
    @pytest.mark.parametrize(
        ("content_type", "body"),
        [("text/html", "<html>Sign in</html>"), ("text/plain", ""), ("application/json", "[]")],
    )
    def test_a_response_that_is_not_an_event_stream(
        self, api: RequestsMock, content_type: str, body: str
    ) -> None:
        api.post(CHAT_URL, body=body, content_type=content_type)
        with (
            MistralClient("key") as client,
            pytest.raises(
                APIResponseValidationError, match=f"expected an event stream, got {content_type}"
            ),
        ):
            next(client.stream(HELLO))

    @pytest.mark.parametrize("text", ["{", "hello", '{"choices": [', "[" * 100_000])
    def test_an_event_that_is_cut_off_is_never_skipped(self, text: str) -> None:
        """It may have held a part of the answer."""
        pieces, error, _ = read(event("a"), f"data: {text}\n\n", event("b", "stop"), END)
        assert (pieces, str(error)) == (["a"], "an event is truncated or not JSON")
        assert isinstance(error, APIStreamBrokenError)

    def test_more_text_than_the_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 1000)
        assert len(read_whole(*[event("x" * 500)] * 2, END).text) == 1000
        pieces, error, _ = read(*[event("x" * 501)] * 2, END)
        assert (len("".join(pieces)), str(error)) == (
            1002,
            "the response is longer than 1000 bytes",
        )

    @pytest.mark.parametrize("line", ["data: " + "x" * 100, "data:\n", "x"], ids=repr)
    def test_an_event_that_does_not_end(self, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 10_000)
        head = HEAD if "data" in line else HEAD.replace(b"event-stream", b"html")
        with RawServer(head, chunk(line * 1000), repeat=1000) as server:
            assert str(read_from(server.url).error) == "the response is longer than 10000 bytes"


ERRORS = {
    "Mistral, vLLM": data({"object": "error", "message": "Upstream is busy", "code": 429}),
    "OpenAI, LiteLLM": data({"error": {**UPSTREAM, "code": "429"}}),
    "sglang": data({"error": {"object": "error", **UPSTREAM}}),
    "OpenRouter": data(
        {
            "error": UPSTREAM,
            "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
        }
    ),
    "in the choice": data({"choices": [{"index": 0, "delta": {}, "error": UPSTREAM}]}),
    "beside no choices": data({"error": UPSTREAM, "choices": []}),
    "beside null": data({"error": UPSTREAM, "choices": None}),
    "older llama.cpp": f"error: {json.dumps(UPSTREAM)}\n\n",
    "a named event": f"event: error\n{data(UPSTREAM)}",
    "a list of errors": data({"errors": [UPSTREAM]}),
}


class TestErrorInStream:
    """A server may report an error after the status 200, as an event of the stream."""

    @pytest.mark.parametrize("sender", ERRORS)
    def test_before_any_text_it_is_the_servers_own_error(self, sender: str) -> None:
        pieces, error, _ = read(ERRORS[sender], END)
        assert (pieces, type(error), str(error)) == ([], RateLimitError, "Upstream is busy")

    @pytest.mark.parametrize("sender", ERRORS)
    def test_after_the_first_text_the_stream_is_broken(self, sender: str) -> None:
        pieces, error, _ = read(event("Hello"), ERRORS[sender], END)
        assert pieces == ["Hello"]
        assert isinstance(error, APIStreamBrokenError)
        assert (str(error), error.partial_text) == ("Upstream is busy", "Hello")
        assert type(error.__cause__) is RateLimitError

    def test_after_a_finish_reason_it_is_still_an_error(self) -> None:
        _, error, _ = read(event("Hello", "stop"), ERRORS["OpenRouter"], END)
        assert str(error) == "Upstream is busy"

    def test_a_finish_reason_of_error_needs_no_more(self) -> None:
        pieces, error, _ = read(event("Hel"), event("lo", "error"), END)
        assert pieces == ["Hel", "lo"]
        assert isinstance(error, APIStreamBrokenError)
        assert isinstance(error.__cause__, InternalServerError)
        assert "finish" not in error.partial_text

    def test_without_a_stream_around_it(self) -> None:
        """Some servers forget the frame once they have promised a stream."""
        pieces, error, _ = read(json.dumps({"error": UPSTREAM}))
        assert (pieces, type(error)) == ([], RateLimitError)

    @pytest.mark.parametrize(
        ("name", "status", "message", "fields"),
        [
            ("InternalServerError", 500, "Odd", {"message": "Odd", "code": "1000"}),
            ("InternalServerError", 500, "Odd", {"message": "Odd", "code": 399}),
            ("BadRequestError", 400, "Odd", {"message": "Odd", "code": 400}),
            ("ContextLengthError", 400, "Odd", {"message": "Odd", "code": "3051"}),
            ("InternalServerError", 500, "for [redacted]", "for test-key"),
        ],
    )
    def test_its_code_chooses_the_class(
        self, name: str, status: int, message: str, fields: Any
    ) -> None:
        error = read(data({"error": fields})).error
        assert error is not None
        assert (type(error).__name__, error.args[:2]) == (name, (status, message))

    def test_a_plain_text_in_an_error_event(self) -> None:
        assert str(read("event: error\ndata: out of memory\n\n").error) == "out of memory"


class TestToolCalls:
    @pytest.mark.parametrize(
        "deltas",
        [
            [[{"index": 0, "id": "a1", "function": {"name": "add", "arguments": '{"x": 1}'}}]],
            [
                [{"index": 0, "id": "a1", "type": "function",
                  "function": {"name": "add", "arguments": ""}}],
                [{"index": 0, "function": {"arguments": '{"x"'}}],
                [{"index": 0, "id": "", "function": {"name": None, "arguments": ": 1"}}],
                [{"index": 0, "id": "a1", "function": {"name": "add", "arguments": "}"}}],
            ],
            [[{"id": "a1", "function": {"name": "add", "arguments": '{"x": 1}'}}], None, []],
        ],
        ids=["whole", "in pieces", "without an index"],
    )  # fmt: skip
    def test_a_call(self, deltas: list[Any]) -> None:
        result = read_whole(*(self.event(delta) for delta in deltas), event("", "tool_calls"), END)
        assert result.stream.tool_calls == [self.call("a1", "add", '{"x": 1}')]
        assert (result.text, result.stream.finish_reason) == ("", "tool_calls")

    @pytest.mark.parametrize("second", [0, 1], ids=["one index for both", "an index for each"])
    def test_two_calls(self, second: int) -> None:
        result = read_whole(
            self.event(
                [
                    {"index": 0, "id": "a1", "function": {"name": "add", "arguments": "{}"}},
                    {"index": second, "id": "b2", "function": {"name": "sub", "arguments": "{"}},
                ]
            ),
            self.event([{"index": second, "function": {"arguments": "}"}}]),
            END,
        )
        assert result.stream.tool_calls == [
            self.call("a1", "add", "{}"),
            self.call("b2", "sub", "{}"),
        ]

    def test_what_cannot_be_read_is_left_empty(self) -> None:
        pieces = [5, {}, {"index": 1, "id": 7, "function": "f"}]
        result = read_whole(self.event(pieces), event("Hi", "stop"), END)
        assert result.stream.tool_calls == [self.call("", "", "")] * 2
        assert result.text == "Hi"

    def test_their_arguments_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 1000)
        piece = self.event([{"index": 0, "function": {"arguments": "x" * 600}}])
        assert "longer than 1000 bytes" in str(read(piece, piece, END).error)

    def event(self, tool_calls: Any) -> str:
        return data({"choices": [{"index": 0, "delta": {"tool_calls": tool_calls}}]})

    def call(self, call_id: str, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}


class TestEndOfStream:
    """Only a finish reason or the end mark ends an answer."""

    @pytest.mark.parametrize(
        "events",
        [[event("Hi", "stop")], [event("Hi"), END], [event("Hi", "length"), END, "garbage"]],
        ids=["finish reason", "end mark", "both, and more"],
    )
    def test_a_whole_answer(self, events: list[str]) -> None:
        assert read(*events)[:2] == (["Hi"], None)

    @pytest.mark.parametrize("then", ["hang up", "silence"])
    def test_what_happens_after_the_finish_reason_does_not_break_it(self, then: str) -> None:
        """The answer is whole, and paid for."""
        with RawServer(HEAD, chunk(event("Hi", "stop") + "data: {"), then=then) as server:
            assert read_from(server.url, timeout=0.2)[:2] == (["Hi"], None)

    @pytest.mark.parametrize(
        "last",
        [
            event("", usage=USAGE),
            data({"choices": [], "usage": USAGE}),
            data({"usage": USAGE}),
            data({"choices": None, "usage": USAGE, "error": None}),
            data({"choices": [], "usage": {**USAGE, "total_tokens": None}}),
        ],
    )
    def test_usage_may_come_after_the_finish_reason(self, last: str) -> None:
        stream = read_whole(event("Hi", "stop"), last, event("", usage={}), END).stream
        assert (stream.finish_reason, stream.usage) == ("stop", Usage(4, 36, 40))

    def test_finish_reason_usage_and_limits(self) -> None:
        with (
            MockServer(requests_per_minute=60) as server,
            MistralClient("k", base_url=server.url) as client,
            client.stream(HELLO) as stream,
        ):
            assert (stream.finish_reason, stream.usage, stream.limits) == ("", None, Limits())
            assert next(stream) == "Hello! "
            assert stream.limits.requests_per_minute == 60
            list(stream)
            assert stream.finish_reason == "stop"
            assert stream.usage == Usage(prompt_tokens=1, completion_tokens=7, total_tokens=8)

    def test_a_server_that_is_silent_after_the_end_mark(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The reader waits a moment for the response's end, not for the read timeout."""
        monkeypatch.setattr("lib.response.DRAIN_SECONDS", 0.05)
        started_at = time.monotonic()
        with stream_of(HEAD, chunk(event("Hi")), chunk(END)) as stream:
            assert list(stream) == ["Hi"]
        assert time.monotonic() - started_at < 5


class TestClose:
    """Half of an answer must not look whole to the one who reads it."""

    @pytest.mark.parametrize(
        ("response", "text"),
        [((HEAD, chunk(event("Hel"))), "Hel"), ((HEAD,), ""), ((b"",), "")],
        ids=["after a piece", "after the headers", "before the headers"],
    )
    def test_a_read_that_waits_in_another_thread_ends(
        self, response: tuple[bytes, ...], text: str
    ) -> None:
        with (
            RawServer(*response, then="silence") as server,
            MistralClient("key", base_url=server.url) as client,
        ):
            stream = client.stream(HELLO)
            pieces = [next(stream)] if text else []
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(next, stream)
                assert server.received_request.wait(10)
                time.sleep(0.02)  # so that the reader waits for the next bytes
                stream.close()
                error = waiting.exception(timeout=10)
            assert isinstance(error, APIStreamBrokenError)
            assert str(error) == "the stream was closed before its end"
            assert error.partial_text == text == "".join(pieces)

    def test_the_next_read_raises_too(self, server: RawServer) -> None:
        with MistralClient("key", base_url=server.url) as client:
            stream = client.stream(HELLO)
            assert next(stream) == "Hello"
            stream.close()
            for _ in range(2):
                with pytest.raises(APIStreamBrokenError, match="closed before its end") as caught:
                    next(stream)
                assert caught.value.partial_text == "Hello"

    def test_a_stream_that_has_not_begun(self, server: RawServer) -> None:
        with MistralClient("key", base_url=server.url) as client:
            stream = client.stream(HELLO)
            stream.close()
            with pytest.raises(APIStreamBrokenError, match="closed before its end"):
                next(stream)
        assert server.requests == []

    def test_an_answer_that_is_whole_stays_whole(self) -> None:
        """The rest of it, which has arrived, is read although the stream is being closed."""
        with stream_of(HEAD, chunk(event("Hel") + event("lo", "stop"))) as stream:
            assert next(stream) == "Hel"
            with ThreadPoolExecutor(1) as pool:
                rest = pool.submit(list, stream)
                time.sleep(0.05)  # so that the reader waits for the end mark
                stream.close()
                assert rest.result(timeout=10) == ["lo"]

    def test_a_stream_that_has_ended_stays_whole(self, server: RawServer) -> None:
        with MistralClient("key", base_url=server.url) as client:
            stream = client.stream(HELLO)
            assert list(stream) == ["Hello"]
            stream.close()
            assert list(stream) == []

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no timer signal")
    def test_in_a_signal_handler_that_interrupts_the_read(self) -> None:
        with stream_of(HEAD, chunk(event("Hel"))) as stream:
            assert next(stream) == "Hel"
            before = signal.signal(signal.SIGALRM, lambda *_: stream.close())
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(APIStreamBrokenError, match="closed before its end"):
                    next(stream)
            finally:
                signal.signal(signal.SIGALRM, before)


@pytest.fixture
def server() -> Iterator[RawServer]:
    """A server that keeps its connections open."""
    with RawServer(HEAD + chunk(event("Hello")) + chunk(END) + chunk(""), then="next") as server:
        yield server


class TestConnection:
    def test_it_is_used_again_after_a_stream_that_was_read_to_its_end(
        self, server: RawServer
    ) -> None:
        with MistralClient("key", base_url=server.url) as client:
            for _ in range(3):
                assert list(client.stream(HELLO)) == ["Hello"]
            assert (len(server.requests), server.connections) == (3, 1)

    def test_it_is_closed_when_the_reader_stops_early(self, server: RawServer) -> None:
        """The rest of the response is still on it."""
        with MistralClient("key", base_url=server.url) as client:
            with client.stream(HELLO) as stream:
                assert next(stream) == "Hello"
            assert server.client_left.wait(10)
            assert list(client.stream(HELLO)) == ["Hello"]

    def test_nothing_is_sent_before_the_first_piece_is_asked_for(self, server: RawServer) -> None:
        with MistralClient("key", base_url=server.url) as client:
            stream = client.stream(HELLO)
            assert server.requests == []
            assert list(stream) == ["Hello"]
            assert b'"stream": true' in server.requests[0]
