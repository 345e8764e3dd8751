"""What the rules of every exercise are made of. To do the exercises you need not read it."""

from __future__ import annotations

import builtins
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

MODULE_NAME = "your_solution"
PATIENCE = 0.2  # seconds; a thread that begins nothing for so long waits for something


@dataclass(frozen=True)
class Rule:
    """One thing that must hold.

    ``called`` and ``expected`` say in words what ``judge`` does and awaits. It is given
    the learner's module, and returns what came back instead, or None if all is as expected.
    """

    says: str
    called: str
    expected: str
    judge: Callable[[Any], str | None]


def rule(says: str, *, called: str, expected: str) -> Callable[[Callable[[Any], str | None]], Rule]:
    """Make a function a Rule."""
    return lambda judge: Rule(says, called, expected, judge)


def load(path: Path) -> Any:
    """The learner's file as a module, under a clock that a rule may move on.

    Whatever goes wrong in it comes through as it is: SyntaxError, OSError, their errors.
    """
    code = compile(path.read_bytes(), str(path), "exec")
    module = ModuleType(MODULE_NAME)
    module.__file__ = str(path)
    module.__dict__["__clock__"] = clock = _Clock("time")
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import_with(clock)}
    sys.modules[MODULE_NAME] = module  # dataclasses look their module up
    exec(code, module.__dict__)
    return module


def move_clock(their: Any, seconds: float) -> None:
    """For the learner's file, ``time.monotonic()`` is so much later from now on."""
    their.__clock__.ahead += seconds


class _Clock(ModuleType):
    """The module ``time``, as the learner's file finds it."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _import_with(clock: ModuleType) -> Callable[..., Any]:
    def find(name: str, *args: Any, **kwargs: Any) -> Any:
        return clock if name == "time" else builtins.__import__(name, *args, **kwargs)

    return find


class DidNotComeBackError(Exception):
    """What was called is still running when its time is up."""


def within(seconds: float, action: Callable[[], T]) -> T:
    """The action's result, or its error; DidNotComeBackError if it takes longer.

    It then goes on in its thread: nothing in Python can stop it but the program's end.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:  # sys.exit() in their file must not end ours
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    for result in results:
        return result
    raise DidNotComeBackError


def run_in_lockstep(
    their: Any,
    *actions: Callable[[], object],
    expected: type[Exception] | tuple[type[Exception], ...] = (),
) -> list[Any]:
    """Do all actions at once, each in a thread: the result of each, or its expected error.

    The threads go through the learner's file in step, instruction by instruction. So a gap
    between two that belong together is found every time, not once in a while. An error
    that isn't expected is raised here.
    """
    outcomes: list[Any] = [None] * len(actions)
    step = _Step(len(actions), their.__file__)

    def run(index: int) -> None:
        sys.settrace(step.trace(index))
        try:
            outcomes[index] = actions[index]()
        except BaseException as error:
            outcomes[index] = error
        finally:
            sys.settrace(None)
            step.leave(index)

    threads = [
        threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(actions))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, expected):
            raise outcome
    return outcomes


class _Step:
    """Keeps threads in step: none begins an instruction before all others have begun as many.

    A thread that waits for something else (a lock, a connection) is waited for once,
    and joins the others again with the next instruction that it begins.
    """

    def __init__(self, threads: int, file: str) -> None:
        self._file = file
        self._changed = threading.Condition()
        self._steps = [0] * threads  # begun so far, by each
        self._in_step = set(range(threads))

    def trace(self, index: int) -> Callable[[FrameType, str, Any], Any]:
        """A trace function (see sys.settrace) for one of the threads."""

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            if frame.f_code.co_filename != self._file:
                return None
            frame.f_trace_opcodes = True  # += is one line, but others may get in between
            if event == "opcode":
                self._begin_step(index)
            return trace

        return trace

    def leave(self, index: int) -> None:
        with self._changed:
            self._in_step.discard(index)
            self._changed.notify_all()

    def _begin_step(self, index: int) -> None:
        with self._changed:
            self._in_step.add(index)
            self._steps[index] += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._behind(index), PATIENCE):
                self._in_step -= self._behind(index)

    def _behind(self, index: int) -> set[int]:
        return {other for other in self._in_step if self._steps[other] < self._steps[index]}


def instead_of(expected: type[Exception], action: Callable[[], object]) -> str:
    """What came instead of the expected error, or "" if it came; any other error is raised."""
    try:
        result = action()
    except expected:
        return ""
    return f"no {expected.__name__}, but {result!r}"


def in_words(error: BaseException, their_file: str) -> str:
    """'your code raised X at line N', for an error out of the learner's file."""
    if isinstance(error, AttributeError) and getattr(error.obj, "__name__", "") == MODULE_NAME:
        return f"your file has no {error.name}"
    said = type(error).__name__ + (f" ({error})" if str(error) else "")
    lines = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == their_file
    ]
    if not lines:
        return f"the call raised {said}"
    return f"your code raised {said} at line {lines[-1].lineno}: {lines[-1].line}"
