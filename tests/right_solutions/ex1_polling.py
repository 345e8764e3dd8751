"""A pool that subclasses list, and polls: a waiting thread looks again every 20 milliseconds."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lib.retry import Retrier


class RetryPool(list[Any]):
    def __init__(
        self,
        create: Callable[[], Any],
        is_healthy: Callable[[Any], bool],
        max_connections: int = 5,
        retrier: Retrier | None = None,
    ) -> None:
        self.create, self.is_healthy = create, is_healthy
        self.max_connections = max_connections
        self.retrier = retrier or Retrier()
        self.lock = threading.RLock()
        self.in_use = 0
        self.checked_out = set[int]()

    def try_to_start(self) -> bool:
        with self.lock:
            if self.in_use >= self.max_connections:
                return False
            self.in_use += 1
            return True

    def get_connection(self, timeout: float | None = None) -> Any:
        start = time.perf_counter()
        while not self.try_to_start():
            if timeout is not None and time.perf_counter() - start >= timeout:
                raise TimeoutError
            time.sleep(0.02)
        try:
            connection = self.take_idle()
            if connection is None:
                connection = self.retrier.call(self.create)
        except BaseException:
            self.in_use_changes(-1)
            raise
        with self.lock:
            self.checked_out.add(id(connection))
        return connection

    def take_idle(self) -> Any:
        while True:
            with self.lock:
                if not len(self):
                    return None
                connection = self.pop()
            with contextlib.suppress(Exception):
                if self.is_healthy(connection):
                    return connection
            with contextlib.suppress(Exception):
                connection.close()

    def in_use_changes(self, by: int) -> None:
        with self.lock:
            self.in_use += by

    def release_connection(self, connection: Any) -> None:
        with self.lock:
            if id(connection) not in self.checked_out:
                raise ValueError
            self.checked_out.remove(id(connection))
            self.append(connection)
            self.in_use_changes(-1)

    @contextlib.contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Any]:
        connection = self.get_connection(timeout)
        try:
            yield connection
        finally:
            self.release_connection(connection)
