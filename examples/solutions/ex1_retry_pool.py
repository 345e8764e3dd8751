"""Exercise 1, solved: a retry pool.

Two things keep it right. The semaphore counts places, and is where threads wait. The
lock guards the two collections, for a moment each time: whatever may take long (waiting,
making, asking, closing) happens without it.

Why there are never too many: a connection is made only by a thread that has a place,
and only when none is idle. So all that exist, or are being made, have a place each.
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
        self._places = threading.Semaphore(max_connections)
        self._lock = threading.Lock()
        self._idle: list[C] = []
        self._out: dict[int, C] = {}  # by id: a connection may be unhashable, or equal another

    def get_connection(self, timeout: float | None = None) -> C:
        """A connection that works; waits for one while all are out.

        ``timeout`` is in seconds; None waits as long as it takes. Raises TimeoutError
        when none came back in time, and the last error of ``create`` when none can be made.
        """
        if not self._places.acquire(timeout=timeout):
            raise TimeoutError(f"all {self._max_connections} connections are out")
        try:
            connection = self._idle_or_new()
        except BaseException:
            self._places.release()
            raise
        with self._lock:
            self._out[id(connection)] = connection
        return connection

    def release_connection(self, connection: C) -> None:
        """Give a connection back.

        Raises ValueError for one that isn't checked out: returned twice, or not from this pool.
        """
        with self._lock:
            if id(connection) not in self._out:
                raise ValueError("this connection is not out")
            del self._out[id(connection)]
            self._idle.append(connection)
        self._places.release()

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[C]:
        """``with pool.connection() as c:`` gets one, and gives it back in any case."""
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
        with contextlib.suppress(Exception):  # it is given up anyway
            close()
