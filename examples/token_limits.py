"""Token limits: an LLM API limits tokens per minute, and what a call uses is known afterwards.

    python examples/token_limits.py

The account here allows 60 tokens per minute. Each call reserves an estimate, which assumes
the longest answer, and settles what it used when the response comes. Without settling, the
second call would have to wait for a minute: the estimates of two calls don't fit.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.lesson import run_lesson
from lib.client import MistralClient
from lib.errors import MistralError
from lib.token_limiter import TokenLimiter, TokenLimitTimeoutError, estimate_tokens

TOKENS_PER_MINUTE = 60
MAX_TOKENS = 30  # of an answer


def main(client: MistralClient) -> None:
    print("=== Token limits ===\n")
    limiter = TokenLimiter(TOKENS_PER_MINUTE)
    for number in (1, 2, 3, 4, 5, 6):
        messages = [{"role": "user", "content": f"Question {number}"}]
        estimate = estimate_tokens(messages, MAX_TOKENS)
        try:
            reservation = limiter.reserve(estimate, timeout=0)
        except TokenLimitTimeoutError as error:
            print(f"Request {number}: not sent, {error}")
            continue
        try:
            completion = client.chat(messages, max_tokens=MAX_TOKENS)
        except MistralError as error:
            # Not settled: the server may have done the work, so the estimate stays spent.
            print(f"Request {number}: reserved {estimate}, failed: {error}")
            continue
        used = completion.usage.total_tokens if completion.usage else estimate
        reservation.settle(used)
        limiter.observe(completion.limits)
        print(f"Request {number}: reserved {estimate}, used {used}, available {limiter.available}")
    print()


if __name__ == "__main__":
    run_lesson(main)
