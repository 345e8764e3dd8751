"""The commands as people type them: every way to start one, bad input, a pipe, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from lib.client import MistralClient
from lib.errors import InternalServerError
from lib.mock_server import MockServer
from support import (
    ROOT,
    SCRIPTS,
    Outcome,
    child_environment,
    finish,
    refusing_url,
    run,
    run_parallel,
    start,
    transcript,
)

FIRST, SECOND, THIRD, *_, SIXTH = map(str, SCRIPTS)
ANSWERS = transcript("01_basic_errors")
MOCK_SERVER = ("-m", "lib.mock_server", "--port")

needs_sigint = pytest.mark.skipif(
    os.name == "nt", reason="on Windows no process can press Ctrl-C for another one alone"
)


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """Every command of this file that ends by itself, side by side."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def live(url: str, key: str = "the-key") -> Outcome:
        return run(FIRST, cwd=elsewhere, MISTRAL_API_KEY=key, MISTRAL_BASE_URL=url)

    def to_a_closed_port() -> Outcome:
        with refusing_url() as url:
            return live(url)

    def on_a_taken_port() -> Outcome:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            return run(*MOCK_SERVER, str(taken.getsockname()[1]))

    def into_a_reader_of_one_line() -> Outcome:
        """Example 3 still has a second and more to go when its reader leaves."""
        with start(THIRD) as child:
            assert child.stdout
            line = child.stdout.readline()
            child.stdout.close()
            child.stdout = None
            code, _, err = finish(child)
        return Outcome(code, line, err)

    runs: dict[str, Callable[[], Outcome]] = {
        "as a module": lambda: run("-m", "examples.01_basic_errors"),
        "with warnings on": lambda: run("-X", "dev", FIRST),
        "behind a proxy": lambda: run(
            FIRST, HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9", NO_PROXY=""
        ),
        "on ascii": lambda: run(FIRST, PYTHONIOENCODING="ascii"),
        "on cp1252": lambda: run(FIRST, PYTHONIOENCODING="cp1252"),
        "into head -1": into_a_reader_of_one_line,
        "wrong flag": lambda: run(FIRST, "--fault", "503"),
        "unknown fault": lambda: run(FIRST, "--faults", "503,rain"),
        "base URL that is none": lambda: live("somewhere"),
        "closed port": to_a_closed_port,
        "key in two lines": lambda: live("https://localhost/v1", "secret\nkey"),
        "timeout of 0": lambda: run(FIRST, MISTRAL_TIMEOUT="0"),
        "no log folder": lambda: run(SIXTH, MISTRAL_LOG_FILE=str(elsewhere / "none" / "x.log")),
        "server: taken port": on_a_taken_port,
        "server: unknown fault": lambda: run(*MOCK_SERVER, "0", "--faults", "rain"),
    }
    return run_parallel(runs)


@pytest.mark.parametrize(
    "way",
    [
        "as a module",
        "with warnings on",
        "behind a proxy",
    ],
)
def test_a_script_runs_in_every_way(way: str, outcome_of: Callable[[str], Outcome]) -> None:
    code, out, err = outcome_of(way)
    assert (code, out) == (0, ANSWERS), err
    assert not re.search("traceback|warning|exception", err, re.IGNORECASE)


@pytest.mark.parametrize("console", ["ascii", "cp1252"])
def test_ticks_and_crosses_are_plain_where_the_console_has_none(
    console: str, outcome_of: Callable[[str], Outcome]
) -> None:
    code, out, err = outcome_of(f"on {console}")
    assert (code, out) == (0, ANSWERS.replace("✓", "+").replace("✗", "x")), err


def test_a_reader_that_leaves_early_is_no_trouble(outcome_of: Callable[[str], Outcome]) -> None:
    """The exit code is that of a program that a closed pipe has ended."""
    code, out, err = outcome_of("into head -1")
    assert (code, out) == (141, "=== Example 3: Rate Limit Handling ===\n")
    assert err.startswith("Offline: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong flag", "unrecognized arguments: --fault 503"),
        ("unknown fault", "unknown fault 'rain': use ok, a status from 400 to 599, "),
        ("base URL that is none", "The base URL must look like https://"),
        ("key in two lines", "The API key contains "),
        ("timeout of 0", "MISTRAL_TIMEOUT"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_2(
    name: str, words: str, outcome_of: Callable[[str], Outcome]
) -> None:
    code, out, err = outcome_of(name)
    assert (code, out) == (2, ""), err
    assert words in err
    assert len(err.splitlines()) == 1
    assert "secret" not in err


def test_an_api_that_refuses_the_connection_is_one_sentence_and_exit_1(
    outcome_of: Callable[[str], Outcome],
) -> None:
    code, out, err = outcome_of("closed port")
    assert code == 1
    assert out.count("Network Error: 127.0.0.1 refused the connection\n") == 2
    assert err.splitlines()[-1] == (
        "No response came (127.0.0.1 refused the connection): "
        "check the network and MISTRAL_BASE_URL, then retry."
    )
    assert "Traceback" not in err


def test_a_log_without_a_folder_is_one_sentence_and_exit_1(
    outcome_of: Callable[[str], Outcome],
) -> None:
    code, out, err = outcome_of("no log folder")
    assert (code, out) == (1, transcript("06_error_logger"))
    offline, sentence = err.splitlines()
    assert offline.startswith("Offline: ")
    assert re.fullmatch(r"The log .*x\.log can't be written \(.+\): records are lost\.", sentence)


def test_a_taken_port_is_one_sentence_and_exit_1(outcome_of: Callable[[str], Outcome]) -> None:
    code, out, err = outcome_of("server: taken port")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"Can't listen on port \d+ \(.+\); choose another with --port\.\n", err)


def test_the_mock_server_says_which_fault_it_does_not_know(
    outcome_of: Callable[[str], Outcome],
) -> None:
    code, out, err = outcome_of("server: unknown fault")
    assert (code, out) == (2, "")
    assert "unknown fault 'rain': use ok, " in err.splitlines()[-1]
    assert "Traceback" not in err


class Interrupted(NamedTuple):
    """How a command ended by Ctrl-C, and where its server, or its API, was."""

    outcome: Outcome
    url: str


def press_ctrl_c(child: subprocess.Popen[str]) -> Outcome:
    """The end of it: if it left a process behind, that would hold the pipes for ever."""
    time.sleep(0.1)  # rather while it waits than just before
    child.send_signal(signal.SIGINT)
    return finish(child, timeout=20)


def interrupted_after(words: str, *arguments: str, **environment: str) -> Interrupted:
    """Ctrl-C as soon as a script has printed these words."""
    with start(*arguments, cwd=ROOT, MISTRAL_TIMEOUT="60", **environment) as child:
        assert child.stdout
        out = ""
        while not out.endswith(words):
            out += child.stdout.read(1) or pytest.fail(child.communicate()[1])
        outcome = press_ctrl_c(child)
    return Interrupted(outcome, re.findall(r"http://\S+", outcome.err)[0])


def interrupted_once_the_server_has_the_request() -> Interrupted:
    """It is certain here that a call is under way."""
    with MockServer("timeout") as api:
        settings = {"MISTRAL_API_KEY": "the-key", "MISTRAL_BASE_URL": api.url}
        with start(SECOND, cwd=ROOT, MISTRAL_TIMEOUT="60", **settings) as child:
            give_up_at = time.monotonic() + 30
            while not api.log and time.monotonic() < give_up_at:
                time.sleep(0.01)
            outcome = press_ctrl_c(child)
        assert len(api.log) == 1
    return Interrupted(outcome, api.url)


def interrupted_mock_server() -> Interrupted:
    """It has refused a call, answered one, and lets a third one wait for ever."""
    with start(*MOCK_SERVER, "0", "--faults", "503,ok,timeout") as server:
        assert server.stdout
        out = server.stdout.readline()
        found = re.search(r"^Mock Mistral API on (http://\S+/v1) ", out)
        url = found[1] if found else pytest.fail(server.communicate()[1])
        with MistralClient("the-key", base_url=url) as client:
            with pytest.raises(InternalServerError):
                client.models()
            assert "mistral-small-latest" in client.models()
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=20) as waiting:
            waiting.sendall(b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer the-key\r\n\r\n")
            out += "".join(server.stdout.readline() for _ in range(3))
            code, rest, err = press_ctrl_c(server)
            assert waiting.recv(1) == b""
    return Interrupted(Outcome(code, out + rest, err), url)


STAGES = {
    "backing off": ("Waiting 1s...", SECOND, "--faults", "503"),
    "calling": ("Attempt 1/3...", SECOND, "--faults", "timeout"),
    "calling, the answer on its way": ("Request 1: ", THIRD, "--faults", "slow:30"),
    "pacing": ("waiting 1s", THIRD, "--faults", "ok"),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of the one that is interrupted after its second record."""
    return tmp_path_factory.mktemp("interrupted") / "errors.log"


@pytest.fixture(scope="module")
def ctrl_c(log: Path) -> Iterator[Callable[[str], Interrupted]]:
    """Every command of this file that Ctrl-C ends, side by side."""
    # Children mind it even if these tests are run in the background, which would ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    runs: dict[str, Callable[[], Interrupted]] = {
        name: partial(interrupted_after, *stage) for name, stage in STAGES.items()
    }
    runs |= {
        "calling, the server has it": interrupted_once_the_server_has_the_request,
        "trace": lambda: interrupted_after(*STAGES["backing off"], "--trace"),
        "log": lambda: interrupted_after(
            "Success\n  Logged: chat - Success\n",
            *(SIXTH, "--faults", "ok,ok,slow:30"),
            MISTRAL_LOG_FILE=str(log),
        ),
        "mock server": interrupted_mock_server,
    }
    yield run_parallel(runs)
    signal.signal(signal.SIGINT, before)


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


def assert_nobody_listens_at(url: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(url)), timeout=5)


@needs_sigint
@pytest.mark.parametrize("stage", [*STAGES, "calling, the server has it"])
def test_ctrl_c_ends_a_script_at_any_stage(
    stage: str, ctrl_c: Callable[[str], Interrupted]
) -> None:
    """Exit 130, no traceback, and neither its port nor a process is left."""
    (code, _, err), url = ctrl_c(stage)
    assert code == 130, err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2  # Offline or Live, and a hint
    assert_nobody_listens_at(url)


@needs_sigint
def test_ctrl_c_still_shows_the_trace(ctrl_c: Callable[[str], Interrupted]) -> None:
    outcome = ctrl_c("trace").outcome
    assert outcome.code == 130
    assert "The server saw 1 request:\n" in outcome.err


@needs_sigint
def test_ctrl_c_loses_nothing_that_was_logged(
    ctrl_c: Callable[[str], Interrupted], log: Path
) -> None:
    assert ctrl_c("log").outcome.code == 130
    assert len(log.read_text("ascii").splitlines()) == 2


@needs_sigint
def test_the_mock_server_serves_until_ctrl_c(ctrl_c: Callable[[str], Interrupted]) -> None:
    """A call that waits for its answer doesn't hold it up; no key is in what it prints."""
    (code, out, err), url = ctrl_c("mock server")
    assert (code, err) == (0, "")
    assert [line.partition("GET ")[2] for line in out.splitlines()[1:]] == [
        "/v1/models -> 503",
        "/v1/models -> 200",
        "/v1/models -> timeout",
    ]
    assert "the-key" not in out
    assert_nobody_listens_at(url)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_an_output_that_cannot_be_written_is_a_sentence_and_exit_1() -> None:
    script = str(ROOT / "examples" / "05_fallbacks.py")
    with Path("/dev/full").open("w") as full:
        child = subprocess.run(
            [sys.executable, script],
            env=child_environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert child.returncode == 1
    assert "The output can't be written (No space left on device)." in child.stderr
    assert "Traceback" not in child.stderr
