"""A worker process: send prompts of random sizes for some seconds, within a shared token limit.

    python token_worker.py '{"url": ..., "name": ..., "api_url": ..., "seconds": ...}'

It begins when Redis says so, as worker.py, and prints how many calls got a 429.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import threading
import time
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import lib.shared_token_limiter
import lib.token_limiter
from lib.client import MistralClient
from lib.errors import RateLimitError
from lib.shared_token_limiter import SharedTokenLimiter
from shared.worker import wait_for_begin

MAX_TOKENS = 10


def main(
    url: str,
    name: str,
    *,
    api_url: str,
    seconds: float,
    limit: int,
    window: float = 60.0,
    threads: int = 3,
    redis_timeout: float = 5.0,
) -> None:
    logging.basicConfig(level=logging.WARNING)
    lib.shared_token_limiter.WINDOW = lib.token_limiter.WINDOW = window
    client = redis.Redis.from_url(url, socket_timeout=redis_timeout)
    limiter = SharedTokenLimiter(client, name, max_tokens_per_minute=limit, local_share=0.25)
    rejected = list[float]()

    def work() -> None:
        chance = random.Random()
        while time.time() < begin + seconds:
            words = chance.randrange(20, 200)  # the mock server counts words
            estimate = words + MAX_TOKENS + chance.randrange(50)
            reservation = limiter.reserve(estimate)
            if time.time() >= begin + seconds:
                reservation.settle(0)
                return
            try:
                message = {"role": "user", "content": "word " * words}
                completion = mistral.chat([message], max_tokens=MAX_TOKENS)
                assert completion.usage
                reservation.settle(completion.usage.total_tokens)
            except RateLimitError:
                rejected.append(time.time())
                reservation.settle(0)

    begin = wait_for_begin(client, name)
    with MistralClient("any-key", base_url=api_url) as mistral:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    print(json.dumps(len(rejected)))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
