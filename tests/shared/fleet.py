"""Worker processes that share a limit, and clients of the server."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import redis

from shared.redis_server import RedisServer
from support import finish, start

CLIENTS = contextlib.ExitStack()


def client(server: RedisServer, timeout: float = 5, **settings: Any) -> redis.Redis:
    """A client that is closed at the end of the test."""
    connections = redis.Redis.from_url(server.url, socket_timeout=timeout, **settings)
    return CLIENTS.enter_context(connections)


class Fleet:
    """Worker processes that begin at the same moment, each with settings of its own."""

    def __init__(
        self, server: RedisServer, name: str, *workers: dict[str, Any], script: str = "worker.py"
    ) -> None:
        path = str(Path(__file__).with_name(script))
        self.processes = [
            start(path, json.dumps({"url": server.url, "name": name, **settings}))
            for settings in workers
        ]
        self.errors: list[str] = []
        while int(client(server).get(f"{name} ready") or 0) < len(workers):
            time.sleep(0.02)
        self.begin = time.time() + 0.1
        client(server).set(f"{name} begin", self.begin)

    def sleep_until(self, seconds: float) -> None:
        time.sleep(max(0.0, self.begin + seconds - time.time()))

    def results(self) -> list[Any]:
        """What each worker printed, as JSON."""
        outcomes = [finish(process, timeout=240) for process in self.processes]
        assert {outcome.code for outcome in outcomes} == {0}, outcomes
        self.errors = [outcome.err for outcome in outcomes]
        return [json.loads(outcome.out) for outcome in outcomes]

    def starts_of_each(self) -> list[list[float]]:
        """When each worker's requests started, in seconds since the epoch."""
        return self.results()

    def starts(self) -> list[float]:
        """When the requests of all workers started."""
        return sorted(at for of_one in self.starts_of_each() for at in of_one)
