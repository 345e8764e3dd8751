"""Streaming: print an answer piece by piece, and see why a broken stream can't just be retried.

    python examples/streaming.py
    python examples/streaming.py --faults drop,drop --trace   # broken before the first word
    python examples/streaming.py --faults ok,truncate         # it ends without its end mark

A stream does not need a long read timeout, since the timeout applies to the silence between
two pieces. But a stream can break off when the user has already seen half of the answer. Some
servers then end it as if it were complete; only a finish reason or [DONE] shows that it is
complete.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import run_lesson
from lib.client import ChatStream, MistralClient
from lib.errors import APIStreamBrokenError, MistralError
from lib.retry import Retrier

HELLO = [{"role": "user", "content": "Hello!"}]

retrier = Retrier(base_delay=0.1)  # one for all streams, so that they share its retry budget


def main(client: MistralClient) -> None:
    print("=== Streaming ===\n")
    for number in (1, 2):
        print(f"Stream {number}: ", end="", flush=True)
        try:
            print_stream(client)
        except APIStreamBrokenError as error:
            # A retry would start over with different wording, and cost twice. So keep the
            # text, say what happened, and let the user decide.
            print(f"\n  ✗ Broken off after {len(error.partial_text)} characters: {error}")
            print(f"  Kept: {error.partial_text!r}")
        except MistralError as error:
            print(f"  ✗ Failed before the first word: {error}")
    print()


def print_stream(client: MistralClient) -> None:
    """Print the pieces as they arrive. Only a failure before the first piece is retried."""

    def first_piece() -> tuple[str, ChatStream]:
        stream = client.stream(HELLO)
        return next(stream, ""), stream

    first, stream = retrier.call(first_piece)
    print(first, end="", flush=True)
    for piece in stream:
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    run_lesson(main, faults="ok,cut")
