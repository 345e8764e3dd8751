"""Failover: ask a second model while the first one is down, and say which one answered.

    python examples/failover.py --trace
    python examples/failover.py --faults '503*'     # both models are down
    python examples/failover.py --faults 401        # a wrong key: no other model helps

Each model has a circuit breaker of its own, because one can be down while the other works. While
the first model's circuit is open, the model gets only the probes, so no question waits for it. When
a probe succeeds, the first model answers again.

Switch off the retries of your SDK, for example with `OpenAI(max_retries=0)`. With them, each
question would wait for three attempts before the second model is asked. If you retry, put the
retries around both models.

The error for a wrong key is raised at once, because the second model would reject the key, too.
Tell the users that another model answers, because its answers may be worse. You should know it too,
because it may cost more.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import run_lesson
from lib.circuit_breaker import CircuitBreaker
from lib.client import MistralClient
from lib.errors import MistralError
from lib.fallback import AllStrategiesFailedError, FallbackHandler

MODELS = ("mistral-large-latest", "mistral-small-latest")  # the first one is preferred
RECOVERY_TIMEOUT = 0.5  # seconds; in production, 10 to 60

Context = dict[str, Any]


def main(client: MistralClient) -> None:
    print("=== Failover ===\n")
    handler = FallbackHandler()
    for priority, model in enumerate(reversed(MODELS)):
        handler.add_strategy(model, strategy(client, model), priority=priority)
    for number in range(1, 7):
        if number in (5, 6):
            time.sleep(1.1 * RECOVERY_TIMEOUT)  # so that the next question finds a probe due
        try:
            print(f"Question {number}: {handler.execute({'prompt': 'Hello!'})}")
        except AllStrategiesFailedError as error:
            causes = "; ".join(f"{model}: {cause}" for model, cause in error.errors.items())
            print(f"Question {number}: no answer ({causes})")
        except MistralError as error:
            print(f"Question {number}: not a case for another model: {error}")
    print()


def strategy(client: MistralClient, model: str) -> Callable[[Context], str]:
    """Return a strategy that asks one model, through a circuit breaker of its own."""
    breaker = CircuitBreaker(model, failure_threshold=2, recovery_timeout=RECOVERY_TIMEOUT)

    def ask(context: Context) -> str:
        messages = [{"role": "user", "content": context["prompt"]}]
        completion = breaker.call(lambda: client.chat(messages, model=model))
        return f"{completion.content} ({completion.model})"

    return ask


if __name__ == "__main__":
    run_lesson(main, faults={MODELS[0]: "503*3"})
