"""Check right, wrong and stubborn solutions of the exercises, and print the verdicts as JSON.

test_exercises.py runs this file behind the other tests and reads what it prints. The right
solutions that take longest are left out, except in `make soak`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from examples.exercises import check
from examples.exercises.checker import child, judge, rules

ROOT = Path(__file__).resolve().parents[1]
SOLUTIONS = ROOT / "examples" / "solutions"
OTHER_SOLUTIONS = ROOT / "tests" / "right_solutions"
WRONG = ROOT / "tests" / "wrong_solutions"
SLOW = () if "SOAK_CALLS" in os.environ else ("ex1_polling", "ex5_breaker", "ex5_by_hand")
RIGHT = [
    path
    for path in (*SOLUTIONS.glob("ex*.py"), *OTHER_SOLUTIONS.glob("*.py"))
    if path.stem not in SLOW
]


class Slip(NamedTuple):
    """A wrong solution: a right one with one mistake, and the rule that the mistake breaks."""

    number: int
    rule: str
    source: str


def read_slips(number: int) -> Iterator[Slip]:
    """Read tests/wrong_solutions/exN.diff: the rule, then right lines (-) and wrong ones (+)."""
    for block in (WRONG / f"ex{number}.diff").read_text("utf-8").split("\n\n"):
        rule, *lines = block.strip("\n").split("\n")
        path = SOLUTIONS / check.EXERCISES[number]
        if lines[0].startswith("# in "):
            path = OTHER_SOLUTIONS / lines.pop(0).removeprefix("# in ")
        source = path.read_text("utf-8")
        for right, wrong in re.findall(r"((?:-.*\n)+)((?:[+].*\n)*)", "\n".join([*lines, ""])):
            source = changed(
                source, re.sub("^-", "", right, flags=re.M), re.sub("^[+]", "", wrong, flags=re.M)
            )
        yield Slip(number, rule.removeprefix("# "), source)


def changed(source: str, right: str, wrong: str) -> str:
    """Replace the first place where a line begins so."""
    assert f"\n{right}" in source, right
    return source.replace(f"\n{right}", f"\n{wrong}", 1)


SLIPS = [slip for number in check.EXERCISES for slip in read_slips(number)]
# The orders in which exercise 4 can put its helpers, the outermost one first, and what each breaks.
ORDERS = {
    "retry, breaker, limiter": set[str](),
    "retry, limiter, breaker": {"an open circuit sends nothing and uses up no slot"},
    "breaker, retry, limiter": {"the breaker sees each attempt: when it opens, the retries end"},
    "breaker, limiter, retry": {
        "each attempt is paced",
        "the breaker sees each attempt: when it opens, the retries end",
    },
    "limiter, retry, breaker": {
        "each attempt is paced",
        "an open circuit sends nothing and uses up no slot",
    },
    "limiter, breaker, retry": {
        "each attempt is paced",
        "the breaker sees each attempt: when it opens, the retries end",
        "an open circuit sends nothing and uses up no slot",
    },
}


# Files that stop or deceive the check; the first rule of exercise 1 calls RetryPool.
STUBBORN = {
    "loop": "def RetryPool(*parts):\n    while True:\n        pass\n",
    "loop in C": "def RetryPool(*parts):\n    sum(range(10**12))\n",
    "no watchdog": "import faulthandler\nimport os\nfaulthandler.cancel_dump_traceback_later()\n"
                   "os.read(os.pipe()[0], 1)\n",
    "exit": "import os\ndef RetryPool(*parts):\n    os._exit(0)\n",
    "changed rules": "import examples.exercises.checker.rules_1 as rules\n"
                     "for name in list(vars(rules)):\n    if name[0] != '_':\n"
                     "        delattr(rules, name)\n",
    "changed helper": "from lib.retry import Retrier\nRetrier.call = lambda *parts: 'Hello!'\n",
    "other trace": "import sys\nsys.settrace(None)\n",
    "own verdicts": "import os\nfor file in range(3, 10):\n    try:\n"
                    "        os.write(file, 100 * b'[\"ok\"]\\n')\n    except OSError:\n"
                    "        pass\n",
    "flood": "import sys\nwhile True:\n    sys.stdout.write('hello ' * 1000)\n",
    "other process": "import os\nimport subprocess\nimport sys\n"
                     "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
                     "os._exit(0)\n",
}  # fmt: skip


def load(source: str) -> Any:
    path = Path("solution.py").resolve()
    path.write_text(source, "utf-8")
    return rules.load(path)


def broken_rules(number: int, solution: Any) -> list[str]:
    """Return the rules that do not hold; a stretch part that is not written is left out."""
    exercise = judge.rules_of(number)
    verdicts = zip(exercise, judge.check_rules(exercise, solution), strict=True)
    return [rule.description for rule, verdict in verdicts if verdict.outcome == "not yet"]


def broken_by(order: str) -> list[str]:
    def resilient_chat(client: Any, retrier: Any, breaker: Any, limiter: Any, messages: Any) -> Any:
        def paced(call: Callable[[], Any]) -> Any:
            limiter.acquire()
            return call()

        wrappers = {"retry": retrier.call, "breaker": breaker.call, "limiter": paced}
        call: Callable[[], Any] = partial(client.chat, messages)
        for part in reversed(order.split(", ")):
            call = partial(wrappers[part], call)
        return call()

    solution = load("")
    solution.resilient_chat = resilient_chat
    return broken_rules(4, solution)


def problem_of(slip: Slip) -> str:
    """Return what the rule that the slip breaks says about it."""
    [rule] = [rule for rule in judge.rules_of(slip.number) if rule.description == slip.rule]
    [verdict] = judge.check_rules([rule], load(slip.source))
    return verdict.actual


def verdicts_on_stubborn(name: str) -> list[judge.Verdict]:
    """Check one file. A loop gets less time, because it keeps a processor busy."""
    path = Path(f"{name.replace(' ', '_')}.py")
    path.write_text(STUBBORN[name], "utf-8")
    seconds = 1.5 if name.startswith("loop") else 2.0
    return list(child.verdicts(1, path, seconds_per_rule=seconds))


def main() -> None:
    with ThreadPoolExecutor(2) as pool:
        stubborn = pool.map(verdicts_on_stubborn, STUBBORN)
        verdicts = {
            "right": {
                path.stem: broken_rules(int(path.name[2]), rules.load(path)) for path in RIGHT
            },
            "orders": {order: broken_by(order) for order in ORDERS},
            "wrong": [problem_of(slip) for slip in SLIPS],
            "stubborn": dict(zip(STUBBORN, stubborn, strict=True)),
        }
    print(json.dumps(verdicts))


if __name__ == "__main__":
    main()
