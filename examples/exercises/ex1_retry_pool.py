"""Exercise 1: a retry pool. A connection is expensive to make, so keep it, but check it.

Build a pool that hands out connections to many threads. What a connection is (a
MistralClient, a database's) the pool need not know: it is told how to make one and
how to ask whether one still works.

- At most `max_connections` exist at any moment, however many threads ask. When all are
  checked out, a caller waits, and gets a TimeoutError when that takes too long.
- A returned connection is used again. Before it is handed out, it is checked: it may have
  become unhealthy while nobody used it. (A new one needs no check.)
- One that doesn't work is closed, if it has a close(), and replaced. Making one may
  fail for a moment, so it is retried; if it fails for good, the error comes through.
- No failure uses up a permit: not a timeout, not an error.
- No lock is held while `create` or `is_healthy` runs: one slow call must not hold up
  every other thread.

Write the code between the two marks below, add what you need above, and see how far you are:

    python examples/exercises/check.py 1          (or: make check N=1)
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
    """A pool of connections, safe for threads.

    ``create()`` makes a connection, and is retried by ``retrier`` (by default, three
    attempts). ``is_healthy(connection)`` says whether one still works; an error that it
    raises means no. Raises ValueError unless ``max_connections`` is 1 or more.
    """

    def __init__(
        self,
        create: Callable[[], C],
        is_healthy: Callable[[C], bool],
        max_connections: int = 5,
        retrier: Retrier | None = None,
    ) -> None:
        if max_connections < 1:
            raise ValueError(f"max_connections must be 1 or more, not {max_connections!r}")
        self._create = create
        self._is_healthy = is_healthy
        self._max_connections = max_connections
        self._retrier = retrier or Retrier()
        # TODO: yours from here

    def get_connection(self, timeout: float | None = None) -> C:
        """A connection that works; waits for one while all are out.

        ``timeout`` is in seconds; None waits as long as it takes. Raises TimeoutError
        when none came back in time, and the last error of ``create`` when none can be made.
        """
        raise NotImplementedError

    def release_connection(self, connection: C) -> None:
        """Give a connection back.

        Raises ValueError for one that isn't checked out: returned twice, or not from this pool.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[C]:
        """``with pool.connection() as c:`` gets one, and gives it back in any case."""
        raise NotImplementedError

    # to here


HINTS = (
    "Count places, not connections. A thread takes a place before all else; it gives the "
    "place up when it gives its connection back, or when it has failed to get one. Which class "
    "of `threading` counts places, and can wait for one with a timeout?",
    "threading.Semaphore(max_connections) counts the places: acquire(timeout=timeout) says "
    "False when time is up. Beside it you need a list of the idle connections, a record of "
    "those that are out, and a Lock for these two. Hold the lock to look and to change, for a "
    "moment; let go of it before you call create, is_healthy or close.",
    "get_connection: acquire a place or raise TimeoutError. Then, inside a try whose except "
    "gives the place back and raises again: as long as there is an idle connection, pop one "
    "(under the lock), ask is_healthy (without it), return it or close it; when none is idle, "
    "self._retrier.call(self._create). Note it as out by id(connection), which works for any "
    "object. release_connection: under the lock, ValueError unless it is noted as out; move it "
    "to the idle ones; then release the place. connection: get, then yield inside try/finally.",
)
