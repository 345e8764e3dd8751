"""Streaming: pieces as they come, and what had come when it broke."""

from __future__ import annotations

import time

import pytest
import responses

from lib import client as client_module
from lib import transport as transport_module
from lib.client import MistralClient
from lib.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStreamBrokenError,
    APITimeoutError,
    InternalServerError,
    RateLimitError,
)
from lib.mock_server import MockServer
from support import CHAT_URL, RawServer

HELLO = [{"role": "user", "content": "Hello!"}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(text: str) -> str:
    return f'data: {{"choices": [{{"index": 0, "delta": {{"content": "{text}"}}}}]}}\n\n'


def chunk(text: str) -> bytes:
    body = text.encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


def read_until_it_breaks(base_url: str) -> tuple[list[str], Exception | None]:
    pieces: list[str] = []
    with MistralClient("key", base_url=base_url, timeout=0.3) as client:
        try:
            pieces.extend(client.stream(HELLO))
        except Exception as error:
            return pieces, error
    return pieces, None


def test_pieces_come_one_by_one_and_make_the_whole_answer() -> None:
    with MockServer() as server, MistralClient("key", base_url=server.url) as client:
        pieces = list(client.stream(HELLO))
        assert len(pieces) > 1
        assert "".join(pieces) == client.chat(HELLO).content


def test_a_piece_is_yielded_before_the_next_one_has_been_sent() -> None:
    with (
        RawServer(HEAD, chunk(event("Hel")), then="silence") as server,
        MistralClient("key", base_url=server.url, timeout=5) as client,
    ):
        pieces = client.stream(HELLO)
        assert next(pieces) == "Hel"
        pieces.close()


def test_an_event_split_over_two_chunks_is_put_together() -> None:
    first, second = event("Hello")[:20], event("Hello")[20:]
    end = chunk("data: [DONE]\n\n") + chunk("")
    with RawServer(HEAD, chunk(first), chunk(second), end) as server:
        assert read_until_it_breaks(server.url) == (["Hello"], None)


def test_a_stream_cut_half_way_raises_with_the_text_so_far_and_is_not_retryable() -> None:
    with MockServer("cut") as server, MistralClient("key", base_url=server.url) as client:
        pieces: list[str] = []
        with pytest.raises(APIStreamBrokenError) as caught:
            pieces.extend(client.stream(HELLO))
        assert caught.value.partial_text.startswith("Hello!")
        assert caught.value.retryable is False
        assert isinstance(caught.value.__cause__, APIConnectionError)


def test_silence_between_two_pieces_ends_the_stream_at_the_read_timeout() -> None:
    with RawServer(HEAD, chunk(event("Hel")), then="silence") as server:
        pieces, error = read_until_it_breaks(server.url)
    assert pieces == ["Hel"]
    assert isinstance(error, APIStreamBrokenError)
    assert isinstance(error.__cause__, APITimeoutError)


def test_what_fails_before_the_first_piece_is_the_plain_retryable_error() -> None:
    with (
        MockServer("drop,429:2") as server,
        MistralClient("key", base_url=server.url) as client,
    ):
        with pytest.raises(APIConnectionError) as dropped:
            list(client.stream(HELLO))
        assert dropped.value.retryable
        assert not isinstance(dropped.value, APIStreamBrokenError)
        with pytest.raises(RateLimitError):
            list(client.stream(HELLO))


def test_a_stream_that_ends_without_its_end_mark_is_broken() -> None:
    with RawServer(HEAD, chunk(event("Hello")), chunk("")) as server:
        pieces, error = read_until_it_breaks(server.url)
    assert pieces == ["Hello"]
    assert isinstance(error, APIStreamBrokenError)


def test_an_event_that_is_not_a_chat_completion_is_a_validation_error() -> None:
    with RawServer(HEAD, chunk('data: {"object": "list"}\n\n')) as server:
        _, error = read_until_it_breaks(server.url)
    assert isinstance(error, APIResponseValidationError)


class TestErrorInsideAStream:
    """Before any text it is the server's error, afterwards a broken stream; in its own words."""

    EVENT = '{"object": "error", "message": "Overloaded, test-key", "raw_status_code": 503}'

    def test_before_any_text(self) -> None:
        with RawServer(HEAD, chunk(f"data: {self.EVENT}\n\n")) as server:
            _, error = read_until_it_breaks(server.url)
        assert type(error) is InternalServerError
        assert error.status_code == 503
        assert "Overloaded" in str(error)

    def test_after_the_first_text(self) -> None:
        with RawServer(HEAD, chunk(event("Hello")), chunk(f"data: {self.EVENT}\n\n")) as server:
            pieces, error = read_until_it_breaks(server.url)
        assert pieces == ["Hello"]
        assert isinstance(error, APIStreamBrokenError)
        assert error.partial_text == "Hello"
        assert "Overloaded" in str(error)


class TestEndOfAStream:
    def test_it_knows_the_finish_reason_usage_and_limits(self) -> None:
        with (
            MockServer() as server,
            MistralClient("k", base_url=server.url) as client,
            client.stream(HELLO) as stream,
        ):
            assert "".join(stream) == "Hello! How can I assist you today?"
            assert stream.finish_reason == "stop"
            assert stream.usage is not None
            assert stream.usage.total_tokens == 8

    def test_a_silent_server_after_the_end_mark_holds_the_reader_for_a_moment_only(self) -> None:
        with (
            RawServer(
                HEAD, chunk(event("Hi")), chunk("data: [DONE]\n\n"), then="silence"
            ) as server,
            MistralClient("k", base_url=server.url, timeout=30) as client,
        ):
            started_at = time.monotonic()
            assert list(client.stream(HELLO)) == ["Hi"]
            assert time.monotonic() - started_at < 10


def test_an_endless_stream_is_read_only_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (client_module, transport_module):
        monkeypatch.setattr(module, "MAX_RESPONSE_BYTES", 1000)
    with RawServer(HEAD, *[chunk("x" * 600)] * 5) as server:
        _, error = read_until_it_breaks(server.url)
    assert isinstance(error, APIResponseValidationError)


def test_a_reader_that_stops_early_closes_the_connection() -> None:
    """The connection can't be used again: the rest of the answer is still on it."""
    with MockServer() as server, MistralClient("key", base_url=server.url) as client:
        for _ in client.stream(HELLO):
            break
        assert client.chat(HELLO).content == "Hello! How can I assist you today?"


def test_messages_are_checked_when_stream_is_called_not_when_it_is_read() -> None:
    with MistralClient("key") as client, pytest.raises(ValueError, match="messages"):
        client.stream([])


def test_chunks_of_a_reasoning_model_give_their_text_and_not_their_thinking(
    api: responses.RequestsMock,
) -> None:
    chunks = '[{"type": "thinking", "thinking": []}, {"type": "text", "text": "Yes"}]'
    body = f'data: {{"choices": [{{"delta": {{"content": {chunks}}}}}]}}\n\ndata: [DONE]\n\n'
    api.post(CHAT_URL, body=body, content_type="text/event-stream")
    with MistralClient("key") as client:
        assert list(client.stream(HELLO)) == ["Yes"]


def test_a_stream_read_to_its_end_leaves_the_connection_for_the_next_call() -> None:
    answer = chunk(event("Hello")), chunk("data: [DONE]\n\n"), chunk("")
    with (
        RawServer(b"".join((HEAD, *answer)), then="next") as server,
        MistralClient("key", base_url=server.url, timeout=5) as client,
    ):
        for _ in range(3):
            assert list(client.stream(HELLO)) == ["Hello"]
    assert server.connections == 1
