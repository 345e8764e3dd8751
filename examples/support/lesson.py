"""What every script needs: arguments, settings, which API to talk to, the console.

A script ends with ``run_lesson(main)``; ``main`` gets a client and prints the lesson. Without
a key the client talks to a mock server in this process, with a key to the real API.
stdout holds the lesson and nothing else; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from dotenv import dotenv_values

from examples.support.timeline import timeline
from lib.client import DEFAULT_BASE_URL, MAX_TIMEOUT, MistralClient
from lib.errors import APIResponseValidationError, APIStatusError, MistralError, explain
from lib.mock_server import FAULT_SYNTAX, MockServer
from lib.transport import is_loopback

Lesson = Callable[[MistralClient], None]
Reply = Callable[[dict[str, Any]], str | None]

ROOT = Path(__file__).resolve().parents[2]
OFFLINE_TIMEOUT = 2.0  # seconds; short, because a lesson on timeouts waits for them
LIVE_TIMEOUT = 60.0
PLAIN_SYMBOLS = {"✓": "+", "✗": "x", "█": "#"}

FAILED, WRONG_INPUT, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141  # exit codes, beside 0


class UsageError(Exception):
    """The user's input cannot be right; the message says what to do."""


def run_lesson(
    lesson: Lesson, *, faults: str | Mapping[str, str] = "", replies: Reply | None = None
) -> NoReturn:
    """Run a lesson as a command, and exit.

    ``faults`` is the fault script for the mock server if the user gives none; ``replies`` is what
    the mock server answers.
    """

    def main() -> int:
        options = parse_arguments()
        client = _live_client(options)
        if client is None:
            script = faults if options.faults is None else options.faults
            _run_offline(lesson, partial(MockServer, script, replies=replies), options)
            return 0
        if faults:
            print_err("This lesson relies on simulated failures, which only --offline shows.")
        if options.trace:
            print_err("--trace shows the mock server's log: add --offline.")
        with client:
            _check_reachable(client)
            lesson(client)
        return 0

    run_command(main)


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run ``main`` and exit with its code; what the user can fix is one sentence on stderr."""
    prepare_console()
    try:
        code = main()
        if sys.stdout:
            sys.stdout.flush()
    except UsageError as error:
        code = _fail(str(error), WRONG_INPUT)
    except MistralError as error:
        code = _fail(explain(error), FAILED)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:
        if error.filename is not None:
            raise  # about a file that the script opened; an error of stdout names no file
        code = _after_stdout_failed(error)
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
    """Print a sentence on stderr; ignore a stderr that can't be written."""
    if sys.stderr is not None:  # print(file=None) would print on stdout
        with contextlib.suppress(OSError):
            print(sentence, file=sys.stderr)


def prepare_console() -> None:
    """Flush each line, and replace what the console can't show by plain ASCII."""
    codecs.register_error("plain_symbols", _plain_symbols)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain_symbols", line_buffering=True)


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a wrong argument in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Exit with one line on stderr."""
        self.exit(WRONG_INPUT, f"{self.prog}: {message}; see --help\n")


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line, which are the same for every lesson."""
    docstring = sys.modules["__main__"].__doc__ or ""
    parser = Parser(description=docstring.partition("\n\n")[0])
    script = f"what happens to the requests, one word per request: {FAULT_SYNTAX}"
    parser.add_argument("--faults", metavar="SCRIPT", help=script.replace("%", "%%"))
    parser.add_argument("--offline", action="store_true", help="use the mock server, not the key")
    parser.add_argument("--trace", action="store_true", help="draw the mock server's log")
    return parser.parse_args()


def _live_client(options: argparse.Namespace) -> MistralClient | None:
    """Return a client of the real API, or None if the lesson runs offline."""
    base_url = setting("MISTRAL_BASE_URL", DEFAULT_BASE_URL)
    key = setting("MISTRAL_API_KEY")
    if not key and _is_this_machine(base_url):
        key = "no-key"  # a server on this machine needs none
    if not key or options.offline or options.faults is not None:
        return None
    try:
        client = MistralClient(key, base_url=base_url, timeout=(5.0, _timeout(LIVE_TIMEOUT)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    charge = "" if _is_this_machine(base_url) else ", which may charge for them; --offline is free"
    print_err(f"Live: requests go to {base_url}{charge}.")
    return client


def _is_this_machine(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # such as http://[
        return False


def _check_reachable(client: MistralClient) -> None:
    """Raise APIConnectionError if no response comes; an error status is the lesson's to show."""
    with contextlib.suppress(APIStatusError, APIResponseValidationError):
        client.models()


def _run_offline(
    lesson: Lesson, make_server: Callable[[], MockServer], options: argparse.Namespace
) -> None:
    """Run a lesson against a mock server in this process."""
    timeout = _timeout(OFFLINE_TIMEOUT)
    try:
        server = make_server()
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not os.environ.get("MISTRAL_NO_NOTICE"):  # `make run-all` says it once
        hint = "" if setting("MISTRAL_API_KEY") else " Set MISTRAL_API_KEY to call the real API."
        print_err(f"Offline: using a local mock server ({server.url}).{hint}")
    try:
        with (
            server,
            MistralClient(
                "no-key", base_url=server.url, timeout=timeout, total_timeout=2 * timeout
            ) as client,
        ):
            lesson(client)
    finally:
        if options.trace:
            for line in timeline(server.log):
                print_err(line)


def _timeout(default: float) -> float:
    """Return the read timeout in seconds."""
    text = setting("MISTRAL_TIMEOUT") or str(default)
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= MAX_TIMEOUT:
            return float(text)
    raise UsageError("MISTRAL_TIMEOUT must be a number of seconds > 0, for example 60.")


@functools.cache
def _env_file() -> dict[str, str | None]:
    path = ROOT / ".env"
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{path} can't be read ({reason}): fix it or remove it.") from None
    return dict(dotenv_values(stream=io.StringIO(text), interpolate=False))


def _after_stdout_failed(error: OSError) -> int:
    """Return the exit code, and discard unwritten output: Python would report it at its exit."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
        return CLOSED_PIPE  # the program that reads our output, such as head -1, has ended
    return _fail(f"The output can't be written ({error.strerror or error}).", FAILED)


def _plain_symbols(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    plain = [PLAIN_SYMBOLS.get(char, "?") for char in error.object[error.start : error.end]]
    return "".join(plain), error.end


def _fail(sentence: str, code: int) -> int:
    print_err(sentence)
    return code
