"""The rules of exercise 1. To do the exercise you need not read them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from examples.exercises.rules import instead_of, rule, run_in_lockstep
from lib.retry import Retrier


class Connection:
    """Nothing but its health; ``close`` is noted."""

    def __init__(self) -> None:
        self.works = True
        self.closed = False

    def close(self) -> None:
        """Note it."""
        self.closed = True


class WithoutClose:
    """Some connections just end."""

    works = True


class UnavailableError(Exception):
    """What ``create`` meets; worth a retry."""

    retryable = True


class Factory:
    """The ``create`` of a pool: notes what it made, and fails as often as it is told to."""

    def __init__(self, kind: Callable[[], Any] = Connection) -> None:
        self.made: list[Any] = []
        self.calls = 0
        self.failures_to_come = 0
        self._kind = kind

    def __call__(self) -> Any:
        """Make one, or fail."""
        self.calls += 1
        if self.failures_to_come:
            self.failures_to_come -= 1
            raise UnavailableError("no connection can be made")
        self.made.append(self._kind())
        return self.made[-1]


def works(connection: Any) -> bool:
    return bool(connection.works)


@rule(
    "a returned connection is used again",
    called="c = get_connection(), release_connection(c), get_connection()",
    expected="c again; create called once",
)
def used_again(their: Any) -> str | None:
    create = Factory()
    pool = their.RetryPool(create, works)
    first = pool.get_connection()
    if first is not create.made[0]:
        return f"get_connection() returned {first!r}, not what create() made"
    pool.release_connection(first)
    second = pool.get_connection()
    return None if second is first else f"another one; create called {create.calls} times"


@rule(
    "at most max_connections exist, however many threads ask",
    called="RetryPool(..., max_connections=2), then get_connection(timeout=0.2) in 6 threads",
    expected="2 connections are made, and 4 threads get a TimeoutError",
)
def never_too_many(their: Any) -> str | None:
    create = Factory()
    pool = their.RetryPool(create, works, max_connections=2)
    ask = partial(pool.get_connection, timeout=0.2)
    outcomes = run_in_lockstep(their, *[ask] * 6, expected=TimeoutError)
    refused = sum(isinstance(outcome, TimeoutError) for outcome in outcomes)
    if (len(create.made), refused) == (2, 4):
        return None
    return f"{len(create.made)} connections were made, {refused} threads got a TimeoutError"


@rule(
    "a caller that finds every connection checked out gets the next one returned",
    called="max_connections=1; get_connection() while it is checked out; returned after 0.2 s",
    expected="that connection, as soon as it is returned",
)
def waits_for_one(their: Any) -> str | None:
    create = Factory()
    pool = their.RetryPool(create, works, max_connections=1)
    first = pool.get_connection()

    def give_back_later() -> None:
        time.sleep(0.2)
        pool.release_connection(first)

    _, second = run_in_lockstep(their, give_back_later, pool.get_connection, expected=TimeoutError)
    if second is first:
        return None
    return "a TimeoutError" if isinstance(second, TimeoutError) else "another connection"


@rule(
    "waiting too long is a TimeoutError, and uses up no place",
    called="max_connections=1; while it is out, get_connection(timeout=0.05), twice; then it is "
    "given back, then get_connection(timeout=0.05)",
    expected="two TimeoutErrors, then the connection",
)
def timeout_uses_no_place(their: Any) -> str | None:
    pool = their.RetryPool(Factory(), works, max_connections=1)
    first = pool.get_connection()
    for which in ("first", "second"):
        if problem := instead_of(TimeoutError, partial(pool.get_connection, timeout=0.05)):
            return f"the {which} time, {problem}"
    pool.release_connection(first)
    try:
        pool.get_connection(timeout=0.05)
    except TimeoutError:
        return "a TimeoutError at the end too: the timeouts before have used up the place"
    return None


@rule(
    "one that went bad while it was idle is closed, and replaced",
    called="c = get_connection(), release_connection(c); is_healthy(c) is now False; "
    "get_connection()",
    expected="another connection that works; c is closed",
)
def sick_one_is_replaced(their: Any) -> str | None:
    pool = their.RetryPool(Factory(), works, max_connections=1)
    first = pool.get_connection()
    pool.release_connection(first)
    first.works = False
    second = pool.get_connection(timeout=1)
    if second is first:
        return "the same one, though is_healthy would have said False"
    return None if first.closed else "another one, but the first was never closed"


@rule(
    "one without a close() is replaced as well",
    called="the same, with connections that have no close()",
    expected="another connection",
)
def close_may_be_missing(their: Any) -> str | None:
    pool = their.RetryPool(Factory(WithoutClose), works, max_connections=1)
    first = pool.get_connection()
    pool.release_connection(first)
    first.works = False
    return "the same one" if pool.get_connection(timeout=1) is first else None


@rule(
    "an error out of is_healthy means no",
    called="c = get_connection(), release_connection(c); is_healthy(c) now raises; "
    "get_connection()",
    expected="another connection; c is closed",
)
def error_means_unhealthy(their: Any) -> str | None:
    def ask(connection: Connection) -> bool:
        raise UnavailableError("no answer to the health check")

    pool = their.RetryPool(Factory(), ask, max_connections=1)
    first = pool.get_connection()
    pool.release_connection(first)
    try:
        second = pool.get_connection(timeout=1)
    except UnavailableError:
        return "the error of is_healthy came through"
    if second is first:
        return "the same one"
    return None if first.closed else "another one, but the first was never closed"


@rule(
    "create is retried, by the retrier",
    called="Retrier(max_attempts=3); create() fails twice, then works; get_connection()",
    expected="a connection; create called 3 times",
)
def creation_is_retried(their: Any) -> str | None:
    create = Factory()
    create.failures_to_come = 2
    pool = their.RetryPool(create, works, retrier=Retrier(max_attempts=3, base_delay=0))
    try:
        pool.get_connection()
    except UnavailableError:
        return f"the error of create; create called {create.calls} times"
    return None if create.calls == 3 else f"create was called {create.calls} times"


@rule(
    "so is the making of a replacement",
    called="a connection goes bad; create() fails once, then works; get_connection()",
    expected="another connection; create called twice for it",
)
def replacing_is_retried(their: Any) -> str | None:
    create = Factory()
    pool = their.RetryPool(create, works, retrier=Retrier(max_attempts=3, base_delay=0))
    first = pool.get_connection()
    pool.release_connection(first)
    first.works, create.calls, create.failures_to_come = False, 0, 1
    try:
        pool.get_connection()
    except UnavailableError:
        return f"the error of create; create called {create.calls} times"
    return None if create.calls == 2 else f"create was called {create.calls} times"


@rule(
    "when create fails for good, its error comes through and the place is free again",
    called="max_connections=1, Retrier(max_attempts=2); create() fails twice: get_connection(); "
    "then it works: get_connection(timeout=0.05)",
    expected="the error of create, after 2 calls of it; then a connection",
)
def failure_frees_the_place(their: Any) -> str | None:
    create = Factory()
    create.failures_to_come = 2
    retrier = Retrier(max_attempts=2, base_delay=0)
    pool = their.RetryPool(create, works, max_connections=1, retrier=retrier)
    if problem := instead_of(UnavailableError, pool.get_connection):
        return f"{problem}; create called {create.calls} times"
    try:
        pool.get_connection(timeout=0.05)
    except TimeoutError:
        return "the error of create, then a TimeoutError: the place is still taken"
    return None


@rule(
    "the with-block gives its connection back, after an error too",
    called="max_connections=1; twice: with pool.connection(timeout=0.05): raise an error",
    expected="the error comes out of both blocks, and each got a connection",
)
def with_block_gives_back(their: Any) -> str | None:
    create = Factory()
    pool = their.RetryPool(create, works, max_connections=1)
    for which in ("first", "second"):
        try:
            with pool.connection(timeout=0.05) as connection:
                if connection is not create.made[0]:
                    return f"the {which} block got {connection!r}"
                raise UnavailableError("in the block")
        except TimeoutError:
            return f"a TimeoutError: the {which} block got none, nobody had given it back"
        except UnavailableError:
            continue
        return f"the {which} block swallowed the error"
    return None


@rule(
    "giving back what isn't out is a ValueError, and changes nothing",
    called="max_connections=1; release_connection(c) a second time, release_connection(foreign); "
    "then get_connection() twice",
    expected="two ValueErrors; then c, and a TimeoutError",
)
def nothing_foreign(their: Any) -> str | None:
    pool = their.RetryPool(Factory(), works, max_connections=1)
    first = pool.get_connection()
    pool.release_connection(first)
    for what, connection in [("c a second time", first), ("foreign", Connection())]:
        if problem := instead_of(ValueError, partial(pool.release_connection, connection)):
            return f"{problem}, for {what}"
    if pool.get_connection(timeout=0.05) is not first:
        return "two ValueErrors, then a connection that isn't c"
    if problem := instead_of(TimeoutError, partial(pool.get_connection, timeout=0.05)):
        return f"two ValueErrors, then c, then {problem}"
    return None


@rule(
    "no lock is held while create runs",
    called="get_connection() in 2 threads; each create() waits 1 s at most for the other to begin",
    expected="both are under way at the same time",
)
def creations_overlap(their: Any) -> str | None:
    meeting = Meeting()

    def create() -> Connection:
        meeting.wait()
        return Connection()

    pool = their.RetryPool(create, works)
    run_in_lockstep(their, pool.get_connection, pool.get_connection)
    return None if meeting.took_place else "the second create() began when the first had ended"


@rule(
    "no lock is held while is_healthy runs",
    called="2 idle connections, get_connection() in 2 threads; each is_healthy() waits 1 s at most "
    "for the other to begin",
    expected="both are under way at the same time",
)
def health_checks_overlap(their: Any) -> str | None:
    meeting = Meeting()

    def is_healthy(connection: Connection) -> bool:
        meeting.wait()
        return True

    pool = their.RetryPool(Factory(), is_healthy)
    for connection in [pool.get_connection(), pool.get_connection()]:
        pool.release_connection(connection)
    run_in_lockstep(their, pool.get_connection, pool.get_connection)
    return None if meeting.took_place else "the second is_healthy() began when the first had ended"


class Meeting:
    """Where two threads wait for each other, but not for long."""

    def __init__(self) -> None:
        self.took_place = False
        self._barrier = threading.Barrier(2)

    def wait(self) -> None:
        """Until the other comes too, or a second has passed."""
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(timeout=1.0)
            self.took_place = True
