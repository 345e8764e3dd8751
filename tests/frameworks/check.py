"""Check one client, in the environment in which it is installed, and print the verdicts as JSON.

    python tests/frameworks/check.py NAME

Each run of a client has a process of its own, which can be ended whatever the client waits for.
It is forked from a server that has imported the library, because importing one takes seconds.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from frameworks.clients import CLIENTS, Client  # noqa: E402
from lib.resilience_check import RULES, CheckError, Verdict, verdicts  # noqa: E402
from lib.resilience_check.programs import Ending, Process  # noqa: E402
from lib.resilience_check.rules import OUTAGE, Rule  # noqa: E402

# Each group is checked at the same time as the others: nearly all of it is waiting.
PLAIN = [rule for rule in RULES if not rule.needs_stream]
GROUPS = (
    (False, [rule for rule in PLAIN if rule.faults == OUTAGE]),
    (False, [rule for rule in PLAIN if rule.faults != OUTAGE]),
    (True, [rule for rule in RULES if rule.needs_stream]),
)
fork_server: Any = multiprocessing.get_context("forkserver")


class Forked:
    """An adapter in a process of its own."""

    def __init__(self, module: str, name: str, stream: bool, url: str, key: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._pipe, its_end = fork_server.Pipe(duplex=False)
        arguments = (module, name, stream, url, key, self._folder.name, its_end)
        self._child = fork_server.Process(target=ask, args=arguments)
        self._child.start()
        its_end.close()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return True if it has ended."""
        return bool(self._pipe.poll(seconds))

    def stop(self) -> Ending:
        """End the process if it is still running, and say how it ended."""
        running = not self._pipe.poll()
        try:
            failure = "" if running else self._pipe.recv()
        except EOFError:
            failure = "the process died"
        self._child.kill()
        self._child.join()
        with self._folder as folder:
            output, messages = (
                Path(folder, name).read_text("utf-8", "replace") for name in ("out", "err")
            )
        return Ending(output, messages, failure, running)


def ask(
    module: str, name: str, stream: bool, url: str, key: str, folder: str, pipe: Connection
) -> None:
    """Ask once, in the process of a run, and send how it failed: "" if it did not."""
    for descriptor, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, file), os.O_WRONLY | os.O_CREAT), descriptor)
    failure = ""
    try:
        adapter: Callable[..., str] = getattr(importlib.import_module(module), name)
        print(adapter(url, key, stream), flush=True)
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}"
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
    pipe.send(failure)


def check(client: Client) -> list[Verdict]:
    """Return the verdicts on a client, in the order of the rules."""

    def run(group: tuple[bool, list[Rule]]) -> list[Verdict]:
        stream, rules = group
        if client.command:
            start: Any = partial(Process, client.command(stream))
        else:
            start = partial(Forked, client.module, client.function, stream)
        return list(verdicts(start, rules=rules, dialect=client.dialect))

    with ThreadPoolExecutor(len(GROUPS)) as pool:
        found = {each.rule: each for part in pool.map(run, GROUPS) for each in part}
    return [found[rule.name] for rule in RULES]


def main() -> int:
    """Check the client that the command line names."""
    (client,) = (each for each in CLIENTS if each.name == sys.argv[1])
    os.environ.update(dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"))
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # for the fork server
    fork_server.set_forkserver_preload([client.module] if client.module else [])
    try:
        found = check(client)
    except CheckError as error:
        print(f"{client.name} cannot be checked: {error}", file=sys.stderr)
        return 1
    result = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": client.versions(),
        "verdicts": {each.rule: [each.verdict, each.happened] for each in found},
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
