"""A worker process: start requests for some seconds, and print when each one started.

    python worker.py '{"url": ..., "name": ..., "seconds": ...}'

It says in Redis that it is ready, and begins when Redis says so. Times are in seconds
since the epoch, which is the server's clock, too.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.shared_rate_limiter import SharedRateLimiter

real_time, monotonic = time.time, time.monotonic


def main(
    url: str,
    name: str,
    *,
    seconds: float,
    rate: float = 3000,
    threads: int = 1,
    local_share: float = 0.1,
    clock_ahead: float = 0,
) -> None:
    time.time = lambda: real_time() + clock_ahead
    time.monotonic = lambda: monotonic() + clock_ahead
    logging.basicConfig(level=logging.WARNING)
    client = redis.Redis.from_url(url, socket_timeout=5)
    limiter = SharedRateLimiter(client, name, max_requests_per_minute=rate, local_share=local_share)
    starts: list[float] = []

    def work() -> None:
        while real_time() < begin + seconds:
            limiter.acquire()
            starts.append(real_time())

    begin = wait_for_begin(client, name)
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps(starts))


def wait_for_begin(client: redis.Redis, name: str) -> float:
    """Wait until all workers begin; return when that was, in seconds since the epoch."""
    client.incr(f"{name} ready")
    while (begin := float(client.get(f"{name} begin") or 0)) == 0:
        time.sleep(0.01)
    time.sleep(max(0.0, begin - real_time()))
    return begin


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
