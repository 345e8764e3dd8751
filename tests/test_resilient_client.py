"""The rules of lib/resilient_client.py: four helpers around one call, in the right order."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import FakeClock
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from lib.client import MistralClient
from lib.error_logger import ErrorLogger
from lib.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStreamBrokenError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    InsufficientQuotaError,
    InternalServerError,
    InvalidRequestError,
    MistralError,
    RateLimitError,
)
from lib.mock_server import MockServer
from lib.rate_limiter import RateLimiter
from lib.resilient_client import MAX_REMEMBERED_ERRORS, ResilientMistralClient
from lib.retry import Retrier, RetryBudget
from lib.token_limiter import TokenLimiter, estimate_tokens
from support import run_in_threads

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest.fixture
def client() -> Iterator[MistralClient]:
    """A client for operations that never use it."""
    with MistralClient("no-key") as client:
        yield client


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "errors.log"


def resilient(client: MistralClient, log: Path, **helpers: Any) -> ResilientMistralClient:
    """Three attempts without jitter, a limit that nobody meets, and what the test brings."""
    return ResilientMistralClient(
        client,
        **{
            "retrier": Retrier(max_attempts=3, jitter=False),
            "breaker": CircuitBreaker("api"),
            "limiter": RateLimiter(1_000_000_000),
            "logger": ErrorLogger(log),
            **helpers,
        },
    )


def lines_in(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def ending_in(*outcomes: str | BaseException) -> Callable[[MistralClient], str]:
    """An operation that raises or returns these, one a call."""
    left = iter(outcomes)

    def operation(client: MistralClient) -> str:
        outcome = next(left)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return operation


def down() -> InternalServerError:
    return InternalServerError(503, "Service unavailable.")


def test_a_chat_over_real_http_recovers_from_failures_and_logs_one_line(log: Path) -> None:
    with MockServer("503,drop") as server, MistralClient("key", base_url=server.url) as client:
        robust = resilient(client, log, retrier=Retrier(max_attempts=3, base_delay=0.01))
        completion = robust.chat(HELLO, max_tokens=5)
        answers = [request.outcome for request in server.log]
    assert completion.content == "Hello! How can I assist you today?"
    assert answers == ["503", "drop", "200"]
    (line,) = lines_in(log)
    assert (line["type"], line["success"], line["error"]) == ("chat", True, None)
    assert line["context"] == {"model": "mistral-small-latest", "attempts": 3}
    assert [entry["type"] for entry in robust.error_log] == [
        "InternalServerError",
        "APIConnectionError",
    ]


def test_the_model_and_the_parameters_reach_the_server(log: Path) -> None:
    with MockServer() as server, MistralClient("key", base_url=server.url) as client:
        robust = resilient(client, log)
        assert robust.chat(HELLO, model="mistral-large-latest").model == "mistral-large-latest"
        with pytest.raises(Exception, match="Extra inputs"):
            robust.chat(HELLO, no_such_parameter=1)


def test_the_operation_gets_the_client_and_its_result_comes_back(
    client: MistralClient, log: Path
) -> None:
    assert resilient(client, log).request(lambda given: given) is client


def test_the_last_attempts_own_error_is_raised(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    errors = [down(), APITimeoutError("no answer in time"), down()]
    with pytest.raises(InternalServerError) as raised:
        resilient(client, log).request(ending_in(*errors))
    assert raised.value is errors[2]
    assert clock.waits == [1, 2]
    (line,) = lines_in(log)
    assert (line["success"], line["context"]["attempts"]) == (False, 3)
    assert line["error"]["class"] == "InternalServerError"


def test_each_request_is_one_line_with_its_type_its_context_and_its_attempts(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    robust = resilient(client, log)
    robust.request(ending_in("answer"), {"user": "ada"}, type="embedding")
    robust.request(ending_in(down(), down(), "answer"))
    with pytest.raises(AuthenticationError):
        robust.request(ending_in(AuthenticationError(401, "Invalid API Key")))
    assert [(line["type"], line["success"], line["context"]) for line in lines_in(log)] == [
        ("embedding", True, {"user": "ada", "attempts": 1}),
        ("request", True, {"attempts": 3}),
        ("request", False, {"attempts": 1}),
    ]
    assert robust.logger.metrics()["total_requests"] == 3


def test_the_callers_context_is_copied_and_not_changed(client: MistralClient, log: Path) -> None:
    context = {"user": "ada"}
    robust = resilient(client, log)
    with pytest.raises(ValueError, match="slip"):
        robust.request(ending_in(ValueError("slip")), context)
    assert context == {"user": "ada"}
    context["user"] = "grace"
    assert robust.error_log[0]["context"] == {"user": "ada"}


# The order: retry( breaker( limiter( call ))).


def test_the_breaker_counts_each_attempt(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    """Were the breaker around the retry, three attempts would count as one failure."""
    breaker = CircuitBreaker("api", failure_threshold=3)
    with pytest.raises(InternalServerError):
        resilient(client, log, breaker=breaker).request(ending_in(down(), down(), down()))
    assert breaker.state == "open"


def test_an_open_circuit_ends_the_retries_at_once(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    """The second failure trips it: the third of ten attempts isn't made, and none is after it."""
    breaker = CircuitBreaker("api", failure_threshold=2)
    robust = resilient(client, log, breaker=breaker, retrier=Retrier(10, jitter=False))
    with pytest.raises(CircuitOpenError):
        robust.request(ending_in(down(), down()))
    assert clock.waits == [1, 2]
    with pytest.raises(CircuitOpenError):
        robust.request(ending_in())
    assert clock.waits == [1, 2]
    assert [line["context"]["attempts"] for line in lines_in(log)] == [2, 0]
    assert lines_in(log)[1]["error"]["class"] == "CircuitOpenError"


def test_a_call_that_the_breaker_refuses_uses_no_slot_of_the_limiter(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    breaker = CircuitBreaker("api", failure_threshold=1)
    limiter = RateLimiter(60)
    robust = resilient(client, log, breaker=breaker, limiter=limiter, retrier=Retrier(1))
    with pytest.raises(InternalServerError):
        robust.request(ending_in(down()))
    for _ in range(5):
        with pytest.raises(CircuitOpenError):
            robust.request(ending_in())
    assert limiter.reserve() == pytest.approx(1, rel=0.001)


def test_every_attempt_waits_for_its_turn(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    """Were the limiter outside the retry, an attempt could break the limit."""
    robust = resilient(
        client, log, limiter=RateLimiter(6), retrier=Retrier(3, base_delay=1, jitter=False)
    )
    robust.request(ending_in(down(), down(), "answer"))
    assert clock.now - 1000 == pytest.approx(20, rel=0.001)


def test_waiting_for_a_turn_is_no_failure_of_the_service(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    breaker = CircuitBreaker("api", failure_threshold=1)
    robust = resilient(client, log, breaker=breaker, limiter=RateLimiter(1))
    for _ in range(3):
        robust.request(ending_in("answer"))
    assert breaker.state == "closed"


# A 429 is news for everyone.


@pytest.mark.parametrize(
    ("asked_for", "paused"), [(7.0, 7), (60.0, 60), (86400.0, 60), (None, 0), (0.0, 0)]
)
def test_a_429_pauses_everyone_but_not_for_longer_than_the_longest_wait(
    asked_for: float | None, paused: float, client: MistralClient, log: Path, clock: FakeClock
) -> None:
    limiter = RateLimiter(1_000_000_000)
    robust = resilient(client, log, limiter=limiter, retrier=Retrier(1, max_retry_after=60))
    with pytest.raises(RateLimitError):
        robust.request(ending_in(RateLimitError(429, "slow down", retry_after=asked_for)))
    assert limiter.reserve() == pytest.approx(paused, abs=1e-6)


@pytest.mark.parametrize("asked_for", [math.nan, math.inf, -math.inf, -1.0])
def test_a_429_with_a_senseless_wait_is_raised_as_it_is_and_pauses_nobody(
    asked_for: float, client: MistralClient, log: Path, clock: FakeClock
) -> None:
    """An operation of the caller's own may raise what the client never would."""
    error, limiter = RateLimitError(429, "slow down", retry_after=asked_for), RateLimiter(60)
    with pytest.raises(RateLimitError) as raised:
        resilient(client, log, limiter=limiter, retrier=Retrier(1)).request(ending_in(error))
    assert raised.value is error
    assert limiter.reserve() == pytest.approx(1, rel=0.001)


def test_the_429_itself_is_tried_again_after_the_wait_that_was_asked_for(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    error = RateLimitError(429, "slow down", retry_after=7.0)
    assert resilient(client, log).request(ending_in(error, "answer")) == "answer"
    assert clock.now - 1000 == pytest.approx(7)


def test_a_retry_after_of_a_day_is_not_slept(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    with pytest.raises(RateLimitError):
        resilient(client, log).request(
            ending_in(RateLimitError(429, "slow down", retry_after=86400.0))
        )
    assert clock.waits == []


# What counts against the service.


@pytest.mark.parametrize(
    "error",
    [
        down(),
        APIConnectionError("refused"),
        APITimeoutError("late"),
        APIStreamBrokenError("cut off", "half a sen"),
        APIResponseValidationError("an HTML page with a 200"),
    ],
    ids=repr,
)
def test_an_error_that_speaks_against_the_api_trips_the_breaker(
    error: Exception, client: MistralClient, log: Path
) -> None:
    robust = ResilientMistralClient(
        client, retrier=Retrier(1), limiter=RateLimiter(1_000_000), logger=ErrorLogger(log)
    )
    for _ in range(robust.breaker.failure_threshold):
        with pytest.raises(type(error)):
            robust.request(ending_in(error))
    assert robust.breaker.state == "open"


@pytest.mark.parametrize(
    "error",
    [
        BadRequestError(400, "wrong"),
        AuthenticationError(401, "who are you"),
        InvalidRequestError("messages must be a list"),
        InsufficientQuotaError(429, "not in your plan"),
    ],
    ids=repr,
)
def test_a_mistake_of_the_callers_is_neither_retried_nor_counted(
    error: Exception, client: MistralClient, log: Path, clock: FakeClock
) -> None:
    breaker = CircuitBreaker("api", failure_threshold=1)
    robust = resilient(client, log, breaker=breaker)
    with pytest.raises(type(error)) as raised:
        robust.request(ending_in(error))
    assert raised.value is error
    assert (clock.waits, breaker.state) == ([], "closed")


def test_messages_that_cannot_be_right_are_refused_before_anything_is_sent(log: Path) -> None:
    with MockServer() as server, MistralClient("key", base_url=server.url) as client:
        with pytest.raises(ValueError, match="messages"):
            resilient(client, log).chat([])
        assert server.log == []


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_passes_through_and_leaves_no_state_behind(
    leaving: type[BaseException], client: MistralClient, log: Path, clock: FakeClock
) -> None:
    breaker = CircuitBreaker("api", failure_threshold=1)
    robust = resilient(client, log, breaker=breaker, retrier=Retrier(1))
    with pytest.raises(InternalServerError):
        robust.request(ending_in(down()))
    clock.now += 60  # the next call is the probe
    with pytest.raises(leaving):
        robust.request(ending_in(leaving()))
    assert robust.request(ending_in("answer")) == "answer"
    assert breaker.state == "closed"


# The memory of errors.


def test_failed_attempts_are_remembered_even_if_the_request_recovers(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    robust = resilient(client, log)
    assert robust.error_log == []
    robust.request(ending_in(down(), APITimeoutError("late"), "answer"), {"user": "ada"})
    assert [(entry["type"], entry["message"], entry["context"]) for entry in robust.error_log] == [
        ("InternalServerError", "Service unavailable.", {"user": "ada"}),
        ("APITimeoutError", "late", {"user": "ada"}),
    ]
    assert all(entry["timestamp"] > 1_700_000_000 for entry in robust.error_log)


def test_the_memory_holds_the_last_hundred_errors(client: MistralClient, log: Path) -> None:
    breaker = CircuitBreaker("api", failure_threshold=1000)
    robust = resilient(client, log, breaker=breaker, retrier=Retrier(1))
    for number in range(MAX_REMEMBERED_ERRORS + 20):
        with pytest.raises(ValueError, match=str(number)):
            robust.request(ending_in(ValueError(f"number {number}")))
    messages = [entry["message"] for entry in robust.error_log]
    assert messages == [f"number {number}" for number in range(20, MAX_REMEMBERED_ERRORS + 20)]


def test_memory_stays_flat(client: MistralClient) -> None:
    breaker = CircuitBreaker("api", failure_threshold=1_000_000)
    robust = resilient(
        client,
        Path(os.devnull),
        breaker=breaker,
        retrier=Retrier(2, base_delay=0, budget=RetryBudget(math.inf)),
    )

    def request(times: int) -> None:
        for number in range(times):
            robust.request(ending_in(down(), "answer"), {"number": number})
            with pytest.raises(ValueError, match="slip"):
                robust.request(ending_in(ValueError(f"slip {number}")), {"number": number})

    request(200)
    tracemalloc.start()
    try:
        request(500)
        gc.collect()
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    kept = snapshot.filter_traces([tracemalloc.Filter(True, "*resilient_client.py")])
    assert sum(trace.size for trace in kept.traces) < 80_000


def test_the_list_of_errors_is_a_copy(client: MistralClient, log: Path) -> None:
    robust = resilient(client, log, retrier=Retrier(1))
    with pytest.raises(ValueError, match="number"):
        robust.request(ending_in(ValueError("number")))
    robust.error_log.clear()
    assert len(robust.error_log) == 1


def test_refusals_of_the_breaker_do_not_push_the_causes_out_of_the_memory(
    client: MistralClient, log: Path
) -> None:
    """A refused call is no failed attempt, and a busy program makes hundreds of them."""
    breaker = CircuitBreaker("api", failure_threshold=1)
    robust = resilient(client, log, breaker=breaker, retrier=Retrier(1))
    with pytest.raises(InternalServerError):
        robust.request(ending_in(down()))
    for _ in range(MAX_REMEMBERED_ERRORS + 1):
        with pytest.raises(CircuitOpenError):
            robust.request(ending_in())
    assert "InternalServerError" in {entry["type"] for entry in robust.error_log}


def test_threads_share_one_client_and_their_attempts_are_their_own(
    client: MistralClient, log: Path
) -> None:
    robust = resilient(
        client,
        log,
        retrier=Retrier(3, base_delay=0, budget=RetryBudget(math.inf)),
        breaker=CircuitBreaker("api", failure_threshold=10_000),
    )

    def three_requests() -> list[str]:
        return [
            robust.request(ending_in("one")),
            robust.request(ending_in(down(), "two")),
            robust.request(ending_in(down(), down(), "three")),
        ]

    assert run_in_threads(4, three_requests, interleaved=True) == [["one", "two", "three"]] * 4
    assert sorted(line["context"]["attempts"] for line in lines_in(log)) == sorted([1, 2, 3] * 4)
    assert len(robust.error_log) == 12


def test_the_retriers_deadline_bounds_the_wait_for_a_slot_too(
    client: MistralClient, log: Path, clock: FakeClock
) -> None:
    """Somebody's 429 may hold back all for a minute; who has a deadline needn't wait for it."""
    limiter = RateLimiter(600)
    limiter.pause(30)
    robust = resilient(client, log, limiter=limiter, retrier=Retrier(total_timeout=0.5))
    with pytest.raises(TimeoutError, match=r"no request may start within 0\.5 s"):
        robust.request(ending_in("never asked"))
    assert clock.waits == []


class TestStream:
    """All helpers until the first piece; then the stream is committed."""

    def stream_under(
        self, faults: str, log: Path, read: Callable[[Iterator[str]], object], **helpers: Any
    ) -> tuple[object, ResilientMistralClient, list[str]]:
        with MockServer(faults) as server, MistralClient("k", base_url=server.url) as client:
            retrier = Retrier(3, base_delay=0.01)
            robust = ResilientMistralClient(
                client, logger=ErrorLogger(log), **{"retrier": retrier, **helpers}
            )
            result = read(robust.stream(HELLO, max_tokens=10))
            return result, robust, [request.outcome for request in server.log]

    def test_failures_before_the_first_piece_are_retried(self, log: Path) -> None:
        text, _, requests = self.stream_under("503,drop", log, "".join)
        assert text == "Hello! How can I assist you today?"
        assert requests == ["503", "drop", "200"]
        assert [line["context"]["attempts"] for line in lines_in(log)] == [3]
        assert lines_in(log)[0]["success"]

    def test_after_the_first_piece_it_is_committed_and_no_piece_comes_twice(
        self, log: Path
    ) -> None:
        pieces: list[str] = []

        def read(stream: Iterator[str]) -> None:
            with pytest.raises(APIStreamBrokenError) as broken:
                pieces.extend(stream)
            assert broken.value.partial_text.startswith("Hello!")

        _, robust, requests = self.stream_under("cut", log, read)
        assert requests == ["200 (cut)"]
        assert [line["error"]["class"] for line in lines_in(log)] == ["APIStreamBrokenError"]
        assert [entry["type"] for entry in robust.error_log] == ["APIStreamBrokenError"]

    def test_a_broken_stream_counts_against_the_service(self, log: Path) -> None:
        def read(stream: Iterator[str]) -> None:
            with pytest.raises(APIStreamBrokenError):
                list(stream)

        breaker = CircuitBreaker("api", failure_threshold=1)
        self.stream_under("cut", log, read, breaker=breaker)
        assert breaker.state == "open"

    def test_a_reader_that_stops_early_gets_its_log_line_and_closes_the_connection(
        self, log: Path
    ) -> None:
        def read(stream: Iterator[str]) -> str:
            first = next(stream)
            stream.close()  # type: ignore[attr-defined]
            return first

        first, _, _ = self.stream_under("ok", log, read)
        assert first == "Hello! "
        assert [line["success"] for line in lines_in(log)] == [True]

    def test_tokens_are_settled_at_the_end_and_stay_spent_when_the_reader_stops_early(
        self, log: Path
    ) -> None:
        limiter = TokenLimiter(1000)
        self.stream_under("ok", log, list, token_limiter=limiter)
        assert limiter.available == 1000 - 8
        limiter = TokenLimiter(1000)
        self.stream_under("ok", log, next, token_limiter=limiter)
        assert limiter.available == 1000 - estimate_tokens(HELLO, 10)

    def test_an_open_circuit_sends_nothing(self, log: Path) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1)
        with pytest.raises(ConnectionError):
            breaker.call(ending_in_connection_error)

        def read(stream: Iterator[str]) -> None:
            with pytest.raises(CircuitOpenError):
                next(stream)

        _, _, requests = self.stream_under("ok", log, read, breaker=breaker)
        assert requests == []


def ending_in_connection_error() -> None:
    raise ConnectionError


class TestTotalTimeout:
    """Every attempt gets no more time than is left of the retrier's total."""

    @pytest.mark.parametrize("faults", ["drip:0.05*", "timeout*", "slow:30*"])
    def test_a_request_ends_in_time_whatever_the_server_does(self, faults: str, log: Path) -> None:
        with MockServer(faults) as server, MistralClient("k", base_url=server.url) as client:
            robust = ResilientMistralClient(
                client,
                retrier=Retrier(5, base_delay=0.01, total_timeout=0.5),
                logger=ErrorLogger(log),
            )
            started_at = time.monotonic()
            with pytest.raises(APITimeoutError, match="total timeout"):
                robust.chat(HELLO)
            assert time.monotonic() - started_at < 2  # without it, 60 s and more


class TestTokenLimiter:
    def test_a_rejected_request_gives_its_tokens_back_and_a_timeout_does_not(
        self, log: Path
    ) -> None:
        estimate = estimate_tokens(HELLO, 10)
        for faults, available in [("400", 1000), ("timeout", 1000 - estimate), ("ok", 1000 - 8)]:
            limiter = TokenLimiter(1000)
            with (
                MockServer(faults) as server,
                MistralClient("k", base_url=server.url, timeout=0.2) as client,
                contextlib.suppress(MistralError),
            ):
                ResilientMistralClient(
                    client, retrier=Retrier(1), token_limiter=limiter, logger=ErrorLogger(log)
                ).chat(HELLO, max_tokens=10)
            assert limiter.available == available, faults


class TestPacing:
    def test_nothing_is_paced_without_a_limiter(self, client: MistralClient, log: Path) -> None:
        robust = ResilientMistralClient(client, logger=ErrorLogger(log))
        assert robust.limiter is None
        started_at = time.monotonic()
        for _ in range(20):
            robust.request(ending_in("answer"))
        assert time.monotonic() - started_at < 5  # at 60 per minute it would take 19 s
