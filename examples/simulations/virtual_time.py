"""Run asyncio code in virtual time: minutes pass in a second, and each run is the same."""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from lib.retry import jitter_random

T = TypeVar("T")

_one_at_a_time = threading.Lock()  # time.monotonic and random belong to the whole process


def simulate(main: Callable[[], Coroutine[Any, Any, T]], *, seed: int) -> T:
    """Run ``main()`` in virtual time, which starts at 0, and return its result.

    Meanwhile ``time.monotonic()`` is the virtual time in this thread, and the module
    ``random`` and the Retrier's jitter start from the seed. Thread-safe: a second simulation
    waits for the first.
    """
    with _one_at_a_time, contextlib.closing(VirtualTimeLoop()) as loop, _patched(loop, seed):
        try:
            return loop.run_until_complete(main())
        finally:
            loop.run_until_complete(_cancel_other_tasks())


@contextlib.contextmanager
def _patched(loop: VirtualTimeLoop, seed: int) -> Iterator[None]:
    """Give this thread the loop's time, and seed the random numbers of the process."""
    real_monotonic = time.monotonic
    random_state, jitter_state = random.getstate(), jitter_random.getstate()
    thread = threading.get_ident()

    def monotonic() -> float:
        return loop.time() if threading.get_ident() == thread else real_monotonic()

    time.monotonic = monotonic
    random.seed(seed)
    jitter_random.seed(seed)
    try:
        yield
    finally:
        time.monotonic = real_monotonic
        random.setstate(random_state)
        jitter_random.setstate(jitter_state)


async def _cancel_other_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self.now


class _JumpingSelector(selectors.SelectSelector):
    """A selector that advances the loop's time instead of waiting for the network."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("a call never ends: every task waits for another one")
        self._loop.now += max(0.0, timeout)
        return []
