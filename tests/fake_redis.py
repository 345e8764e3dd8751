"""A client of Redis without a server: it runs the scripts of the shared limits in Python."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from conftest import FakeClock


class AuthenticationError(Exception):
    """As redis and valkey name theirs."""


class FakeRedis:
    """A client with the interface that RedisScript uses; ``error`` is raised by each call."""

    def __init__(self, clock: FakeClock, **connection: Any) -> None:
        self.calls: list[list[Any]] = []
        self.error: Exception | None = None
        self.clock = clock
        settings = {"socket_timeout": 0.5, "retry": SimpleNamespace(_retries=0), **connection}
        self.connection_pool = SimpleNamespace(
            connection_class=SimpleNamespace, connection_kwargs=settings
        )

    def execute_command(self) -> None:
        raise NotImplementedError

    def register_script(self, script: str) -> Callable[..., list[Any]]:
        return self._run

    def _run(self, keys: list[str], args: list[Any]) -> list[Any]:
        self.calls.append(args)
        if self.error:
            raise self.error
        return self.run_script(keys[0], *args)

    def run_script(self, key: str, *args: Any) -> list[Any]:
        """What the script does, in Python."""
        raise NotImplementedError
