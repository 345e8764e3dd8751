"""Find races without luck: interrupt a thread at each instruction, with the same result each time.

A missing lock shows only if a thread is interrupted at the wrong instruction and another thread
runs. By chance, that happens perhaps once in a million calls. ``Scheduler.explore`` makes it
happen. It runs a scenario again and again. In each run, it stops one thread before another
bytecode instruction of the learner's file. The other threads run until they end or wait; then the
stopped thread continues. One interruption at the right place is enough for most bugs.

To make this repeatable, only one thread runs at a time, and the scheduler decides which. The
learner's file imports the ``threading``, ``queue`` and ``time`` of virtual_modules.py: their locks
belong to the scheduler, and their time is virtual. When all threads wait, the clock jumps to the
earliest timeout. If there is none, that is a deadlock, and it is reported at once.

The scheduler does not find a bug that needs two interruptions in the same run.

After CHESS: Musuvathi et al., "Finding and Reproducing Heisenbugs in Concurrent Programs"
(OSDI 2008).
"""

from __future__ import annotations

import _thread
import dis
import functools
import itertools
import linecache
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, Protocol

Errors = type[Exception] | tuple[type[Exception], ...]

# Instructions that use nothing that threads share. Stopping before one of them has the same effect
# as stopping before the next instruction.
PRIVATE = ("LOAD_FAST", "STORE_FAST", "LOAD_CONST", "POP_TOP", "POP_BLOCK", "POP_EXCEPT", "COPY",
           "SWAP", "DUP_TOP", "ROT_", "BUILD_", "RETURN_", "JUMP_FORWARD", "JUMP_BACKWARD",
           "JUMP_ABSOLUTE", "PUSH_NULL", "RESUME", "PRECALL", "KW_NAMES", "NOP")  # fmt: skip
MAX_VISITS = 3  # interruptions at the same instruction, so that a loop does not multiply the runs
MAX_LOG = 8  # events of a run that a message shows
CLOCK_TICK = 1e-6  # seconds for each look at the clock, so that a loop that polls it ends


class DeadlockError(BaseException):
    """No thread can run any more. Not an Exception, so ``except Exception`` does not hide it."""


class RunThreads(Protocol):
    """Run each action in a thread and return what each returned or raised.

    An error that is not ``expected`` is raised here.
    """

    def __call__(self, *actions: Callable[[], object], expected: Errors = ()) -> list[Any]:
        """Run the actions."""


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

    def __post_init__(self) -> None:
        self.baton = _thread.allocate_lock()
        self.baton.acquire()


@dataclass
class _Interruption:
    """The interruption of a run: which thread, and before which of its instructions."""

    thread: int
    instruction: int
    order: Sequence[int]  # in which the threads start
    stopped: _Thread | None = None
    happened: bool = False
    log: list[str] = field(default_factory=list)  # what the threads did


class Scheduler:
    """Run threads one at a time, in an order that is the same every time.

    ``file`` is the learner's file: threads are interrupted only in its code.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._now = 1000.0  # virtual seconds
        self._main = self._current = _Thread("the call", lambda: None)
        self._ready: list[_Thread] = []
        self._waiting: list[_Thread] = []
        self._unfinished: set[_Thread] = set()
        self._interruption: _Interruption | None = None
        self._deadlock: DeadlockError | None = None
        self._is_repeating = False

    def explore(
        self, scenario: Callable[[RunThreads], str | None], describe: Callable[[BaseException], str]
    ) -> str | None:
        """Run the scenario without an interruption, then once with each possible interruption.

        The scenario makes fresh objects, runs its threads with the function that it gets, and
        returns the problem in words, or None. ``describe`` puts an error into words. Return
        the first problem and where the thread was interrupted, or None.
        """
        kinds: list[int] = []  # threads with the same action are of the same kind

        def run_uninterrupted(*actions: Callable[[], object], expected: Errors = ()) -> list[Any]:
            kinds[:] = [actions.index(action) for action in actions]
            return self.run(*actions, expected=expected)

        def problem_of(run: RunThreads) -> str | None:
            try:
                return scenario(run)
            except BaseException as error:
                return describe(error)

        if problem := problem_of(run_uninterrupted):
            return problem
        self._is_repeating = True
        try:
            return self._explore_orders(kinds, problem_of)
        finally:
            self._is_repeating = False

    def print(self, *values: object, **options: Any) -> None:
        """Print for the learner's file, once: an exploration repeats the same calls."""
        if not self._is_repeating:
            print(*values, **options)

    def _explore_orders(
        self, kinds: Sequence[int], problem_of: Callable[[RunThreads], str | None]
    ) -> str | None:
        """Interrupt one thread of each kind, for each order in which the threads can start."""
        # Two threads of the same kind may swap places: that is the same order.
        different_orders: dict[tuple[int, ...], tuple[int, ...]] = {}
        for order in itertools.permutations(range(len(kinds))):
            different_orders.setdefault(tuple(kinds[n] for n in order), order)
        for order in different_orders.values():
            first_of_kind = {kinds[n]: n for n in reversed(order)}
            for thread in first_of_kind.values():
                if problem := self._explore_thread(thread, order, problem_of):
                    return problem
        return None

    def _explore_thread(
        self, thread: int, order: Sequence[int], problem_of: Callable[[RunThreads], str | None]
    ) -> str | None:
        """Interrupt this thread before each of its instructions; start the threads in order."""
        interruption = _Interruption(thread, 0, order, happened=True)
        while interruption.happened:  # until the thread has no more instructions
            interruption = _Interruption(thread, interruption.instruction + 1, order)
            problem = problem_of(functools.partial(self.run, interruption=interruption))
            if problem:
                return "\n- ".join([problem, *interruption.log])
        return None

    def run(
        self,
        *actions: Callable[[], object],
        expected: Errors = (),
        interruption: _Interruption | None = None,
    ) -> list[Any]:
        """Run each action in a thread and return what each returned or raised; see RunThreads."""
        threads = [_Thread(f"thread {n}", action) for n, action in enumerate(actions, 1)]
        self._unfinished = set(threads)
        self._interruption = interruption
        for number in interruption.order if interruption else range(len(threads)):
            self._ready.append(threads[number])
            to_stop = interruption if interruption and interruption.thread == number else None
            # Not threading.Thread, whose start() waits for the thread: thousands are started.
            _thread.start_new_thread(self._run_thread, (threads[number], to_stop))
        self.wait(self)
        outcomes = [thread.outcome for thread in threads]
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, expected):
                raise outcome
        return outcomes

    def _run_thread(self, thread: _Thread, interruption: _Interruption | None) -> None:
        thread.baton.acquire()
        try:
            if interruption:
                self._trace(interruption)
            thread.outcome = thread.action()
        except BaseException as error:
            thread.outcome = error
        sys.settrace(None)
        self._log(f"{thread.name} ran to its end")
        self._unfinished.remove(thread)
        if not self._unfinished:
            self.wake(self)
        self._pass_on()

    def wait(self, what: object, timeout: float = math.inf) -> bool:
        """Let other threads run until ``wake(what)``; return False if the timeout came first."""
        me = self._current
        if not self._deadlock:
            me.waits_for, me.deadline, me.timed_out = what, self._now + timeout, False
            me.waits_at = self._place(sys._getframe())
            self._waiting.append(me)
            if me is not self._main:
                self._log(f"{me.name} ran until it waited at {me.waits_at}")
            self._pass_on()
            me.baton.acquire()
        if self._deadlock:
            error = self._deadlock
            if me is self._main:
                self._deadlock = None
            raise error
        return not me.timed_out

    def wake(self, what: object) -> None:
        """Make every thread ready that waits for ``what``."""
        for thread in [thread for thread in self._waiting if thread.waits_for is what]:
            self._waiting.remove(thread)
            self._ready.append(thread)

    def look_at_clock(self) -> float:
        """Return the virtual time in seconds."""
        self.advance(CLOCK_TICK)
        return self._now

    def advance(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._now += seconds

    def _pass_on(self) -> None:
        """Give the baton to the thread that has been ready longest; the stopped one comes last."""
        if not self._ready:
            self._pass_time()
        stopped = self._interruption and self._interruption.stopped
        others = [thread for thread in self._ready if thread is not stopped]
        self._current = (others or self._ready)[0]
        self._ready.remove(self._current)
        self._current.baton.release()

    def _pass_time(self) -> None:
        """Let the clock jump to the earliest deadline, or wake all with a DeadlockError."""
        first = min(self._waiting, key=lambda thread: thread.deadline)
        if first.deadline < math.inf:
            self._now = max(self._now, first.deadline)
            first.timed_out = True
            self._waiting.remove(first)
            self._ready.append(first)
            return
        threads = [thread for thread in self._waiting if thread is not self._main]
        stuck = sorted(threads, key=lambda thread: thread.name) or [self._main]
        places = [f"{thread.name} waits forever at {thread.waits_at}" for thread in stuck]
        self._deadlock = DeadlockError("deadlock: " + "; ".join(places))
        for thread in stuck:
            self.wake(thread.waits_for)

    def _trace(self, interruption: _Interruption) -> None:
        """Stop this thread before the instruction, and let the others run."""
        instructions = itertools.count(1)
        visits = Counter[tuple[int, int]]()

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_code.co_filename != self._file:
                return None
            frame.f_trace_opcodes = True
            if event != "opcode" or frame.f_lasti not in _shared_instructions(frame.f_code):
                return trace
            instruction = id(frame.f_code), frame.f_lasti
            visits[instruction] += 1
            if visits[instruction] <= MAX_VISITS and next(instructions) == interruption.instruction:
                interruption.stopped, interruption.happened = self._current, True
                self._log(f"{self._current.name} was interrupted at {self._place(frame)}")
                self._ready.append(self._current)
                thread = self._current
                self._pass_on()
                thread.baton.acquire()
                interruption.stopped = None
                sys.settrace(None)
            return trace

        sys._getframe().f_trace_opcodes = True  # Python 3.12 needs one such frame before settrace
        sys.settrace(trace)

    def _log(self, event: str) -> None:
        if self._interruption and not self._deadlock and len(self._interruption.log) < MAX_LOG:
            self._interruption.log.append(event)

    def _place(self, frame: FrameType | None) -> str:
        """Return the lines of the learner's file that led to this frame, the first call first."""
        lines = []
        while frame:
            if frame.f_code.co_filename == self._file:
                number = frame.f_lineno or frame.f_code.co_firstlineno
                line = linecache.getline(self._file, number).strip()
                lines.append(f"line {number}: `{line}`")
            frame = frame.f_back
        return " -> ".join(reversed(lines)) or "a call of the check"


@functools.cache
def _shared_instructions(code: CodeType) -> frozenset[int]:
    """Return the offsets of the instructions at which an interruption can make a difference."""
    return frozenset(
        instruction.offset
        for instruction in dis.get_instructions(code)
        if not instruction.opname.startswith(PRIVATE)
    )
