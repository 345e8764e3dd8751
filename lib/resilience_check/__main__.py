# SPDX-License-Identifier: MIT-0
"""Check a program: ``python -m lib.resilience_check -- python my_app.py``."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import signal
import sys
from dataclasses import asdict
from functools import partial

from ..mock_server.dialects import DIALECTS
from . import FAIL, NOT_TRIED, PASS, CheckError, Verdict, verdicts
from .programs import Process
from .rules import RULES

NO_RULE_FAILS, A_RULE_FAILS, NOT_CHECKED, INTERRUPTED = 0, 1, 2, 130  # exit codes
READ = {rule.name: rule.read for rule in RULES}
WIDTH = max(map(len, READ))


def main() -> int:
    """Check a program, print the verdicts, and return the exit code."""
    options, command = _parse_arguments()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the console may lack a letter of the program's
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the program, too
    done: list[Verdict] = []
    try:
        for verdict in verdicts(
            partial(Process, command),
            rules=RULES,
            patience=options.patience,
            dialect=options.dialect,
        ):
            done.append(verdict)
            if not options.json:
                _print_row(verdict)
    except CheckError as error:
        print(error, file=sys.stderr)
        done = [Verdict(rule.name, NOT_TRIED, 0, str(error), rule.why) for rule in RULES]
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_CHECKED
    if options.json:
        print(json.dumps({"rules": [asdict(verdict) for verdict in done]}, indent=2))
    found = {verdict.verdict for verdict in done}
    if FAIL in found:
        return A_RULE_FAILS
    return NO_RULE_FAILS if PASS in found else NOT_CHECKED


def _print_row(verdict: Verdict) -> None:
    print(f"{verdict.rule:<{WIDTH}}  {verdict.verdict:<9}  {verdict.happened}", flush=True)
    if verdict.verdict == FAIL:
        print(f"    why it matters: {verdict.why}")
        print(f"    read on: {READ[verdict.rule]}", flush=True)


def _parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the command that follows the --."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        usage="%(prog)s [-h] [--patience SECONDS] [--dialect NAME] [--json] -- COMMAND",
        description="Check how a program handles the failures of an LLM API. The program finds "
        "the server in OPENAI_BASE_URL and MISTRAL_BASE_URL; it must print the answer and end.",
        epilog=f"Exit code {A_RULE_FAILS} if a rule fails, {NOT_CHECKED} if none could be tried.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long the program may take after its first request; default: 30",
    )
    parser.add_argument(
        "--dialect",
        choices=DIALECTS,
        default="mistral",
        help="the API that the program is written for; default: mistral",
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    arguments, command = sys.argv[1:], []
    if "--" in arguments:
        end = arguments.index("--")
        arguments, command = arguments[:end], arguments[end + 1 :]
    options = parser.parse_args(arguments)
    if not 0 < options.patience < math.inf:
        parser.error(f"--patience must be a number of seconds > 0, got {options.patience}")
    if not command:
        parser.error("name your program after --, for example: -- python my_app.py")
    return options, command


if __name__ == "__main__":
    sys.exit(main())
