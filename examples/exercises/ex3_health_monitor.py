"""Exercise 3: a health monitor. Is the API healthy, and how would you know?

Build a monitor that answers from two sides:

- From outside, by asking. `check_health()` asks for the list of models, the usual health
  check: it is cheap, and it says whether anybody is there.
- From inside, by remembering. Your program calls `record(True)` or `record(False)` after
  every call of its own; the error rate is the share of failures in the last
  `window_seconds`. What is older must not count: this morning's trouble is over.

Then see how far a green light can be trusted. With an account whose budget is used up,
the list of models still comes (200), and every chat is refused (402, PaymentRequiredError).
So the monitor has a second, more expensive question: `check_chat()` asks for one token of chat.

A health check is for a dashboard: it tells of trouble, it never raises it.

Write the code between the two marks below, add what you need above, and see how far you are:

    python examples/exercises/check.py 3          (or: make check N=3)
"""

import sys
from pathlib import Path
from typing import Literal, TypedDict

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.client import MistralClient


class Health(TypedDict):
    """What a check found out.

    ``response_time`` is the seconds that the answer took, None where none came or it was
    an error. ``error_rate`` is failed calls / all calls (0.0 to 1.0) in the window, None
    where the window holds none: to know nothing is not the same as to know of no errors.
    """

    api_status: Literal["up", "degraded", "down"]
    response_time: float | None
    error_rate: float | None


class HealthMonitor:
    """Watches one API; safe for threads. ``window_seconds``: how long a call is remembered."""

    def __init__(self, client: MistralClient, window_seconds: float = 60.0) -> None:
        self._client = client
        self._window_seconds = window_seconds
        # TODO: yours from here

    def record(self, success: bool) -> None:
        """Remember how a call of the program ended, and when (by ``time.monotonic()``)."""
        raise NotImplementedError

    def check_health(self) -> Health:
        """Ask for the models: "up" if they come, "down" if anything goes wrong.

        Raises no MistralError. A check is no call of the program: it isn't recorded.
        """
        raise NotImplementedError

    def check_chat(self) -> Health:
        """``check_health``; and if that is "up", a chat with ``max_tokens=1``.

        "up" if the chat works, "degraded" if it doesn't; "down", with no chat sent, if not
        even the models come. ``response_time`` is then the chat's. Raises no MistralError.
        """
        raise NotImplementedError

    # to here


HINTS = (
    "Start with record and the error rate: keep (moment, success) pairs in the order in which "
    "they come. The oldest stand at one end; which class of `collections` is quick at both "
    "ends? Then look at the two checks: how much of the work do they have in common?",
    "A deque and a Lock. When you record, and again when you count, drop pairs from the left "
    "while they are older than now - window_seconds. Both checks make a call, take the time, "
    "and turn a MistralError into a word: write that once, as a method that is given the call "
    "and the word to use if it fails.",
    "_probe(call, word_if_it_fails): start = time.monotonic(); try call() and on MistralError "
    "the status is the word and the time None; else it is 'up' and time.monotonic() - start. "
    "check_health: self._probe(self._client.models, 'down'). check_chat: return what "
    "check_health says unless it is 'up'; then self._probe(lambda: self._client.chat(messages, "
    "max_tokens=1), 'degraded'). No lock is held while either call runs.",
)
