"""Answers: the answer in a 200 can be cut off, empty, filtered, or not the JSON you asked for.

    python examples/answers.py --trace
    python examples/answers.py --faults 'empty*'       # every answer is empty
    python examples/answers.py --faults 'ok,length*'   # every further answer is cut off

The server responds with 200 to each of these requests, so no error handling of the other lessons
notices anything. `check_answer` looks at the finish reason and at the text. What to do differs:

- Empty: ask again. This is the only case in which the same request can help.
- Cut off: allow more tokens, or ask for a shorter answer. The same request is cut off again, and
  billed again.
- Filtered: change the prompt.
- Wrong JSON: ask once more, with the error in the prompt. Then give up.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import run_lesson
from lib.answer_check import AnswerError, TruncatedAnswerError, check_answer, json_answer
from lib.client import ChatCompletion, MistralClient
from lib.retry import Retrier

JSON_PROMPT = 'Describe Paris as JSON: {"country": ..., "population": ...}'

retrier = Retrier(base_delay=0.1)


def main(client: MistralClient) -> None:
    print("=== A 200 is not yet an answer ===\n")
    show("A whole answer", lambda: ask(client, "Hello!").content)
    show("A cut-off answer", lambda: ask_for_more(client))
    show("An empty answer", lambda: ask(client, "Hello!").content)
    show("A filtered answer", lambda: ask(client, "Hello!").content)
    show("JSON", lambda: f"{ask_for_population(client):,} people")
    print()


def ask(client: MistralClient, prompt: str, max_tokens: int = 100) -> ChatCompletion:
    """Return a completion that holds an answer. A Retrier asks again after an empty one."""
    messages = [{"role": "user", "content": prompt}]
    return retrier.call(lambda: check_answer(client.chat(messages, max_tokens=max_tokens)))


def ask_for_more(client: MistralClient) -> str:
    """Allow more tokens if the answer is cut off. The same request would be cut off again."""
    try:
        return ask(client, "Hello!", max_tokens=5).content
    except TruncatedAnswerError as error:
        print(f"(cut off after {error.text!r}, allowing more) ", end="")
        return ask(client, "Hello!", max_tokens=100).content


def ask_for_population(client: MistralClient) -> int:
    """Ask for JSON; if a field is missing, ask once more and say so in the prompt."""

    def ask_with(hint: str) -> ChatCompletion:
        if hint:
            print("(not usable, asking once more) ", end="")
        return ask(client, f"{JSON_PROMPT}\n{hint}")

    return json_answer(ask_with, check=lambda city: int(city["population"]))


def show(title: str, action: Callable[[], str]) -> None:
    print(f"{title}: ", end="", flush=True)
    try:
        print(action())
    except AnswerError as error:
        print(f"✗ {error}")


def reply(body: dict[str, Any]) -> str | None:
    """Answer like a model that forgets a field, and adds it when the prompt says so."""
    prompt = str(body["messages"][-1]["content"])
    if not prompt.startswith(JSON_PROMPT):
        return None  # the mock server's usual answer
    if "population" in prompt.removeprefix(JSON_PROMPT):
        return '{"country": "France", "population": 2100000}'
    return '{"country": "France"}'


if __name__ == "__main__":
    run_lesson(main, faults="ok,ok,ok,empty,ok,filter", replies=reply)
