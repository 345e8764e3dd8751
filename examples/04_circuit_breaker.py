"""Lesson 4: Circuit breaker. Stop calling a service that is down, then probe it carefully.

    python examples/04_circuit_breaker.py --trace             # request 4 is never sent
    python examples/04_circuit_breaker.py --faults '503*'     # the probe fails too

Two failures open the circuit. While it is open, calls fail at once and nothing is sent. After
the recovery timeout it is half-open: one call, the probe, tests whether the service is back.
If every caller tried at once, they would flood a service that has just restarted.

Still unsolved: the user still gets no answer. Lesson 5 fixes that.
"""

import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import run_lesson
from lib.circuit_breaker import CircuitBreaker, CircuitOpenError
from lib.client import MistralClient
from lib.errors import MistralError

RECOVERY_TIMEOUT = 1.0  # seconds; in production, a minute is usual


def main(client: MistralClient) -> None:
    print("=== Example 4: Circuit Breaker Pattern ===\n")
    breaker = CircuitBreaker("mistral-api", failure_threshold=2, recovery_timeout=RECOVERY_TIMEOUT)
    for number in (1, 2, 3, 4, 5):
        if number == 5 and breaker.state == "open":
            time.sleep(RECOVERY_TIMEOUT + 0.1)
        print(f"Request {number}: Circuit state: {breaker.state} - ", end="", flush=True)
        messages = [{"role": "user", "content": f"Test {number}"}]
        try:
            breaker.call(partial(client.chat, messages, max_tokens=5))
            print("Success")
        except (MistralError, CircuitOpenError) as error:
            print(f"Failed: {error}")
    print()


if __name__ == "__main__":
    run_lesson(main, faults="ok,503,503")
