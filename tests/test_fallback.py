"""lib/fallback.py: which strategies are tried, in which order, and what is an answer."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import traceback
from typing import Any

import pytest

from lib.circuit_breaker import CircuitOpenError
from lib.errors import (
    APIResponseValidationError,
    APIStreamBrokenError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    InvalidRequestError,
    RateLimitError,
    UnprocessableEntityError,
)
from lib.fallback import AllStrategiesFailedError, FallbackHandler, Strategy, is_client_error
from lib.rate_limiter import RateLimitTimeoutError
from support import run_in_threads


def gives(answer: object) -> Strategy:
    return lambda context: answer


def raises(error: BaseException) -> Strategy:
    def strategy(context: dict[str, Any]) -> None:
        raise error

    return strategy


def handler_of(*strategies: Strategy, **settings: Any) -> FallbackHandler:
    """The strategies as "first", "second", ... in this order."""
    handler = FallbackHandler(**settings)
    for name, strategy in zip(("first", "second", "third", "fourth"), strategies, strict=False):
        handler.add_strategy(name, strategy)
    return handler


def must_not_be_asked(context: dict[str, Any]) -> None:
    pytest.fail("there was an answer already")


def test_the_first_answer_ends_the_search() -> None:
    assert handler_of(gives("answer"), must_not_be_asked).execute() == "answer"


@pytest.mark.parametrize("order", list(itertools.permutations([10, 0, -5, 2.5])))
def test_the_highest_priority_goes_first(order: tuple[float, ...]) -> None:
    handler, asked = FallbackHandler(), list[float]()

    def strategy(priority: float) -> Strategy:
        return lambda context: asked.append(priority)

    for priority in order:
        handler.add_strategy(f"p{priority}", strategy(priority), priority)
    with pytest.raises(AllStrategiesFailedError):
        handler.execute()
    assert asked == [10, 2.5, 0, -5]


def test_of_equal_priorities_the_one_added_first_goes_first() -> None:
    handler, asked = FallbackHandler(), list[str]()

    def strategy(name: str) -> Strategy:
        return lambda context: asked.append(name)

    names = [str(number) for number in range(20)]
    random.Random(24).shuffle(names)
    for name in names:
        handler.add_strategy(name, strategy(name), priority=3)
    with pytest.raises(AllStrategiesFailedError):
        handler.execute()
    assert asked == names


@pytest.mark.parametrize("answer", [0, 0.0, "", False, [], {}, b""], ids=repr)
def test_whatever_is_not_none_is_an_answer(answer: object) -> None:
    assert handler_of(gives(answer), must_not_be_asked).execute() is answer


def test_none_means_no_answer_go_on() -> None:
    assert handler_of(gives(None), gives("second")).execute() == "second"


def test_an_error_means_go_on() -> None:
    assert handler_of(raises(ConnectionError()), gives("second")).execute() == "second"


def test_every_strategy_gets_the_context() -> None:
    context, seen = {"prompt": "Hello!"}, list[object]()
    with pytest.raises(AllStrategiesFailedError):
        handler_of(seen.append, seen.append).execute(context)
    assert [entry is context for entry in seen] == [True, True]


def test_without_a_context_the_strategies_get_an_empty_one() -> None:
    assert handler_of(lambda context: context).execute() == {}


def test_an_empty_context_is_still_the_callers_own() -> None:
    context: dict[str, Any] = {}
    assert handler_of(lambda given: given).execute(context) is context


def test_when_all_failed_every_cause_is_kept_by_name() -> None:
    first, third = ConnectionError("down"), TimeoutError("slow")
    with pytest.raises(AllStrategiesFailedError) as raised:
        handler_of(raises(first), gives(None), raises(third)).execute()
    assert raised.value.errors == {"first": first, "third": third}
    assert raised.value.__cause__ is third
    assert str(raised.value) == "All fallback strategies failed: first: down; third: slow"


def test_the_causes_tracebacks_lead_to_where_they_were_raised() -> None:
    with pytest.raises(AllStrategiesFailedError) as raised:
        handler_of(raises(ConnectionError()), raises(TimeoutError())).execute()
    for cause in raised.value.errors.values():
        assert traceback.extract_tb(cause.__traceback__)[-1].name == "strategy"
        assert cause.__context__ is None  # they have nothing to do with one another


@pytest.mark.parametrize("strategies", [[], [gives(None)]], ids=["no strategies", "no answers"])
def test_no_answer_and_no_error_is_a_failure_too(strategies: list[Strategy]) -> None:
    with pytest.raises(AllStrategiesFailedError, match="none gave an answer") as raised:
        handler_of(*strategies).execute()
    assert raised.value.errors == {}


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_ctrl_c_passes_through(leaving: type[BaseException]) -> None:
    error = leaving()
    handler = handler_of(raises(error), must_not_be_asked, stop_on=lambda error: False)
    with pytest.raises(leaving) as raised:
        handler.execute()
    assert raised.value is error


@pytest.mark.parametrize(
    "mistake",
    [AuthenticationError(401, "Invalid API Key"), UnprocessableEntityError(422, "Field required")],
    ids=str,
)
def test_a_mistake_of_the_callers_is_not_hidden_by_a_fallback(mistake: Exception) -> None:
    with pytest.raises(type(mistake)) as raised:
        handler_of(raises(mistake), must_not_be_asked).execute()
    assert raised.value is mistake


@pytest.mark.parametrize(
    "trouble", [InternalServerError(503, "down"), ConnectionError(), ValueError()], ids=repr
)
def test_an_error_that_is_not_marked_as_the_callers_falls_on(trouble: Exception) -> None:
    assert handler_of(raises(trouble), gives("second")).execute() == "second"


def test_the_predicate_decides_what_ends_the_fall() -> None:
    handler = handler_of(
        raises(AuthenticationError(401, "Invalid API Key")),
        raises(ValueError("stop here")),
        must_not_be_asked,
        stop_on=lambda error: isinstance(error, ValueError),
    )
    with pytest.raises(ValueError, match="stop here"):
        handler.execute()


def test_failures_are_warnings_and_the_answer_is_a_note(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lib.fallback")
    handler_of(raises(ConnectionError("down")), gives("second")).execute()
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "Fallback strategy 'first' failed: down"),
        ("INFO", "Fallback strategy 'second' succeeded"),
    ]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    handler_of(gives(1)).execute()
    assert capfd.readouterr() == ("", "")


def test_a_name_that_is_taken_is_refused() -> None:
    handler = handler_of(gives("answer"))
    with pytest.raises(ValueError, match="first"):
        handler.add_strategy("first", must_not_be_asked, priority=100)
    assert handler.execute() == "answer"


def test_a_priority_that_is_not_a_number_is_refused() -> None:
    handler = handler_of(gives("answer"))
    with pytest.raises(ValueError, match="priority"):
        handler.add_strategy("second", must_not_be_asked, priority=float("nan"))
    assert handler.execute() == "answer"


def test_a_strategy_may_add_another_for_the_next_time() -> None:
    handler = FallbackHandler()

    def learn(context: dict[str, Any]) -> None:
        handler.add_strategy("learnt", gives("learnt"), priority=5)

    handler.add_strategy("learn", learn, priority=1)
    with pytest.raises(AllStrategiesFailedError):
        handler.execute()
    assert handler.execute() == "learnt"


def test_threads_may_add_and_execute_at_once() -> None:
    handler, numbers, asked = handler_of(gives("answer")), itertools.count(), list[str]()

    def strategy(name: str) -> Strategy:
        return lambda context: asked.append(name)

    def add_and_execute() -> list[object]:
        answers = []
        for _ in range(5):
            name = f"extra {next(numbers)}"
            handler.add_strategy(name, strategy(name), priority=1)
            answers.append(handler.execute())
        return answers

    assert run_in_threads(4, add_and_execute, interleaved=True) == [["answer"] * 5] * 4
    asked.clear()
    handler.execute()
    assert sorted(asked) == sorted(f"extra {number}" for number in range(20))  # none was lost


def test_one_handler_keeps_the_errors_of_each_call_apart() -> None:
    handler = handler_of(lambda context: 1 // context["divisor"])
    for _ in range(3):
        with pytest.raises(AllStrategiesFailedError) as raised:
            handler.execute({"divisor": 0})
        assert len(raised.value.errors) == 1
        assert len(traceback.extract_tb(raised.value.__traceback__)) == 2
    assert handler.execute({"divisor": 1}) == 1


class TestAsync:
    """The same rules, awaited; strategies may be a mix of plain and async functions."""

    @staticmethod
    async def failing(context: dict[str, Any]) -> None:
        raise ConnectionError("down")

    @staticmethod
    async def answering(context: dict[str, Any]) -> str:
        await asyncio.sleep(0)
        return f"{context['prompt']} answer"

    @pytest.mark.parametrize("last", ["async", "plain"])
    def test_plain_and_async_strategies_mix(self, last: str) -> None:
        handler = FallbackHandler()
        handler.add_strategy("async", self.failing, priority=3)
        handler.add_strategy("none", lambda context: None, priority=2)
        plain = lambda context: f"{context['prompt']} answer"  # noqa: E731
        handler.add_strategy("last", self.answering if last == "async" else plain)
        assert asyncio.run(handler.execute_async({"prompt": "my"})) == "my answer"

    def test_all_failed(self) -> None:
        handler = FallbackHandler()
        handler.add_strategy("async", self.failing)
        with pytest.raises(AllStrategiesFailedError) as failed:
            asyncio.run(handler.execute_async())
        assert isinstance(failed.value.errors["async"], ConnectionError)
        assert failed.value.__cause__ is failed.value.errors["async"]

    def test_a_client_error_ends_the_search(self) -> None:
        async def wrong_key(context: dict[str, Any]) -> None:
            raise AuthenticationError(401, "Unauthorized")

        handler = FallbackHandler()
        handler.add_strategy("api", wrong_key, priority=1)
        handler.add_strategy("apology", self.answering)
        with pytest.raises(AuthenticationError):
            asyncio.run(handler.execute_async())

    def test_a_cancelled_task_tries_no_further_strategy(self) -> None:
        async def main() -> None:
            tried: list[str] = []

            async def hang(context: dict[str, Any]) -> None:
                tried.append("hang")
                await asyncio.sleep(60)

            handler = FallbackHandler()
            handler.add_strategy("hang", hang, priority=1)
            handler.add_strategy("next", lambda context: tried.append("next"))
            task = asyncio.create_task(handler.execute_async())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert tried == ["hang"]
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())

    def test_execute_rejects_an_async_strategy(self) -> None:
        """Otherwise an un-awaited coroutine would be taken for an answer."""
        handler = FallbackHandler()
        handler.add_strategy("async", self.answering)
        with pytest.raises(TypeError, match="use execute_async"):
            handler.execute()


class TestClientError:
    """One predicate says what is the caller's mistake, which a fallback would only hide."""

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (AuthenticationError(401, ""), True),
            (BadRequestError(400, ""), True),
            (InvalidRequestError(""), True),
            (RateLimitError(429, ""), False),
            (InternalServerError(503, ""), False),
            (APIResponseValidationError(""), False),
            (APIStreamBrokenError("", ""), False),
            (RateLimitTimeoutError(), False),
            (CircuitOpenError("api", 1), False),
            (ValueError(), False),
        ],
        ids=repr,
    )
    def test_client_error(self, error: Exception, expected: bool) -> None:
        assert is_client_error(error) is expected
