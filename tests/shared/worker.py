"""A worker process: start requests for some seconds, and print when each one started.

    python worker.py '{"url": ..., "name": ..., "begin": ..., "seconds": ...}'

Times are on the machine's monotonic clock, which all processes share.
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

monotonic = time.monotonic


def main(
    url: str,
    name: str,
    *,
    begin: float,
    seconds: float,
    rate: float = 3000,
    threads: int = 1,
    clock_ahead: float = 0,
) -> None:
    real_time = time.time
    time.time = lambda: real_time() + clock_ahead
    time.monotonic = lambda: monotonic() + clock_ahead
    logging.basicConfig(level=logging.WARNING)
    client = redis.Redis.from_url(url, socket_timeout=0.3, socket_connect_timeout=0.3)
    limiter = SharedRateLimiter(client, name, max_requests_per_minute=rate)
    starts: list[float] = []

    def work() -> None:
        while monotonic() < begin + seconds:
            limiter.acquire()
            starts.append(monotonic())

    time.sleep(max(0.0, begin - monotonic()))
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps(starts))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
