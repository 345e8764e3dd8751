"""Example 2: Retry with exponential backoff. Most failures are gone a moment later.

    python examples/02_backoff.py
    python examples/02_backoff.py --faults 503,503 --trace    # two waits, then success
    python examples/02_backoff.py --faults '503*'             # all retries exhausted
    python examples/02_backoff.py --faults 401                # an error not worth a retry

What it leaves broken: it waits only after it has been refused. Example 3 mends that.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.client import MistralClient
from examples.lesson import run_lesson
from lib.errors import MistralError
from lib.retry import Retrier

MAX_ATTEMPTS = 3


def main(client: MistralClient) -> None:
    print("=== Example 2: Retry with Exponential Backoff ===\n")
    print("Testing retry logic:")
    retrier = Retrier(
        max_attempts=MAX_ATTEMPTS,
        base_delay=1.0,
        jitter=False,  # so that you see 1 s, 2 s; leave it on where many clients retry
        on_attempt=print_attempt,
        on_wait=print_wait,
        on_give_up=print_give_up,
    )
    messages = [{"role": "user", "content": "Test retry logic"}]
    try:
        completion = retrier.call(lambda: client.chat(messages, max_tokens=10))
        print(" Success!")
        print(f"Final result: {completion.content}")
    except MistralError as error:
        print(f"Failed: {error}")
    print()


def print_attempt(attempt: int) -> None:
    print(f"  Attempt {attempt}/{MAX_ATTEMPTS}...", end="", flush=True)


def print_wait(attempt: int, error: Exception, delay: float) -> None:
    print(f" Failed (retryable). Waiting {delay:g}s...")


def print_give_up(attempt: int, error: Exception, reason: str) -> None:
    if not getattr(error, "retryable", False):
        print(f" Failed (non-retryable): {getattr(error, 'status_code', type(error).__name__)}")
    elif attempt == MAX_ATTEMPTS:
        print(" Failed (retryable).\n  All retries exhausted.")
    else:
        print(" Failed (retryable, but the wait is too long).")


if __name__ == "__main__":
    run_lesson(main)
