"""Lesson 2: Retry with exponential backoff. Try again after a failure that may be transient.

    python examples/02_backoff.py --faults 503,503 --trace    # two waits, then success
    python examples/02_backoff.py --faults '503*'             # all attempts fail
    python examples/02_backoff.py --faults 401                # a wrong key: no retry
    python examples/02_backoff.py                             # no failure, so no retry

Each wait is twice as long as the one before, to give the service more time. In production,
leave the jitter on: it makes each wait random, so that a thousand clients that fail together
do not retry together.

Most 4xx errors are not retried, because the same request would fail again. Retry only what is
safe to do twice: a chat call is, although both attempts may be billed. Sending an email is not.

A retrier also has a budget for its retries. Each retry costs a retry token, and a call that
succeeds gives the tokens of its retries back. Without the budget, three attempts per call would
triple the load on an overloaded service and keep it down. When the budget is empty, the error is
raised at once, and `on_give_up` gets the reason "retry budget exhausted".

Still unsolved: the program slows down only after the server has rejected a request. Lesson 3 fixes
that.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import has_faults_argument, print_err, run_lesson
from lib.client import MistralClient
from lib.errors import MistralError
from lib.retry import Retrier

MAX_ATTEMPTS = 3


def main(client: MistralClient) -> None:
    print("=== Example 2: Retry with Exponential Backoff ===\n")
    if not has_faults_argument():
        print_err("No failure is injected, so nothing is retried: try --faults 503,503.")
    print("Testing retry logic:")
    retrier = Retrier(
        max_attempts=MAX_ATTEMPTS,
        base_delay=1.0,
        jitter=False,  # so that you see waits of 1 s and 2 s; in production, leave it on
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
    if reason == "not retryable":
        print(f" Failed (non-retryable): {getattr(error, 'status_code', type(error).__name__)}")
    elif reason == "attempts exhausted":
        print(" Failed (retryable).\n  All retries exhausted.")
    else:
        print(f" Failed (retryable). Giving up: {reason}.")


if __name__ == "__main__":
    run_lesson(main)
