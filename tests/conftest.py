"""Fixtures: no settings, a fake clock, a mocked API, a script run in this process."""

from __future__ import annotations

import asyncio
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import responses
from responses.registries import OrderedRegistry

from support import MODELS_URL, ROOT, SETTINGS, Method, Outcome


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings of the person who runs the tests: an empty one wins over a .env file."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "")


class FakeClock:
    """Time that passes only while somebody sleeps; ``waits`` holds the length of each sleep."""

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


def method(name: str) -> Method:
    """Call the method of that name; if it is an async one, in an event loop."""

    def call_it(helper: Any, *arguments: Any, **named: Any) -> Any:
        result = getattr(helper, name)(*arguments, **named)
        return asyncio.run(result) if asyncio.iscoroutine(result) else result

    return call_it


@pytest.fixture(params=["acquire", "acquire_async"])
def acquire(request: pytest.FixtureRequest) -> Method:
    """Wait at a limiter: once with ``acquire``, once with ``acquire_async``."""
    return method(request.param)


@pytest.fixture(params=["reserve", "reserve_async"])
def reserve(request: pytest.FixtureRequest) -> Method:
    """Reserve tokens: once with ``reserve``, once with ``reserve_async``."""
    return method(request.param)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[responses.RequestsMock]:
    """The real API, mocked: it sends its responses in order, and all must be asked for."""
    monkeypatch.setenv("MISTRAL_API_KEY", "test-key")
    monkeypatch.setenv("MISTRAL_LOG_FILE", str(tmp_path / "errors.log"))
    with responses.RequestsMock(
        assert_all_requests_are_fired=True, registry=OrderedRegistry
    ) as mock:
        yield mock


@pytest.fixture
def live_api(api: responses.RequestsMock) -> responses.RequestsMock:
    """The mocked API for one live lesson, which asks for the models before it begins."""
    api.get(MODELS_URL, json={"object": "list", "data": []})
    return api


RunScript = Callable[..., Outcome]


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunScript:
    """Run a script in this process, as ``python examples/NAME.py ARGUMENTS`` would."""

    def run(name: str, *arguments: str, folder: Path = ROOT / "examples") -> Outcome:
        path = str(folder / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(path, run_name="__main__")
        return Outcome(int(exit_info.value.code or 0), *capsys.readouterr())

    return run


RunMain = Callable[..., Outcome]


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunMain:
    """Call the ``main`` of a command in this process, with arguments."""

    def run(main: Callable[[], int], *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        try:
            code = main()
        except SystemExit as error:
            code = int(error.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


Commands = Callable[[str], Outcome]


@pytest.fixture(scope="session", autouse=True)
def start_commands_first(request: pytest.FixtureRequest) -> None:
    """Start the commands before the first test if any test needs them."""
    if any("commands" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("commands")


@pytest.fixture(scope="session")
def commands(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Commands]:
    """Run what the test modules name in COMMANDS behind the tests, each in an empty folder.

    They run without a timeout, which would sleep: another test may have a fake ``time.sleep``.
    """
    wanted: dict[str, Callable[..., Outcome]] = {}
    for item in request.session.items:
        if "commands" in getattr(item, "fixturenames", ()):
            wanted |= cast(pytest.Function, item).module.COMMANDS
    with ThreadPoolExecutor(4) as pool:
        futures = {}
        for name, command in wanted.items():
            folder = tmp_path_factory.mktemp("command")
            log = str(folder / "errors.log")
            futures[name] = pool.submit(command, cwd=folder, timeout=None, MISTRAL_LOG_FILE=log)
        yield lambda name: futures[name].result(timeout=240)
        pool.shutdown(cancel_futures=True)
