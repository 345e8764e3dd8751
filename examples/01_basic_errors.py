"""Lesson 1: Basic error handling. Catch each category of error, the specific ones first.

    python examples/01_basic_errors.py
    python examples/01_basic_errors.py --faults 401,429:2     # inject faults

Still unsolved: a transient error, one that would be gone a second later, still makes
the call fail. Lesson 2 fixes that.
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import run_lesson
from lib.client import MistralClient
from lib.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    MistralError,
    RateLimitError,
)

log = logging.getLogger(__name__)

HELLO = [{"role": "user", "content": "Hello!"}]


def main(client: MistralClient) -> None:
    print("=== Example 1: Basic Error Handling ===\n")
    for name, model in [
        ("Valid Request", "mistral-small-latest"),
        ("Invalid Model", "invalid-model-name"),
    ]:
        print(f"Testing: {name}")
        try:
            completion = client.chat(HELLO, model=model, max_tokens=10)
            print(f"  ✓ Success: {completion.content[:50]}")

        # The most specific error comes first, the most general one last. Python takes the
        # first clause that matches, so `except MistralError` at the top would catch them all.
        except AuthenticationError as error:
            print(f"  ✗ Authentication Error ({error.status_code}): {error}")
        except RateLimitError as error:
            print(f"  ✗ Rate Limited ({error.status_code}): {error}")
        except APIStatusError as error:
            print(f"  ✗ API Error ({error.status_code}): {error}")
        except APITimeoutError as error:
            print(f"  ✗ Timeout: {error}")
        except APIConnectionError as error:
            print(f"  ✗ Network Error: {error}")
        except MistralError as error:
            print(f"  ✗ Unexpected Error: {error}")
        print()


def safe_api_call(
    client: MistralClient, messages: list[dict[str, str]], model: str = "mistral-small-latest"
) -> str | None:
    """Return the text of the answer, or log why there is none and return None.

    Copy this function into your own code.
    """
    try:
        return client.chat(messages, model=model).content
    except AuthenticationError:
        log.error("Authentication failed: check your API key")
    except RateLimitError as error:
        wait = 60 if error.retry_after is None else error.retry_after
        log.error("Rate limited: retry after %g seconds", wait)
    except APIStatusError as error:
        log.error("API error (%d): %s", error.status_code, error)
    except MistralError as error:
        log.error("No usable answer: %s", error)
    return None


if __name__ == "__main__":
    run_lesson(main)
