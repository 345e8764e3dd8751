"""A pool that is a LifoQueue: it starts full of empty slots, and a connection fills one."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from queue import Empty, LifoQueue
from typing import Any

from lib.retry import Retrier


class Lease(AbstractContextManager[Any]):
    def __init__(self, pool: "RetryPool", timeout: float | None) -> None:
        self.pool, self.timeout = pool, timeout

    def __enter__(self) -> Any:
        self.connection = self.pool.get_connection(self.timeout)
        return self.connection

    def __exit__(self, *exc_info: object) -> None:
        self.pool.release_connection(self.connection)


class RetryPool:
    def __init__(
        self,
        create: Callable[[], Any],
        is_healthy: Callable[[Any], bool],
        max_connections: int = 5,
        retrier: Retrier | None = None,
    ) -> None:
        self.create, self.is_healthy = create, is_healthy
        self.retrier = retrier or Retrier()
        self.slots = LifoQueue[Any](max_connections)
        for _ in range(max_connections):
            self.slots.put(None)
        self.checked_out: dict[int, Any] = {}

    def get_connection(self, timeout: float | None = None) -> Any:
        try:
            connection = self.slots.get(timeout=timeout)
        except Empty:
            raise TimeoutError("all connections are checked out") from None
        try:
            connection = self.healthy_or_none(connection)
            if connection is None:
                connection = self.retrier.call(self.create)
        except BaseException:
            self.slots.put(None)
            raise
        self.checked_out[id(connection)] = connection
        return connection

    def healthy_or_none(self, connection: Any) -> Any:
        if connection is None:
            return None
        with suppress(Exception):
            if self.is_healthy(connection):
                return connection
        with suppress(Exception):
            connection.close()
        return None

    def release_connection(self, connection: Any) -> None:
        if self.checked_out.pop(id(connection), None) is None:  # pop is atomic
            raise ValueError("not checked out")
        self.slots.put(connection)

    def connection(self, timeout: float | None = None) -> Lease:
        return Lease(self, timeout)
