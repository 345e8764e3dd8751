"""What the policies share: which functions they take, and operations that have not run yet.

Each of their files is copied alone, so each has these checks; test_copying.py keeps them equal.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from conftest import Call
from lib.circuit_breaker import CircuitBreaker
from lib.fallback import FallbackHandler
from lib.retry import Retrier

Make = Callable[..., Any]
Helper = Retrier | CircuitBreaker


def make_breaker(**settings: Any) -> CircuitBreaker:
    return CircuitBreaker("api", **settings)


PREDICATES = [
    (Retrier, "retry_if"),
    (make_breaker, "counts_as_failure"),
    (FallbackHandler, "stop_on"),
]
HOOKS = [
    *((Retrier, name) for name in ("on_attempt", "on_wait", "on_recovery", "on_give_up")),
    (make_breaker, "on_state_change"),
]


@pytest.fixture(params=[Retrier, make_breaker])
def helper(request: pytest.FixtureRequest) -> Any:
    return request.param()


def generator() -> Iterator[str]:
    yield "first"
    yield "second"


async def async_generator() -> AsyncIterator[str]:
    yield "first"


async def never_runs(*arguments: object) -> bool:
    raise AssertionError


class AsyncCallable:
    async def __call__(self, *arguments: object) -> bool:
        raise AssertionError


@pytest.mark.parametrize("make", [Retrier, CircuitBreaker])
def test_all_arguments_but_the_first_are_keyword_only(make: Make) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        make(3, 1)


class TestFunctions:
    @pytest.mark.parametrize(("make", "name"), PREDICATES)
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (TimeoutError, "got the class TimeoutError: use lambda error: isinstance(error, Tim"),
            ((TimeoutError, OSError), "got (<class 'TimeoutError'>, <class 'OSError'>)"),
            (None, "got None"),
        ],
    )
    def test_a_predicate(self, make: Make, name: str, wrong: Any, message: str) -> None:
        expected = re.escape(f"{name} must be a function that takes the error, {message}")
        with pytest.raises(ValueError, match=expected):
            make(**{name: wrong})

    @pytest.mark.parametrize(("make", "name"), HOOKS)
    def test_a_hook(self, make: Make, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be a function, got 'print'"):
            make(**{name: "print"})

    @pytest.mark.parametrize(("make", "name"), [*PREDICATES, *HOOKS])
    def test_an_async_one_would_never_run(self, make: Make, name: str) -> None:
        for function in (never_runs, functools.partial(never_runs, 1), AsyncCallable()):
            with pytest.raises(TypeError, match=f"{name} must be a plain function, got an async"):
                make(**{name: function})


class TestNothingHasRun:
    """An operation that only returns what would do the work is a mistake, not a success."""

    def test_call_rejects_an_awaitable(self, helper: Helper) -> None:
        class Request:
            def __await__(self) -> Any:
                yield

        for operation in (asyncio.Event().wait, Request):
            with pytest.raises(TypeError, match="an awaitable, which has not run: use call_async"):
                helper.call(operation)

    @pytest.mark.parametrize("operation", [generator, async_generator])
    def test_a_generator_is_rejected(self, helper: Helper, operation: Any, call: Call) -> None:
        with pytest.raises(TypeError, match="a generator, which has not run: iterate over it"):
            call(helper, operation)

    def test_a_generator_that_has_started_is_a_result(self, helper: Helper, call: Call) -> None:
        pieces = generator()
        next(pieces)
        assert list(call(helper, lambda: pieces)) == ["second"]

    def test_an_object_that_has_every_attribute_is_a_result(self, helper: Helper) -> None:
        class Proxy:
            def __getattr__(self, name: str) -> str:
                return name

        proxy = Proxy()
        assert helper.call(lambda: proxy) is proxy

    def test_an_async_operation_may_return_an_awaitable(self, helper: Helper) -> None:
        async def main() -> str:
            async def operation() -> asyncio.Task[str]:
                return asyncio.create_task(asyncio.sleep(0, "result"))

            task: asyncio.Task[str] = await helper.call_async(operation)
            return await task

        assert asyncio.run(main()) == "result"


class TestDecorator:
    def test_each_call_goes_through_the_helper(self, helper: Helper) -> None:
        """It shows in that a generator is rejected."""

        def ask(prompt: str) -> Any:
            """Ask."""
            return prompt or generator()

        async def ask_async(prompt: str) -> Any:
            return ask(prompt)

        class Model:
            async def __call__(self, prompt: str) -> Any:
                return ask(prompt)

        decorated = helper(ask)
        assert (decorated.__name__, decorated.__doc__) == ("ask", "Ask.")
        assert decorated("Hello!") == "Hello!"
        with pytest.raises(TypeError, match="has not run"):
            decorated(prompt="")
        for each in (helper(ask_async), helper(Model())):
            assert inspect.iscoroutinefunction(each)
            assert asyncio.run(each("Hello!")) == "Hello!"
            with pytest.raises(TypeError, match="has not run"):
                asyncio.run(each(prompt=""))

    @pytest.mark.parametrize("function", [generator, async_generator])
    def test_a_generator_function_is_rejected(self, helper: Helper, function: Any) -> None:
        for each in (function, functools.partial(function)):
            with pytest.raises(TypeError, match="decorate what it calls"):
                helper(each)
