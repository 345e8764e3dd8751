"""Exercise 5: end the retry storm. A spike of load must not become an outage that lasts.

A service gets slower with each request that it works on. Usually 40 calls per second arrive,
and it responds to each in less than 2 seconds. Then, for 5 seconds, 80 calls per second arrive.
The service now needs more than 3 seconds for some requests, and their clients give up. If these
clients send their requests again, there are even more requests, and the service gets even
slower. This is a retry storm. It continues after the spike is over (`make simulate` draws it).

Write the client that a program shares among all its calls:

- A transient failure is retried: its error has `retryable = True`. A call sends at most three
  requests.
- An error that is not transient is raised at once, and a call that is cancelled ends at once.
- A service that is down gets its normal load and only a few more requests, even if many calls fail
  together. After the outage, calls are retried again.
- Calls that fail together are not retried at the same moment: neither those of one program, nor
  those of many programs.
- When the spike is over, the outage is over.

Predict first: which of these rules does exponential backoff with full jitter keep by itself? You
may build the client from the parts in lib/retry.py and lib/circuit_breaker.py, or by hand with
`asyncio.sleep` and `time.monotonic`. The check runs it in a simulation, with thousands of
calls in virtual time.

Then the stretch part, `BoundedClient`. A service that does not respond keeps each call until its
timeout. Meanwhile more calls arrive, and they use up the memory and the connections that your
calls to other services need. So limit the calls in progress, and reject more at once. This is
called a bulkhead, after the walls that divide a ship.

Write your code between the two marks below, add imports above them, and check it:

    make check N=5          (or: python examples/exercises/check.py 5)
"""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


class Client:
    """Call the service for one program, which shares one Client among all its calls.

    ``send()`` sends one request and returns the response, or raises an error.
    """

    def __init__(self, send: Callable[[], Awaitable[str]]) -> None:
        self._send = send
        # TODO: yours from here

    async def call(self) -> str:
        """Return the response to one call, which may take several requests.

        Raises the error of the last request, or CircuitOpenError if none may be sent.
        """
        raise NotImplementedError


# The stretch part


class TooManyCallsError(Exception):
    """The call was rejected: as many calls as allowed are in progress."""


class BoundedClient:
    """A Client with at most ``max_calls`` calls in progress; it rejects more."""

    def __init__(self, send: Callable[[], Awaitable[str]], max_calls: int) -> None:
        self._client = Client(send)
        self._max_calls = max_calls

    async def call(self) -> str:
        """Do what ``Client.call`` does.

        Raises TooManyCallsError at once, without a request, if ``max_calls`` are in progress.
        """
        raise NotImplementedError

    # to here


if __name__ == "__main__":
    print("Check it with: make check N=5 (or: python examples/exercises/check.py 5)")
