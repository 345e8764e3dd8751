"""What every script needs: arguments, settings, which API to talk to, the console.

A script ends with ``run_lesson(main)``; ``main`` gets a client and prints the lesson. Without
a key the client talks to a mock server in this process, with a key to the real API.
stdout holds the lesson and nothing else; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from dotenv import dotenv_values

from examples.support.timeline import timeline
from lib.client import DEFAULT_BASE_URL, MAX_TIMEOUT, MistralClient
from lib.errors import APIResponseValidationError, APIStatusError, MistralError, explain
from lib.mock_server import FAULT_SYNTAX, MockServer

Lesson = Callable[[MistralClient], None]
Reply = Callable[[dict[str, Any]], str | None]

ROOT = Path(__file__).resolve().parents[2]
THIS_MACHINE = ("http://localhost", "http://127.0.0.1", "http://[::1]")
OFFLINE_TIMEOUT = 2.0  # seconds; short, because a lesson on timeouts waits for them
LIVE_TIMEOUT = 60.0

FAILED, WRONG_INPUT, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141  # exit codes, beside 0


class UsageError(Exception):
    """The user's input is wrong; the message says what to do."""


def run_lesson(
    lesson: Lesson,
    *,
    faults: str | Mapping[str, str] = "",
    replies: Reply | None = None,
    files: Sequence[str] = (),
) -> NoReturn:
    """Run a lesson as a command, and exit.

    ``faults`` is the fault script for the mock server if the user gives none; ``replies`` is what
    the mock server answers. ``files`` names the files that the user may give: all or none of them.
    """

    def main() -> int:
        options = parse_arguments(files)
        if options.offline or options.faults is not None or not _api_key():
            script = faults if options.faults is None else options.faults
            make_server = partial(MockServer, script, replies=replies)
            _run_offline(lesson, make_server, trace=options.trace)
            return 0
        if faults:
            print_err("This lesson relies on simulated faults, which only --offline shows.")
        if options.trace:
            print_err("--trace shows the mock server's log: add --offline.")
        _run_live(lesson)
        return 0

    run_command(main)


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and exit with its code; what the user can fix is one sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console without ticks shows question marks
            stream.reconfigure(errors="replace", line_buffering=True)
    try:
        code = main()
        print(end="", flush=True)  # shows a closed pipe at the latest
    except UsageError as error:
        print_err(str(error))
        code = WRONG_INPUT
    except MistralError as error:
        print_err(explain(error))
        code = FAILED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # the program that reads our output, such as head -1, has ended
        sys.stdout = io.StringIO()  # at its exit Python would flush the broken one, and complain
        code = CLOSED_PIPE
    except OSError as error:
        print_err(f"{error.filename or 'The output'} can't be used ({error.strerror or error}).")
        sys.stdout = io.StringIO()
        code = FAILED
    sys.exit(code)


def has_faults_argument() -> bool:
    """Return True if the user gives a fault script."""
    return parse_arguments().faults is not None


def setting(name: str, default: str = "") -> str:
    """Return a setting from the environment or, if it isn't there, from the ``.env`` file."""
    value = os.environ[name] if name in os.environ else _env_file().get(name)
    return value or default


def log_file() -> str:
    """Return the path of the examples' log."""
    return setting("MISTRAL_LOG_FILE", str(ROOT / "mistral_errors.log"))


def print_err(sentence: str) -> None:
    """Print a sentence on stderr; ignore a stderr that is missing or can't be written."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(f"{sentence}\n")


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a wrong argument in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Exit with one line on stderr."""
        self.exit(WRONG_INPUT, f"{self.prog}: {message}; see --help\n")


def parse_arguments(files: Sequence[str] = ()) -> argparse.Namespace:
    """Return the options of the command line, which are the same for every lesson.

    ``options.files`` holds the paths that the user gives, one for each name in ``files``, or is
    empty.
    """
    docstring = sys.modules["__main__"].__doc__ or ""
    parser = Parser(description=docstring.partition("\n\n")[0])
    script = f"what happens to the requests, one word per request: {FAULT_SYNTAX}"
    parser.add_argument("--faults", metavar="SCRIPT", help=script.replace("%", "%%"))
    parser.add_argument("--offline", action="store_true", help="use the mock server, not the key")
    parser.add_argument("--trace", action="store_true", help="draw the mock server's log")
    if not files:
        return parser.parse_args()
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"{' and '.join(files)}, or none")
    options = parser.parse_args()
    if len(options.files) not in (0, len(files)):
        raise UsageError(f"{parser.prog}: name {len(files)} files: {' and '.join(files)}")
    return options


def _api_key() -> str:
    """Return the key of the API; a server on this machine needs none."""
    base_url = setting("MISTRAL_BASE_URL")
    return setting("MISTRAL_API_KEY", "no-key" if base_url.startswith(THIS_MACHINE) else "")


def _run_live(lesson: Lesson) -> None:
    """Run a lesson against the real API."""
    base_url = setting("MISTRAL_BASE_URL", DEFAULT_BASE_URL)
    try:
        client = MistralClient(_api_key(), base_url=base_url, timeout=(5.0, _timeout(LIVE_TIMEOUT)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    is_free = base_url.startswith(THIS_MACHINE)
    charge = "" if is_free else ", which may charge for them; --offline is free"
    print_err(f"Live: requests go to {base_url}{charge}.")
    with client:
        # Is there a server at all? An error status is for the lesson to show.
        with contextlib.suppress(APIStatusError, APIResponseValidationError):
            client.models()
        lesson(client)


def _run_offline(lesson: Lesson, make_server: Callable[[], MockServer], *, trace: bool) -> None:
    """Run a lesson against a mock server in this process."""
    timeout = _timeout(OFFLINE_TIMEOUT)
    try:
        server = make_server()
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not os.environ.get("MISTRAL_NO_NOTICE"):  # `make run-all` says it once
        hint = "" if setting("MISTRAL_API_KEY") else " Set MISTRAL_API_KEY to call the real API."
        print_err(f"Offline: using a local mock server ({server.url}).{hint}")
    client = MistralClient(
        "no-key", base_url=server.url, timeout=timeout, total_timeout=2 * timeout
    )
    try:
        with server, client:
            lesson(client)
    finally:
        if trace:
            print_err("\n".join(timeline(server.log)))


def _timeout(default: float) -> float:
    """Return the read timeout in seconds."""
    text = setting("MISTRAL_TIMEOUT", str(default))
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= MAX_TIMEOUT:
            return float(text)
    raise UsageError(
        f"MISTRAL_TIMEOUT must be a number of seconds > 0 and <= {MAX_TIMEOUT:g}, got {text}"
    )


def _env_file() -> dict[str, str | None]:
    path = ROOT / ".env"
    try:
        return dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path} can't be read: save it as UTF-8 text, or remove it.") from None
