"""Walk through a lesson of the workshop's page in the terminal: `make workshop N=2`.

The page is the only source. Its text is shown, a question waits for Enter, and each command that
the page shows is run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.support.lesson import ROOT, Parser, UsageError, run_command

PAGE = ROOT / "examples" / "README.md"
LESSONS = range(1, 7)
BLOCK = re.compile(r"^```(?s:.*?)^```$|(?:^(?!```).+\n?)+", re.MULTILINE)  # a fence, or a paragraph


class Step(NamedTuple):
    """One piece of a lesson: text to show, a pause to predict, or a command to run."""

    kind: Literal["text", "pause", "run"]
    text: str


def main() -> int:
    parser = Parser(prog="make workshop", description=__doc__)
    parser.add_argument("number", nargs="?", type=int, choices=LESSONS, metavar="N", help="1 to 6")
    number = parser.parse_args().number
    if number is None:
        raise UsageError("Say which lesson, 1 to 6: make workshop N=2")
    for kind, text in steps(PAGE.read_text("utf-8"), number):
        if kind == "text":
            print(f"{text.rstrip()}\n")
        elif kind == "pause":
            wait_for_enter(text)
        else:
            run(text)
    return 0


def steps(page: str, number: int) -> Iterator[Step]:
    """Yield the steps of a lesson, in the page's order."""
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    [lesson] = [text for text in section if text.startswith(f"Lesson {number}:")]
    task = ""
    for block in BLOCK.findall(lesson):
        if block.startswith("**"):
            task = block[2:].partition("*")[0].rstrip(":")
        if block.startswith("```console"):
            yield Step("pause", "Change the line" if task == "Modify" else "Your prediction?")
            yield Step("run", block.splitlines()[1].removeprefix("$ "))
        elif block.startswith("<details><summary>Answer"):
            yield Step("pause", "Your answer?")
        elif task == "Modify" and block.startswith("```text"):
            yield Step("text", f"Changed as the page says, it prints:\n\n{block}")
        elif not is_hidden(block):
            yield Step("text", readable(block))
            if task == "Read" and block.startswith("**"):
                yield Step("pause", "Read the script")


def is_hidden(block: str) -> bool:
    """Return True for an expected output, since the real one is shown, and for HTML tags."""
    return block.startswith(("```text", "<details>", "</details>"))


def readable(block: str) -> str:
    """Return a block of Markdown as plain text: no bold marks, no targets of links."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", block).replace("**", "")


def wait_for_enter(question: str) -> None:
    """Ask and wait. Without a terminal, go on at once."""
    if sys.stdin is not None and sys.stdin.isatty():
        input(f"    {question} [Enter] ")
        print()


def run(command: str) -> None:
    """Run one of the page's commands, which all start with ``python``."""
    print(f"$ {command}", flush=True)
    subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=ROOT, check=False)


if __name__ == "__main__":
    run_command(main)
