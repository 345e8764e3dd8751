# SPDX-License-Identifier: MIT-0
"""Run a program for the resilience check: a command, or a function in a thread."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

BASE_URLS = ("OPENAI_BASE_URL", "OPENAI_API_BASE", "MISTRAL_BASE_URL", "MISTRAL_API_BASE")
API_KEYS = ("OPENAI_API_KEY", "MISTRAL_API_KEY")
MAX_OUTPUT = 1_000_000  # bytes that are kept of what a program prints


class CheckError(Exception):
    """The program cannot be checked. The message says why, and what to do."""


class Ending(NamedTuple):
    """How a program ended: what it printed or returned, its messages, and how it failed."""

    output: str
    messages: str = ""  # stderr, or the traceback
    failure: str = ""  # an exit code or an exception; "" is a success
    running: bool = False  # it had to be stopped


class Program(Protocol):
    """A program that was started."""

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return True if it has ended."""

    def stop(self) -> Ending:
        """End it if it is still running, and say how it ended."""


class Process:
    """A command, with the server's URL and a key in its environment."""

    def __init__(self, command: Sequence[str], url: str, key: str) -> None:
        settings = {**dict.fromkeys(BASE_URLS, url), **dict.fromkeys(API_KEYS, key)}
        no_proxy = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
        try:
            self._child = subprocess.Popen(
                command,
                env={**os.environ, **settings, **no_proxy},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=os.name == "posix",  # a group of its own, to end all of it
            )
        except OSError as error:
            raise CheckError(f"Can't run {command[0]}: {error.strerror}.") from None
        self._output, self._messages = (
            _Reader(pipe) for pipe in (self._child.stdout, self._child.stderr)
        )

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return True if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        return self._child.returncode is not None

    def stop(self) -> Ending:
        """End the process and all that it started, and say how it ended."""
        running = self._child.poll() is None
        with contextlib.suppress(OSError):  # the group has ended
            if os.name == "posix":
                os.killpg(self._child.pid, signal.SIGKILL)
            else:
                self._child.kill()
        code = self._child.wait()
        output, messages = self._output.text(), self._messages.text()
        if running or code == 0:
            return Ending(output, messages, running=running)
        return Ending(output, messages, f"exit code {code}: {_error_line(messages or output)}")


def _error_line(text: str) -> str:
    """Return the last line that names an error, or the last line."""
    lines = text.strip().splitlines() or [""]
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1])


class _Reader(threading.Thread):
    """Read a pipe to its end, and keep the beginning: a program may print without end."""

    def __init__(self, pipe: Any) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._kept = bytearray()
        self.start()

    def run(self) -> None:
        with self._pipe:
            while piece := self._pipe.read1(65536):
                self._kept += piece[: MAX_OUTPUT - len(self._kept)]

    def text(self) -> str:
        """Return what was read; a process that left its group may keep the pipe open."""
        self.join(1.0)
        return self._kept.decode("utf-8", "replace")


class Call:
    """A call of ``ask(base_url, api_key)`` in a thread of its own.

    A thread can't be stopped: one that is still running is left behind, and usually ends with
    its connection.
    """

    def __init__(self, ask: Callable[[str, str], str], url: str, key: str) -> None:
        self._ask = ask
        self._ending = Ending("", running=True)
        self._thread = threading.Thread(target=self._run, args=(url, key), daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return True if it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> Ending:
        """Say how it ended."""
        return self._ending

    def _run(self, url: str, key: str) -> None:
        try:
            self._ending = Ending(str(self._ask(url, key)))
        except BaseException as error:
            messages = "".join(traceback.format_exception(error))
            failure = f"{type(error).__name__}: {error}"
            self._ending = Ending("", messages, failure)
