"""Exercise 3: a health monitor. Is the API healthy, and how do you know?

Build a monitor that finds out in two ways:

- It asks the API. `check_health()` requests the list of models, the usual health check: it is
  cheap, and it shows that the API responds at all.
- It remembers the calls of your program, which calls `record(True)` or `record(False)` after each
  of them. The error rate is the share of failures in the last `window_seconds`. Older calls don't
  count, because they say nothing about the current state.

A list of models does not prove that a chat works. If the account's budget is used up, the list
still arrives (200), but every chat fails (402, PaymentRequiredError). So the monitor has a second,
more expensive check: `check_chat()` sends a chat whose answer is limited to one token.

A dashboard shows the result of a health check, so the check reports the API's errors and never
raises them. While a slow check waits for its response, other threads must be able to record: hold
no lock while you call the API.

When these rules hold, the check shows the stretch part:

- Threads record and check at the same moment, and a busy program records thousands of calls.
- The window is as long as the monitor is told. Nothing depends on the time of day, which may be
  set while the program runs (`time.time()`; `time.monotonic()` never goes back).
- Any failure of the chat means "degraded", whatever its class.
- An error that is not the API's (a bug, Ctrl-C) is not a result: it reaches the caller.

Write your code between the two marks below, add imports above them, and check it:

    make check N=3          (or: python examples/exercises/check.py 3)
"""

import sys
from pathlib import Path
from typing import Literal, TypedDict

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.client import MistralClient


class Health(TypedDict):
    """The result of a check.

    ``response_time`` is how long the response took, in seconds (by ``time.monotonic()``). It is
    None if the request failed. ``error_rate`` is failed calls / all calls in the window (0.0 to
    1.0). It is None if there were no calls: that is not the same as no errors.
    """

    api_status: Literal["up", "degraded", "down"]
    response_time: float | None
    error_rate: float | None


class HealthMonitor:
    """Watch one API, counting the calls of the last ``window_seconds``. Thread-safe."""

    def __init__(self, client: MistralClient, window_seconds: float = 60.0) -> None:
        self._client = client
        self._window_seconds = window_seconds
        # TODO: yours from here

    def record(self, success: bool) -> None:
        """Record whether a call succeeded, and when it ended (``time.monotonic()``)."""
        raise NotImplementedError

    def check_health(self) -> Health:
        """Request the models. The status is "up" if they come, "down" after any MistralError.

        It raises no MistralError, and is not recorded as a call.
        """
        raise NotImplementedError

    def check_chat(self) -> Health:
        """Do ``check_health()`` and, if that is "up", send a chat with ``max_tokens=1``.

        The status is "up" if the chat works, and ``response_time`` is that of the chat. It is
        "degraded" if the chat fails, and "down" if the models don't come; then no chat is sent.
        It raises no MistralError.
        """
        raise NotImplementedError

    # to here


if __name__ == "__main__":
    print("Check it with: make check N=3 (or: python examples/exercises/check.py 3)")
