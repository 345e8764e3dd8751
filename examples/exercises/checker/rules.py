"""What the rules of all exercises share. You need not read it to do the exercises."""

from __future__ import annotations

import functools
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.exercises.checker import explore as exploration
from examples.exercises.checker.explore import Scenario
from examples.exercises.checker.load import MODULE_NAME, is_the_learners
from examples.exercises.checker.load import load as load_files
from examples.exercises.checker.scheduler import DeadlockError, Errors, Scheduler
from examples.exercises.checker.virtual_modules import virtual_modules

Check = Callable[[Any], "str | None"]


@dataclass(frozen=True)
class Rule:
    """One rule that a solution must keep.

    ``called`` and ``expected`` say in words what ``check`` does and expects. ``check`` gets the
    learner's module. It returns None if the rule holds, otherwise what happened instead. A rule
    is not tried if a rule that it ``needs`` does not hold, because it would fail too. The rules
    of the stretch part follow those of the first part.
    """

    description: str
    called: str
    expected: str
    needs: tuple[Rule, ...]
    is_stretch: bool
    check: Check


def rule(
    description: str,
    *,
    called: str,
    expected: str,
    needs: tuple[Rule, ...] = (),
    is_stretch: bool = False,
) -> Callable[[Check], Rule]:
    """Make a function a Rule."""
    return lambda check: Rule(description, called, expected, needs, is_stretch, check)


stretch = functools.partial(rule, is_stretch=True)


def load(path: Path) -> Any:
    """Load the learner's file as a module whose locks and clock belong to a Scheduler.

    Raises whatever the file raises, SyntaxError included.
    """
    scheduler = Scheduler()
    modules = virtual_modules(scheduler)
    solution = load_files(path, modules, scheduler.files)
    vars(solution).update(__scheduler__=scheduler, __modules__=modules)
    return solution


def explore(solution: Any, scenario: Scenario) -> str | None:
    """Run the scenario under every single interruption of a thread; see explore.py."""

    def described(run: exploration.RunThreads) -> str | None:
        try:
            return scenario(run)
        except BaseException as error:
            return describe(error)

    return exploration.explore(solution.__scheduler__, described)


def run_in_threads(
    solution: Any, *actions: Callable[[], object], expected: Errors = ()
) -> list[Any]:
    """Run each action in a thread until it ends or waits; return what each returned or raised."""
    scheduler: Scheduler = solution.__scheduler__
    return scheduler.run(*actions, expected=expected)


def advance_clock(solution: Any, seconds: float) -> None:
    """Let time pass for the learner's file."""
    solution.__scheduler__.advance(seconds)


def set_wall_clock_back(solution: Any, seconds: float) -> None:
    """Change the time of day, ``time.time()``; ``time.monotonic()`` never goes back."""
    solution.__scheduler__.wall_clock -= seconds


def missing(expected: type[BaseException], action: Callable[[], object]) -> str:
    """Return "" if the action raises the expected error, else what it returned, in words."""
    try:
        result = action()
    except expected:
        return ""
    return f"no {expected.__name__}, but {result!r}"


def at_most(value: float, digits: int = 0) -> str:
    """Round down: a rate below a limit never looks as if it had reached it."""
    return f"{math.floor(100 * value * 10**digits) / 10**digits:.{digits}f} %"


def describe(error: BaseException) -> str:
    """Say what was raised, and at which line of the learner's files."""
    frames = learners_frames(error)
    if is_unwritten(error):
        return _unwritten(error, frames)
    if isinstance(error, DeadlockError):
        return str(error)
    if isinstance(error, SyntaxError):
        line = (error.text or "").strip()
        return f"Python can't read your file ({error.msg}) at line {error.lineno}: {line}"
    raised = type(error).__name__ + (f" ({error})" if str(error) else "")
    if not frames:
        return f"the call raised {raised}"
    return f"your code raised {raised} at line {frames[-1].lineno}: {frames[-1].line}"


def is_unwritten(error: BaseException) -> bool:
    """Return True if the learner's file has no such name, or only a NotImplementedError."""
    if isinstance(error, AttributeError):
        return getattr(error.obj, "__name__", "") == MODULE_NAME
    return isinstance(error, NotImplementedError) and bool(learners_frames(error))


def _unwritten(error: BaseException, frames: Sequence[traceback.FrameSummary]) -> str:
    if isinstance(error, AttributeError):
        return f"your file has no {error.name}"
    return f"{frames[-1].name} is not written yet (line {frames[-1].lineno})"


def learners_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the calls of the traceback that are in the learner's files, the first one first."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if is_the_learners(frame.filename)]
