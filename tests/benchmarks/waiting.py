"""Print the CPU µs per start while threads wait at a limiter.

    python waiting.py LIBRARY THREADS

Each measurement is a process, so that its threads end with it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import limits
import pyrate_limiter as pyrate
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from measure import OURS

from lib.rate_limiter import RateLimiter

PER_SECOND = 100
SECONDS = 2.0


def waits() -> dict[str, Callable[[], object]]:
    moving = MovingWindowRateLimiter(MemoryStorage())
    rate = limits.RateLimitItemPerSecond(PER_SECOND)

    def sleep_until_hit() -> None:
        """Loop, as is usual with a limiter that cannot wait."""
        while not moving.hit(rate, "api"):
            time.sleep(0.01)

    return {
        OURS: RateLimiter(60 * PER_SECOND).acquire,
        "pyrate-limiter": pyrate.Limiter(pyrate.Rate(PER_SECOND, 1000)).try_acquire,
        "limits, sleep loop": sleep_until_hit,
    }


def main(library: str, threads: int) -> None:
    wait, starts = waits()[library], list[float]()

    def work() -> None:
        while True:
            if library == "pyrate-limiter":
                wait("api")  # type: ignore[call-arg]
            else:
                wait()
            starts.append(0.0)

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(1)  # the first second starts the threads
    cpu, count = time.process_time(), len(starts)
    time.sleep(SECONDS)
    print((time.process_time() - cpu) / max(1, len(starts) - count) * 1e6, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
