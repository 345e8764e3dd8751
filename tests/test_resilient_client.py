"""lib/resilient_client.py: a MistralClient in a pipeline. test_pipeline.py holds the order."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import FakeClock
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from lib.client import MistralClient
from lib.error_logger import ErrorLogger
from lib.errors import (
    APIStreamBrokenError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    InvalidRequestError,
    MistralError,
)
from lib.mock_server import MockServer
from lib.resilient_client import MAX_REMEMBERED_ERRORS, ResilientMistralClient
from lib.retry import Retrier
from lib.token_limiter import TokenLimiter, estimate_tokens
from support import RawServer, completion, raw_response

HELLO = [{"role": "user", "content": "Hello!"}]
COMPLETION = json.dumps(completion("Hi"))
UNUSED = MistralClient("no-key")  # for operations that do not use it
Resilient = Callable[..., ResilientMistralClient]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "errors.log"


@pytest.fixture
def resilient(log: Path) -> Resilient:
    """Make a client with three attempts without jitter, and the helpers of the test."""

    def make(client: MistralClient = UNUSED, **helpers: Any) -> ResilientMistralClient:
        defaults = {"retrier": Retrier(3, jitter=False), "logger": ErrorLogger(log)}
        return ResilientMistralClient(client, **{**defaults, **helpers})

    return make


def lines_in(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def ending_in(*outcomes: str | BaseException) -> Callable[[MistralClient], str]:
    """Return an operation that raises or returns these, one per call."""
    left = iter(outcomes)

    def operation(client: MistralClient) -> str:
        outcome = next(left)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return operation


def down() -> InternalServerError:
    return InternalServerError(503, "Service unavailable.")


METHODS = pytest.mark.parametrize("method", ["chat", "stream"])


@METHODS
class TestChatAndStream:
    def test_they_recover_from_failures(self, resilient: Resilient, log: Path, method: str) -> None:
        with MockServer("503,drop") as server, MistralClient("key", base_url=server.url) as client:
            robust = resilient(client, retrier=Retrier(3, base_delay=0.01))
            answer = getattr(robust, method)(HELLO)
            text = answer.content if method == "chat" else "".join(answer)
            assert text == "Hello! How can I assist you today?"
            assert [request.outcome for request in server.log] == ["503", "drop", "200"]
        (line,) = lines_in(log)
        assert (line["type"], line["success"], line["error"]) == (method, True, None)
        assert line["context"] == {"model": "mistral-small-latest", "attempts": 3}

    def test_parameters_reach_the_server(self, resilient: Resilient, method: str) -> None:
        parameters = {"model": "mistral-large-latest", "max_tokens": 5, "temperature": 0.2}
        with (
            RawServer(raw_response("400 No")) as server,
            MistralClient("k", base_url=server.url) as client,
            pytest.raises(BadRequestError),
        ):
            list(getattr(resilient(client), method)(HELLO, **parameters))
        payload = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
        assert payload.pop("stream", False) is (method == "stream")
        assert payload == {"messages": HELLO, **parameters}

    def test_a_response_that_drips_ends_within_the_total_timeout(
        self, resilient: Resilient, method: str
    ) -> None:
        with MockServer("drip:0.05*") as server, MistralClient("k", base_url=server.url) as client:
            retrier = Retrier(5, base_delay=0.01, total_timeout=0.2)
            with pytest.raises(APITimeoutError, match="total timeout"):
                list(getattr(resilient(client, retrier=retrier), method)(HELLO))


class TestRequest:
    def test_defaults(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        robust = ResilientMistralClient(UNUSED)
        parts = f"{UNUSED}, {robust.retrier}, {robust.breaker}"
        assert repr(robust) == f"ResilientMistralClient({parts})"
        assert (robust.breaker.name, robust.breaker.state) == ("mistral-api", "closed")
        robust.request(ending_in("result"))
        assert list(tmp_path.iterdir()) == [], "no file without a logger"

    def test_type_and_context_are_logged(
        self, resilient: Resilient, log: Path, clock: FakeClock
    ) -> None:
        robust, context = resilient(), {"user": "ada"}
        robust.request(ending_in(down(), "result"), context, type="embedding")
        robust.request(ending_in("result"))
        assert [(line["type"], line["context"]) for line in lines_in(log)] == [
            ("embedding", {"user": "ada", "attempts": 2}),
            ("request", {"attempts": 1}),
        ]
        assert context == {"user": "ada"}
        context["user"] = "grace"
        assert robust.error_log[0]["context"] == {"user": "ada"}


class TestErrorLog:
    def test_a_request_that_recovers(self, resilient: Resilient, clock: FakeClock) -> None:
        class SilentError(APITimeoutError):
            def __str__(self) -> str:
                raise RuntimeError

        robust = resilient()
        robust.request(ending_in(down(), SilentError(""), "result"), {"user": "ada"})
        assert [(e["type"], e["message"], e["context"]) for e in robust.error_log] == [
            ("InternalServerError", "Service unavailable.", {"user": "ada"}),
            ("SilentError", "<unreadable>", {"user": "ada"}),
        ]

    def test_time_is_that_of_the_log(self, resilient: Resilient, log: Path) -> None:
        robust = resilient()
        with pytest.raises(AuthenticationError):
            robust.request(ending_in(AuthenticationError(401, "Invalid API Key")))
        remembered, logged = robust.error_log[0]["timestamp"], lines_in(log)[0]["timestamp"]
        assert len(remembered) == len(logged)
        gap = datetime.fromisoformat(logged) - datetime.fromisoformat(remembered)
        assert abs(gap.total_seconds()) < 60

    def test_last_hundred(self, resilient: Resilient) -> None:
        robust = resilient(breaker=CircuitBreaker("api", failure_threshold=1000))
        for number in range(MAX_REMEMBERED_ERRORS + 20):
            with pytest.raises(ValueError, match="number"):
                robust.request(ending_in(ValueError(f"number {number}")))
        robust.error_log.clear()
        messages = [entry["message"] for entry in robust.error_log]
        assert messages == [f"number {number}" for number in range(20, 120)]


class TestStream:
    """All helpers until the first piece; then the stream is committed."""

    def test_a_broken_stream_is_not_retried(self, resilient: Resilient, log: Path) -> None:
        """It counts against the service, is logged and remembered. A rejection is not."""
        breaker = CircuitBreaker("api", failure_threshold=1)
        with MockServer("cut") as server, MistralClient("k", base_url=server.url) as client:
            robust = resilient(client, breaker=breaker)
            with pytest.raises(APIStreamBrokenError) as broken:
                list(robust.stream(HELLO))
            with pytest.raises(CircuitOpenError) as rejected:
                next(robust.stream(HELLO))
            assert [request.outcome for request in server.log] == ["200 (cut)"]
        assert rejected.value.last_failure == f"APIStreamBrokenError: {broken.value}"
        assert broken.value.partial_text.startswith("Hello!")
        assert lines_in(log)[0]["error"]["class"] == "APIStreamBrokenError"
        assert [entry["type"] for entry in robust.error_log] == ["APIStreamBrokenError"]

    def test_tokens(self, resilient: Resilient, log: Path) -> None:
        """They are settled at the end; if the reader stops early, the estimate stays booked."""
        limiter = TokenLimiter(1000)
        with MockServer() as server, MistralClient("k", base_url=server.url) as client:
            robust = resilient(client, token_limiter=limiter)
            list(robust.stream(HELLO, max_tokens=10))
            assert limiter.available == 1000 - 8
            stream = robust.stream(HELLO, max_tokens=10)
            assert next(stream) == "Hello! "
            stream.close()
        assert limiter.available == 1000 - 8 - estimate_tokens(HELLO, 10)
        assert [line["success"] for line in lines_in(log)] == [True, True]


class TestTotalTimeout:
    """Each attempt gets what is left of the retrier's total timeout, or less."""

    def test_what_is_left(self, resilient: Resilient, clock: FakeClock) -> None:
        given: list[float] = []

        def operation(client: MistralClient) -> None:
            given.append(client.total_timeout)
            raise down()

        client = MistralClient("no-key", total_timeout=7.5)
        robust = resilient(client, retrier=Retrier(5, jitter=False, total_timeout=8))
        with pytest.raises(InternalServerError):
            robust.request(operation)
        assert given == [7.5, 7, 5, 1]

    def test_none(self, resilient: Resilient) -> None:
        assert resilient().request(lambda client: client) is UNUSED


class TestTokenLimiter:
    ESTIMATE = estimate_tokens(HELLO, 10)

    @pytest.mark.parametrize("max_tokens", [-100, 2.5])
    def test_an_invalid_max_tokens_is_sent_and_opens_no_circuit(
        self, resilient: Resilient, max_tokens: Any
    ) -> None:
        with MockServer("422") as server, MistralClient("k", base_url=server.url) as client:
            breaker = CircuitBreaker("api", failure_threshold=1)
            robust = resilient(client, breaker=breaker, token_limiter=TokenLimiter(1000))
            with pytest.raises(MistralError):
                robust.chat(HELLO, max_tokens=max_tokens)
        assert breaker.state == "closed"

    @pytest.mark.parametrize(
        ("response", "available"),
        [
            (raw_response("200 OK", COMPLETION.encode()), 1000 - 40),
            (raw_response("200 OK", COMPLETION.replace("usage", "bill").encode()), 1000 - ESTIMATE),
            (raw_response("200 OK", COMPLETION.replace(": 40", ": -4").encode()), 1000 - 40),
            (raw_response("200 OK", COMPLETION.encode(),
                          "x-ratelimit-remaining-tokens-minute: 300"), 300),
            (raw_response("400 No"), 1000),
            (b"", 1000 - ESTIMATE),
        ],
        ids=["usage", "no usage", "negative usage", "limits", "rejected", "no response"],
    )  # fmt: skip
    def test_what_a_call_leaves_of_the_limit(
        self, resilient: Resilient, response: bytes, available: int
    ) -> None:
        """A rejected call used no tokens; one without a response may have used all of them."""
        limiter = TokenLimiter(1000)
        with RawServer(response) as server, MistralClient("k", base_url=server.url) as client:
            robust = resilient(client, retrier=Retrier(1), token_limiter=limiter)
            with contextlib.suppress(MistralError):
                robust.chat(HELLO, max_tokens=10)
        assert limiter.available == available

    @pytest.mark.parametrize("messages", [None, [], ["Hello!"]], ids=str)
    def test_wrong_messages_cost_no_tokens(self, resilient: Resilient, messages: Any) -> None:
        limiter = TokenLimiter(1000)
        with pytest.raises(InvalidRequestError, match="messages"):
            resilient(token_limiter=limiter).chat(messages)
        assert limiter.available == 1000

    def test_an_operation_of_your_own_reserves_none(self, resilient: Resilient) -> None:
        limiter = TokenLimiter(1000)
        resilient(token_limiter=limiter).request(ending_in("result"))
        assert limiter.available == 1000
