"""Start an exercise again: restore its file, and keep your attempt beside it.

    python examples/exercises/reset.py 1

The original comes from Git: the file as it is in the last commit.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from examples.exercises.check import EXERCISES
from examples.support.lesson import Parser, UsageError, run_command


def main() -> int:
    parser = Parser(prog="reset.py", description="Start an exercise again.")
    parser.add_argument("number", type=int, choices=EXERCISES, help="which exercise")
    return reset(HERE / EXERCISES[parser.parse_args().number])


def reset(path: Path) -> int:
    """Restore the file, keep the attempt beside it, and say where."""
    original = original_of(path)
    if path.exists() and path.read_bytes() == original:
        print(f"{path.name} is as it was at the beginning.")
        return 0
    if path.exists():
        attempt = path.rename(free_name(path))
        print(f"Your attempt is in {attempt.name}, in the same folder.")
    path.write_bytes(original)
    print(f"{path.name} is as it was at the beginning.")
    return 0


def original_of(path: Path) -> bytes:
    """Return the file as it was committed. Raises UsageError."""
    command = ["git", "show", f"HEAD:./{path.name}"]
    try:
        return subprocess.run(command, cwd=path.parent, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise UsageError("The original comes from Git, and there is no git command.") from None
    except subprocess.CalledProcessError:
        raise UsageError(
            f"Git does not know {path.name}: is this folder a clone of the repository?"
        ) from None


def free_name(path: Path) -> Path:
    """Return a path for the attempt that no file has."""
    number = 1
    while (attempt := path.with_name(f"{path.stem}_attempt_{number}.py")).exists():
        number += 1
    return attempt


if __name__ == "__main__":
    run_command(main)
