"""Find race conditions reliably: interrupt a thread at each instruction, the same way each time.

A missing lock shows only if a thread is interrupted at the wrong instruction and another thread
runs. By chance, that happens perhaps once in a million calls. ``explore`` makes it happen. It runs
a scenario again and again. In each run, it stops one thread before another bytecode instruction of
the learner's files. The other threads run until they end or wait; then the stopped thread
continues. One interruption at the right place is enough for most bugs. A bug that needs two
interruptions in the same run is not found.

After CHESS: Musuvathi et al., "Finding and Reproducing Heisenbugs in Concurrent Programs"
(OSDI 2008).
"""

from __future__ import annotations

import dis
import functools
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from sys import settrace
from types import CodeType, FrameType
from typing import Any, Protocol

from examples.exercises.checker.scheduler import Errors, Scheduler

# Instructions that touch no shared data. Stopping before one is the same as stopping before the
# next, so it is skipped.
PRIVATE = ("LOAD_FAST", "STORE_FAST", "LOAD_CONST", "POP_TOP", "POP_BLOCK", "POP_EXCEPT", "COPY",
           "SWAP", "DUP_TOP", "ROT_", "BUILD_", "RETURN_", "JUMP_FORWARD", "JUMP_BACKWARD",
           "JUMP_ABSOLUTE", "PUSH_NULL", "RESUME", "PRECALL", "KW_NAMES", "NOP")  # fmt: skip
MAX_VISITS = 3  # interruptions at the same instruction, so that a loop does not multiply the runs
MAX_LOG = 8  # events of a run that a message shows


class RunThreads(Protocol):
    """Run each action in a thread and return what each returned or raised.

    An error that is not ``expected`` is raised here.
    """

    def __call__(self, *actions: Callable[[], object], expected: Errors = ()) -> list[Any]:
        """Run the actions."""


Scenario = Callable[[RunThreads], "str | None"]


def explore(scheduler: Scheduler, scenario: Scenario) -> str | None:
    """Run the scenario without an interruption, then once with each possible interruption.

    The scenario makes fresh objects, runs its threads with the function that it gets, and
    returns the problem in words, or None. Return the first problem and where the thread was
    interrupted, or None.
    """
    kinds: list[int] = []  # threads with the same action are of the same kind

    def run_uninterrupted(*actions: Callable[[], object], expected: Errors = ()) -> list[Any]:
        kinds[:] = [actions.index(action) for action in actions]
        return scheduler.run(*actions, expected=expected)

    if problem := scenario(run_uninterrupted):
        return problem
    for order, thread in _orders_and_threads(kinds):
        for run in _interrupted_runs(scheduler, order, thread):
            if problem := scenario(run):
                return "\n- ".join([problem, *scheduler.log[:MAX_LOG]])
    return None


def _orders_and_threads(kinds: Sequence[int]) -> Iterator[tuple[Sequence[int], int]]:
    """Yield each order in which the threads can start, with one thread of each kind."""
    # Two threads of the same kind may swap places: that is the same order.
    different: dict[tuple[int, ...], tuple[int, ...]] = {}
    for order in itertools.permutations(range(len(kinds))):
        different.setdefault(tuple(kinds[n] for n in order), order)
    for order in different.values():
        first_of_kind = {kinds[n]: n for n in reversed(order)}
        yield from ((order, thread) for thread in first_of_kind.values())


def _interrupted_runs(
    scheduler: Scheduler, order: Sequence[int], thread: int
) -> Iterator[RunThreads]:
    """Yield a run for each instruction of the thread, which stops the thread before it.

    While no other thread can run, there is nothing to interrupt for.
    """
    for instruction in itertools.count(1):
        interruption = _Interruption(scheduler, thread, instruction)
        yield functools.partial(scheduler.run, order=order, on_start=interruption.trace)
        if not interruption.happened:  # the thread has no more instructions
            return


class _Interruption:
    """Stops a thread before one of its instructions, counted from 1, and lets the others run."""

    def __init__(self, scheduler: Scheduler, thread: int, instruction: int) -> None:
        self.happened = False
        self._scheduler = scheduler
        self._thread = thread
        self._left = instruction
        self._visits = Counter[tuple[int, int]]()

    def trace(self, thread: int) -> None:
        """Trace the current thread if it is the one to be stopped."""
        if thread == self._thread:
            sys._getframe().f_trace_opcodes = True  # Python 3.12 needs one before settrace
            settrace(self._trace)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in self._scheduler.files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and self._is_the_one(frame.f_code, frame.f_lasti):
            self.happened = True
            self._scheduler.let_others_run()
            settrace(None)
        return self._trace

    def _is_the_one(self, code: CodeType, offset: int) -> bool:
        if offset not in _shared_instructions(code) or not self._scheduler.others_are_ready:
            return False
        self._visits[id(code), offset] += 1
        if self._visits[id(code), offset] <= MAX_VISITS:
            self._left -= 1
        return not self._left


@functools.cache
def _shared_instructions(code: CodeType) -> frozenset[int]:
    """Return the offsets of the instructions at which an interruption can make a difference."""
    return frozenset(
        instruction.offset
        for instruction in dis.get_instructions(code)
        if not instruction.opname.startswith(PRIVATE)
    )
