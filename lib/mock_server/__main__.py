# SPDX-License-Identifier: MIT-0
"""Run the mock server as a command: ``python -m lib.mock_server --port 8080 --faults 503``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import threading

from . import MockServer, parse_faults
from .dialects import DIALECTS
from .faults import REPETITIONS, VOCABULARY


def main() -> int:
    """Serve until Ctrl-C, and print each request. Return the exit code."""
    options = _parse_arguments()
    try:
        server = MockServer(
            options.faults,
            requests_per_minute=options.rpm,
            tokens_per_minute=options.tpm,
            dialect=options.dialect,
            port=options.port,
            seed=options.seed,
        )
    except OSError as error:
        print(
            f"Can't listen on port {options.port} ({error.strerror}); choose another with --port.",
            file=sys.stderr,
        )
        return 1
    logging.basicConfig(format="%(asctime)s  %(message)s", level=logging.INFO, stream=sys.stdout)
    with server, contextlib.suppress(KeyboardInterrupt):
        print(
            f"Mock {DIALECTS[options.dialect].name} API on {server.url} (stop it with Ctrl-C)",
            flush=True,
        )
        threading.Event().wait()
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description="A local stand-in for the Mistral API that fails on demand.",
        epilog=_vocabulary(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--port", type=int, default=8080, help="default: 8080; 0 is any free port")
    parser.add_argument("--faults", default="", help="a fault script, for example 503,429:2")
    parser.add_argument("--rpm", type=int, help="requests allowed per minute; default: no limit")
    parser.add_argument("--tpm", type=int, help="tokens allowed per minute; default: no limit")
    parser.add_argument(
        "--dialect", choices=DIALECTS, default="mistral", help="the API to stand in for"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for faults with @; default: 0")
    options = parser.parse_args()
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be an integer from 0 to 65535, got {options.port}")
    for name in ("rpm", "tpm"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be an integer >= 1, got {value}")
    try:
        parse_faults(options.faults)
    except ValueError as error:
        parser.error(str(error))
    return options


def _vocabulary() -> str:
    rows = [(word.example, word.meaning) for word in VOCABULARY]
    lines = [f"  {example:<12} {meaning}" for example, meaning in [*rows, *REPETITIONS]]
    return "\n".join(["faults, one word per request, separated by commas:", *lines])


if __name__ == "__main__":
    sys.exit(main())
