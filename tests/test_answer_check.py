"""lib/answer_check.py: a 200 is not yet an answer."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lib.answer_check import (
    AnswerError,
    EmptyAnswerError,
    FilteredAnswerError,
    InvalidAnswerError,
    TruncatedAnswerError,
    check_answer,
    json_answer,
    json_answer_async,
)

Shape = Callable[..., Any]


def ours(text: Any, finish_reason: str | None = "stop", **fields: Any) -> Any:
    """Return a completion of lib/client.py."""
    return SimpleNamespace(content=text or "", finish_reason=finish_reason, **fields)


def of_an_sdk(text: Any, finish_reason: str | None = "stop", **fields: Any) -> Any:
    """Return a completion of the openai or the mistralai SDK."""
    message = SimpleNamespace(content=text, **fields)
    return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason=finish_reason)])


both_shapes = pytest.mark.parametrize("shape", [ours, of_an_sdk])


@both_shapes
class TestWholeAnswer:
    def test_a_whole_answer_is_returned_as_it_is(self, shape: Shape) -> None:
        completion = shape("Paris")
        assert check_answer(completion) is completion

    def test_a_server_that_gives_no_finish_reason_is_believed(self, shape: Shape) -> None:
        assert check_answer(shape("Paris", None))

    def test_tool_calls_need_no_text(self, shape: Shape) -> None:
        assert check_answer(shape(None, "tool_calls", tool_calls=[object()]))


@both_shapes
class TestUnusableAnswer:
    @pytest.mark.parametrize(
        ("text", "finish_reason", "error", "retryable", "advice"),
        [
            ("The cap", "length", TruncatedAnswerError, False, "ask for a shorter answer"),
            ("The cap", "model_length", TruncatedAnswerError, False, "raise max_tokens"),
            ("The cap", "max_tokens", TruncatedAnswerError, False, "raise max_tokens"),
            ("", "length", TruncatedAnswerError, False, "raise max_tokens"),  # it only thought
            ("", "content_filter", FilteredAnswerError, False, "change the prompt"),
            ("The cap", "error", AnswerError, True, "ask again"),
            (" \n", "stop", EmptyAnswerError, True, "ask again"),
            (None, None, EmptyAnswerError, True, "ask again"),
        ],
    )
    def test_each_kind_has_its_error(
        self, shape: Shape, text: Any, finish_reason: Any, error: type[AnswerError],
        retryable: bool, advice: str,
    ) -> None:  # fmt: skip
        with pytest.raises(AnswerError, match=advice) as raised:
            check_answer(shape(text, finish_reason))
        assert type(raised.value) is error
        assert raised.value.retryable is retryable
        assert raised.value.text == (text or "")

    def test_a_cut_off_tool_call_is_cut_off(self, shape: Shape) -> None:
        with pytest.raises(TruncatedAnswerError):
            check_answer(shape("", "length", tool_calls=[object()]))


class TestShapesOfSdks:
    def test_a_refusal_is_a_filtered_answer(self) -> None:
        with pytest.raises(FilteredAnswerError):
            check_answer(of_an_sdk(None, refusal="I can't help with that."))

    def test_no_choices_or_no_message_is_an_empty_answer(self) -> None:
        no_message = SimpleNamespace(message=None, finish_reason=None)
        for choices in ([], None, [no_message], [SimpleNamespace()]):
            with pytest.raises(EmptyAnswerError):
                check_answer(SimpleNamespace(choices=choices))

    def test_chunks_of_a_reasoning_model_are_one_text(self) -> None:
        thinking = SimpleNamespace(type="thinking", thinking=["hm"])
        chunks = [thinking, SimpleNamespace(type="text", text="Paris")]
        assert check_answer(of_an_sdk(chunks))
        with pytest.raises(EmptyAnswerError):
            check_answer(of_an_sdk([thinking]))

    def test_what_is_no_completion_is_named(self) -> None:
        with pytest.raises(TypeError, match="expected a completion, got str"):
            check_answer("Paris")


class Model:
    """Answers with the given completions in order, and remembers the hints."""

    def __init__(self, *completions: Any) -> None:
        self.hints: list[str] = []
        self._completions = iter(completions)

    def ask(self, hint: str) -> Any:
        self.hints.append(hint)
        return next(self._completions)

    async def ask_async(self, hint: str) -> Any:
        return self.ask(hint)


Ask = Callable[..., Any]


@pytest.fixture(params=["plain", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Ask a model for JSON: once with ``json_answer``, once with ``json_answer_async``."""

    def plain(model: Model, check: Any, **options: Any) -> Any:
        return json_answer(model.ask, check, **options)

    def awaited(model: Model, check: Any, **options: Any) -> Any:
        return asyncio.run(json_answer_async(model.ask_async, check, **options))

    return plain if request.param == "plain" else awaited


def capital(value: Any) -> str:
    return str(value["capital"])


GOOD = ours('{"capital": "Paris"}')


class TestJsonAnswer:
    def test_valid_json_is_asked_for_once(self, ask: Ask) -> None:
        model = Model(GOOD)
        assert ask(model, capital) == "Paris"
        assert model.hints == [""]

    def test_a_code_fence_is_no_error(self, ask: Ask) -> None:
        for fence in ("```json\n{}\n```", "```\n{}\n```", " {}\n"):
            assert ask(Model(ours(fence)), dict) == {}

    @pytest.mark.parametrize(
        ("bad", "problem"),
        [
            ("Here you are: Paris", "it is not JSON: Expecting value"),
            ('{"capital": "Par', "it is not JSON: Unterminated string"),
            ('{"capital": NaN}', "NaN is not a JSON value"),
            ("[" * 100_000, "it is not JSON"),
            ('{"city": "Paris"}', "KeyError: 'capital'"),
            ("3", "TypeError"),
        ],
    )
    def test_the_second_ask_says_what_was_wrong(self, ask: Ask, bad: str, problem: str) -> None:
        model = Model(ours(bad), GOOD)
        assert ask(model, capital) == "Paris"
        assert model.hints[0] == ""
        assert problem in model.hints[1]

    @pytest.mark.parametrize("max_asks", [1, 2])
    def test_it_gives_up_after_max_asks(self, ask: Ask, max_asks: int) -> None:
        model = Model(ours("a"), ours("b"), ours("c"))
        with pytest.raises(InvalidAnswerError) as raised:
            ask(model, capital, max_asks=max_asks)
        assert raised.value.text == "ab"[max_asks - 1]
        assert raised.value.retryable is False
        assert len(model.hints) == max_asks

    def test_what_would_be_the_same_again_is_never_asked_again(self, ask: Ask) -> None:
        for finish_reason in ("length", "content_filter"):
            model = Model(ours('{"capital": "Par', finish_reason))
            with pytest.raises(AnswerError):
                ask(model, capital)
            assert model.hints == [""]

    def test_a_long_error_is_shortened_in_the_prompt(self, ask: Ask) -> None:
        def check(value: Any) -> str:
            raise ValueError("x" * 100_000)

        model = Model(ours("{}"), ours("{}"))
        with pytest.raises(InvalidAnswerError):
            ask(model, check)
        assert len(model.hints[1]) < 1000

    def test_a_wrong_max_asks_is_named(self, ask: Ask) -> None:
        for wrong in (0, 1.5, None):
            with pytest.raises(ValueError, match=f"max_asks must be an integer >= 1, got {wrong}"):
                ask(Model(), capital, max_asks=wrong)

    def test_an_async_check_would_never_run(self, ask: Ask) -> None:
        class AsyncCheck:
            async def __call__(self, value: Any) -> Any: ...

        async def check(value: Any) -> Any: ...

        for function in (check, AsyncCheck()):
            with pytest.raises(TypeError, match="check must be a plain function, got an async one"):
                ask(Model(), function)


def test_the_errors_survive_pickling() -> None:
    for error in (TruncatedAnswerError("half"), InvalidAnswerError("half", "no JSON")):
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), copy.text) == (str(error), "half")
