"""Run threads one at a time, in virtual time: the same calls run in the same order every time.

A thread runs until it ends or waits; then the next one runs. The learner's file imports the
``threading``, ``queue`` and ``time`` of virtual_modules.py, whose locks and clock belong to a
Scheduler. When all threads wait, the clock jumps to the earliest timeout. If there is none, that
is a deadlock, and it is reported at once.
"""

from __future__ import annotations

import _thread
import linecache
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sys import settrace
from types import FrameType
from typing import Any

Errors = type[BaseException] | tuple[type[BaseException], ...]

EPOCH = 1_800_000_000.0  # the time of day at which the virtual time is 0
MOMENT = 1e-4  # seconds; timeouts that end within a moment end together
CLOCK_TICK = 1e-6  # seconds for each look at the clock, so that a loop that polls it ends


class DeadlockError(BaseException):
    """No thread can run any more. Not an Exception, so ``except Exception`` does not hide it."""


@dataclass(eq=False)
class _Thread:
    """A thread that runs only while it holds its baton."""

    name: str
    action: Callable[[], object]
    outcome: Any = None  # what the action returned or raised
    waits_for: object = None
    waits_at: str = ""
    deadline: float = math.inf
    timed_out: bool = False
    error: BaseException | None = None  # what its wait raises

    def __post_init__(self) -> None:
        self.baton = _thread.allocate_lock()
        self.baton.acquire()


class Scheduler:
    """Run threads one at a time, in an order that is the same every time.

    ``files`` are the learner's files; ``log`` says what the threads of the last run did.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.log: list[str] = []
        self.wall_clock = EPOCH
        self._now = 1000.0  # virtual seconds
        self._main = self._current = _Thread("the call", lambda: None)
        self._unfinished: list[_Thread] = []
        self._ready: list[_Thread] = []
        self._stopped: list[_Thread] = []  # run when no other thread is ready
        self._waiting: list[_Thread] = []

    def run(
        self,
        *actions: Callable[[], object],
        expected: Errors = (),
        order: Sequence[int] = (),
        on_start: Callable[[int], object] = lambda number: None,
    ) -> list[Any]:
        """Run each action in a thread, and return what each returned or raised.

        An error that is not ``expected`` is raised here. The threads start in ``order``;
        each calls ``on_start`` with its number, from 0, before its action.
        """
        threads = [_Thread(f"thread {n}", action) for n, action in enumerate(actions, 1)]
        self.log = []
        self._unfinished = threads.copy()
        for number in order or range(len(threads)):
            self._ready.append(threads[number])
            # Not threading.Thread, whose start() waits for the thread: thousands are started.
            _thread.start_new_thread(self._run_thread, (threads[number], number, on_start))
        self.wait(self)
        outcomes = [thread.outcome for thread in threads]
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, expected):
                raise outcome
        return outcomes

    def _run_thread(self, thread: _Thread, number: int, on_start: Callable[[int], object]) -> None:
        thread.baton.acquire()
        try:
            on_start(number)
            thread.outcome = thread.action()
        except BaseException as error:
            thread.outcome = error
        settrace(None)
        if not self._main.error:  # no deadlock
            self.log.append(f"{thread.name} ran to its end")
        self._unfinished.remove(thread)
        if not self._unfinished:
            self.wake(self)
        self._pass_on()

    def wait(self, what: object, timeout: float = math.inf) -> bool:
        """Let other threads run until ``wake(what)``; return False if the timeout came first."""
        me = self._current
        me.waits_for, me.deadline = what, self._now + timeout
        me.timed_out, me.error = False, None
        me.waits_at = self.place(sys._getframe())
        self._waiting.append(me)
        if me is not self._main:
            self.log.append(f"{me.name} ran until it waited at {me.waits_at}")
        self._pass_on()
        me.baton.acquire()
        if me.error:
            raise me.error
        return not me.timed_out

    def wake(self, what: object) -> None:
        """Make every thread ready that waits for ``what``."""
        for thread in self._waiting.copy():
            if thread.waits_for is what:
                self._make_ready(thread)

    def press_ctrl_c(self) -> None:
        """Raise KeyboardInterrupt in every thread that waits."""
        threads = [thread for thread in self._waiting if thread is not self._main]
        self._interrupt(threads, KeyboardInterrupt())

    @property
    def others_are_ready(self) -> bool:
        """Return True if a thread could run in place of the current one."""
        return bool(self._ready)

    def let_others_run(self) -> None:
        """Stop the current thread until all others have ended or wait."""
        me = self._current
        self.log.append(f"{me.name} was interrupted at {self.place(sys._getframe())}")
        self._stopped.append(me)
        self._pass_on()
        me.baton.acquire()

    def look_at_clock(self) -> float:
        """Return the virtual time in seconds."""
        self.advance(CLOCK_TICK)
        return self._now

    def advance(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._now += seconds

    def place(self, frame: FrameType | None) -> str:
        """Return the lines of the learner's files that led to this frame, the first call first."""
        lines: list[str] = []
        while frame:
            file = frame.f_code.co_filename
            if file in self.files:
                number = frame.f_lineno or frame.f_code.co_firstlineno
                lines.insert(0, f"line {number}: `{linecache.getline(file, number).strip()}`")
            frame = frame.f_back
        return " -> ".join(lines) or "a call of the check"

    def _make_ready(self, thread: _Thread) -> None:
        self._waiting.remove(thread)
        self._ready.append(thread)

    def _interrupt(self, threads: list[_Thread], error: BaseException) -> None:
        for thread in threads:
            thread.error = error
            self._make_ready(thread)

    def _pass_on(self) -> None:
        """Give the baton to the thread that has been ready longest; the stopped one comes last."""
        if not self._ready:
            self._ready, self._stopped = self._stopped, []
        if not self._ready:
            self._pass_time()
        self._current = self._ready.pop(0)
        self._current.baton.release()

    def _pass_time(self) -> None:
        """Let the clock jump to the earliest deadline, or end a deadlock."""
        first = min(thread.deadline for thread in self._waiting)
        if first == math.inf:
            self._end_deadlock()
            return
        for thread in sorted(self._waiting, key=lambda thread: thread.deadline):
            if thread.deadline <= first + MOMENT:
                self._now = max(self._now, thread.deadline)
                thread.timed_out = True
                self._make_ready(thread)

    def _end_deadlock(self) -> None:
        """Raise a DeadlockError in each thread; the main one raises it when they have ended."""
        stuck = self._unfinished or [self._main]
        places = [f"{thread.name} waits forever at {thread.waits_at}" for thread in stuck]
        self._main.error = DeadlockError("deadlock: " + "; ".join(places))
        self._interrupt(stuck, self._main.error)
