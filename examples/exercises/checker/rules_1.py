"""The rules of exercise 1. You need not read them to do the exercise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from examples.exercises.checker.explore import RunThreads
from examples.exercises.checker.rules import explore, missing, rule, run_in_threads
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


@dataclass
class Equal:
    """A connection that is equal to all others and has no hash."""

    healthy: bool = True
    closed: bool = False


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


def retrier(max_attempts: int) -> Retrier:
    return Retrier(max_attempts, base_delay=0)


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
    return None if second is first else f"another connection; calls of create: {create.calls}"


@rule(
    "at most max_connections are created, however many threads ask",
    called="max_connections=2; 3 threads call get_connection(timeout=0.1)",
    expected="2 connections are created, and 1 thread gets a TimeoutError",
    needs=(comes_from_create,),
)
def never_too_many(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        create = Factory()
        pool = solution.RetryPool(create, is_healthy, max_connections=2)
        get = partial(pool.get_connection, timeout=0.1)
        outcomes = run(get, get, get, expected=TimeoutError)
        timeouts = sum(isinstance(outcome, TimeoutError) for outcome in outcomes)
        if (len(create.created), timeouts) == (2, 1):
            return None
        return f"connections created: {len(create.created)}; TimeoutErrors: {timeouts}"

    return explore(solution, scenario)


@rule(
    "a timeout is a TimeoutError, and uses up no permit",
    called="max_connections=1; while it is checked out, get_connection(timeout=0.05) twice; then "
    "it is returned; then get_connection(timeout=0.05)",
    expected="2 TimeoutErrors, then the connection",
    needs=(used_again,),
)
def timeout_uses_no_permit(solution: Any) -> str | None:
    pool = solution.RetryPool(Factory(), is_healthy, max_connections=1)
    first = pool.get_connection()
    for which in ("first", "second"):
        if problem := missing(TimeoutError, partial(pool.get_connection, timeout=0.05)):
            return f"the {which} time, {problem}"
    pool.release_connection(first)
    try:
        pool.get_connection(timeout=0.05)
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
    "one returned connection serves one waiting caller; the other continues to wait",
    called="max_connections=1, c is checked out; threads 1 and 2 call get_connection(timeout=0.1), "
    "thread 3 release_connection(c)",
    expected="one thread gets c, the other a TimeoutError",
    needs=(waits_for_one, timeout_uses_no_permit),
)
def serves_one_caller(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        create = Factory()
        pool = solution.RetryPool(create, is_healthy, max_connections=1)
        first = pool.get_connection()
        get = partial(pool.get_connection, timeout=0.1)
        one, other, _ = run(
            get, get, partial(pool.release_connection, first), expected=TimeoutError
        )
        timeouts = sum(isinstance(outcome, TimeoutError) for outcome in (one, other))
        if timeouts == 1 and first in (one, other) and create.calls == 1:
            return None
        return f"TimeoutErrors: {timeouts}; calls of create: {create.calls}"

    return explore(solution, scenario)


@rule(
    "the timeout limits the whole wait, however often the thread is woken",
    called="max_connections=1, c is checked out; thread 1 calls get_connection(timeout=1); after "
    "0.6 s, thread 2 calls release_connection(c) and at once get_connection()",
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
        pool.release_connection(first)
        with contextlib.suppress(TimeoutError):
            pool.get_connection(timeout=0.01)

    waited, _ = run_in_threads(solution, wait, return_and_take_again)
    return None if waited < 1.1 else f"a TimeoutError after {waited:.1f} s"


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
    "a connection without close() is replaced as well",
    called="the same, with connections that have no close()",
    expected="another connection",
    needs=(unhealthy_one_is_replaced,),
)
def close_may_be_missing(solution: Any) -> str | None:
    pool = solution.RetryPool(Factory(WithoutClose), is_healthy, max_connections=1)
    first = pool.get_connection()
    pool.release_connection(first)
    first.healthy = False
    return "the same one" if pool.get_connection(timeout=1) is first else None


@rule(
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


@rule(
    "create is retried with the retrier",
    called="Retrier(max_attempts=3); create() fails twice, then works; get_connection()",
    expected="a connection; create is called 3 times",
    needs=(comes_from_create,),
)
def creation_is_retried(solution: Any) -> str | None:
    create = Factory(failures=2)
    pool = solution.RetryPool(create, is_healthy, retrier=retrier(3))
    try:
        pool.get_connection()
    except UnavailableError:
        return f"the error of create; calls of create: {create.calls}"
    return None if create.calls == 3 else f"calls of create: {create.calls}"


@rule(
    "creating a replacement is retried too",
    called="a connection became unhealthy; create() fails once, then works; get_connection()",
    expected="another connection; create is called twice for it",
    needs=(unhealthy_one_is_replaced, creation_is_retried),
)
def replacement_is_retried(solution: Any) -> str | None:
    create = Factory()
    pool = solution.RetryPool(create, is_healthy, retrier=retrier(3))
    first = pool.get_connection()
    pool.release_connection(first)
    first.healthy, create.calls, create.failures_left = False, 0, 1
    try:
        pool.get_connection()
    except UnavailableError:
        return f"the error of create; calls of create: {create.calls}"
    return None if create.calls == 2 else f"calls of create: {create.calls}"


@rule(
    "if every create fails, its error is raised and the permit is free again",
    called="max_connections=1, Retrier(max_attempts=2); create() fails twice: get_connection(); "
    "then it works: get_connection(timeout=0.05)",
    expected="the error of create, after 2 calls of it; then a connection",
    needs=(creation_is_retried,),
)
def failure_frees_the_permit(solution: Any) -> str | None:
    create = Factory(failures=2)
    pool = solution.RetryPool(create, is_healthy, max_connections=1, retrier=retrier(2))
    if problem := missing(UnavailableError, pool.get_connection):
        return f"{problem}; calls of create: {create.calls}"
    try:
        pool.get_connection(timeout=0.05)
    except TimeoutError:
        return "the error of create, then a TimeoutError: the permit is still taken"
    return None


@rule(
    "a failed create frees one permit, and lets a waiting caller go on",
    called="max_connections=2; create() fails the first time; 3 threads call get_connection(); "
    "then get_connection(timeout=0.05)",
    expected="one thread gets the error of create, the others a connection; then a TimeoutError",
    needs=(failure_frees_the_permit,),
)
def failure_frees_one_permit(solution: Any) -> str | None:
    def scenario(run: RunThreads) -> str | None:
        create = Factory(failures=1)
        pool = solution.RetryPool(create, is_healthy, max_connections=2, retrier=retrier(1))
        get = pool.get_connection
        outcomes = run(get, get, get, expected=UnavailableError)
        errors = sum(isinstance(outcome, UnavailableError) for outcome in outcomes)
        if errors != 1:
            return f"errors of create: {errors}"
        return missing(TimeoutError, partial(get, timeout=0.05))

    return explore(solution, scenario)


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
    "connections that are equal are not the same one",
    called="connections that are all equal (==) and have no hash; c, d = get_connection(), "
    "get_connection(); release_connection(c) twice, release_connection(d)",
    expected="a ValueError for c the second time, and none for d",
    needs=(nothing_foreign,),
)
def told_apart_by_identity(solution: Any) -> str | None:
    pool = solution.RetryPool(Factory(Equal), is_healthy, max_connections=2)
    first, second = pool.get_connection(), pool.get_connection()
    pool.release_connection(first)
    if problem := missing(ValueError, partial(pool.release_connection, first)):
        return f"{problem}, for c the second time"
    pool.release_connection(second)
    return None


@rule(
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


@rule(
    "no lock is held while is_healthy runs",
    called="2 idle connections, 2 threads call get_connection(); each is_healthy() waits up to 1 s "
    "for the other one",
    expected="both run at the same time",
    needs=(used_again,),
)
def health_checks_overlap(solution: Any) -> str | None:
    meeting = Meeting(solution)

    def is_healthy(connection: Connection) -> bool:
        meeting.wait()
        return True

    pool = solution.RetryPool(Factory(), is_healthy)
    for connection in [pool.get_connection(), pool.get_connection()]:
        pool.release_connection(connection)
    run_in_threads(solution, pool.get_connection, pool.get_connection)
    return None if meeting.took_place else "the second is_healthy() began after the first had ended"


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
