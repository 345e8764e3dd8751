"""What the rules of all exercises share. You need not read it to do the exercises."""

from __future__ import annotations

import builtins
import linecache
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from examples.exercises.checker.explore import DeadlockError, Errors, RunThreads, Scheduler
from examples.exercises.checker.virtual_modules import import_with, virtual_modules

T = TypeVar("T")
Check = Callable[[Any], "str | None"]

MODULE_NAME = "your_solution"


@dataclass(frozen=True)
class Rule:
    """One rule that a solution must keep.

    ``called`` and ``expected`` say in words what ``check`` does and expects. ``check`` gets the
    learner's module. It returns None if the rule holds, otherwise what happened instead. A rule
    is not tried if a rule that it ``needs`` does not hold, because it would fail too.
    """

    description: str
    called: str
    expected: str
    needs: tuple[Rule, ...]
    check: Check


def rule(
    description: str, *, called: str, expected: str, needs: tuple[Rule, ...] = ()
) -> Callable[[Check], Rule]:
    """Make a function a Rule."""
    return lambda check: Rule(description, called, expected, needs, check)


def load(path: Path) -> Any:
    """Load the learner's file as a module whose locks and clock belong to a Scheduler.

    Raises whatever the file raises, SyntaxError included.
    """
    linecache.checkcache(str(path))  # the messages quote its lines
    code = compile(path.read_bytes(), str(path), "exec")
    scheduler = Scheduler(str(path))
    modules = virtual_modules(scheduler)
    module = ModuleType(MODULE_NAME)
    vars(module).update(
        __file__=str(path),
        __scheduler__=scheduler,
        __modules__=modules,
        __builtins__={
            **vars(builtins),
            "__import__": import_with(modules),
            "print": scheduler.print,
        },
    )
    sys.modules[MODULE_NAME] = module  # dataclasses look their module up
    exec(code, vars(module))
    return module


def explore(solution: Any, scenario: Callable[[RunThreads], str | None]) -> str | None:
    """Run the scenario under every single interruption of a thread; see Scheduler.explore."""
    scheduler: Scheduler = solution.__scheduler__
    return scheduler.explore(scenario, lambda error: describe(error, solution.__file__))


def run_in_threads(
    solution: Any, *actions: Callable[[], object], expected: Errors = ()
) -> list[Any]:
    """Run each action in a thread until it ends or waits; return what each returned or raised."""
    scheduler: Scheduler = solution.__scheduler__
    return scheduler.run(*actions, expected=expected)


def advance_clock(solution: Any, seconds: float) -> None:
    """Let time pass for the learner's file."""
    solution.__scheduler__.advance(seconds)


class DidNotReturnError(Exception):
    """A call has not returned in time."""


def within(seconds: float, action: Callable[[], T]) -> T:
    """Return the action's result or raise its error; DidNotReturnError if it takes longer.

    ``seconds`` is CPU time, so a busy machine changes no verdict. A call that only waits is given
    up after ten times as long by the clock. The action then continues in its thread, because
    Python cannot stop it.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:  # sys.exit() in the learner's file must not end the check
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    give_up_at = time.monotonic() + 10 * seconds
    cpu_limit = time.process_time() + seconds
    while thread.is_alive() and time.monotonic() < give_up_at and time.process_time() < cpu_limit:
        thread.join(0.05)
    for error in errors:
        raise error
    for result in results:
        return result
    raise DidNotReturnError(f"it did not return within {seconds:g} s: is there an endless loop?")


def missing(expected: type[Exception], action: Callable[[], object]) -> str:
    """Return "" if the action raises the expected error, else what it returned, in words."""
    try:
        result = action()
    except expected:
        return ""
    return f"no {expected.__name__}, but {result!r}"


def describe(error: BaseException, file: str) -> str:
    """Say what was raised, and at which line of the learner's file."""
    if isinstance(error, (DeadlockError, DidNotReturnError)):
        return str(error)
    if isinstance(error, AttributeError) and getattr(error.obj, "__name__", "") == MODULE_NAME:
        return f"your file has no {error.name}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
    ]
    if isinstance(error, NotImplementedError) and frames:
        return f"{frames[-1].name} is not written yet (line {frames[-1].lineno})"
    raised = type(error).__name__ + (f" ({error})" if str(error) else "")
    if not frames:
        return f"the call raised {raised}"
    return f"your code raised {raised} at line {frames[-1].lineno}: {frames[-1].line}"
