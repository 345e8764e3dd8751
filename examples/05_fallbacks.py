"""Lesson 5: Fallback strategies. Return a simpler answer instead of an error.

    python examples/05_fallbacks.py
    python examples/05_fallbacks.py --faults 503              # the smaller model answers
    python examples/05_fallbacks.py --faults 401              # a wrong key: no fallback

A fallback must not hide your own mistakes. With a wrong key, every user would get an apology,
and you would not notice. So such an error is raised, and no further strategy is tried. An unknown
model (404) is different: the next strategy asks another model.

Still unsolved: nobody notices that the primary strategy fails. Lesson 6 fixes that.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import run_lesson
from lib.client import MistralClient
from lib.errors import MistralError
from lib.fallback import AllStrategiesFailedError, FallbackHandler

Context = dict[str, Any]


def main(client: MistralClient) -> None:
    print("=== Example 5: Fallback Strategies ===\n")

    def primary(context: Context) -> str:
        print("  Trying primary (mistral-large)...")
        return client.chat(
            context["messages"], model="mistral-large-latest", max_tokens=100
        ).content

    def smaller_model(context: Context) -> str:
        print("  Trying fallback 1 (mistral-small)...")
        return client.chat(context["messages"], model="mistral-small-latest", max_tokens=50).content

    def cached_response(context: Context) -> str:
        # The PHP tutorial calls this a cached response. It is a fixed apology, not a cache.
        print("  Trying fallback 2 (cached response)...")
        return "Service temporarily unavailable. Please try again later."

    handler = FallbackHandler()
    handler.add_strategy("primary", primary, priority=100)
    handler.add_strategy("fallback1", smaller_model, priority=50)
    handler.add_strategy("fallback2", cached_response, priority=10)

    print("Testing fallback strategies:")
    question = {"role": "user", "content": "What is the meaning of life?"}
    try:
        print(f"Response: {handler.execute({'messages': [question]})}")
    except AllStrategiesFailedError as error:
        print(f"All strategies failed: {error}")
    except MistralError as error:
        print(f"Not a case for a fallback: {error}")
    print()


if __name__ == "__main__":
    run_lesson(main, faults="503,503")
