"""Start the process of judge.py and read its verdicts, whatever the learner's file does to it."""

from __future__ import annotations

import contextlib
import functools
import json
import linecache
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from examples.exercises.checker import scheduler
from examples.exercises.checker.judge import Verdict, rules_of
from examples.exercises.checker.load import ROOT, is_the_learners

JUDGE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from examples.exercises.checker.judge import main
main()
"""
SECONDS_TO_START = 60.0
SECONDS_PER_RULE = 8.0  # a rule takes a fraction of a second


def verdicts(
    number: int, path: Path, seconds_per_rule: float = SECONDS_PER_RULE
) -> Iterator[Verdict]:
    """Yield the verdict on the loading of the file and, if that is ok, one for each rule."""
    expected = 1 + len(rules_of(number))
    found: list[Verdict] = []
    where_it_was = ""
    mark = secrets.token_hex(8)
    with _judge(number, path, seconds_per_rule) as process:
        _send(mark, process)
        for line in _lines(process, seconds_per_rule + 1):
            if not line.startswith(mark):
                where_it_was += line
                continue
            found.append(Verdict(*json.loads(line.removeprefix(mark))))
            yield found[-1]
            if len(found) == expected:
                return
    if not found or found[0].outcome == "ok":
        yield Verdict("not yet", _why_it_ended(where_it_was, seconds_per_rule))
        yield from [Verdict("not tried", "the check ended above")] * (expected - len(found) - 1)


@contextlib.contextmanager
def _judge(number: int, path: Path, seconds_per_rule: float) -> Iterator[subprocess.Popen[str]]:
    """Start the process in a session of its own, and end it with all that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-c", JUDGE, str(number), str(path.resolve()), str(seconds_per_rule)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="ascii",
        errors="replace",
        env={**os.environ, "PYTHONHASHSEED": "0"},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


def _send(line: str, process: subprocess.Popen[str]) -> None:
    assert process.stdin
    with contextlib.suppress(BrokenPipeError), process.stdin:
        print(line, file=process.stdin)


def _lines(process: subprocess.Popen[str], seconds: float) -> Iterator[str]:
    """Yield what the process writes, and at last "Timeout" if it is silent for so long.

    Its first line says that it is ready: no code of the learner runs before.
    """
    lines = queue.Queue[str]()
    assert process.stdout
    output = process.stdout

    def read() -> None:
        with output:
            for line in output:
                lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    try:
        if lines.get(timeout=SECONDS_TO_START):
            yield from iter(functools.partial(lines.get, timeout=seconds), "")
    except queue.Empty:
        yield "Timeout"


def _why_it_ended(where_it_was: str, seconds: float) -> str:
    """Say which line of the learner's files did not return, from faulthandler's tracebacks."""
    if not where_it_was:
        return "your code ended the process"
    threads = [
        re.findall(r'File "(.+)", line (\d+) in', thread) for thread in where_it_was.split("\n\n")
    ]
    theirs = [calls for calls in threads if any(is_the_learners(file) for file, _ in calls)]
    # In scheduler.py, a thread waits for its turn: the one that runs is elsewhere.
    running = [calls for calls in theirs if calls[0][0] != scheduler.__file__] or theirs
    for file, line in running[0] if running else ():
        if is_the_learners(file):
            code = linecache.getline(file, int(line)).strip()
            return f"it did not return within {seconds:g} s: it was at line {line}: `{code}`"
    return f"it did not return within {seconds:g} s"
