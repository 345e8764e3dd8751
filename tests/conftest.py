"""Fixtures: no settings, a fake clock, a mocked API, a script run in process or as a child."""

from __future__ import annotations

import asyncio
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import responses
from responses.registries import OrderedRegistry

from support import MODELS_URL, ROOT, SETTINGS, Outcome, start


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


Children = dict[str, "Future[tuple[Outcome, Path]]"]


@pytest.fixture(scope="session", autouse=True)
def children(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Children]:
    """Start the child processes of all selected tests with a ``child`` mark.

    They run beside the other tests, each in an empty folder with a log of its own. Their
    threads use no timeout: it would sleep, and another test may have a fake ``time.sleep``.
    """
    folders = tmp_path_factory.mktemp("children")
    started: list[subprocess.Popen[str]] = []

    def finish(mark: pytest.Mark) -> tuple[Outcome, Path]:
        folder = Path(tempfile.mkdtemp(dir=folders))
        settings = {"cwd": folder, "MISTRAL_LOG_FILE": str(folder / "errors.log")}
        with start(*mark.args, **{**settings, **mark.kwargs}) as child:
            started.append(child)
            out, err = child.communicate()
        return Outcome(child.returncode, out, err), folder

    marks = [mark for item in request.session.items for mark in item.iter_markers("child")]
    with ThreadPoolExecutor(4) as pool:
        yield {key: pool.submit(finish, mark) for key, mark in {str(m): m for m in marks}.items()}
        pool.shutdown(wait=False, cancel_futures=True)
        for child in started:
            child.kill()


@pytest.fixture
def child(request: pytest.FixtureRequest, children: Children) -> tuple[Outcome, Path]:
    """The end of the test's child process, ``@pytest.mark.child(*arguments, cwd=..., NAME=...)``,
    and the folder in which it ran."""
    return children[str(request.node.get_closest_marker("child"))].result(timeout=60)


@pytest.fixture
def outcome(child: tuple[Outcome, Path]) -> Outcome:
    """How the test's child process ended."""
    return child[0]
