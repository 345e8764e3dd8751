"""Fixtures: a server for all tests, one for each test that breaks it, a limit of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.fleet import CLIENTS
from shared.redis_server import RedisServer


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    with CLIENTS:
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A limit of each test's own."""
    return str(request.node.name)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may break."""
    with RedisServer(tmp_path) as started:
        yield started
