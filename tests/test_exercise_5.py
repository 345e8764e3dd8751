"""Exercise 5: what learners write against a retry storm, and the rule that must notice it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.exercises import check, rules
from support import ROOT

SOLUTION = (ROOT / "examples" / "solutions" / "ex5_retry_storm.py").read_text("utf-8")
IMPORTS = """
import asyncio, math, random, time
from lib.circuit_breaker import CircuitBreaker
from lib.retry import RetryBudget
"""
MAKE_RETRIER = "self._retrier = Retrier(max_attempts=3)"
CALL = "return await self._retrier.call_async(self._send)"
UNLIMITED = "self._retrier = Retrier(max_attempts=3, budget=RetryBudget(math.inf))"
CALL_WITH_BREAKER = """
        return await self._retrier.call_async(lambda: self._breaker.call_async(self._send))
"""

Check = Callable[[Any], "str | None"]


def description_and_check(rule: rules.Rule) -> tuple[str, Check]:
    description, *_, check_rule = vars(rule).values()
    return description, check_rule


RULES = dict(map(description_and_check, check.rules_of(5)))

# What is wrong, the lines instead of the right ones, and the rules that must not hold.
WRONG = {
    "no retry": (
        {CALL: "return await self._send()"},
        ["transient failures are retried"],
    ),
    "backoff and jitter only": (
        {MAKE_RETRIER: UNLIMITED},
        [
            "a service that is down gets its normal load and a little more",
            "when the spike is over, the outage is over",
        ],
    ),
    "a retry inside a retry": (
        {
            MAKE_RETRIER: f"{MAKE_RETRIER}; self._inner = Retrier(max_attempts=3)",
            "call_async(self._send)": "call_async(lambda: self._inner.call_async(self._send))",
        },
        ["a call sends at most three requests"],
    ),
    "a budget for each call": (
        {CALL: "return await Retrier(max_attempts=3).call_async(self._send)"},
        [
            "a service that is down gets its normal load and a little more",
            "when the spike is over, the outage is over",
        ],
    ),
    "no jitter": (
        {MAKE_RETRIER: "self._retrier = Retrier(max_attempts=3, jitter=False)"},
        ["clients that fail together don't come back together"],
    ),
    "every error is retried": (
        {MAKE_RETRIER: "self._retrier = Retrier(max_attempts=3, retry_if=lambda error: True)"},
        ["an error that is not transient is raised at once"],
    ),
    "every request is sent twice": (
        {CALL: f"await self._send(); {CALL}"},
        ["a call that succeeds is one request"],
    ),
    "a breaker that stays open": (
        {MAKE_RETRIER: f"{UNLIMITED}; self._breaker = CircuitBreaker('service')",
         CALL: CALL_WITH_BREAKER},
        ["most calls succeed, in spite of the spike"],
    ),
    "an endless loop of retries": (
        {MAKE_RETRIER: "self._retrier = Retrier(10**6, budget=RetryBudget(math.inf))"},
        ["a call sends at most three requests",
         "a service that is down gets its normal load and a little more"],
    ),
}  # fmt: skip

RIGHT = {
    "a breaker that closes soon": {
        MAKE_RETRIER: f"{UNLIMITED}; "
        "self._breaker = CircuitBreaker('service', recovery_timeout=5.0)",
        CALL: CALL_WITH_BREAKER,
    },
    "a budget by hand": {
        MAKE_RETRIER: "self._tokens = 10.0",
        CALL: """
        for attempt in range(3):
            try:
                response = await self._send()
            except Exception as error:
                if not error.retryable or attempt == 2 or self._tokens < 1:
                    raise
                self._tokens -= 1
                await asyncio.sleep(random.uniform(0, 2**attempt))
            else:
                self._tokens = min(10.0, self._tokens + 0.1)
                return response
""",
    },
}


def failures(changes: dict[str, str], folder: Path, only: list[str] | None = None) -> list[str]:
    """Return the rules that the changed solution breaks."""
    source = SOLUTION
    for right, wrong in changes.items():
        assert source.count(right) == 1, right
        source = source.replace(right, wrong)
    path = folder / "changed.py"
    path.write_text(source.replace("import sys\n", f"import sys\n{IMPORTS}", 1), "utf-8")
    solution = rules.load(path)
    return [name for name, check_rule in RULES.items()
            if (not only or name in only) and broken(check_rule, solution)]  # fmt: skip


def broken(check_rule: Check, solution: Any) -> bool:
    try:
        return check_rule(solution) is not None
    except RuntimeError:
        return True


@pytest.mark.parametrize("name", WRONG)
def test_wrong_client_is_caught_by_the_rules_that_it_breaks(name: str, tmp_path: Path) -> None:
    changes, broken = WRONG[name]
    assert failures(changes, tmp_path, only=broken) == broken


@pytest.mark.parametrize("name", RIGHT)
def test_another_right_client_keeps_every_rule(name: str, tmp_path: Path) -> None:
    assert failures(RIGHT[name], tmp_path) == []


def test_every_rule_catches_a_wrong_client() -> None:
    caught = {rule for _, broken in WRONG.values() for rule in broken}
    assert caught == set(RULES)
