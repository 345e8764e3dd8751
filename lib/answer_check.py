# SPDX-License-Identifier: MIT-0
"""Find out whether a 200 holds an answer: it may be cut off, empty, filtered, or not your JSON.

Copy this file alone: it needs the standard library only. It reads the completions of our client
and of the openai and mistralai SDKs.

    >>> from types import SimpleNamespace
    >>> completion = SimpleNamespace(content="The capital of", finish_reason="length")
    >>> try:
    ...     check_answer(completion)
    ... except TruncatedAnswerError as error:
    ...     print(error)
    the answer was cut off at its token limit: raise max_tokens or ask for a shorter answer

If an answer reaches the API's limit, it is cut off, but the status is 200. It is also 200 if a
content filter withholds the answer. ``finish_reason`` says why the model stopped: "stop" means that
the answer is whole. If you ask for a cut-off answer again, unchanged, it is cut off and billed
again.

JSON that you asked for may be invalid, or may lack a field. The model can often correct it once
it is told what is wrong, so ``json_answer`` asks once more, with the error in the prompt:

    >>> answers = iter(["Here you are: Paris", '{"capital": "Paris"}'])
    >>> def ask(hint):          # add the hint to your prompt; it is "" at first
    ...     return SimpleNamespace(content=next(answers), finish_reason="stop")
    >>> json_answer(ask, lambda value: value["capital"])
    'Paris'

After the finish reasons in the API references of Mistral and OpenAI, and Jason Liu's
instructor library (2023), which put the error into the next prompt.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, NoReturn, TypeVar

C = TypeVar("C")
T = TypeVar("T")

MAX_PROBLEM_LENGTH = 500  # characters


def check_answer(completion: C) -> C:
    """Return the completion if it holds a whole answer. Raise an AnswerError that says why not.

    A completion that calls tools needs no text. Raises TypeError for anything that is not a
    completion.
    """
    answer = _read(completion)
    if answer.finish_reason in FINISH_REASONS:
        raise FINISH_REASONS[answer.finish_reason](answer.text)
    if answer.is_refused:
        raise FilteredAnswerError(answer.text)
    if not answer.text.strip() and not answer.calls_tools:
        raise EmptyAnswerError(answer.text)
    return completion


def json_answer(ask: Callable[[str], Any], check: Callable[[Any], T], *, max_asks: int = 2) -> T:
    """Ask for JSON until it is valid, at most ``max_asks`` times. Return what ``check`` returns.

    ``ask(hint)`` returns a completion. The hint is "" at first. After that it says what was
    wrong: add it to your prompt. ``check(value)`` gets the parsed JSON. It returns the value that
    you want, or raises any exception if the JSON is not what you asked for.

    Raises InvalidAnswerError if the last answer is not valid either. Any other AnswerError is
    raised at once: a cut-off answer is never asked for again unchanged. Raises ValueError for a
    wrong ``max_asks``, and TypeError for an async ``check``.
    """
    _check_arguments(check, max_asks)
    hint, asks = "", 0
    while True:
        completion = ask(hint)
        asks += 1
        try:
            return _parsed(completion, check)
        except InvalidAnswerError as error:
            if asks == max_asks:
                raise
            hint = error.hint


async def json_answer_async(
    ask: Callable[[str], Awaitable[Any]], check: Callable[[Any], T], *, max_asks: int = 2
) -> T:
    """Do what ``json_answer`` does, for an async ``ask``. ``check`` stays a plain function."""
    _check_arguments(check, max_asks)
    hint, asks = "", 0
    while True:
        completion = await ask(hint)
        asks += 1
        try:
            return _parsed(completion, check)
        except InvalidAnswerError as error:
            if asks == max_asks:
                raise
            hint = error.hint


class AnswerError(Exception):
    """The response was a 200, but its answer cannot be used; ``text`` is the part that came.

    This class itself means that the model stopped because of an error of its own.
    """

    retryable = True
    status_code = 200
    message = "the model stopped with an error: ask again"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.message


class EmptyAnswerError(AnswerError):
    """The completion has neither text nor tool calls."""

    message = "the answer is empty: ask again"


class TruncatedAnswerError(AnswerError):
    """The answer was cut off at a token limit. Asked again unchanged, it is cut off again."""

    retryable = False
    message = (
        "the answer was cut off at its token limit: raise max_tokens or ask for a shorter answer"
    )


class FilteredAnswerError(AnswerError):
    """A content filter withheld the answer, or the model refused to give one."""

    retryable = False
    message = "the answer was withheld by a content filter: change the prompt"


# With any other finish reason, the answer is whole.
FINISH_REASONS: dict[str | None, type[AnswerError]] = {
    "length": TruncatedAnswerError,
    "max_tokens": TruncatedAnswerError,
    "model_length": TruncatedAnswerError,  # the model's whole context is used
    "content_filter": FilteredAnswerError,
    "error": AnswerError,
}


class InvalidAnswerError(AnswerError):
    """The answer is not JSON, or not the JSON that was asked for; ``problem`` says why."""

    retryable = False

    def __init__(self, text: str, problem: str) -> None:
        Exception.__init__(self, text, problem)  # all arguments, so that it can be pickled
        self.text = text
        self.problem = problem[:MAX_PROBLEM_LENGTH]

    def __str__(self) -> str:
        return f"the answer is not the JSON that was asked for: {self.problem}"

    @property
    def hint(self) -> str:
        """A sentence for the next prompt, which tells the model what to correct."""
        return (
            f"Your last answer could not be used ({self.problem}). "
            "Answer again, with the corrected JSON and nothing else."
        )


class _Answer(NamedTuple):
    """What the completions of all clients have in common."""

    text: str
    finish_reason: str | None
    calls_tools: bool
    is_refused: bool


def _read(completion: Any) -> _Answer:
    if hasattr(completion, "choices"):  # of an SDK
        choice = (completion.choices or [None])[0]
        message = getattr(choice, "message", None)  # some gateways send a choice without it
    elif hasattr(completion, "content"):  # of our client
        choice = message = completion
    else:
        raise TypeError(f"expected a completion, got {type(completion).__name__}")
    return _Answer(
        _text(getattr(message, "content", None)),
        getattr(choice, "finish_reason", None),
        calls_tools=bool(getattr(message, "tool_calls", None)),
        is_refused=bool(getattr(message, "refusal", None)),
    )


def _text(content: Any) -> str:
    """Return the text of a message: a string, a reasoning model's chunks, or nothing."""
    if isinstance(content, list):
        return "".join(getattr(chunk, "text", None) or "" for chunk in content)
    return content if isinstance(content, str) else ""


def _parsed(completion: Any, check: Callable[[Any], T]) -> T:
    """Return the checked JSON of an answer, or raise InvalidAnswerError."""
    text = _read(check_answer(completion)).text
    # Many models put a code fence around JSON, even if you ask for JSON only.
    plain = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        value = json.loads(plain, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise InvalidAnswerError(text, f"it is not JSON: {error}") from error
    try:
        return check(value)
    except Exception as error:
        raise InvalidAnswerError(text, f"{type(error).__name__}: {error}") from error


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


def _check_arguments(check: Callable[[Any], object], max_asks: int) -> None:
    if any(map(inspect.iscoroutinefunction, (check, type(check).__call__))):
        raise TypeError("check must be a plain function, got an async one: it would never run")
    if type(max_asks) is not int or max_asks < 1:
        raise ValueError(f"max_asks must be an integer >= 1, got {max_asks!r}")
