"""The other libraries of the benchmark, each configured for the same job."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import circuitbreaker
import loguru
import purgatory
import pybreaker
import structlog
from measure import OURS, Call

from lib.circuit_breaker import CircuitBreaker


def answer() -> str:
    return "Hello!"


def slow_answer() -> str:
    time.sleep(0.02)
    return "Hello!"


def is_retryable(error: BaseException) -> bool:
    return bool(getattr(error, "retryable", False))


def is_final(error: BaseException) -> bool:
    return not is_retryable(error)


def is_ignored(error: BaseException) -> bool:
    """Return True if the breakers must not count the error."""
    return getattr(error, "retryable", True) is False


def guarded(operation: Call) -> dict[str, Call]:
    """Return the operation behind each breaker; five consecutive failures open it for a minute."""
    ours = CircuitBreaker("api", failure_threshold=5, recovery_timeout=60)
    with_pybreaker = pybreaker.CircuitBreaker(
        fail_max=5, reset_timeout=60, exclude=[is_ignored], throw_new_error_on_trip=False
    )
    # Its decorator checks whether the circuit is open; `with breaker` does not.
    with_circuitbreaker = circuitbreaker.CircuitBreaker(
        failure_threshold=5,
        recovery_timeout=60,
        expected_exception=lambda _, e: not is_ignored(e),
    )
    # Its documentation gets the breaker for each call, which takes more than twice as long.
    with_purgatory = purgatory.SyncCircuitBreakerFactory(
        default_threshold=5, default_ttl=60, exclude=[(Exception, is_ignored)]
    ).get_breaker("api")

    def call_with_purgatory() -> object:
        with with_purgatory:
            return operation()

    return {
        OURS: partial(ours.call, operation),
        "pybreaker": partial(with_pybreaker.call, operation),
        "circuitbreaker (no lock)": with_circuitbreaker(operation),
        "purgatory (no lock)": call_with_purgatory,
    }


def error_fields(error: Exception) -> dict[str, Any]:
    """Return the error's fields as this project logs them."""
    return {
        "class": type(error).__name__,
        "message": str(error),
        "status_code": getattr(error, "status_code", None),
        "request_id": getattr(error, "request_id", None),
        "gave_up": getattr(error, "gave_up", None),
        "last_failure": getattr(error, "last_failure", None),
    }


class PlainJson(logging.Formatter):
    """A minimal formatter for messages that are dicts."""

    def format(self, record: logging.LogRecord) -> str:
        assert isinstance(record.msg, dict)
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        return json.dumps({"timestamp": moment.isoformat(timespec="milliseconds"), **record.msg})


def file_logger(
    path: Path, formatter: logging.Formatter, stack: contextlib.ExitStack
) -> logging.Logger:
    handler = logging.FileHandler(path, encoding="utf-8")  # it flushes each line
    stack.callback(handler.close)
    handler.setFormatter(formatter)
    logger = logging.getLogger(path.name)
    logger.propagate = False
    logger.addHandler(handler)
    return logger


def structlog_logger(path: Path, stack: contextlib.ExitStack) -> Any:
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.EventRenamer("type"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # WriteLogger flushes each line.
        logger_factory=structlog.WriteLoggerFactory(stack.enter_context(path.open("a"))),
    )
    return structlog.get_logger().bind()  # bound once: the proxy is slower


def loguru_logger(path: Path, stack: contextlib.ExitStack) -> Any:
    """Use a format function: ``serialize=True`` writes nearly three times as much."""

    def line(record: Any) -> str:
        moment = record["time"].isoformat(timespec="milliseconds")
        fields = {"timestamp": moment, "type": record["message"], **record["extra"]}
        record["extra"]["line"] = json.dumps(fields)
        return "{extra[line]}\n"

    loguru.logger.remove()
    sink = loguru.logger.add(path, format=line)  # it buffers by the line
    stack.callback(loguru.logger.remove, sink)
    return loguru.logger


@contextlib.contextmanager
def mock_server() -> Iterator[str]:
    """Yield the URL of a mock server that runs in another process."""
    serve = (
        "import sys; from lib.mock_server import MockServer\n"
        "with MockServer() as server: print(server.url, flush=True); sys.stdin.read()"
    )
    child = [sys.executable, "-c", serve]
    with subprocess.Popen(
        child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
