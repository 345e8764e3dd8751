"""A pool without a lock: between a look at the counter and its change, others look too."""

import contextlib
import time
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
        self._idle: list[C] = []
        self._out: list[C] = []
        self._places_taken = 0

    def get_connection(self, timeout: float | None = None) -> C:
        give_up_at = time.monotonic() + (60.0 if timeout is None else timeout)
        while self._places_taken >= self._max_connections:
            if time.monotonic() > give_up_at:
                raise TimeoutError
            time.sleep(0.01)
        self._places_taken += 1
        try:
            connection = self._idle_or_new()
        except BaseException:
            self._places_taken -= 1
            raise
        self._out.append(connection)
        return connection

    def release_connection(self, connection: C) -> None:
        if connection not in self._out:
            raise ValueError("not out")
        self._out.remove(connection)
        self._idle.append(connection)
        self._places_taken -= 1

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[C]:
        connection = self.get_connection(timeout)
        try:
            yield connection
        finally:
            self.release_connection(connection)

    def _idle_or_new(self) -> C:
        while self._idle:
            connection = self._idle.pop()
            try:
                if self._is_healthy(connection):
                    return connection
            except Exception:
                pass
            with contextlib.suppress(Exception):
                connection.close()  # type: ignore[attr-defined]
        return self._retrier.call(self._create)
