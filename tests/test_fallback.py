"""lib/fallback.py: which strategies are tried, in which order, and what counts as an answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import math
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lib.circuit_breaker import CircuitOpenError
from lib.errors import APIResponseValidationError, InvalidRequestError, NotFoundError
from lib.fallback import AllStrategiesFailedError, FallbackHandler, Strategy, is_client_error
from lib.rate_limiter import RateLimitTimeoutError
from support import run_in_threads

Execute = Callable[..., Any]


@pytest.fixture(params=["execute", "execute_async"])
def execute(request: pytest.FixtureRequest) -> Execute:
    """Execute a handler: once with ``execute``, once with ``execute_async``."""
    if request.param == "execute":
        return lambda handler, *context: handler.execute(*context)
    return lambda handler, *context: asyncio.run(handler.execute_async(*context))


class StatusError(Exception):
    def __init__(self, status_code: object) -> None:
        super().__init__(status_code)
        self.status_code = status_code


class ResponseError(Exception):
    """An error as requests and httpx raise it."""

    def __init__(self, status_code: int) -> None:
        super().__init__(status_code)
        self.response = SimpleNamespace(status_code=status_code)


PERMANENT = type("PermanentError", (Exception,), {"retryable": False})()
ANOTHER_MODEL_MAY_HELP = type(
    "UnknownModelError", (Exception,), {"status_code": 404, "another_model_may_help": True}
)()


def generator(context: dict[str, Any]) -> Iterator[str]:
    yield "first"
    yield "second"


async def async_generator(context: dict[str, Any]) -> AsyncIterator[str]:
    yield "first"


def gives(answer: object) -> Strategy:
    return lambda context: answer


def raises(error: BaseException) -> Strategy:
    def strategy(context: dict[str, Any]) -> None:
        raise error

    return strategy


def must_not_be_tried(context: dict[str, Any]) -> None:
    pytest.fail("no further strategy should have been tried")


def handler_of(*strategies: Strategy, **settings: Any) -> FallbackHandler:
    """The strategies as "first", "second", ... in this order."""
    handler = FallbackHandler(**settings)
    for name, strategy in zip(("first", "second", "third", "fourth"), strategies, strict=False):
        handler.add_strategy(name, strategy)
    return handler


class TestPriority:
    def test_the_highest_goes_first_and_of_equal_ones_the_first(self, execute: Execute) -> None:
        priorities = {"a": 0, "b": 10, "c": -5, "d": 10, "e": 2.5, "f": 0}
        handler, tried = FallbackHandler(), list[str]()

        def strategy(name: str) -> Strategy:
            return lambda context: tried.append(name)

        for name, priority in priorities.items():
            handler.add_strategy(name, strategy(name), priority)
        handler.add_strategy("default", strategy("default"))
        with pytest.raises(AllStrategiesFailedError):
            execute(handler)
        assert tried == ["b", "d", "e", "a", "f", "default", "c"]


class TestAnswer:
    @pytest.mark.parametrize("answer", [0, "", False], ids=repr)
    def test_neither_an_error_nor_none_is_one_but_anything_else_is(
        self, execute: Execute, answer: object
    ) -> None:
        failing = raises(ConnectionError())
        handler = handler_of(failing, gives(None), gives(answer), must_not_be_tried)
        assert execute(handler) is answer

    def test_plain_and_async_strategies_mix(self) -> None:
        async def fail(context: dict[str, Any]) -> None:
            raise ConnectionError

        async def answer(context: dict[str, Any]) -> str:
            await asyncio.sleep(0)
            return "answer"

        handler = handler_of(fail, gives(None), answer)
        assert asyncio.run(handler.execute_async()) == "answer"

    def test_execute_rejects_an_async_strategy(self) -> None:
        """Otherwise a coroutine that was never awaited would be taken for an answer."""

        async def never_awaited(context: dict[str, Any]) -> str:
            return "answer"

        with pytest.raises(TypeError, match="'first' returned an awaitable: use execute_async"):
            handler_of(never_awaited).execute()

    @pytest.mark.parametrize("strategy", [generator, async_generator])
    def test_a_generator_that_has_not_run_is_no_answer(
        self, strategy: Any, execute: Execute
    ) -> None:
        """Otherwise an error that it raises would reach the reader, and not this handler."""
        with pytest.raises(TypeError, match="'first' returned a generator, which has not run"):
            execute(handler_of(strategy, must_not_be_tried))

    def test_a_generator_that_has_started_is_an_answer(self, execute: Execute) -> None:
        pieces = generator({})
        next(pieces)
        assert list(execute(handler_of(gives(pieces)))) == ["second"]


class TestContext:
    def test_every_strategy_gets_the_callers_own_context(self, execute: Execute) -> None:
        context: dict[str, Any] = {}
        seen: list[object] = []
        with pytest.raises(AllStrategiesFailedError):
            execute(handler_of(seen.append, seen.append), context)
        assert [each is context for each in seen] == [True, True]

    def test_without_one_the_strategies_get_an_empty_one(self, execute: Execute) -> None:
        assert execute(handler_of(lambda context: context)) == {}


class TestAllStrategiesFailedError:
    def test_it_keeps_every_error_by_name_with_its_traceback(self, execute: Execute) -> None:
        first, third = ConnectionError("down"), TimeoutError("slow")
        with pytest.raises(AllStrategiesFailedError) as raised:
            execute(handler_of(raises(first), gives(None), raises(third)))
        assert raised.value.errors == {"first": first, "third": third}
        assert raised.value.__cause__ is third
        assert str(raised.value) == "All fallback strategies failed: first: down; third: slow"
        for error in (first, third):
            assert traceback.extract_tb(error.__traceback__)[-1].name == "strategy"
            assert error.__context__ is None  # neither caused the other

    def test_it_is_raised_without_any_error_too(self, execute: Execute) -> None:
        for handler in (FallbackHandler(), handler_of(gives(None))):
            with pytest.raises(AllStrategiesFailedError, match="none gave an answer") as raised:
                execute(handler)
            assert raised.value.errors == {}

    def test_each_one_is_new(self) -> None:
        handler = handler_of(lambda context: 1 // context["divisor"])
        for _ in range(2):
            with pytest.raises(AllStrategiesFailedError) as raised:
                handler.execute({"divisor": 0})
            assert list(raised.value.errors) == ["first"]
        assert handler.execute({"divisor": 1}) == 1


class TestStopOn:
    def test_a_client_error_is_raised_as_it_is(self, execute: Execute) -> None:
        error = StatusError(401)
        with pytest.raises(StatusError) as raised:
            execute(handler_of(raises(error), must_not_be_tried))
        assert raised.value is error

    def test_it_decides_which_errors_end_the_search(self, execute: Execute) -> None:
        handler = handler_of(
            raises(StatusError(401)),
            raises(ValueError("stop here")),
            must_not_be_tried,
            stop_on=lambda error: isinstance(error, ValueError),
        )
        with pytest.raises(ValueError, match="stop here"):
            execute(handler)

    def test_client_errors(self) -> None:
        statuses = map(StatusError, (400, 401, 422, 499))
        errors = [*statuses, ResponseError(401), PERMANENT, InvalidRequestError("")]
        assert [error for error in errors if not is_client_error(error)] == []

    def test_errors_that_are_not_client_errors(self) -> None:
        errors = [
            *map(StatusError, (399, 408, 409, 429, 500, "401")),  # a text is not a status
            ResponseError(503),
            ANOTHER_MODEL_MAY_HELP,
            NotFoundError(404, "no such model"),
            ValueError(),
            APIResponseValidationError(""),
            RateLimitTimeoutError(),
            CircuitOpenError("api", 1),
        ]
        assert [error for error in errors if is_client_error(error)] == []


class TestMemory:
    @pytest.mark.parametrize("end", ["an answer", "an error to stop on", "no answer"])
    def test_a_strategy_that_failed_leaves_nothing_behind(self, end: str) -> None:
        class Prompt:
            pass

        def fail(context: dict[str, Any]) -> None:
            raise ConnectionError

        def then(context: dict[str, Any]) -> str | None:
            if end == "an error to stop on":
                raise StatusError(401)
            return "answer" if end == "an answer" else None

        def execute_with_prompt() -> weakref.ref[Prompt]:
            prompt = Prompt()
            with contextlib.suppress(StatusError, AllStrategiesFailedError):
                handler_of(fail, fail, then).execute({"prompt": prompt})
            return weakref.ref(prompt)

        gc.disable()
        try:
            assert execute_with_prompt()() is None
        finally:
            gc.enable()


class TestInterruption:
    def test_ctrl_c_passes_through(self, execute: Execute) -> None:
        strategies = raises(KeyboardInterrupt()), must_not_be_tried
        with pytest.raises(KeyboardInterrupt):
            execute(handler_of(*strategies, stop_on=lambda error: False))

    def test_a_cancelled_task_tries_no_further_strategy(self) -> None:
        async def hang(context: dict[str, Any]) -> None:
            await asyncio.sleep(60)

        async def main() -> None:
            handler = handler_of(hang, must_not_be_tried)
            task = asyncio.create_task(handler.execute_async())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())


class TestLogging:
    def test_failures_are_warnings_and_the_answer_is_info(
        self, execute: Execute, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The status is logged, but not the text, a secret perhaps."""
        caplog.set_level(logging.INFO, logger="lib.fallback")
        errors = ConnectionError("down"), StatusError(503)
        execute(handler_of(*map(raises, errors), gives("answer")))
        execute(handler_of(raises(ResponseError(429)), gives("answer")))
        assert [(record.levelname, record.message) for record in caplog.records] == [
            ("WARNING", "Fallback strategy 'first' failed (ConnectionError)"),
            ("WARNING", "Fallback strategy 'second' failed (StatusError, status 503)"),
            ("INFO", "Fallback strategy 'third' succeeded"),
            ("WARNING", "Fallback strategy 'first' failed (ResponseError, status 429)"),
            ("INFO", "Fallback strategy 'second' succeeded"),
        ]

    def test_an_error_that_has_no_text_is_no_answer(self, execute: Execute) -> None:
        class BrokenError(Exception):
            def __str__(self) -> str:
                raise AttributeError

        assert execute(handler_of(raises(BrokenError()), gives("second"))) == "second"
        with pytest.raises(AllStrategiesFailedError, match="failed: first: BrokenError"):
            execute(handler_of(raises(BrokenError())))


class TestAddStrategy:
    @pytest.mark.parametrize(
        ("name", "priority", "message"),
        [
            ("first", 100, "there is already a strategy named 'first'"),
            ("second", math.nan, "priority must be a number, got nan"),
            ("second", "1", "priority must be a number, got '1'"),
        ],
    )
    def test_a_wrong_argument_adds_nothing(self, name: str, priority: Any, message: str) -> None:
        handler = handler_of(gives("answer"))
        with pytest.raises(ValueError, match=message):
            handler.add_strategy(name, must_not_be_tried, priority)
        assert handler.execute() == "answer"
        assert repr(handler) == "FallbackHandler(strategies=['first'])"

    def test_an_answer_is_no_strategy(self) -> None:
        with pytest.raises(ValueError, match=r"strategy must be a function .*, got 'Hello!'"):
            FallbackHandler().add_strategy("api", "Hello!")  # type: ignore[arg-type]

    def test_a_strategy_may_add_another_one_for_the_next_time(self, execute: Execute) -> None:
        handler = FallbackHandler()

        def learn(context: dict[str, Any]) -> None:
            handler.add_strategy("learnt", gives("learnt"), priority=5)

        handler.add_strategy("learn", learn)
        with pytest.raises(AllStrategiesFailedError):
            execute(handler)
        assert execute(handler) == "learnt"

    def test_threads_that_add_and_execute_lose_no_strategy(self) -> None:
        handler, numbers = handler_of(gives("answer")), itertools.count()

        def add_and_execute() -> list[object]:
            answers = []
            for _ in range(5):
                handler.add_strategy(f"extra {next(numbers)}", gives(None), priority=1)
                answers.append(handler.execute())
            return answers

        assert run_in_threads(4, add_and_execute, interleaved=True) == [["answer"] * 5] * 4
        assert repr(handler).count("extra") == 20
