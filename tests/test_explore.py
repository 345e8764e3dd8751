"""Exploring the interruptions of threads: which races it finds, and the modules it controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.exercises.checker import rules
from examples.exercises.checker.explore import RunThreads
from examples.exercises.checker.scheduler import DeadlockError

COUNTER = """
import threading

class Counter:
    def __init__(self):
        self.count = 0
        self.lock = threading.Lock()
        self.other_lock = threading.Lock()

    def add_with_lock(self):
        with self.lock:
            self.count += 1

    def lost_update(self):
        self.count += 1

    def two_steps(self):
        with self.lock:
            count = self.count
        with self.lock:
            self.count = count + 1

    def deadlock(self):
        with self.lock, self.other_lock:
            self.count += 1

    def in_reverse(self):
        with self.other_lock, self.lock:
            self.count += 1
"""
MAILBOX = """
import threading

class Mailbox:
    def __init__(self):
        self.letters = []
        self.changed = threading.Condition()

    def put(self):
        with self.changed:
            self.letters.append("letter")
            self.changed.notify()

    def get_with_loop(self):
        with self.changed:
            while not self.letters:
                if not self.changed.wait(timeout=1):
                    return None
            return self.letters.pop()

    def get_without_loop(self):
        with self.changed:
            if not self.letters and not self.changed.wait(timeout=1):
                return None
            return self.letters.pop()
"""
STUCK = """
import threading

changed, never, ended = threading.Condition(), threading.Lock(), []
never.acquire()

def wait():
    try:
        with changed:
            changed.wait()  # takes its lock again before it raises an error
    finally:
        ended.append("wait")

def hold():
    try:
        with changed, never:
            pass
    finally:
        ended.append("hold")
"""


def load(folder: Path, source: str) -> Any:
    path = folder / "solution.py"
    path.write_text(source, "utf-8")
    return rules.load(path)


@pytest.fixture
def counters(tmp_path: Path) -> Any:
    return load(tmp_path, COUNTER)


def explore_counter(counters: Any, *methods: str) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        counter = counters.Counter()
        run(*[getattr(counter, method) for method in methods])
        return None if counter.count == len(methods) else f"count {counter.count}"

    return rules.explore(counters, scenario)


class TestExplore:
    def test_lock_keeps_every_update(self, counters: Any) -> None:
        assert explore_counter(counters, "add_with_lock", "add_with_lock") is None

    @pytest.mark.parametrize("method", ["lost_update", "two_steps"])
    def test_lost_update_is_found(self, method: str, counters: Any) -> None:
        assert str(explore_counter(counters, method, method)).startswith("count 1\n")

    def test_problem_says_where_which_thread_was_interrupted(self, counters: Any) -> None:
        assert explore_counter(counters, "lost_update", "lost_update") == (
            "count 1\n"
            "- thread 1 was interrupted at line 15: `self.count += 1`\n"
            "- thread 2 ran to its end\n"
            "- thread 1 ran to its end"
        )

    def test_deadlock_of_two_locks_is_found_and_named(self, counters: Any) -> None:
        problem = str(explore_counter(counters, "deadlock", "in_reverse"))
        assert problem.startswith(
            "deadlock: thread 1 waits forever at line 24: `with self.lock, self.other_lock:`; "
            "thread 2 waits forever at line 28: `with self.other_lock, self.lock:`\n"
        )
        assert "ran to its end" not in problem

    def test_deadlock_does_not_affect_the_next_exploration(self, counters: Any) -> None:
        assert explore_counter(counters, "deadlock", "in_reverse")
        assert explore_counter(counters, "add_with_lock", "add_with_lock") is None

    def test_deadlock_is_reported_when_all_threads_have_ended(self, tmp_path: Path) -> None:
        solution = load(tmp_path, STUCK)
        with pytest.raises(DeadlockError, match=r"^deadlock: thread 1 .+ line 10: .+; thread 2 "):
            rules.run_in_threads(solution, solution.wait, solution.hold)
        assert solution.ended == ["hold", "wait"]

    @pytest.mark.parametrize(
        ("threads", "most"),
        [
            (1, 2),  # it is not interrupted: no other thread can run
            (2, 20),  # in one order, and at an instruction in a loop a few times, not a thousand
        ],
    )
    def test_number_of_runs(self, threads: int, most: int, tmp_path: Path) -> None:
        solution = load(tmp_path, "def loop():\n    for _ in range(1000):\n        len([])\n")
        runs = []

        def scenario(run: RunThreads) -> None:
            runs.append(run(*[solution.loop] * threads))

        assert rules.explore(solution, scenario) is None
        assert len(runs) <= most

    @pytest.mark.parametrize("method", ["get_with_loop", "get_without_loop"])
    def test_condition_waited_for_without_a_loop_is_found(
        self, method: str, tmp_path: Path
    ) -> None:
        solution = load(tmp_path, MAILBOX)

        def scenario(run: RunThreads) -> str | None:
            mailbox = solution.Mailbox()
            get = getattr(mailbox, method)
            received = run(get, get, mailbox.put).count("letter")
            return None if received == 1 else f"letters: {received}"

        problem = rules.explore(solution, scenario)
        assert ("IndexError" in str(problem)) == (method == "get_without_loop"), problem

    def test_files_that_the_learner_imports_are_interrupted_too(self, tmp_path: Path) -> None:
        (tmp_path / "counters_of_mine.py").write_text(COUNTER, "utf-8")
        counters = load(tmp_path, "from counters_of_mine import Counter\n")
        assert explore_counter(counters, "add_with_lock", "add_with_lock") is None
        assert str(explore_counter(counters, "lost_update", "lost_update")).startswith("count 1\n")

    def test_timeouts_of_the_same_moment_end_together(self, tmp_path: Path) -> None:
        solution = load(tmp_path, "import threading\nchanged = threading.Event()\n")
        time = solution.__modules__["time"]

        def change() -> bool:
            time.sleep(1)
            solution.changed.set()
            return True

        outcomes = rules.run_in_threads(solution, lambda: solution.changed.wait(1), change)
        assert outcomes == [False, True]

    def test_ctrl_c_reaches_a_thread_that_waits(self, tmp_path: Path) -> None:
        solution = load(tmp_path, "import threading\nchanged = threading.Event()\n")
        waiting, _ = rules.run_in_threads(
            solution,
            solution.changed.wait,
            solution.__scheduler__.press_ctrl_c,
            expected=KeyboardInterrupt,
        )
        assert isinstance(waiting, KeyboardInterrupt)


class TestVirtualModules:
    @pytest.mark.parametrize(
        ("code", "result", "seconds"),
        [
            ("lock = threading.Lock(); lock.acquire(); lock.acquire(timeout=2)", False, 2),
            ("lock = threading.Lock(); lock.acquire(); lock.acquire(blocking=False)", False, 0),
            ("threading.Lock().acquire(timeout=0)", True, 0),
            ("lock = threading.Lock(); lock.acquire(); lock.locked()", True, 0),
            ("lock = threading.RLock(); lock.acquire(); lock.acquire()", True, 0),
            ("semaphore = threading.Semaphore(0); semaphore.acquire(timeout=3)", False, 3),
            ("semaphore = threading.BoundedSemaphore(1); semaphore.acquire(timeout=3)", True, 0),
            ("threading.Event().wait(4)", False, 4),
            ("changed = threading.Condition(); changed.acquire(); "
             "changed.wait_for(lambda: False, 5)", False, 5),
            ("type(error(threading.Barrier(2).wait, 6)) is threading.BrokenBarrierError", True, 6),
            ("type(error(queue.Queue().get, timeout=7)) is queue.Empty", True, 7),
            ("box = queue.LifoQueue(1); box.put(1); "
             "type(error(box.put, 2, timeout=8)) is queue.Full", True, 8),
            ("type(error(queue.SimpleQueue().get, timeout=9)) is queue.Empty", True, 9),
            ("time.sleep(10)", None, 10),
            ("start = time.time_ns(); time.sleep(3); (time.time_ns() - start) // 10**9", 3, 3),
        ],
    )  # fmt: skip
    def test_waits_take_virtual_time(
        self, code: str, result: object, seconds: float, tmp_path: Path
    ) -> None:
        *lines, last = code.split("; ")
        source = f"""
import queue, threading, time

def error(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error

clock = time.perf_counter
start_time = clock()
{chr(10).join(lines)}
result = {last}
seconds = clock() - start_time
"""
        solution = load(tmp_path, source)
        assert solution.result == result
        assert solution.seconds == pytest.approx(seconds, abs=0.001)

    def test_lock_taken_twice_is_a_deadlock(self, tmp_path: Path) -> None:
        source = "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()\n"
        with pytest.raises(DeadlockError, match="the call waits forever at line 4"):
            load(tmp_path, source)

    @pytest.mark.parametrize(
        ("call", "error"),
        [
            ("threading.Lock().acquire(timeout=None)", TypeError),
            ("threading.Lock().acquire(timeout=-2)", ValueError),
            ("threading.Lock().acquire(blocking=False, timeout=1)", ValueError),
            ("threading.Lock().release()", RuntimeError),
            ("time.sleep(-1)", ValueError),
        ],
    )
    def test_wrong_argument_is_the_error_of_the_standard_library(
        self, call: str, error: type[Exception], tmp_path: Path
    ) -> None:
        with pytest.raises(error):
            load(tmp_path, f"import threading, time\n{call}\n")

    def test_loop_that_polls_the_clock_ends(self, tmp_path: Path) -> None:
        load(tmp_path, "from time import time\nend = time() + 0.01\nwhile time() < end: pass\n")

    def test_thread_of_the_learner_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="your code starts a thread"):
            load(tmp_path, "from threading import Timer\nTimer(1, print).start()\n")

    def test_time_of_day_may_be_set_back(self, tmp_path: Path) -> None:
        source = "import time\ndef clocks():\n    return time.time(), time.monotonic()\n"
        solution = load(tmp_path, source)
        day, monotonic = solution.clocks()
        rules.set_wall_clock_back(solution, 3600)
        later_day, later_monotonic = solution.clocks()
        assert later_day == pytest.approx(day - 3600, abs=0.001)
        assert later_monotonic >= monotonic
