"""The rules of exercise 1. You need not read them to do the exercise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from examples.exercises.checker.explore import RunThreads
from examples.exercises.checker.rules import (
    explore,
    missing,
    rule,
    run_in_threads,
    set_wall_clock_back,
    stretch,
)
from lib.retry import Retrier


class Connection:
    """A connection that is healthy until a rule says otherwise."""

    def __init__(self) -> None:
        self.healthy = True
        self.closed = False

    def close(self) -> None:
        """Record that it was closed."""
        self.closed = True

    def __repr__(self) -> str:
        return "a connection"


class WithoutClose:
    """A connection that has no close()."""

    healthy = True
    closed = False


class FailsToClose(Connection):
    """A connection whose close() fails."""

    def close(self) -> None:
        """Close it, and raise an error."""
        super().close()
        raise UnavailableError("the other side is gone")


@dataclass
class Equal:
    """A connection that is equal to all others, has no hash, and counts as False."""

    healthy: bool = True
    closed: bool = False

    def __len__(self) -> int:
        return 0


class UnavailableError(Exception):
    """A transient error of ``create`` or ``is_healthy``."""

    retryable = True


class Factory:
    """A ``create`` that records its connections, and fails as often as a rule asks for."""

    def __init__(self, kind: Callable[[], Any] = Connection, failures: int = 0) -> None:
        self.created: list[Any] = []
        self.calls = 0
        self.failures_left = failures
        self.most_open = 0
        self._kind = kind

    def __call__(self) -> Any:
        """Create a connection or fail."""
        self.calls += 1
        if self.failures_left:
            self.failures_left -= 1
            raise UnavailableError("no connection can be made")
        self.created.append(self._kind())
        self.most_open = max(self.most_open, sum(not each.closed for each in self.created))
        return self.created[-1]


def is_healthy(connection: Any) -> bool:
    return bool(connection.healthy)


class CountingRetrier(Retrier):
    """A Retrier that does not wait, and counts its retries."""

    def __init__(self, max_attempts: int) -> None:
        super().__init__(max_attempts, base_delay=0, on_wait=self.count)
        self.retries = 0

    def count(self, attempt: int, error: Exception, delay: float) -> None:
        """Count a retry."""
        self.retries += 1


def idle_connections(pool: Any, number: int) -> list[Any]:
    """Return connections that are idle now."""
    connections = [pool.get_connection() for _ in range(number)]
    for connection in connections:
        pool.release_connection(connection)
    return connections


@rule(
    "the first connection comes from create",
    called="get_connection() of a new pool",
    expected="what create() returned",
)
def comes_from_create(solution: Any) -> str | None:
    create = Factory()
    connection = solution.RetryPool(create, is_healthy).get_connection()
    if not create.created:
        return f"{connection!r}; create was not called"
    return None if connection is create.created[0] else f"{connection!r}"


@rule(
    "a returned connection is used again",
    called="c = get_connection(), release_connection(c), get_connection()",
    expected="c; create is called once",
    needs=(comes_from_create,),
)
def used_again(solution: Any) -> str | None:
    create = Factory()
    pool = solution.RetryPool(create, is_healthy)
    first = pool.get_connection()
    pool.release_connection(first)
    second = pool.get_connection()
    if second is not first:
        return f"another connection; calls of create: {create.calls}"
    return "c, but it was closed" if first.closed else None


@rule(
    "at most max_connections are created, however many threads ask",
    called="max_connections=2; 3 threads call get_connection(timeout=0.01)",
    expected="2 connections are created, and 1 thread gets a TimeoutError",
    needs=(comes_from_create,),
)
def never_too_many(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        create = Factory()
        pool = solution.RetryPool(create, is_healthy, max_connections=2)
        get = partial(pool.get_connection, timeout=0.01)
        outcomes = run(get, get, get, expected=TimeoutError)
        timeouts = sum(isinstance(outcome, TimeoutError) for outcome in outcomes)
        if (len(create.created), timeouts) == (2, 1):
            return None
        return f"connections created: {len(create.created)}; TimeoutErrors: {timeouts}"

    return explore(solution, scenario)


@rule(
    "a timeout is a TimeoutError, and uses up no permit",
    called="max_connections=1; while it is checked out, get_connection(timeout=2) twice; then it "
    "is returned; then get_connection(timeout=2)",
    expected="2 TimeoutErrors, each after 2 seconds; then the connection",
    needs=(used_again,),
)
def timeout_uses_no_permit(solution: Any) -> str | None:
    pool = solution.RetryPool(Factory(), is_healthy, max_connections=1)
    first = pool.get_connection()
    clock = solution.__modules__["time"].monotonic
    for which in ("first", "second"):
        start = clock()
        if problem := missing(TimeoutError, partial(pool.get_connection, timeout=2)):
            return f"the {which} time, {problem}"
        if not 1.99 < clock() - start < 2.5:
            return f"the {which} time, a TimeoutError after {clock() - start:.1f} s"
    pool.release_connection(first)
    try:
        pool.get_connection(timeout=2)
    except TimeoutError:
        return "3 TimeoutErrors: the first two have used up the permit"
    return None


@rule(
    "a caller that finds every connection checked out gets the next one returned",
    called="max_connections=1, c is checked out; thread 1 calls get_connection(), thread 2 "
    "release_connection(c)",
    expected="thread 1 gets c",
    needs=(used_again,),
)
def waits_for_one(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        pool = solution.RetryPool(Factory(), is_healthy, max_connections=1)
        first = pool.get_connection()
        second, _ = run(pool.get_connection, partial(pool.release_connection, first))
        return None if second is first else f"thread 1 got {second!r}"

    return explore(solution, scenario)


@rule(
    "an idle connection goes to one thread only",
    called="max_connections=2, one connection is idle; 2 threads call get_connection()",
    expected="2 different connections",
    needs=(used_again,),
)
def idle_goes_to_one_thread(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        pool = solution.RetryPool(Factory(), is_healthy, max_connections=2)
        pool.release_connection(pool.get_connection())
        one, other = run(pool.get_connection, pool.get_connection)
        return None if one is not other else "both threads got the same connection"

    return explore(solution, scenario)


@rule(
    "a connection that became unhealthy is closed, then replaced",
    called="c = get_connection(), release_connection(c); is_healthy(c) is now False; "
    "get_connection()",
    expected="another connection; c is closed before that one is created",
    needs=(used_again,),
)
def unhealthy_one_is_replaced(solution: Any) -> str | None:
    create = Factory()
    pool = solution.RetryPool(create, is_healthy, max_connections=1)
    first = pool.get_connection()
    pool.release_connection(first)
    first.healthy = False
    second = pool.get_connection(timeout=1)
    if second is first:
        return "c, although is_healthy(c) is False"
    if not first.closed:
        return "another connection, but c was not closed"
    return None if create.most_open == 1 else "another connection, created before c was closed"


@rule(
    "create is retried with the retrier",
    called="a retrier with 3 attempts; create() fails twice, then works; get_connection()",
    expected="a connection; create is called 3 times, and the retrier made the 2 retries",
    needs=(comes_from_create,),
)
def creation_is_retried(solution: Any) -> str | None:
    create, retrier = Factory(failures=2), CountingRetrier(3)
    pool = solution.RetryPool(create, is_healthy, retrier=retrier)
    try:
        pool.get_connection()
    except UnavailableError:
        return f"the error of create; calls of create: {create.calls}"
    if (create.calls, retrier.retries) == (3, 2):
        return None
    return f"calls of create: {create.calls}; retries of the retrier: {retrier.retries}"


@rule(
    "if every create fails, its error is raised and the permit is free again",
    called="max_connections=1, Retrier(max_attempts=2); create() fails twice: get_connection(); "
    "then it works: get_connection(timeout=0.05)",
    expected="the error of create, after 2 calls of it; then a connection",
    needs=(creation_is_retried,),
)
def failure_frees_the_permit(solution: Any) -> str | None:
    create = Factory(failures=2)
    pool = solution.RetryPool(create, is_healthy, max_connections=1, retrier=CountingRetrier(2))
    if problem := missing(UnavailableError, pool.get_connection):
        return f"{problem}; calls of create: {create.calls}"
    try:
        pool.get_connection(timeout=0.05)
    except TimeoutError:
        return "the error of create, then a TimeoutError: the permit is still taken"
    return None


@rule(
    "the with block returns its connection, after an error too",
    called="max_connections=1; twice: with pool.connection(timeout=0.05): raise an error",
    expected="each block gets a connection, and its error is raised",
    needs=(used_again,),
)
def with_block_returns_it(solution: Any) -> str | None:
    create = Factory()
    pool = solution.RetryPool(create, is_healthy, max_connections=1)
    for which in ("first", "second"):
        try:
            with pool.connection(timeout=0.05) as connection:
                if connection not in create.created:
                    return f"the {which} block got {connection!r}"
                raise UnavailableError("in the block")
        except TimeoutError:
            return f"the {which} block got a TimeoutError: no connection was returned"
        except UnavailableError:
            continue
        return f"the {which} block swallowed the error"
    return None


@rule(
    "returning a connection that is not checked out is a ValueError, and changes nothing",
    called="max_connections=1; release_connection(c) a second time, release_connection(foreign); "
    "then get_connection() twice",
    expected="2 ValueErrors; then c, and a TimeoutError",
    needs=(used_again, timeout_uses_no_permit),
)
def nothing_foreign(solution: Any) -> str | None:
    pool = solution.RetryPool(Factory(), is_healthy, max_connections=1)
    first = pool.get_connection()
    pool.release_connection(first)
    for what, connection in [("c a second time", first), ("foreign", Connection())]:
        if problem := missing(ValueError, partial(pool.release_connection, connection)):
            return f"{problem}, for {what}"
    if pool.get_connection(timeout=0.05) is not first:
        return "2 ValueErrors, then a connection that is not c"
    if problem := missing(TimeoutError, partial(pool.get_connection, timeout=0.05)):
        return f"2 ValueErrors, then c, then {problem}"
    return None


@rule(
    "no lock is held while create runs",
    called="2 threads call get_connection(); each create() waits up to 1 s for the other one",
    expected="both run at the same time",
    needs=(comes_from_create,),
)
def creations_overlap(solution: Any) -> str | None:
    meeting = Meeting(solution)

    def create() -> Connection:
        meeting.wait()
        return Connection()

    pool = solution.RetryPool(create, is_healthy)
    run_in_threads(solution, pool.get_connection, pool.get_connection)
    return None if meeting.took_place else "the second create() began after the first had ended"


@stretch(
    "a timeout of 0 does not wait; the with block keeps its timeout",
    called="max_connections=1; while it is checked out, get_connection(timeout=0), "
    "connection(timeout=0) and connection(timeout=0.05)",
    expected="3 TimeoutErrors",
    needs=(timeout_uses_no_permit, with_block_returns_it),
)
def timeouts_are_kept(solution: Any) -> str | None:
    pool = solution.RetryPool(Factory(), is_healthy, max_connections=1)
    pool.get_connection(timeout=0)
    for what, action in [
        ("get_connection(timeout=0)", partial(pool.get_connection, timeout=0)),
        ("connection(timeout=0)", pool.connection(timeout=0).__enter__),
        ("connection(timeout=0.05)", pool.connection(timeout=0.05).__enter__),
    ]:
        if problem := missing(TimeoutError, action):
            return f"{problem}, for {what}"
    return None


@stretch(
    "one returned connection serves one waiting caller; the other continues to wait",
    called="max_connections=1, c is checked out; threads 1 and 2 call "
    "get_connection(timeout=0.01), thread 3 release_connection(c)",
    expected="one thread gets c, the other a TimeoutError",
    needs=(
        never_too_many,
        waits_for_one,
        timeout_uses_no_permit,
    ),
)
def serves_one_caller(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        create = Factory()
        pool = solution.RetryPool(create, is_healthy, max_connections=1)
        first = pool.get_connection()
        get = partial(pool.get_connection, timeout=0.01)
        one, other, _ = run(
            get, get, partial(pool.release_connection, first), expected=TimeoutError
        )
        timeouts = sum(isinstance(outcome, TimeoutError) for outcome in (one, other))
        if timeouts == 1 and first in (one, other) and create.calls == 1:
            return None
        return f"TimeoutErrors: {timeouts}; calls of create: {create.calls}"

    return explore(solution, scenario)


@stretch(
    "two connections that are returned serve two callers",
    called="max_connections=2, c and d are checked out; threads 1 and 2 call get_connection(), "
    "threads 3 and 4 return c and d; then the same, but the calls come after both returns",
    expected="each time, c for one caller and d for the other",
    needs=(
        waits_for_one,
        idle_goes_to_one_thread,
    ),
)
def serves_two_callers(solution: Any) -> str | None:
    pool, releases = pool_of_two(solution)
    waiting = run_in_threads(solution, pool.get_connection, pool.get_connection, *releases)
    if waiting[0] is waiting[1]:
        return "both callers that waited got the same connection"

    def scenario(run: RunThreads) -> str | None:
        pool, releases = pool_of_two(solution)
        run(*releases)
        one, other = (pool.get_connection(timeout=0.05) for _ in range(2))
        return None if one is not other else "both later callers got the same connection"

    return explore(solution, scenario)


def pool_of_two(solution: Any) -> tuple[Any, list[Callable[[], None]]]:
    """Return a pool whose connections are checked out, and the calls that return them."""
    pool = solution.RetryPool(Factory(), is_healthy, max_connections=2)
    connections = [pool.get_connection() for _ in range(2)]
    return pool, [partial(pool.release_connection, each) for each in connections]


@stretch(
    "the timeout limits the whole wait, however often the thread is woken",
    called="max_connections=1, c is checked out; thread 1 calls get_connection(timeout=1); after "
    "0.6 s, thread 2 calls release_connection(c) and at once get_connection(), and time.time() is "
    "set back by a minute",
    expected="thread 1 gets c, or a TimeoutError after 1 s",
    needs=(waits_for_one, timeout_uses_no_permit),
)
def timeout_is_total(solution: Any) -> str | None:
    time = solution.__modules__["time"]
    pool = solution.RetryPool(Factory(), is_healthy, max_connections=1)
    first = pool.get_connection()
    start = time.monotonic()

    def wait() -> float:
        with contextlib.suppress(TimeoutError):
            pool.get_connection(timeout=1)
        return float(time.monotonic() - start)

    def return_and_take_again() -> None:
        time.sleep(0.6)
        set_wall_clock_back(solution, 60)
        pool.release_connection(first)
        with contextlib.suppress(TimeoutError):
            pool.get_connection(timeout=0.01)

    waited, _ = run_in_threads(solution, wait, return_and_take_again)
    return None if waited < 1.1 else f"a TimeoutError after {waited:.1f} s"


@stretch(
    "a connection returned at the moment of a timeout is not lost",
    called="max_connections=1, c is checked out; thread 1 calls get_connection(timeout=0.02), "
    "thread 2 get_connection(timeout=0.05); after 0.02 s, thread 3 calls release_connection(c)",
    expected="one thread gets c, the other a TimeoutError",
    needs=(
        serves_one_caller,
        timeout_is_total,
    ),
)
def timeout_loses_nothing(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        pool = solution.RetryPool(Factory(), is_healthy, max_connections=1)
        first = pool.get_connection()

        def return_it() -> None:
            solution.__modules__["time"].sleep(0.02)
            pool.release_connection(first)

        gets = [partial(pool.get_connection, timeout=seconds) for seconds in (0.02, 0.05)]
        outcomes = run(*gets, return_it, expected=TimeoutError)[:2]
        served = sum(outcome is first for outcome in outcomes)
        return None if served == 1 else f"threads that got c: {served}"

    return explore(solution, scenario)


@stretch(
    "KeyboardInterrupt passes through, and uses up no permit",
    called="max_connections=1; KeyboardInterrupt is raised in create, in is_healthy, in close, in "
    "a with block, and in a get_connection() that waits; each time, get_connection(timeout=0.05) "
    "follows",
    expected="5 times KeyboardInterrupt, then a connection",
    needs=(
        with_block_returns_it,
        unhealthy_one_is_replaced,
        waits_for_one,
        failure_frees_the_permit,
    ),
)
def ctrl_c_uses_no_permit(solution: Any) -> str | None:
    for where in ("create", "is_healthy", "close", "a with block", "a wait"):
        pool, interrupted = interrupted_at(where, solution)
        if problem := missing(KeyboardInterrupt, interrupted):
            return f"{problem}, in {where}"
        try:
            pool.get_connection(timeout=0.05)
        except TimeoutError:
            return f"after KeyboardInterrupt in {where}, a TimeoutError: the permit is lost"
    return None


def interrupted_at(where: str, solution: Any) -> tuple[Any, Callable[[], object]]:
    """Return a pool, and a call during which Ctrl-C is pressed."""
    pressed = ""  # in the function of this name

    def press_in(name: str) -> None:
        nonlocal pressed
        if name == pressed:
            pressed = ""
            raise KeyboardInterrupt

    class InterruptedConnection(Connection):
        def close(self) -> None:
            press_in("close")

    def create() -> Connection:
        press_in("create")
        return InterruptedConnection()

    def is_healthy(connection: Connection) -> bool:
        press_in("is_healthy")
        return where != "close"

    def in_a_with_block() -> None:
        with pool.connection():
            raise KeyboardInterrupt

    def in_a_wait() -> None:
        connection = pool.get_connection()
        ctrl_c = solution.__scheduler__.press_ctrl_c
        waiting, _ = run_in_threads(
            solution, pool.get_connection, ctrl_c, expected=KeyboardInterrupt
        )
        pool.release_connection(connection)
        raise waiting

    pool = solution.RetryPool(create, is_healthy, max_connections=1)
    if where != "create":
        idle_connections(pool, 1)
    pressed = where
    calls = {"a with block": in_a_with_block, "a wait": in_a_wait}
    return pool, calls.get(where, pool.get_connection)


@stretch(
    "a close() that is missing or fails does no harm",
    called="as for an unhealthy connection, with connections that have no close(), and with "
    "connections whose close() raises an error",
    expected="another connection each time",
    needs=(unhealthy_one_is_replaced,),
)
def close_does_no_harm(solution: Any) -> str | None:
    for kind, what in [(WithoutClose, "without close()"), (FailsToClose, "whose close() fails")]:
        pool = solution.RetryPool(Factory(kind), is_healthy, max_connections=1)
        [first] = idle_connections(pool, 1)
        first.healthy = False
        try:
            second = pool.get_connection(timeout=1)
        except UnavailableError:
            return f"the error of close, for a connection {what}"
        if second is first:
            return f"the same one, for a connection {what}"
    return None


@stretch(
    "an error raised by is_healthy means unhealthy",
    called="c = get_connection(), release_connection(c); is_healthy(c) now raises an error; "
    "get_connection()",
    expected="another connection; c is closed",
    needs=(unhealthy_one_is_replaced,),
)
def error_means_unhealthy(solution: Any) -> str | None:
    def raise_error(connection: Connection) -> bool:
        raise UnavailableError("the health check got no response")

    pool = solution.RetryPool(Factory(), raise_error, max_connections=1)
    first = pool.get_connection()
    pool.release_connection(first)
    try:
        second = pool.get_connection(timeout=1)
    except UnavailableError:
        return "get_connection() raised the error of is_healthy"
    if second is first:
        return "c"
    return None if first.closed else "another connection, but c was not closed"


@stretch(
    "each idle connection is checked before it is lent",
    called="max_connections=2, c and d are idle, and both became unhealthy; get_connection()",
    expected="another connection than c and d",
    needs=(unhealthy_one_is_replaced,),
)
def each_idle_one_is_checked(solution: Any) -> str | None:
    pool = solution.RetryPool(Factory(), is_healthy, max_connections=2)
    idle = idle_connections(pool, 2)
    for connection in idle:
        connection.healthy = False
    return "an unhealthy one" if pool.get_connection(timeout=1) in idle else None


@stretch(
    "creating a replacement is retried too, as often as the retrier allows",
    called="a retrier with 2 attempts; a connection became unhealthy, and create() fails; "
    "get_connection()",
    expected="the error of create, after 2 calls of it",
    needs=(unhealthy_one_is_replaced, creation_is_retried),
)
def replacement_is_retried(solution: Any) -> str | None:
    create = Factory()
    pool = solution.RetryPool(create, is_healthy, retrier=CountingRetrier(2))
    [first] = idle_connections(pool, 1)
    first.healthy, create.calls, create.failures_left = False, 0, 20
    if problem := missing(UnavailableError, pool.get_connection):
        return problem
    return None if create.calls == 2 else f"calls of create: {create.calls}"


@stretch(
    "a failed create frees one permit, and lets a waiting caller go on",
    called="max_connections=2; create() fails the first time; 3 threads call get_connection(); "
    "then get_connection(timeout=0.05)",
    expected="one thread gets the error of create, the others a connection; then a TimeoutError",
    needs=(
        never_too_many,
        waits_for_one,
        failure_frees_the_permit,
    ),
)
def failure_frees_one_permit(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        create = Factory(failures=1)
        pool = solution.RetryPool(create, is_healthy, max_connections=2, retrier=CountingRetrier(1))
        get = pool.get_connection
        outcomes = run(get, get, get, expected=UnavailableError)
        errors = sum(isinstance(outcome, UnavailableError) for outcome in outcomes)
        if errors != 1:
            return f"errors of create: {errors}"
        return missing(TimeoutError, partial(get, timeout=0.05))

    return explore(solution, scenario)


@stretch(
    "connections that are equal or empty are different connections",
    called="connections that are all equal (==), have no hash, and count as False (len() is 0); "
    "c, d = get_connection(), get_connection(); release_connection(c) twice, "
    "release_connection(d); get_connection() twice",
    expected="a ValueError for c the second time, and none for d; then c and d again",
    needs=(
        nothing_foreign,
        idle_goes_to_one_thread,
    ),
)
def told_apart_by_identity(solution: Any) -> str | None:
    create = Factory(Equal)
    pool = solution.RetryPool(create, is_healthy, max_connections=2)
    first, second = pool.get_connection(), pool.get_connection()
    pool.release_connection(first)
    if problem := missing(ValueError, partial(pool.release_connection, first)):
        return f"{problem}, for c the second time"
    pool.release_connection(second)
    again = {id(pool.get_connection()) for _ in range(2)}
    if again == {id(first), id(second)}:
        return None
    return f"not c and d again; calls of create: {create.calls}"


@stretch(
    "a connection that two threads return at the same moment is returned once",
    called="max_connections=1, c is checked out; 2 threads call release_connection(c); then "
    "get_connection(timeout=0.05) twice",
    expected="1 ValueError; then c, and a TimeoutError",
    needs=(nothing_foreign,),
)
def returned_once(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        pool = solution.RetryPool(Factory(), is_healthy, max_connections=1)
        release = partial(pool.release_connection, pool.get_connection())
        outcomes = run(release, release, expected=ValueError)
        errors = sum(isinstance(outcome, ValueError) for outcome in outcomes)
        if errors != 1:
            return f"ValueErrors: {errors}"
        pool.get_connection(timeout=0.05)
        if problem := missing(TimeoutError, partial(pool.get_connection, timeout=0.05)):
            return f"1 ValueError, then c, then {problem}"
        return None

    return explore(solution, scenario)


@stretch(
    "no lock is held while is_healthy, close, or create for a replacement runs",
    called="2 connections became unhealthy, 2 threads call get_connection(); each is_healthy(), "
    "then each close(), then each create() waits up to 1 s for the other one",
    expected="both run at the same time",
    needs=(unhealthy_one_is_replaced, creations_overlap),
)
def replacements_overlap(solution: Any) -> str | None:
    for what in ("is_healthy", "close", "create"):
        if not replacements_meet_in(what, solution):
            return f"the second {what}() began after the first had ended"
    return None


def replacements_meet_in(what: str, solution: Any) -> bool:
    """Return True if two threads can be in the function of this name at the same time."""
    meeting = Meeting(solution)
    started: list[str] = []

    def meet(name: str) -> None:
        if name == what and started:
            meeting.wait()

    class MeetingConnection(Connection):
        def close(self) -> None:
            meet("close")

    def create() -> Connection:
        meet("create")
        return MeetingConnection()

    def is_healthy(connection: Connection) -> bool:
        solution.__modules__["time"].sleep(0.1)  # so that each thread has taken one
        meet("is_healthy")
        return False

    pool = solution.RetryPool(create, is_healthy, max_connections=2)
    idle_connections(pool, 2)
    started.append(what)
    run_in_threads(solution, pool.get_connection, pool.get_connection)
    return meeting.took_place


@stretch(
    "two pools share nothing",
    called="two pools with max_connections=1; c = get_connection() and release_connection(c) of "
    "the first one; get_connection(timeout=0.05) of both",
    expected="c from the first one, a new connection from the second one",
    needs=(used_again,),
)
def pools_share_nothing(solution: Any) -> str | None:
    one, other = (solution.RetryPool(Factory(), is_healthy, max_connections=1) for _ in range(2))
    [first] = idle_connections(one, 1)
    try:
        new, again = other.get_connection(timeout=0.05), one.get_connection(timeout=0.05)
    except TimeoutError:
        return "a TimeoutError: they share their permits"
    return None if new is not first and again is first else "c from the second one"


class Meeting:
    """Let two threads wait for each other, for up to a second of virtual time."""

    def __init__(self, solution: Any) -> None:
        self.took_place = False
        threading = solution.__modules__["threading"]
        self._barrier = threading.Barrier(2)
        self._broken_barrier = threading.BrokenBarrierError

    def wait(self) -> None:
        """Wait until the other thread also waits, or a second has passed."""
        with contextlib.suppress(self._broken_barrier):
            self._barrier.wait(timeout=1.0)
            self.took_place = True
