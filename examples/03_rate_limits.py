"""Lesson 3: Rate limits. Stay under the limit, and wait when the server tells you to.

    python examples/03_rate_limits.py --trace
    python examples/03_rate_limits.py --faults 429:2 --trace  # the server asks for 2 s
    python examples/03_rate_limits.py --faults 429            # a 429 without a Retry-After

The limiter spaces the requests evenly, so the server has no reason to reject one. If it still
sends a 429, the script waits as long as the Retry-After header asks.

Still unsolved: the program keeps calling a service that is down. Lesson 4 fixes that.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import run_lesson
from lib.client import ChatCompletion, MistralClient
from lib.errors import MistralError, RateLimitError
from lib.rate_limiter import RateLimiter

REQUESTS_PER_MINUTE = 60
DEFAULT_WAIT = 1.0  # seconds; many 429s come without a Retry-After
MAX_WAIT = 60.0  # seconds; if the server asks for more (a day, say), the call fails


def main(client: MistralClient) -> None:
    print("=== Example 3: Rate Limit Handling ===\n")
    limiter = RateLimiter(max_requests_per_minute=REQUESTS_PER_MINUTE)
    requests_made, last_request = 0, None
    for number in (1, 2, 3):
        print(f"Request {number}: ", end="", flush=True)
        try:
            paced_chat(client, limiter, f"Request {number}")
            requests_made, last_request = requests_made + 1, time.strftime("%Y-%m-%d %H:%M:%S")
            print("Success")
        except MistralError as error:
            print(f"Error: {error}")
    print("Stats:", json.dumps({"requests_made": requests_made, "last_request": last_request}))
    print()


def paced_chat(client: MistralClient, limiter: RateLimiter, prompt: str) -> ChatCompletion:
    """Wait for the next slot, then call. After a 429, wait as the server asks and call again."""
    messages = [{"role": "user", "content": prompt}]
    limiter.acquire(on_wait=announce)
    try:
        return client.chat(messages, max_tokens=5)
    except RateLimitError as error:
        seconds = DEFAULT_WAIT if error.retry_after is None else error.retry_after
        if seconds > MAX_WAIT:
            raise
        print(f"Rate limited. Waiting {seconds:g} seconds...")
        limiter.pause(seconds)  # all callers that share the limiter wait, not only this one
        limiter.acquire()
        return client.chat(messages, max_tokens=5)


def announce(wait: float) -> None:
    """Print a wait, rounded to the nearest half second."""
    rounded = round(wait * 2) / 2
    if rounded > 0:
        print(f"Rate limiting: waiting {rounded:g}s")


if __name__ == "__main__":
    run_lesson(main, faults="slow:0.5,slow:1.1")
