"""lib/pipeline.py: all helpers around one operation, the same promises in its four forms."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import json
import logging
import math
import re
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import FakeClock
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from lib.error_logger import ErrorLogger
from lib.errors import (
    APIResponseValidationError,
    APIStreamBrokenError,
    APITimeoutError,
    AuthenticationError,
    InternalServerError,
    InvalidRequestError,
    RateLimitError,
)
from lib.pipeline import END, REJECTIONS, Attempt, Pipeline
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier, RetryBudget
from lib.token_limiter import TokenLimiter
from support import interrupt_everywhere, run_in_threads

Operation = Callable[[Attempt], Any]
Run = Callable[..., Any]


class Pieces:
    """A stream, plain and async, that is a context manager as those of the SDKs are.

    An error among the pieces is raised.
    """

    def __init__(self, *pieces: Any, usage: Any = None) -> None:
        self.entered = self.closed = 0
        self.usage = usage
        self._pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        for piece in self._pieces:
            assert not self.closed, "a closed stream is not read"
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    async def __aiter__(self) -> AsyncIterator[Any]:
        for piece in self:
            yield piece

    def __enter__(self) -> Pieces:
        self.entered += 1
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.closed += 1

    async def __aenter__(self) -> Pieces:
        return self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.closed += 1


def read_stream(
    pipeline: Pipeline, open_stream: Operation, stop_after: int = sys.maxsize, **options: Any
) -> list[Any]:
    """Return the pieces of a stream; stop early after that many, as a reader may."""
    with contextlib.closing(pipeline.stream(open_stream, **options)) as pieces:
        return list(itertools.islice(pieces, stop_after))


def read_stream_async(
    pipeline: Pipeline, open_stream: Operation, stop_after: int = sys.maxsize, **options: Any
) -> list[Any]:
    async def collected() -> list[Any]:
        read: list[Any] = []
        async with contextlib.aclosing(pipeline.stream_async(open_stream, **options)) as pieces:
            while len(read) < stop_after and (piece := await anext(pieces, END)) is not END:
                read.append(piece)
        return read

    return asyncio.run(collected())


@pytest.fixture(params=["call", "call_async", "stream", "stream_async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run an operation through a pipeline in one of the four forms; return its result.

    As a stream, the result is the only piece.
    """

    def call_async(pipeline: Pipeline, operation: Operation, **options: Any) -> Any:
        async def awaited(attempt: Attempt) -> Any:
            return operation(attempt)

        return asyncio.run(pipeline.call_async(awaited, **options))

    def stream(pipeline: Pipeline, operation: Operation, **options: Any) -> Any:
        (piece,) = read_stream(pipeline, lambda attempt: Pieces(operation(attempt)), **options)
        return piece

    def stream_async(pipeline: Pipeline, operation: Operation, **options: Any) -> Any:
        (piece,) = read_stream_async(
            pipeline, lambda attempt: Pieces(operation(attempt)), **options
        )
        return piece

    forms: dict[str, Run] = {
        "call": Pipeline.call,
        "call_async": call_async,
        "stream": stream,
        "stream_async": stream_async,
    }
    return forms[request.param]


@pytest.fixture(params=[read_stream, read_stream_async])
def read(request: pytest.FixtureRequest) -> Run:
    """Read a stream in one of its two forms: the next of these, with each attempt."""
    return lambda pipeline, *streams, **options: request.param(
        pipeline, ending_in(*streams), **options
    )


def ending_in(*outcomes: Any) -> Operation:
    """Return an operation that raises or returns these, one per attempt."""
    left = iter(outcomes)

    def operation(attempt: Attempt) -> Any:
        outcome = next(left)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return operation


def down() -> InternalServerError:
    return InternalServerError(503, "Service unavailable.")


def fail(breaker: CircuitBreaker) -> None:
    """Let another caller fail, in a context of its own if it is not part of the call."""

    def operation() -> None:
        raise down()

    with contextlib.suppress(InternalServerError):
        breaker.call(operation)


def foreign(status: int, **headers: str) -> Exception:
    """Return an error of another library, in the shape of httpx's."""
    error: Exception = type("HTTPStatusError", (Exception,), {})("No.")
    vars(error)["response"] = SimpleNamespace(status_code=status, headers=headers, text="")
    return error


def retrier(max_attempts: int = 3, **options: Any) -> Retrier:
    return Retrier(max_attempts, jitter=False, **options)


def with_usage(usage: Any) -> Any:
    return SimpleNamespace(usage=usage)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "errors.log"


def lines_in(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


class TestResult:
    def test_without_helpers(self, run: Run) -> None:
        assert run(Pipeline(), ending_in("result")) == "result"
        with pytest.raises(InternalServerError):
            run(Pipeline(), ending_in(down()))

    def test_error_of_the_last_attempt(self, run: Run, clock: FakeClock) -> None:
        errors = [down(), APITimeoutError("too late"), down()]
        with pytest.raises(InternalServerError) as raised:
            run(Pipeline(retrier=retrier()), ending_in(*errors))
        assert raised.value is errors[2]
        assert clock.waits == [1, 2]

    def test_threads_share_a_pipeline_with_all_helpers(self, run: Run, log: Path) -> None:
        pipeline = Pipeline(
            retrier=Retrier(base_delay=0, budget=RetryBudget(math.inf)),
            breaker=CircuitBreaker("api", failure_threshold=100),
            limiter=RateLimiter(10**9),
            token_limiter=TokenLimiter(10**6),
            logger=ErrorLogger(log),
        )

        def three_calls() -> list[str]:
            return [
                run(pipeline, ending_in("one"), tokens=1),
                run(pipeline, ending_in(down(), "two"), tokens=1),
                run(pipeline, ending_in(down(), down(), "three"), tokens=1),
            ]

        assert run_in_threads(4, three_calls, interleaved=True) == [["one", "two", "three"]] * 4
        attempts = [line["context"]["attempts"] for line in lines_in(log)]
        assert sorted(attempts) == sorted([1, 2, 3] * 4)

    def test_repr(self) -> None:
        breaker = CircuitBreaker("api")
        pipeline = Pipeline(retrier=Retrier(), breaker=breaker)
        assert repr(pipeline) == f"Pipeline({pipeline.retrier}, {breaker})"

    def test_an_operation_that_has_not_run(self) -> None:
        with pytest.raises(TypeError, match="returned a generator, which has not run"):
            Pipeline().call(lambda attempt: (piece for piece in "ab"))
        with pytest.raises(TypeError, match="call_async"):
            Pipeline().call(lambda _: asyncio.sleep(0))  # type: ignore[unused-coroutine]


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "wrong", "kind"),
        [
            ("retrier", CircuitBreaker("api"), "a Retrier"),
            ("breaker", Retrier(), "a CircuitBreaker"),
            ("breaker", CircuitBreaker, "a CircuitBreaker"),
            ("limiter", TokenLimiter(1000), "a RateLimiter"),
            ("token_limiter", RateLimiter(), "a TokenLimiter"),
            ("logger", logging.getLogger(), "an ErrorLogger"),
        ],
    )
    def test_another_object_than_the_helper(self, name: str, wrong: Any, kind: str) -> None:
        expected = re.escape(f"{name} must be {kind} or have its methods, got {wrong!r}")
        with pytest.raises(ValueError, match=expected):
            Pipeline(**{name: wrong})

    def test_wrong_estimate(self, run: Run) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1)
        pipeline = Pipeline(breaker=breaker, token_limiter=TokenLimiter(1000))
        for tokens in (-1, 1.5, True, None):
            with pytest.raises(ValueError, match=f"tokens must be an integer >= 0, got {tokens}"):
                run(pipeline, ending_in("never called"), tokens=tokens)
        assert breaker.state == "closed"


class TestOrder:
    """log( retry( breaker( limiters( call ))))"""

    def test_each_attempt_waits_for_its_slot(self, run: Run, clock: FakeClock) -> None:
        pipeline = Pipeline(retrier=retrier(), limiter=RateLimiter(6))
        run(pipeline, ending_in(down(), down(), "result"))
        assert clock.now - 1000 == pytest.approx(20, rel=0.02)

    def test_a_rejected_call_uses_no_slot_and_no_tokens(self, run: Run, clock: FakeClock) -> None:
        limiter, token_limiter = RateLimiter(60), TokenLimiter(1000)
        breaker = CircuitBreaker("api", failure_threshold=1)
        pipeline = Pipeline(breaker=breaker, limiter=limiter, token_limiter=token_limiter)
        fail(breaker)
        for _ in range(5):
            with pytest.raises(CircuitOpenError):
                run(pipeline, ending_in(), tokens=10)
        assert (limiter.acquire(), token_limiter.available) == (0, 1000)

    def test_a_call_that_waited_while_the_circuit_opened_is_not_sent(self, run: Run) -> None:
        class Limiter(RateLimiter):
            def acquire(self, timeout: float | None = None, **_: Any) -> float:
                contextvars.Context().run(fail, breaker)  # another caller, not part of this call
                return 0.0

            async def acquire_async(self, timeout: float | None = None, **_: Any) -> float:
                return self.acquire()

        breaker, tokens = CircuitBreaker("api", failure_threshold=1), TokenLimiter(1000)
        pipeline = Pipeline(breaker=breaker, limiter=Limiter(), token_limiter=tokens)
        with pytest.raises(CircuitOpenError) as info:
            run(pipeline, ending_in("sent"), tokens=10)
        assert info.value.last_failure == "InternalServerError: Service unavailable."
        assert tokens.available == 1000

    def test_waiting_is_not_a_failure_and_costs_no_tokens(self, run: Run, clock: FakeClock) -> None:
        breaker, tokens = CircuitBreaker("api", failure_threshold=1), TokenLimiter(1000)
        limiter = RateLimiter(600)
        limiter.pause(30)
        pipeline = Pipeline(
            retrier=retrier(total_timeout=0.5),
            breaker=breaker,
            limiter=limiter,
            token_limiter=tokens,
        )
        with pytest.raises(REJECTIONS, match=r"no request may start within 0\.5 s"):
            run(pipeline, ending_in("never called"), tokens=10)
        assert clock.waits == []
        assert (breaker.state, tokens.available) == ("closed", 1000)


class TestOpenCircuit:
    """Once the circuit has opened, nothing is waited for, and the real error is raised."""

    @pytest.mark.parametrize("options", [{}, {"retry_if": lambda error: True}], ids=str)
    def test_the_attempt_that_opens_it(
        self, run: Run, clock: FakeClock, log: Path, options: Any
    ) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2)
        pipeline = Pipeline(
            retrier=retrier(10, **options), breaker=breaker, logger=ErrorLogger(log)
        )
        errors = [down(), down()]
        with pytest.raises(InternalServerError) as raised:
            run(pipeline, ending_in(*errors))
        assert raised.value is errors[1]
        assert raised.value.__context__ is None
        assert raised.value.gave_up == "circuit open"  # type: ignore[attr-defined]
        with pytest.raises(CircuitOpenError):
            run(pipeline, ending_in("never called"))
        assert clock.waits == [1]
        opened, rejected = lines_in(log)
        assert [line["context"]["attempts"] for line in (opened, rejected)] == [2, 0]
        assert [line["error"]["gave_up"] for line in (opened, rejected)] == ["circuit open"] * 2
        assert rejected["error"]["class"] == "CircuitOpenError"
        assert rejected["error"]["last_failure"] == "InternalServerError: Service unavailable."

    def test_another_call_opens_it_during_the_wait(self, run: Run, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=2)
        pipeline = Pipeline(retrier=retrier(on_wait=lambda *_: fail(breaker)), breaker=breaker)
        error = down()
        with pytest.raises(InternalServerError) as raised:
            run(pipeline, ending_in(error, "never called"))
        assert raised.value is error
        assert breaker.state == "open"

    def test_error_that_allows_no_reason_is_raised_all_the_same(self, run: Run) -> None:
        class FrozenError(InternalServerError):
            gave_up = property()

        breaker = CircuitBreaker("api", failure_threshold=2)
        retrying = Retrier(base_delay=0, on_wait=lambda *_: fail(breaker))
        with pytest.raises(FrozenError):
            run(Pipeline(retrier=retrying, breaker=breaker), ending_in(FrozenError(503, "Down")))

    def test_permanent_error_while_another_call_opens_it(self, run: Run) -> None:
        """It would not be retried anyway, and the reason must not send the reader elsewhere."""
        breaker = CircuitBreaker("api", failure_threshold=1)

        def operation(attempt: Attempt) -> None:
            contextvars.Context().run(fail, breaker)
            raise AuthenticationError(401, "Invalid API Key")

        with pytest.raises(AuthenticationError) as raised:
            run(Pipeline(retrier=retrier(), breaker=breaker), operation)
        assert breaker.state == "open"
        assert raised.value.gave_up == "not retryable"  # type: ignore[attr-defined]

    def test_half_open_circuit_is_not_open(self, run: Run, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1, recovery_timeout=0)
        pipeline = Pipeline(retrier=retrier(), breaker=breaker)
        assert run(pipeline, ending_in(down(), "result")) == "result"
        assert breaker.state == "closed"


class TestErrorsOfOtherLibraries:
    def test_they_are_retried_and_marked(self, run: Run, clock: FakeClock) -> None:
        error = foreign(400)
        with pytest.raises(type(error)) as raised:
            run(Pipeline(retrier=retrier()), ending_in(foreign(503), foreign(429), error))
        assert raised.value is error
        assert (raised.value.status_code, raised.value.retryable) == (400, False)  # type: ignore[attr-defined]
        assert clock.waits == [1, 2]


class TestBreaker:
    @pytest.mark.parametrize(
        ("error", "state"),
        [
            (down(), "open"),
            (APIResponseValidationError("an HTML page with a 200"), "open"),
            (foreign(503), "open"),
            (AuthenticationError(401, "Invalid API Key"), "closed"),
            (InvalidRequestError("messages must be a list"), "closed"),
            (foreign(404), "closed"),
        ],
        ids=str,
    )
    def test_which_errors_open_it(self, error: Exception, state: str) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1)
        with pytest.raises(type(error)):
            Pipeline(breaker=breaker).call(ending_in(error))
        assert breaker.state == state


class TestRetryAfter:
    """A 429 pauses every caller that shares the limiters."""

    @pytest.mark.parametrize(
        ("retry_after", "paused"),
        [(0.5, 0.5), (50.0, 50), (86400.0, 50), (None, 0), (0.0, 0), (math.nan, 0), (math.inf, 0),
         (-1.0, 0), ("2", 0)],
    )  # fmt: skip
    def test_it_pauses_both_limiters(
        self, monkeypatch: pytest.MonkeyPatch, retry_after: Any, paused: float
    ) -> None:
        """Not for longer than the retrier's max_retry_after; a senseless number is ignored."""
        limiter, token_limiter = RateLimiter(10**9), TokenLimiter(1000)
        told: list[float] = []
        for each in (limiter, token_limiter):
            monkeypatch.setattr(each, "pause", told.append)
        pipeline = Pipeline(
            retrier=retrier(1, max_retry_after=50), limiter=limiter, token_limiter=token_limiter
        )
        with pytest.raises(InternalServerError):  # only a 429 does
            pipeline.call(ending_in(InternalServerError(503, "Down", retry_after=retry_after)))
        assert told == []
        with pytest.raises(RateLimitError):
            pipeline.call(ending_in(RateLimitError(429, "Slow down", retry_after=retry_after)))
        assert told == ([paused, paused] if paused else [])

    def test_the_retry_waits_that_long(self, run: Run, clock: FakeClock) -> None:
        pipeline = Pipeline(retrier=retrier(), limiter=RateLimiter(10**9))
        error = foreign(429, **{"Retry-After": "7"})
        assert run(pipeline, ending_in(error, "result")) == "result"
        assert clock.now - 1000 == pytest.approx(7, abs=1e-3)


class TestTotalTimeout:
    """The retrier's total timeout bounds a call with all its attempts and waits."""

    def test_each_attempt_is_told_what_is_left(self, run: Run, clock: FakeClock) -> None:
        told: list[Any] = []

        def operation(attempt: Attempt) -> None:
            told.append((attempt.number, attempt.remaining))
            clock.now += 100 * (attempt.number == 3)
            told.append(attempt.remaining)
            raise down()

        with pytest.raises(InternalServerError):
            run(Pipeline(retrier=retrier(5, total_timeout=8)), operation)
        assert told == [(1, 8), 8, (2, 7), 7, (3, 5), 0.01]

    def test_no_slot_for_a_retry(self, run: Run, clock: FakeClock) -> None:
        """The error of the first attempt is raised: a rejection would say that nothing was sent."""
        limiter = RateLimiter(6)
        pipeline = Pipeline(retrier=retrier(total_timeout=5), limiter=limiter)
        error = down()
        with pytest.raises(InternalServerError) as raised:
            run(pipeline, ending_in(error, "never called"))
        assert raised.value is error
        assert raised.value.gave_up == "total timeout"  # type: ignore[attr-defined]

    def test_without_one(self, run: Run) -> None:
        assert run(Pipeline(), lambda attempt: (attempt.remaining,)) == (None,)

    def test_it_bounds_the_wait_for_tokens(self, run: Run) -> None:
        token_limiter = TokenLimiter(1000)
        token_limiter.pause(30)
        pipeline = Pipeline(retrier=retrier(total_timeout=0.01), token_limiter=token_limiter)
        with pytest.raises(REJECTIONS, match="no room for"):
            run(pipeline, ending_in("never called"), tokens=10)


class TestTokens:
    """Each attempt reserves its estimate; what is known to be used replaces it."""

    ESTIMATE = 100

    @pytest.mark.parametrize(
        ("result", "booked"),
        [
            (with_usage(SimpleNamespace(total_tokens=40)), 40),
            ({"usage": {"total_tokens": 40}}, 40),
            (SimpleNamespace(data=with_usage({"total_tokens": 40})), 40),  # an event
            (SimpleNamespace(usage_metadata={"total_tokens": 40}), 40),  # of langchain
            (with_usage(SimpleNamespace(input_tokens=30, output_tokens=10)), 40),
            (with_usage({"total_tokens": -4}), 0),
            (with_usage({"total_tokens": None}), ESTIMATE),
            (with_usage({"input_tokens": None, "output_tokens": 10}), ESTIMATE),
            (with_usage({"total_tokens": "40"}), ESTIMATE),
            (with_usage("40 tokens"), ESTIMATE),
            (with_usage(None), ESTIMATE),
        ],
        ids=str,
    )
    def test_usage(self, result: Any, booked: int) -> None:
        limiter = TokenLimiter(1000)
        Pipeline(token_limiter=limiter).call(ending_in(result), tokens=self.ESTIMATE)
        assert limiter.available == 1000 - booked

    def test_a_result_stays_a_success_if_its_usage_cannot_be_read(self, run: Run) -> None:
        class Result:
            @property
            def usage(self) -> Any:
                raise RuntimeError("not loaded")

        result = Result()
        limiter = TokenLimiter(1000)
        pipeline = Pipeline(token_limiter=limiter)
        assert run(pipeline, ending_in(result), tokens=self.ESTIMATE) is result
        assert limiter.available == 1000 - self.ESTIMATE

    def test_no_estimate(self, run: Run) -> None:
        limiter = TokenLimiter(1000)
        run(Pipeline(token_limiter=limiter), ending_in("result"))
        assert limiter.available == 1000

    def test_the_operation_knows_better(self, run: Run) -> None:
        def operation(attempt: Attempt) -> Any:
            attempt.settle(7)
            attempt.settle(8)
            return with_usage({"total_tokens": 40})

        limiter = TokenLimiter(1000)
        run(Pipeline(token_limiter=limiter), operation, tokens=self.ESTIMATE)
        assert limiter.available == 1000 - 7

    @pytest.mark.parametrize(
        ("error", "booked"),
        [
            (foreign(400), 0),
            (foreign(503), 0),
            (foreign(408), ESTIMATE),  # the server may have done the work all the same
            (foreign(504), ESTIMATE),
            (foreign(524), ESTIMATE),
            (InvalidRequestError("messages must be a list"), 0),
            (APITimeoutError("too late"), ESTIMATE),
            (APIResponseValidationError("truncated"), ESTIMATE),
            (APIStreamBrokenError("broke off", "Hel"), ESTIMATE),
            (ValueError("a bug in the operation"), ESTIMATE),
        ],
        ids=str,
    )
    def test_failure(self, error: Exception, booked: int) -> None:
        """A rejected call used no tokens; one without a response may have used all of them."""
        limiter = TokenLimiter(1000)
        with pytest.raises(type(error)):
            Pipeline(token_limiter=limiter).call(ending_in(error), tokens=self.ESTIMATE)
        assert limiter.available == 1000 - booked

    def test_each_attempt_has_its_own(self, run: Run, clock: FakeClock) -> None:
        limiter = TokenLimiter(1000)
        operation = ending_in(APITimeoutError("late"), down(), with_usage({"total_tokens": 40}))
        run(Pipeline(retrier=retrier(), token_limiter=limiter), operation, tokens=self.ESTIMATE)
        assert limiter.available == 1000 - self.ESTIMATE - 40


class TestLog:
    def test_one_line_per_call(self, run: Run, log: Path, clock: FakeClock) -> None:
        pipeline = Pipeline(retrier=retrier(), logger=ErrorLogger(log))
        context = {"user": "ada"}
        run(pipeline, ending_in("result"), name="embedding", context=context)
        assert context == {"user": "ada"}, "it was copied"
        run(pipeline, ending_in(down(), down(), "result"), name="chat")
        with pytest.raises(AuthenticationError):
            run(pipeline, ending_in(AuthenticationError(401, "Invalid API Key")), name="chat")
        lines = lines_in(log)
        assert [(line["type"], line["success"]) for line in lines] == [
            ("embedding", True), ("chat", True), ("chat", False)
        ]  # fmt: skip
        assert [line["context"]["attempts"] for line in lines] == [1, 3, 1]
        assert lines[0]["context"] == {"user": "ada", "attempts": 1}
        assert lines[2]["error"]["class"] == "AuthenticationError"


class TestInterruption:
    """Ctrl-C and cancellation pass through, wherever they strike, and leave nothing behind."""

    def test_ctrl_c(self, run: Run, log: Path, clock: FakeClock) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1)
        pipeline = Pipeline(breaker=breaker, logger=ErrorLogger(log))
        fail(breaker)
        clock.now += 60  # the next call is the probe
        with pytest.raises(KeyboardInterrupt):
            run(pipeline, ending_in(KeyboardInterrupt()))
        assert run(pipeline, ending_in("result")) == "result"
        assert breaker.state == "closed"
        assert len(lines_in(log)) == 1, "the interrupted call has no line"

    def test_ctrl_c_while_it_waits_for_a_slot_costs_no_tokens(self, run: Run) -> None:
        class Limiter(RateLimiter):
            def acquire(self, *_: Any, **__: Any) -> float:
                raise KeyboardInterrupt

            async def acquire_async(self, *_: Any, **__: Any) -> float:
                raise KeyboardInterrupt

        tokens = TokenLimiter(1000)
        with pytest.raises(KeyboardInterrupt):
            run(Pipeline(limiter=Limiter(), token_limiter=tokens), ending_in(), tokens=10)
        assert tokens.available == 1000

    @pytest.mark.parametrize("form", ["call", "stream"])
    def test_ctrl_c_anywhere(self, form: str) -> None:
        breaker = CircuitBreaker("api", failure_threshold=1, recovery_timeout=0)
        limiter, token_limiter = RateLimiter(10**9), TokenLimiter(10**9)
        pipeline = Pipeline(breaker=breaker, limiter=limiter, token_limiter=token_limiter)

        def probe() -> None:
            if form == "call":
                pipeline.call(ending_in("result"), tokens=1)
            else:
                list(pipeline.stream(ending_in(["a"]), tokens=1))

        fail(breaker)
        for _ in interrupt_everywhere(probe):
            assert breaker.call(lambda: "result") == "result"
            limiter.acquire(timeout=1)
            token_limiter.reserve(1, timeout=1)
            fail(breaker)

    @pytest.mark.parametrize("form", ["call_async", "stream_async"])
    def test_cancelled_anywhere(self, form: str) -> None:
        class BusyLimiter(RateLimiter):
            """A limiter whose callers wait a moment for their slot."""

            async def acquire_async(self, *arguments: Any, **options: Any) -> float:
                for _ in range(3):
                    await asyncio.sleep(0)
                return await super().acquire_async(*arguments, **options)

        class SlowPieces(Pieces):
            async def __aiter__(self) -> AsyncIterator[Any]:
                for piece in self:
                    await asyncio.sleep(0)
                    yield piece

        async def cancelled_after(steps: int) -> bool:
            """Return whether the call was still running after so many steps of the loop."""
            sent: list[SlowPieces] = []

            async def operation(attempt: Attempt) -> SlowPieces:
                sent.append(SlowPieces("a", "b"))
                await asyncio.sleep(0)
                return sent[-1]

            async def one_call() -> None:
                if form == "call_async":
                    await pipeline.call_async(operation, tokens=1)
                    return
                stream = pipeline.stream_async(operation, tokens=1)
                async with contextlib.aclosing(stream):
                    async for _ in stream:
                        await asyncio.sleep(0)

            breaker = CircuitBreaker("api", failure_threshold=1, recovery_timeout=0)
            fail(breaker)
            token_limiter = TokenLimiter(1000)
            pipeline = Pipeline(
                breaker=breaker, limiter=BusyLimiter(10**9), token_limiter=token_limiter
            )
            task = asyncio.create_task(one_call())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert [stream.closed for stream in sent] == [stream.entered for stream in sent]
            assert token_limiter.available == 1000 - len(sent), "an unsent attempt books nothing"
            assert breaker.call(lambda: "result") == "result"
            return task.cancelled()

        async def at_all_points() -> int:
            steps = 0
            while await cancelled_after(steps):
                steps += 1
            return steps

        assert asyncio.run(at_all_points()) >= 5


class TestMemory:
    """The error refers to the call's frames, so nothing of the call may refer to the error."""

    @pytest.mark.parametrize("form", ["call", "call_async", "stream", "stream_async"])
    def test_a_failed_call_is_freed_at_once(self, form: str, clock: FakeClock) -> None:
        class Prompt:
            """Stands for what a call needs."""

        async def one_call(prompt: Prompt) -> None:
            def fail(attempt: Attempt) -> Any:
                assert prompt
                raise down()

            with contextlib.suppress(InternalServerError, CircuitOpenError):
                called = getattr(pipeline, form)(fail)
                if form == "call_async":
                    await called
                elif form == "stream":
                    next(called)
                else:
                    await anext(called)

        async def four_calls() -> None:
            for _ in range(4):  # gives up twice, then opens the circuit, then is rejected
                prompt = Prompt()
                reference = weakref.ref(prompt)
                await one_call(prompt)
                del prompt
                alive.append(reference() is not None)

        alive: list[bool] = []
        breaker = CircuitBreaker("api", failure_threshold=5)
        pipeline = Pipeline(retrier=retrier(2), breaker=breaker)
        gc.collect()
        gc.disable()
        try:
            asyncio.run(four_calls())
        finally:
            gc.enable()
        assert breaker.state == "open"
        assert alive == [False] * 4


class TestStream:
    """All helpers until the first piece; then the stream is committed."""

    def test_pieces(self, read: Run, log: Path) -> None:
        stream = Pieces("a", "b", "c")
        assert read(Pipeline(logger=ErrorLogger(log)), stream) == ["a", "b", "c"]
        assert stream.closed == 1
        (line,) = lines_in(log)
        assert (line["type"], line["success"]) == ("stream", True)

    def test_no_pieces(self, read: Run) -> None:
        assert read(Pipeline(), Pieces()) == []

    def test_nothing_is_opened_before_it_is_read(self) -> None:
        Pipeline().stream(ending_in())
        Pipeline().stream_async(ending_in())

    def test_failures_before_the_first_piece(self, read: Run, clock: FakeClock, log: Path) -> None:
        broken, whole = Pieces(APITimeoutError("late"), "x"), Pieces("a", "b")
        pipeline = Pipeline(retrier=retrier(), logger=ErrorLogger(log))
        assert read(pipeline, down(), broken, whole) == ["a", "b"]
        assert clock.waits == [1, 2]
        assert (broken.closed, whole.closed) == (1, 1)
        assert lines_in(log)[0]["context"] == {"attempts": 3}

    def test_failure_after_the_first_piece(self, read: Run, clock: FakeClock, log: Path) -> None:
        """It is not retried, but it counts against the service, and is logged."""
        breaker = CircuitBreaker("api", failure_threshold=1)
        pipeline = Pipeline(retrier=retrier(), breaker=breaker, logger=ErrorLogger(log))
        error = foreign(503)
        stream = Pieces("a", error)
        with pytest.raises(type(error)) as raised:
            read(pipeline, stream, Pieces("never opened"))
        assert raised.value is error
        assert raised.value.status_code == 503  # type: ignore[attr-defined]
        assert stream.closed == 1
        assert clock.waits == []
        assert breaker.state == "open"
        (line,) = lines_in(log)
        assert (line["success"], line["error"]["class"]) == (False, "HTTPStatusError")

    def test_failure_after_the_circuit_has_opened(self) -> None:
        """The reader gets the stream's own error, not the breaker's."""
        breaker, error = CircuitBreaker("api", failure_threshold=1), down()
        pieces = Pipeline(breaker=breaker).stream(ending_in(Pieces("a", error)))
        assert next(pieces) == "a"
        fail(breaker)
        with pytest.raises(InternalServerError) as raised:
            next(pieces)
        assert raised.value is error

    def test_a_first_piece_is_a_success(self, read: Run, clock: FakeClock) -> None:
        """Else the probe of a half-open circuit would last as long as its reader likes."""
        breaker = CircuitBreaker("api", failure_threshold=1, recovery_timeout=0)
        fail(breaker)
        assert read(Pipeline(breaker=breaker), Pieces("a", "b"), stop_after=1) == ["a"]
        assert breaker.state == "closed"

    def test_reader_stops_early(self, read: Run, log: Path) -> None:
        limiter = TokenLimiter(1000)
        stream = Pieces("a", {"usage": {"total_tokens": 40}}, "c")
        pipeline = Pipeline(token_limiter=limiter, logger=ErrorLogger(log))
        assert read(pipeline, stream, stop_after=1, tokens=100) == ["a"]
        assert stream.closed == 1
        assert limiter.available == 900, "the server may have used them all"
        assert [line["success"] for line in lines_in(log)] == [True]

    @pytest.mark.parametrize(
        ("pieces", "usage", "used"),
        [
            (["a", {"usage": {"total_tokens": 40}}], None, 40),
            ([{"usage": {"total_tokens": 1}}, {"usage": {"total_tokens": 40}}], None, 40),
            (["a", {"usage": {"total_tokens": 1}}], {"total_tokens": 40}, 40),
            (["a", {"usage": {"total_tokens": 40}}, "c"], None, 100),
            ([], {"total_tokens": 40}, 40),
        ],
        ids=["last piece", "counts that grow", "stream", "no usage at the end", "no pieces"],
    )
    def test_usage(self, read: Run, pieces: list[Any], usage: Any, used: int) -> None:
        limiter = TokenLimiter(1000)
        read(Pipeline(token_limiter=limiter), Pieces(*pieces, usage=usage), tokens=100)
        assert limiter.available == 1000 - used

    @pytest.mark.parametrize("stop_after", [1, 9])
    def test_an_iterator_that_can_be_closed_is_closed(self, read: Run, stop_after: int) -> None:
        """A generator is one, but Python would close it by itself in the end."""

        class Reader:
            closed = 0

            def __iter__(self) -> Iterator[str]:
                return iter("ab")

            async def __aiter__(self) -> AsyncIterator[str]:
                for piece in self:
                    yield piece

            def close(self) -> None:
                self.closed += 1

            async def aclose(self) -> None:
                self.closed += 1

        reader = Reader()
        assert read(Pipeline(), reader, stop_after=stop_after) == ["a", "b"][:stop_after]
        assert reader.closed == 1

    def test_context_manager_that_gives_another_object(self, read: Run) -> None:
        """httpx.stream() is one."""
        assert read(Pipeline(), contextlib.nullcontext(Pieces("a", "b"))) == ["a", "b"]

    def test_an_async_function_may_open_it(self) -> None:
        async def open_stream(attempt: Attempt) -> Pieces:
            await asyncio.sleep(0)
            return Pieces("a", "b")

        async def read_async() -> list[str]:
            return [piece async for piece in Pipeline().stream_async(open_stream)]

        assert asyncio.run(read_async()) == ["a", "b"]
