"""A pool that calls create with its lock held: one slow server holds up every thread."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lib.retry import Retrier

C = TypeVar("C")


class RetryPool(Generic[C]):
    def __init__(
        self,
        create: Callable[[], C],
        is_healthy: Callable[[C], bool],
        max_connections: int = 5,
        retrier: Retrier | None = None,
    ) -> None:
        self._create = create
        self._is_healthy = is_healthy
        self._max_connections = max_connections
        self._retrier = retrier or Retrier()
        self._changed = threading.Condition()
        self._idle: list[C] = []
        self._out: list[C] = []
        self._in_check = 0

    def get_connection(self, timeout: float | None = None) -> C:
        while True:
            with self._changed:
                if not self._changed.wait_for(self._has_place, timeout):
                    raise TimeoutError
                if not self._idle:
                    connection = self._retrier.call(self._create)
                    self._out.append(connection)
                    return connection
                connection = self._idle.pop()
                self._in_check += 1
            works = self._works(connection)
            with self._changed:
                self._in_check -= 1
                if works:
                    self._out.append(connection)
                    return connection
                with contextlib.suppress(Exception):
                    connection.close()  # type: ignore[attr-defined]
                self._changed.notify()

    def release_connection(self, connection: C) -> None:
        with self._changed:
            if connection not in self._out:
                raise ValueError("not out")
            self._out.remove(connection)
            self._idle.append(connection)
            self._changed.notify()

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[C]:
        connection = self.get_connection(timeout)
        try:
            yield connection
        finally:
            self.release_connection(connection)

    def _has_place(self) -> bool:
        return len(self._out) + self._in_check < self._max_connections

    def _works(self, connection: C) -> bool:
        try:
            return self._is_healthy(connection)
        except Exception:
            return False
