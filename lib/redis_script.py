# SPDX-License-Identifier: MIT-0
"""Run the script of a shared limit in Redis, and do without Redis while it can't be used.

SharedRateLimiter and SharedTokenLimiter use it: copy it with them.

Redis runs a script as one atomic step, so no two processes can take the same room. The scripts
read the clock of the Redis server. A worker whose own clock is wrong does no harm.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

_logger = logging.getLogger(__name__)

RETRY_REDIS_AFTER = 1.0  # seconds without Redis until one caller tries it again
MAX_SOCKET_TIMEOUT = 5.0  # seconds

# Exceptions of redis and valkey for a rejected login or command, by name because neither library
# is imported here.
ACCESS_ERRORS = {"AuthenticationError", "AuthorizationError", "NoPermissionError"}
# What Redis 7 and Redis 6 say of a command inside a script, without a class of its own.
ACCESS_TEXTS = ("ACL failure in script", "The user executing the script can't run this command")


class RedisAccessError(RuntimeError):
    """Redis rejects the client's password, or its user lacks a permission.

    It is not retryable, and says nothing about the service that the limit is for.
    """

    retryable = False


class RedisScript:
    """The script of one limit, and whether Redis can be used for it.

    The first argument of the script is the limit that all processes must agree on, as text.
    Its reply is a list. The last item is the limit of another process, if it differs, else
    an empty text.

    ``on_lost`` is called when Redis can't be used any more, ``on_found`` when it can be used
    again. ``name`` and ``local_share`` are those of the limiter.

    Thread-safe. Raises ValueError for a wrong argument.
    """

    def __init__(
        self,
        redis_client: Any,
        script: str,
        prefix: str,
        name: str,
        *,
        local_share: float,
        on_lost: Callable[[], object],
        on_found: Callable[[], object] = lambda: None,
    ) -> None:
        _check_client(redis_client)
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        if type(local_share) not in (int, float) or not 0 < local_share <= 1:
            raise ValueError(f"local_share must be a number > 0 and <= 1, got {local_share!r}")
        self.name = name
        self.local_share = local_share
        self.is_local = False
        self.lock = threading.RLock()
        self._keys = [f"{prefix}:{name}"]
        self._script = redis_client.register_script(script)
        self._on_lost, self._on_found = on_lost, on_found
        self._try_redis_at = -math.inf  # on the monotonic clock
        self._has_warned = False
        _scripts.add(self)

    def run(self, limit: str, *arguments: int | str) -> list[Any] | None:
        """Return the script's reply without its last item, or None while Redis can't be used.

        Raises RedisAccessError if Redis rejects the client.
        """
        if not self._may_try():
            return None
        try:
            reply: list[Any] = self._script(self._keys, [limit, *arguments])
        except Exception as error:
            if _is_access_error(error):
                raise RedisAccessError(
                    f"Redis rejects the client of the limit {self.name!r} ({error}): check its "
                    "username and password, and that it may run the commands of the script"
                ) from error
            self._lose(error)
            return None
        self._find()
        if reply[-1]:
            self._warn_once(limit, reply[-1])
        return reply[:-1]

    def _may_try(self) -> bool:
        with self.lock:
            now = time.monotonic()
            if self.is_local and now < self._try_redis_at:
                return False
            # While Redis is lost, no other caller tries it before then.
            self._try_redis_at = now + RETRY_REDIS_AFTER
        return True

    def _lose(self, error: Exception) -> None:
        with self.lock:
            self._try_redis_at = time.monotonic() + RETRY_REDIS_AFTER
            if self.is_local:
                return
            self._on_lost()
            self.is_local = True
        _logger.warning(
            "Redis can't be used (%s: %s); until it can, this process paces itself at %g %% of "
            "the limit %r",
            type(error).__name__, error, 100 * self.local_share, self.name,
        )  # fmt: skip

    def _find(self) -> None:
        with self.lock:
            was_local, self.is_local = self.is_local, False
        if was_local:
            _logger.info("Redis can be used again; the limit %r is shared", self.name)
            self._on_found()

    def _warn_once(self, limit: str, other_limit: Any) -> None:
        other = other_limit.decode() if isinstance(other_limit, bytes) else other_limit
        with self.lock:
            has_warned, self._has_warned = self._has_warned, True
        if not has_warned:
            _logger.warning(
                "The limit %r is %s per minute in this process and %s in another: give all "
                "processes that use the name the same limit",
                self.name, limit, other,
            )  # fmt: skip


def without_blocking(step: Callable[[], object]) -> None:
    """Call ``step``; if an event loop runs in this thread, call it in another thread."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        step()
    else:
        loop.run_in_executor(None, step)


def _is_access_error(error: Exception) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & ACCESS_ERRORS) or any(text in str(error) for text in ACCESS_TEXTS)


def _check_client(redis_client: Any) -> None:
    pool = getattr(redis_client, "connection_pool", None)
    if pool is None or inspect.iscoroutinefunction(redis_client.execute_command):
        raise ValueError(
            "redis_client must be a redis.Redis or valkey.Valkey (not asyncio, not a cluster), "
            f"got {type(redis_client)}"
        )
    connection = pool.connection_class(**pool.connection_kwargs)  # this does not connect yet
    timeout, retries = connection.socket_timeout, connection.retry._retries
    if not 0 < (timeout or math.inf) <= MAX_SOCKET_TIMEOUT or retries:
        raise ValueError(
            f"redis_client must have a socket_timeout of at most {MAX_SOCKET_TIMEOUT:g} seconds "
            f"and no retries, got socket_timeout={timeout} and {retries} retries: create it with "
            "redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5)"
        )


_scripts: weakref.WeakSet[RedisScript] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The child has none of the threads that may have held a lock in the parent."""
    for script in list(_scripts):
        script.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
