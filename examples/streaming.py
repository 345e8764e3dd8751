"""Streaming: a long answer word by word, and why a broken one can't be blindly retried.

    python examples/streaming.py
    python examples/streaming.py --faults drop,drop --trace   # broken before the first word

A stream needs no long timeout: the limit holds for the silence between two pieces. But
it can break half way, when your reader has seen the first half.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.client import MistralClient
from examples.lesson import run_lesson
from lib.errors import APIStreamBrokenError, MistralError
from lib.retry import Retrier

HELLO = [{"role": "user", "content": "Hello!"}]


def main(client: MistralClient) -> None:
    print("=== Streaming ===\n")
    for number in (1, 2):
        print(f"Stream {number}: ", end="", flush=True)
        try:
            print_stream(client)
        except APIStreamBrokenError as error:
            # A retry would print the beginning twice, in other words the second time, and
            # be paid for twice. So: keep the text, say so, and let the reader decide.
            print(f"\n  ✗ Broken off after {len(error.partial_text)} characters: {error}")
            print(f"  Kept: {error.partial_text!r}")
        except MistralError as error:
            print(f"  ✗ Failed before the first word: {error}")
    print()


def print_stream(client: MistralClient) -> None:
    """Print the pieces as they come; only what fails before the first one is retried."""

    def begin() -> tuple[str, Iterator[str]]:
        pieces = client.stream(HELLO)
        return next(pieces, ""), pieces

    first, pieces = Retrier(base_delay=0.1).call(begin)
    print(first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    run_lesson(main, faults="ok,cut")
