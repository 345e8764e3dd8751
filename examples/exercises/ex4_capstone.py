"""Exercise 4: all helpers together, in the right order.

You have a client that sends requests, a retrier, a circuit breaker and a rate limiter. They can
be wrapped around each other in many orders. While nothing fails, every order works. When requests
fail, only one order does what you want:

- The breaker sees each attempt. It can open between two attempts, and that ends the retries.
- While the circuit is open, nothing is sent, and no slot of the limiter is used up.
- Each attempt is paced, retries included: a retry is a request like any other.
- A bad request (400) is sent once, and does not count as a failure of the service.

Predict first. The API responds to every request with 503, the retrier makes 4 attempts, and the
breaker opens after 2 failures. How many requests are sent if the retries are inside the breaker?
How many if the breaker is inside the retries? The check shows what the server saw.

Write your code between the two marks below, add imports above them, and check it:

    make check N=4          (or: python examples/exercises/check.py 4)
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
    """Send a chat request through the retrier, the breaker and the limiter.

    Raises the error of the last attempt: a MistralError, or CircuitOpenError if the circuit
    was open and nothing was sent.
    """
    # TODO: yours from here
    raise NotImplementedError
    # to here


HINTS = (
    "`retrier.call(operation)` and `breaker.call(operation)` call the function that they get; "
    "`limiter.acquire()` waits for a slot. Write each of the first three points above as 'X is "
    "inside Y'. Which order follows from that?",
    "The breaker sees each attempt, so it is called once per attempt, inside the retries. An open "
    "circuit uses no slot, so the slot is taken inside the breaker. Two small functions are "
    "enough: one waits for a slot and calls the API, the other passes the first to the breaker.",
    "def paced_call(): limiter.acquire(); return client.chat(messages). "
    "def attempt(): return breaker.call(paced_call). At the end: return retrier.call(attempt). "
    "CircuitOpenError is not retryable, so the retries end when the circuit opens.",
)

if __name__ == "__main__":
    print("Check it with: make check N=4 (or: python examples/exercises/check.py 4)")
