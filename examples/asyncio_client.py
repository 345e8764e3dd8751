"""asyncio: use the same helpers in async code. Three questions are asked at the same time.

    python examples/asyncio_client.py --trace
    python examples/asyncio_client.py --faults 503,429:1 --trace    # two of them are retried
    python examples/asyncio_client.py --faults '503*'               # the apology answers

Each method that waits or calls has an `_async` twin on the same object, so tasks and threads
may share the object. Waiting does not block a thread. A cancelled task is not retried and
uses no slot.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import run_lesson
from lib.circuit_breaker import CircuitBreaker
from lib.client import ChatCompletion, MistralClient
from lib.fallback import FallbackHandler
from lib.rate_limiter import RateLimiter
from lib.retry import Retrier

retrier = Retrier(base_delay=0.5, jitter=False)
breaker = CircuitBreaker("mistral-api", failure_threshold=10)
limiter = RateLimiter(max_requests_per_minute=120)


def main(client: MistralClient) -> None:
    print("=== asyncio ===\n")
    asyncio.run(ask_three(client))
    print()


async def ask_three(client: MistralClient) -> None:
    async def ask_the_api(context: dict[str, Any]) -> str:
        completion = await retrier.call_async(lambda: attempt(context["prompt"]))
        return completion.content

    async def attempt(prompt: str) -> ChatCompletion:
        return await breaker.call_async(lambda: paced_call(prompt))

    async def paced_call(prompt: str) -> ChatCompletion:
        await limiter.acquire_async()
        # With an async SDK, await its call here. MistralClient is synchronous: use a thread.
        return await asyncio.to_thread(client.chat, [{"role": "user", "content": prompt}])

    def apologize(context: dict[str, Any]) -> str:
        return "Service temporarily unavailable. Please try again later."

    handler = FallbackHandler()
    handler.add_strategy("api", ask_the_api, priority=10)
    handler.add_strategy("apology", apologize)  # a strategy may also be a plain function

    prompts = ("Hello!", "How are you?", "What is asyncio?")
    answers = await asyncio.gather(
        *[handler.execute_async({"prompt": prompt}) for prompt in prompts]
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"{prompt} -> {answer}")


if __name__ == "__main__":
    run_lesson(main)
