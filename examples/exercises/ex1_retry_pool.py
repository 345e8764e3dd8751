"""Exercise 1: a retry pool. A connection is expensive to create, so keep it, but check it.

Build a pool that lends connections to many threads. The pool need not know what a connection
is (a MistralClient, a database connection). It gets one function that creates a connection, and
one that says whether a connection still works.

- At most `max_connections` exist at any time, however many threads ask for one. If all of them
  are checked out (lent to a thread), the caller waits for one. If that takes too long, the caller
  gets a TimeoutError.
- A returned connection is used again. It may have become unhealthy while it was idle, so the
  pool checks it before it lends it again. (A new connection needs no check.)
- An unhealthy connection is closed, if it has a close(), and then replaced. Creating the new one
  may fail for a moment, so the retrier retries it. If all attempts fail, the caller gets the error.
- A permit is the right to hold one of the `max_connections` connections. A call that fails, with
  a timeout or another error, must not use up a permit.
- No lock is held while `create` runs: one slow call must not block all threads.

When these rules hold, the check shows the stretch part. It is the same pool, but more goes wrong:

- A timeout may be 0: then the caller does not wait. It limits the whole wait, however often the
  thread is woken.
- close() may fail. The connection is discarded anyway, so its error reaches nobody.
- KeyboardInterrupt (Ctrl-C) passes through, wherever it strikes, and uses up no permit.
- Connections may be equal (==), may have no hash, and may be false (such as an empty one).
- No lock is held while `is_healthy` or close() runs, either.
- Threads may do everything at the same moment. No connection, permit or waiting thread gets lost.

Write your code between the two marks below, add imports above them, and check it:

    make check N=1          (or: python examples/exercises/check.py 1)
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.retry import Retrier

C = TypeVar("C")


class RetryPool(Generic[C]):
    """Keep up to ``max_connections`` connections for many threads. Thread-safe.

    ``create()`` makes a connection. ``retrier`` retries it, by default with three attempts.
    ``is_healthy(connection)`` returns True if a connection still works; an error that it
    raises means False. Raises ValueError if ``max_connections`` is below 1.
    """

    def __init__(
        self,
        create: Callable[[], C],
        is_healthy: Callable[[C], bool],
        max_connections: int = 5,
        retrier: Retrier | None = None,
    ) -> None:
        if max_connections < 1:
            raise ValueError(f"max_connections must be >= 1, got {max_connections!r}")
        self._create = create
        self._is_healthy = is_healthy
        self._max_connections = max_connections
        self._retrier = retrier or Retrier()
        # TODO: yours from here

    def get_connection(self, timeout: float | None = None) -> C:
        """Check out a healthy connection. Wait for one while all are checked out.

        ``timeout`` is in seconds; None waits without a limit. Raises TimeoutError if no
        connection was returned in time, and the last error of ``create`` if it failed.
        """
        raise NotImplementedError

    def release_connection(self, connection: C) -> None:
        """Return a connection to the pool.

        Raises ValueError for a connection that is not checked out: one that was returned before,
        or that is not from this pool.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[C]:
        """Check out a connection for a ``with`` block, and return it when the block ends."""
        raise NotImplementedError

    # to here


if __name__ == "__main__":
    print("Check it with: make check N=1 (or: python examples/exercises/check.py 1)")
