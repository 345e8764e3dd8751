# SPDX-License-Identifier: MIT-0
"""What every example needs and none is about: arguments, settings, which API, the console.

An example ends with ``run_lesson(main)``: it gets a client and prints its lesson.
With no key the client talks to a mock server in this process, with a key to the API.
stdout holds the lesson and nothing else; all the rest goes to stderr.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import requests
from dotenv import dotenv_values

from lib.client import DEFAULT_BASE_URL, MAX_TIMEOUT, MistralClient
from lib.errors import APIConnectionError, APITimeoutError, MistralError, explain
from lib.mock_server import VOCABULARY, LoggedRequest, MockServer

Lesson = Callable[[MistralClient], None]

ROOT = Path(__file__).resolve().parents[1]
OFFLINE_TIMEOUT = 2.0  # seconds; nobody wants to watch a lesson on timeouts for a minute
LIVE_TIMEOUT = 60.0
PLAIN_SYMBOLS = {"✓": "+", "✗": "x"}


def run_lesson(lesson: Lesson, *, faults: str = "", storm: Lesson | None = None) -> NoReturn:
    """Run a lesson as a command, and exit: 0, 1 (failed), 2 (wrong input) or 130 (Ctrl-C).

    ``faults`` is the mock server's weather where the user asks for none; ``storm`` is
    run in the lesson's place where the user asks for some.
    """
    prepare_console()
    try:
        options = _parse_arguments()
        if storm and options.faults is not None:
            lesson = storm
        key = setting("MISTRAL_API_KEY")
        if key and not options.offline and options.faults is None:
            code = _run_live(lesson, faults, key, options)
        else:
            code = _run_offline(lesson, faults, options)
        if sys.stdout:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        if error.filename is not None:
            raise  # a file of the lesson's own: stdout has no name
        code = _stdout_is_gone(error)
    except MistralError as error:
        code = _fail(explain(error), 1)
    sys.exit(code)


def setting(name: str, default: str = "") -> str:
    """A setting from the environment or, if it isn't there, from the ``.env`` file."""
    value = os.environ[name] if name in os.environ else _env_file().get(name)
    return value or default


def log_file() -> str:
    """Where the examples write their log."""
    return setting("MISTRAL_LOG_FILE", str(ROOT / "mistral_errors.log"))


def _run_live(lesson: Lesson, faults: str, key: str, options: argparse.Namespace) -> int:
    base_url = setting("MISTRAL_BASE_URL", DEFAULT_BASE_URL)
    try:
        client = _LiveClient(key, base_url=base_url, timeout=(5.0, _timeout(LIVE_TIMEOUT)))
    except ValueError as error:
        return _fail(str(error), 2)
    _say(f"Live: requests go to {base_url}, which may charge for them; --offline is free.")
    if faults:
        _say("The weather of this lesson is the mock server's: --offline shows it.")
    if options.trace:
        _say("--trace shows the mock server's view: add --offline.")
    with client:
        lesson(client)
    return _fail(explain(client.unreached), 1) if client.unreached else 0


def _run_offline(lesson: Lesson, faults: str, options: argparse.Namespace) -> int:
    try:
        timeout = _timeout(OFFLINE_TIMEOUT)
        server = MockServer(faults if options.faults is None else options.faults)
    except ValueError as error:
        return _fail(str(error), 2)
    hint = "" if setting("MISTRAL_API_KEY") else "; with MISTRAL_API_KEY, the real API does"
    _say(f"Offline: a mock server at {server.url} answers{hint}.")
    with server, MistralClient("no-key", base_url=server.url, timeout=timeout) as client:
        try:
            lesson(client)
        finally:
            if options.trace:
                _print_trace(server.log)
    return 0


class _LiveClient(MistralClient):
    """Knows at the end whether the API could be reached at all."""

    unreached: APIConnectionError | None = None

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, payload: dict[str, Any] | None
    ) -> Iterator[requests.Response]:
        self.unreached = None
        try:
            with super()._exchange(method, path, payload) as response:
                yield response
        except APIConnectionError as error:
            too_slow = isinstance(error, APITimeoutError)  # but there, if it let us connect
            if not too_slow or isinstance(error.__cause__, requests.ConnectTimeout):
                self.unreached = error
            raise


def _print_trace(log: list[LoggedRequest]) -> None:
    _say(f"The server's view: {len(log) or 'no'} request{'s' * (len(log) != 1)}.")
    for request in log:
        since_first = request.arrived - log[0].arrived
        _say(f"{since_first:7.2f} s  {request.method} {request.path} -> {request.answer}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _parse_arguments() -> argparse.Namespace:
    parser = _Parser(allow_abbrev=False)
    weather = f"the mock server's weather, one word a request: {VOCABULARY}"
    parser.add_argument("--faults", metavar="SCRIPT", help=weather)
    parser.add_argument("--offline", action="store_true", help="use no key, even if there is one")
    parser.add_argument("--trace", action="store_true", help="end with the mock server's view")
    return parser.parse_args()


def _timeout(default: float) -> float:
    text = setting("MISTRAL_TIMEOUT") or str(default)
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= MAX_TIMEOUT:
            return float(text)
    raise ValueError("MISTRAL_TIMEOUT must be a number of seconds above 0, for example 60")


@functools.cache
def _env_file() -> dict[str, str | None]:
    path = ROOT / ".env"
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        sys.exit(_fail(f"{path} can't be read ({reason}): mend it or remove it.", 2))
    return dict(dotenv_values(stream=io.StringIO(text), interpolate=False))


def prepare_console() -> None:
    """Print what the console can't show as plain ASCII, and each line when it is finished."""
    codecs.register_error("plain_symbols", _plain_symbols)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain_symbols", line_buffering=True)


def _stdout_is_gone(error: OSError) -> int:
    """The exit code; what is still unwritten goes nowhere, or Python would complain at exit."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL):
        return 141  # who reads our output (head -1) has seen enough
    return _fail(f"The output can't be written ({error.strerror or error}).", 1)


def _plain_symbols(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    plain = [PLAIN_SYMBOLS.get(char, "?") for char in error.object[error.start : error.end]]
    return "".join(plain), error.end


def _fail(sentence: str, code: int) -> int:
    _say(sentence)
    return code


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr)
