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

Then the stretch part, `chat_within`. A user waits five seconds, and no longer. A timeout for each
attempt does not keep this promise: four attempts of five seconds each take twenty seconds. So
there is one deadline, a point in time (`time.monotonic()`), and each layer gets the time that is
left until then:

- The wait for a slot counts: `limiter.acquire(timeout=...)`.
- So does each request: `client.with_options(total_timeout=...)`.
- No attempt begins after the deadline. A lack of time is not a failure of the service, so the
  breaker must not count it.

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


# The stretch part


def chat_within(
    seconds: float,
    client: MistralClient,
    retrier: Retrier,
    breaker: CircuitBreaker,
    limiter: RateLimiter,
    messages: Sequence[Mapping[str, Any]],
) -> ChatCompletion:
    """Do what resilient_chat does, but end within ``seconds``, however many attempts it takes.

    Raises the error of the last attempt, or a TimeoutError if no time is left for another one.
    """
    raise NotImplementedError
    # to here


if __name__ == "__main__":
    print("Check it with: make check N=4 (or: python examples/exercises/check.py 4)")
