"""Exercise 1, solved: a retry pool.

The semaphore counts the permits, and threads wait for it. The lock protects the two collections
and is held only for a moment. Everything that may take long happens without the lock: waiting,
creating, checking, closing.

There are never too many connections, because a thread creates one only if it has a permit and
no connection is idle. So each connection that exists or is being created has its own permit.
"""

import contextlib
import sys
import threading
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
        self._permits = threading.Semaphore(max_connections)
        self._lock = threading.Lock()
        self._idle: list[C] = []
        self._checked_out: dict[int, C] = {}  # by id: connections may be equal or have no hash

    def get_connection(self, timeout: float | None = None) -> C:
        """Check out a healthy connection. Wait for one while all are checked out.

        ``timeout`` is in seconds; None waits without a limit. Raises TimeoutError if no
        connection was returned in time, and the last error of ``create`` if it failed.
        """
        if not self._permits.acquire(timeout=timeout):
            raise TimeoutError(f"all {self._max_connections} connections are checked out")
        try:
            connection = self._idle_or_new()
        except BaseException:
            self._permits.release()
            raise
        with self._lock:
            self._checked_out[id(connection)] = connection
        return connection

    def release_connection(self, connection: C) -> None:
        """Return a connection to the pool.

        Raises ValueError for a connection that is not checked out: one that was returned before,
        or that is not from this pool.
        """
        with self._lock:
            if id(connection) not in self._checked_out:
                raise ValueError("this connection is not checked out")
            del self._checked_out[id(connection)]
            self._idle.append(connection)
        self._permits.release()

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[C]:
        """Check out a connection for a ``with`` block, and return it when the block ends."""
        connection = self.get_connection(timeout)
        try:
            yield connection
        finally:
            self.release_connection(connection)

    def _idle_or_new(self) -> C:
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if self._works(connection):
                return connection
            _close(connection)
        return self._retrier.call(self._create)

    def _works(self, connection: C) -> bool:
        try:
            return self._is_healthy(connection)
        except Exception:
            return False


def _close(connection: object) -> None:
    close = getattr(connection, "close", None)
    if close is not None:
        with contextlib.suppress(Exception):  # the connection is discarded anyway
            close()
