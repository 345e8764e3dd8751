"""ChatStream of lib/client.py: text as it comes, and what had come when the stream broke."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator

import pytest
from responses import RequestsMock

from conftest import FakeClock
from examples import streaming
from lib import client as client_module
from lib.client import Limits, MistralClient, Usage
from lib.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStreamBrokenError,
    APITimeoutError,
    InternalServerError,
    MistralError,
)
from lib.mock_server import MockServer
from support import CHAT_URL, RawServer

HELLO = [{"role": "user", "content": "Hello!"}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = "data: [DONE]\n\n"


def event(text: str) -> str:
    return f'data: {{"choices": [{{"index": 0, "delta": {{"content": "{text}"}}}}]}}\n\n'


def chunk(text: str) -> bytes:
    body = text.encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


def read_until_it_breaks(
    base_url: str, *, timeout: float = 10
) -> tuple[list[str], Exception | None]:
    """Return the pieces that one stream gives, and the error that ends it."""
    pieces: list[str] = []
    with MistralClient("key", base_url=base_url, timeout=timeout) as client:
        try:
            pieces.extend(client.stream(HELLO))
        except MistralError as error:
            return pieces, error
    return pieces, None


class TestLesson:
    def test_all_streams_share_one_retry_budget(self, clock: FakeClock) -> None:
        """A Retrier per stream would send three requests for each, however long the outage."""
        with MockServer("drop*") as server, MistralClient("key", base_url=server.url) as client:
            for _ in range(10):
                with pytest.raises(APIConnectionError):
                    streaming.print_stream(client)
            assert len(server.log) <= 10 + 11  # ten tokens, and what the waits earn


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
        with (
            RawServer(head, first, then="silence") as server,
            MistralClient("key", base_url=server.url, timeout=5) as client,
            client.stream(HELLO) as stream,
        ):
            assert next(stream) == "Hel"

    def test_a_compressed_stream(self) -> None:
        body = gzip.compress((event("Hello") + END).encode())
        head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        with RawServer(head, b"%x\r\n%s\r\n" % (len(body), body), chunk("")) as server:
            assert read_until_it_breaks(server.url) == (["Hello"], None)

    def test_an_event_in_two_chunks(self) -> None:
        first, second = event("Hello")[:20], event("Hello")[20:]
        with RawServer(HEAD, chunk(first), chunk(second), chunk(END), chunk("")) as server:
            assert read_until_it_breaks(server.url) == (["Hello"], None)

    def test_other_lines_and_events_without_text(self, api: RequestsMock) -> None:
        """Comments keep a connection open; the first event often has a role and no text."""
        chunks = '[{"type": "thinking", "thinking": []}, {"type": "text", "text": "Yes"}]'
        body = (
            ": comment\r\n\r\nevent: message\r\nid: data\r\n"
            + event("")
            + 'data: {"choices": [{"delta": {"role": "assistant"}}]}\r\n\r\n'
            + 'data: {"choices": []}\n\n'
            + f'data: {{"choices": [{{"delta": {{"content": {chunks}}}}}]}}\n\n'
            + END
        )
        api.post(CHAT_URL, body=body, content_type="text/event-stream; charset=utf-8")
        with MistralClient("key") as client:
            assert list(client.stream(HELLO)) == ["Yes"]


class TestBrokenStream:
    def test_a_disconnect(self) -> None:
        with MockServer("cut") as server:
            pieces, error = read_until_it_breaks(server.url)
        assert isinstance(error, APIStreamBrokenError)
        assert pieces
        assert error.partial_text == "".join(pieces)
        assert str(error) == "127.0.0.1 closed the connection before the response was complete"
        assert type(error.__cause__) is APIConnectionError

    def test_silence_longer_than_the_read_timeout(self) -> None:
        with RawServer(HEAD, chunk(event("Hel")), then="silence") as server:
            pieces, error = read_until_it_breaks(server.url, timeout=0.5)
        assert pieces == ["Hel"]
        assert isinstance(error, APIStreamBrokenError)
        assert isinstance(error.__cause__, APITimeoutError)

    def test_a_missing_end_mark(self) -> None:
        with RawServer(HEAD, chunk(event("Hello")), chunk("")) as server:
            pieces, error = read_until_it_breaks(server.url)
        assert pieces == ["Hello"]
        assert isinstance(error, APIStreamBrokenError)
        assert "without its end mark" in str(error)

    @pytest.mark.parametrize(
        ("fault", "name"), [("drop", "APIConnectionError"), ("429:2", "RateLimitError")]
    )
    def test_before_the_first_piece_the_error_is_retryable(self, fault: str, name: str) -> None:
        with MockServer(fault) as server:
            pieces, error = read_until_it_breaks(server.url)
        assert (pieces, type(error).__name__) == ([], name)
        assert getattr(error, "retryable", False)


class TestValidationError:
    def test_the_content_type_may_be_in_upper_case(self, api: RequestsMock) -> None:
        api.post(CHAT_URL, body="data: [DONE]\n\n", content_type="Text/Event-Stream")
        with MistralClient("key") as client:
            assert list(client.stream([{"role": "user", "content": "Hello!"}])) == []

    def test_a_response_that_is_not_an_event_stream(self, api: RequestsMock) -> None:
        api.post(CHAT_URL, body="<html>", content_type="text/html")
        with (
            MistralClient("key") as client,
            pytest.raises(
                APIResponseValidationError, match="expected an event stream, got text/html"
            ),
        ):
            next(client.stream(HELLO))

    @pytest.mark.parametrize(
        "data",
        ["", "{", "[]", "5", '{"object": "list"}', '{"choices": 5}', '{"choices": [{}]}',
         '{"choices": [{"delta": {"content": 5}}]}', '{"choices": [], "usage": {}}'],
    )  # fmt: skip
    def test_an_event_that_is_not_a_chat_completion(self, api: RequestsMock, data: str) -> None:
        api.post(CHAT_URL, body=f"data: {data}\n\n", content_type="text/event-stream")
        with MistralClient("key") as client, pytest.raises(APIResponseValidationError):
            next(client.stream(HELLO))

    def test_a_stream_that_is_too_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        body = event("Hello") + END
        monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", len(body))
        with RawServer(HEAD, chunk(body), chunk("")) as server:
            assert read_until_it_breaks(server.url) == (["Hello"], None)
        with RawServer(HEAD, chunk("\n"), chunk(body), chunk("")) as server:
            pieces, error = read_until_it_breaks(server.url)
        assert (pieces, str(error)) == ([], f"the response is longer than {len(body)} bytes")


class TestErrorInStream:
    """A server may report an error after the status 200, as an event of the stream."""

    @pytest.mark.parametrize(
        ("data", "name", "status", "message"),
        [
            ('{"object": "error", "message": "Busy", "raw_status_code": 503}',
             "InternalServerError", 503, "Busy"),
            ('{"error": {"message": "Too fast", "code": 429}}', "RateLimitError", 429, "Too fast"),
            ('{"error": {"message": "Odd", "code": "1000"}}', "InternalServerError", 500, "Odd"),
            ('{"error": {"message": "Odd", "code": 399}}', "InternalServerError", 500, "Odd"),
            ('{"error": {"message": "Odd", "code": 400}}', "BadRequestError", 400, "Odd"),
            ('{"error": {"message": "Odd", "code": 599}}', "InternalServerError", 599, "Odd"),
            ('{"error": {"message": "Odd", "code": 600}}', "InternalServerError", 500, "Odd"),
            ('{"error": "for test-key"}', "InternalServerError", 500, "for [redacted]"),
        ],
    )  # fmt: skip
    def test_before_any_text_it_is_the_servers_own_error(
        self, api: RequestsMock, data: str, name: str, status: int, message: str
    ) -> None:
        api.post(CHAT_URL, body=f"data: {data}\n\n", content_type="text/event-stream")
        with MistralClient("test-key") as client, pytest.raises(MistralError) as caught:
            next(client.stream(HELLO))
        error = caught.value
        assert (type(error).__name__, error.args[:2]) == (name, (status, message))

    def test_after_the_first_text_the_stream_is_broken(self) -> None:
        error_event = 'data: {"object": "error", "message": "Busy"}\n\n'
        with RawServer(HEAD, chunk(event("Hello")), chunk(error_event)) as server:
            pieces, error = read_until_it_breaks(server.url)
        assert pieces == ["Hello"]
        assert isinstance(error, APIStreamBrokenError)
        assert (str(error), error.partial_text) == ("Busy", "Hello")
        assert isinstance(error.__cause__, InternalServerError)


class TestEndOfStream:
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
        monkeypatch.setattr("lib.transport.DRAIN_SECONDS", 0.05)
        with (
            RawServer(HEAD, chunk(event("Hi")), chunk(END), then="silence") as server,
            MistralClient("key", base_url=server.url, timeout=30, total_timeout=30) as client,
        ):
            started_at = time.monotonic()
            assert list(client.stream(HELLO)) == ["Hi"]
            assert time.monotonic() - started_at < 5


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
