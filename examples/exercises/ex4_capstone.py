"""Exercise 4: all together, and in the right order.

You have a client that calls, a retrier that tries again, a breaker that stops calling a
service that is down, and a limiter that paces. Four parts can be put around one another in
many ways. They all work while nothing fails; under faults only one does what you want:

- Each attempt is news for the breaker. It should open in the middle of the retries,
  and with it they should end.
- An open circuit sends nothing, and uses up no slot of the limiter.
- Each attempt is paced, the repeated ones too: a retry is a request like any other.
- A request that the server calls bad is sent once, and doesn't count against the service.

Predict first. The API responds 503 to every request, the retrier makes 4 attempts, the
breaker opens after 2 failures. How many requests arrive with the retries inside the breaker,
and how many with the breaker inside the retries? The check shows what the server saw.

Write the code between the two marks below, and see how far you are:

    python examples/exercises/check.py 4          (or: make check N=4)
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.circuit_breaker import CircuitBreaker
from lib.client import ChatCompletion, MistralClient
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier


def resilient_chat(
    client: MistralClient,
    retrier: Retrier,
    breaker: CircuitBreaker,
    limiter: RateLimiter,
    messages: Sequence[Mapping[str, Any]],
) -> ChatCompletion:
    """The answer to a chat, retried, guarded and paced.

    Raises the error of the last attempt: a MistralError, or CircuitOpenError where the
    circuit was open and nothing was sent.
    """
    # TODO: yours from here
    raise NotImplementedError
    # to here


HINTS = (
    "`retrier.call(operation)` and `breaker.call(operation)` call what they are given; "
    "`limiter.acquire()` waits for a slot. Write each of the first three points above as 'X "
    "happens inside Y', and read the order from that.",
    "Each attempt is news for the breaker: so the breaker is called once an attempt, inside the "
    "retries. An open circuit uses no slot: so the slot is taken inside the breaker. Two small "
    "functions will do: one paces and calls, the other passes the first to the breaker.",
    "def paced_call(): limiter.acquire(); return client.chat(messages). "
    "def attempt(): return breaker.call(paced_call). At the end: retrier.call(attempt). "
    "CircuitOpenError isn't retryable, so the retries end by themselves when the circuit opens.",
)
