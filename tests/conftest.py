"""Every test starts without settings; a fake clock and a mocked API are at hand.

A test module with a function ``children(folder)`` gets its children run in the background,
from the moment the tests are collected; the fixture ``outcome_of`` waits for them.
"""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import responses
from responses.registries import OrderedRegistry

from support import ROOT, SETTINGS, Outcome

BACKGROUND = pytest.StashKey["Background"]()


class Background:
    """The children of all collected modules, run by one process, and what came of them."""

    def __init__(self, modules: Iterable[ModuleType]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        jobs: dict[str, tuple[object, ...]] = {}
        for module in modules:
            for name, child in module.children(folder).items():
                jobs[name] = (child.arguments, str(child.cwd), child.environment)
        self._results = folder / "results.json"
        (folder / "jobs.json").write_text(json.dumps(jobs), "utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "background.py", folder / "jobs.json", self._results],
            cwd=ROOT / "tests",
        )

    @functools.cached_property
    def outcomes(self) -> dict[str, Outcome]:
        assert self._process.wait(timeout=120) == 0
        found = json.loads(self._results.read_text("utf-8"))
        return {name: Outcome(*values) for name, values in found.items()}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that wait for children come last: by then those have ended."""
    items.sort(key=lambda item: hasattr(getattr(item, "module", None), "children"))


def pytest_collection_finish(session: pytest.Session) -> None:
    modules = dict.fromkeys(getattr(item, "module", None) for item in session.items)
    having_children = [module for module in modules if module and hasattr(module, "children")]
    if having_children and not session.config.option.collectonly:
        session.config.stash[BACKGROUND] = Background(having_children)


def pytest_unconfigure(config: pytest.Config) -> None:
    if BACKGROUND in config.stash:
        config.stash[BACKGROUND].close()


@pytest.fixture(scope="session")
def outcome_of(request: pytest.FixtureRequest) -> Callable[[str], Outcome]:
    """How a child of the background ended, by its name."""
    return lambda name: request.config.stash[BACKGROUND].outcomes[name]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment nor a .env of whoever runs the tests: empty wins over both."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "")


class FakeClock:
    """Time that passes only while somebody sleeps; ``waits`` tells how long each did."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(time, "monotonic", fake.monotonic)
    monkeypatch.setattr(time, "sleep", fake.sleep)
    monkeypatch.setattr(asyncio, "sleep", fake.sleep_async)
    return fake


Call = Callable[[Any, Callable[[], Any]], Any]


@pytest.fixture(params=["call", "call_async"])
def call(request: pytest.FixtureRequest) -> Call:
    """Call an operation through a helper: once with ``call``, once with ``call_async``."""

    def call_async(helper: Any, operation: Callable[[], Any]) -> Any:
        async def awaited() -> Any:
            return operation()

        return asyncio.run(helper.call_async(awaited))

    return call_async if request.param == "call_async" else lambda helper, op: helper.call(op)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[responses.RequestsMock]:
    """The real API, mocked: answers in the order given, all of which must be asked for."""
    monkeypatch.setenv("MISTRAL_API_KEY", "test-key")
    monkeypatch.setenv("MISTRAL_LOG_FILE", str(tmp_path / "errors.log"))
    with responses.RequestsMock(
        assert_all_requests_are_fired=True, registry=OrderedRegistry
    ) as mock:
        yield mock
