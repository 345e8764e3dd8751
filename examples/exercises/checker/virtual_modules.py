"""Give the learner's files a ``threading``, ``queue`` and ``time`` that a Scheduler controls.

Only Lock is written here. The standard library builds the other classes from locks, in Python
(Condition, Semaphore, Event, Barrier, Queue, ...). Their source is executed again, with this Lock.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from types import CodeType, ModuleType

from examples.exercises.checker.load import builtins_with
from examples.exercises.checker.scheduler import Scheduler

BUILT_FROM_LOCKS = (
    "_RLock", "Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier", "Timer",
)  # fmt: skip


def virtual_modules(scheduler: Scheduler) -> dict[str, ModuleType]:
    """Return the modules by their names."""
    clock = virtual_time(scheduler.look_at_clock, scheduler.wait, lambda: scheduler.wall_clock)
    modules: dict[str, ModuleType] = {"time": clock}
    modules["threading"] = _virtual_threading(scheduler, modules["time"])
    modules["queue"] = _virtual_queue(modules)
    return modules


class _Lock:
    """A threading.Lock for which threads wait in the scheduler."""

    scheduler: Scheduler

    def __init__(self) -> None:
        self._locked = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if timeout < 0 and timeout != -1:
            raise ValueError("timeout value must be a non-negative number")
        if not blocking and timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        give_up_at = math.inf if timeout == -1 else self.scheduler.look_at_clock() + timeout
        while self._locked:
            remaining = give_up_at - self.scheduler.look_at_clock()
            if not blocking or not self.scheduler.wait(self, remaining):
                return False
        self._locked = True
        return True

    def release(self) -> None:
        if not self._locked:
            raise RuntimeError("release unlocked lock")
        self._locked = False
        self.scheduler.wake(self)

    def locked(self) -> bool:
        return self._locked

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class _UncontrolledThread(threading.Thread):
    def start(self) -> None:
        raise RuntimeError("your code starts a thread, which the check can't control")


def _virtual_threading(scheduler: Scheduler, clock: ModuleType) -> ModuleType:
    module = ModuleType("threading")
    names = vars(module)
    names.update(vars(threading))
    lock = type("Lock", (_Lock,), {"scheduler": scheduler})
    names.update(
        Lock=lock, _allocate_lock=lock, Thread=_UncontrolledThread, _time=vars(clock)["monotonic"]
    )
    exec(_classes_built_from_locks(), names)
    names["RLock"] = names["_RLock"]
    return module


@functools.cache
def _classes_built_from_locks() -> CodeType:
    tree = ast.parse(inspect.getsource(threading))
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in BUILT_FROM_LOCKS
    ]
    return compile(tree, threading.__file__, "exec")


def _virtual_queue(modules: Mapping[str, ModuleType]) -> ModuleType:
    module = ModuleType("queue")
    vars(module)["__builtins__"] = builtins_with({**modules, "_queue": None})
    exec(_code_of_queue(), vars(module))
    return module


@functools.cache
def _code_of_queue() -> CodeType:
    return compile(inspect.getsource(queue), queue.__file__, "exec")


def virtual_time(
    seconds: Callable[[], float],
    wait: Callable[[object, float], object],
    epoch: Callable[[], float],
) -> ModuleType:
    """Return a ``time`` whose clocks show ``seconds()``, and whose sleep is ``wait(self, n)``.

    ``epoch()`` is the time of day at which ``seconds()`` is 0.
    """

    def sleep(duration: float) -> None:
        if duration < 0:
            raise ValueError("sleep length must be non-negative")
        wait(object(), duration)

    module = ModuleType("time")
    vars(module).update(
        vars(time),
        sleep=sleep,
        monotonic=seconds,
        perf_counter=seconds,
        time=lambda: epoch() + seconds(),
        monotonic_ns=lambda: round(1e9 * seconds()),
        perf_counter_ns=lambda: round(1e9 * seconds()),
        time_ns=lambda: round(1e9 * (epoch() + seconds())),
    )
    return module
