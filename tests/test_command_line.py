"""The commands as a user types them: other ways to start one, a pipe, Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from conftest import Commands
from support import SCRIPTS, finish, run, script, start, transcript

SECOND, THIRD, SIXTH = (str(SCRIPTS[number - 1]) for number in (2, 3, 6))


# Runs a script whose stdout is a full disk: argv is the script's path and its arguments.
ON_A_FULL_DISK = """
import os, runpy, sys
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
COMMANDS = {
    "development mode": partial(run, "-X", "dev", str(SCRIPTS[0])),
    "ascii console": partial(
        run, *script("01_basic_errors", "--trace"), PYTHONIOENCODING="ascii", PYTHONUTF8="0"
    ),
    "missing package": partial(run, "-S", SECOND),  # without the installed packages
    "full disk": partial(run, "-c", ON_A_FULL_DISK, SECOND, "--offline", MISTRAL_NO_NOTICE="1"),
}


class TestStart:
    def test_in_development_mode(self, commands: Commands) -> None:
        outcome = commands("development mode")
        assert outcome[:2] == (0, transcript("01_basic_errors"))
        assert re.fullmatch("Offline: .*\n", outcome.err)  # and no warning

    def test_on_an_ascii_console(self, commands: Commands) -> None:
        outcome = commands("ascii console")
        plain = transcript("01_basic_errors").replace("✓", "?").replace("✗", "?")
        assert outcome[:2] == (0, plain)
        assert "    0.0 s  |?" in outcome.err

    def test_a_missing_package_is_one_sentence(self, commands: Commands) -> None:
        outcome = commands("missing package")
        assert (outcome.code, outcome.out) == (1, "")
        assert re.fullmatch(
            "The package requests is not installed. `make run-all` .*\n", outcome.err
        )


def test_a_closed_pipe_ends_a_script_quietly() -> None:
    """Its exit code is that of a program that SIGPIPE ends."""
    with start(THIRD, "--faults", "slow:0.3") as child:
        assert child.stdout
        assert child.stdout.readline() == "=== Example 3: Rate Limit Handling ===\n"
        child.stdout.close()
        child.stdout = None
        code, _, err = finish(child)
    assert code == 141
    assert re.fullmatch("Offline: .*\n", err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_sentence(commands: Commands) -> None:
    code, _, err = commands("full disk")
    assert (code, err) == (1, "The output can't be used (No space left on device).\n")


def read_until(words: str, child: subprocess.Popen[str]) -> str:
    assert child.stdout
    out = ""
    while not out.endswith(words):
        out += child.stdout.read(1) or pytest.fail(f"it ended: {child.communicate()[1]}")
    return out


def port_of(text: str) -> int:
    return int(re.findall(r"http://127\.0\.0\.1:(\d+)", text)[0])


def assert_port_is_closed(port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


# What a script waits for when Ctrl-C comes: the last words that it has printed by then, its
# command, and the responses that the trace shows at least.
STAGES = {
    "the first response": ("Attempt 1/3...", [SECOND, "--faults", "timeout"], []),
    "the rate limit": ("waiting 1s", [THIRD, "--faults", "ok"], ["200"]),
    "the third response": (
        "Success\n  Logged: chat - Success\n", [SIXTH, "--faults", "ok,ok,slow:30"], ["200", "200"],
    ),
}  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="no process can press Ctrl-C for another one there")
class TestCtrlC:
    @pytest.fixture(autouse=True)
    def children_handle_sigint(self) -> Iterator[None]:
        """Handle it here: children would inherit that a job in the background ignores it."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def test_script_ends_with_130_and_keeps_trace_and_log(self, tmp_path: Path) -> None:
        log = tmp_path / "errors.log"
        with contextlib.ExitStack() as stack:
            children = {
                stage: stack.enter_context(
                    start(*command, "--trace", MISTRAL_LOG_FILE=str(log), MISTRAL_TIMEOUT="60")
                )
                for stage, (_, command, _) in STAGES.items()
            }
            for stage, child in children.items():
                read_until(STAGES[stage][0], child)
            time.sleep(0.1)  # so that it waits already
            for child in children.values():
                child.send_signal(signal.SIGINT)
            # A process left behind would keep the pipes open.
            outcomes = {stage: finish(child, timeout=20) for stage, child in children.items()}
        for stage, (code, _, err) in outcomes.items():
            assert code == 130, stage
            assert "Traceback" not in err
            trace = [line.rpartition("| ")[2] for line in err.splitlines() if "s  |" in line]
            expected = STAGES[stage][2]
            assert trace[: len(expected)] == expected
            assert_port_is_closed(port_of(err))
        assert len(log.read_text("ascii").splitlines()) == 2

    def test_mock_server_serves_until_ctrl_c(self) -> None:
        """A request without a response does not delay its end; it prints no key."""
        command = ("-m", "lib.mock_server", "--port", "0", "--faults", "503,ok,timeout")
        with start(*command) as child:
            out = read_until("\n", child)
            port = port_of(out)
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                request = b"GET /v1/models HTTP/1.1\r\nAuthorization: Bearer the-key\r\n\r\n"
                connection.sendall(request * 3)
                for _ in range(3):
                    out += read_until("\n", child)
                child.send_signal(signal.SIGINT)
                code, rest, err = finish(child, timeout=20)
        assert (code, rest, err) == (0, "", "")
        assert re.match(r"Mock Mistral API on http://127\.0\.0\.1:\d+/v1 \(stop it with", out)
        assert [line.partition("GET ")[2] for line in out.splitlines()[1:]] == [
            "/v1/models -> 503",
            "/v1/models -> 200",
            "/v1/models -> timeout",
        ]
        assert "the-key" not in out
        assert_port_is_closed(port)
