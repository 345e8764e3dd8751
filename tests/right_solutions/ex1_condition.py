"""A pool with one Condition: threads wait for it until a counter has room."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lib.retry import Retrier


class RetryPool:
    def __init__(
        self,
        create: Callable[[], Any],
        is_healthy: Callable[[Any], bool],
        max_connections: int = 5,
        retrier: Retrier | None = None,
    ) -> None:
        self._create = create
        self._is_healthy = is_healthy
        self._retrier = retrier or Retrier()
        self._changed = threading.Condition()
        self._permits = max_connections
        self._idle: list[Any] = []
        self._checked_out: list[Any] = []

    def get_connection(self, timeout: float | None = None) -> Any:
        give_up_at = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._permits == 0:
                remaining = None if give_up_at is None else give_up_at - time.monotonic()
                if remaining is not None and remaining <= 0:
                    raise TimeoutError
                self._changed.wait(remaining)
            self._permits -= 1
            idle = self._idle.pop() if self._idle else None
        try:
            if idle is not None and not self._works(idle):
                with contextlib.suppress(Exception):
                    idle.close()
                idle = None
            connection = self._retrier.call(self._create) if idle is None else idle
        except BaseException:
            with self._changed:
                self._permits += 1
                self._changed.notify()
            raise
        with self._changed:
            self._checked_out.append(connection)
        return connection

    def release_connection(self, connection: Any) -> None:
        with self._changed:
            for index, other in enumerate(self._checked_out):
                if other is connection:
                    del self._checked_out[index]
                    break
            else:
                raise ValueError("not checked out")
            self._idle.append(connection)
            self._permits += 1
            self._changed.notify()

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Any]:
        connection = self.get_connection(timeout)
        try:
            yield connection
        finally:
            self.release_connection(connection)

    def _works(self, connection: Any) -> bool:
        try:
            return self._is_healthy(connection)
        except Exception:
            return False
