"""Token limits: stay under a limit of tokens per minute by reserving and settling tokens.

    python examples/token_limits.py

An LLM API limits tokens as well as requests, but how many a call uses is known only afterwards. So
each call reserves the tokens that the longest allowed answer would need. When the response arrives,
the reservation is settled: the tokens that the call used replace the estimate.

The account here allows 60 tokens per minute. Without settling, the second call would have to
wait for a minute, because the estimates of two calls do not fit.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import run_lesson
from lib.client import MistralClient
from lib.errors import MistralError
from lib.token_limiter import TokenLimiter, TokenLimitTimeoutError, estimate_tokens

TOKENS_PER_MINUTE = 60
MAX_TOKENS = 30  # the longest answer


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
            # Not settled: the server may have done the work, so the estimate stays booked.
            print(f"Request {number}: reserved {estimate}, failed: {error}")
            continue
        used = completion.usage.total_tokens if completion.usage else estimate
        reservation.settle(used)
        limiter.observe(completion.limits)
        print(f"Request {number}: reserved {estimate}, used {used}, available {limiter.available}")
    print()


if __name__ == "__main__":
    run_lesson(main)
