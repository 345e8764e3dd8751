"""Example 6: Error logging and monitoring. What is not written down cannot be mended.

    python examples/06_error_logger.py

The log is a file of JSON lines, `mistral_errors.log` beside the README; MISTRAL_LOG_FILE
names another. This is the last lesson; lib/resilient_client.py puts them all together.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.client import MistralClient
from lib.demo import log_file, run_lesson
from lib.error_logger import ErrorLogger
from lib.errors import APITimeoutError, RateLimitError

SUMMARY = """\
=== Summary ===
Error handling best practices:
1. Catch specific exception types
2. Implement retry logic with backoff
3. Respect rate limits
4. Use circuit breakers for stability
5. Provide fallback strategies
6. Log errors comprehensively
7. Monitor and alert on failures
"""


def main(client: MistralClient) -> None:
    print("=== Example 6: Error Logging and Monitoring ===\n")
    logger = ErrorLogger(log_file())

    print("Testing error logging:")
    for kind, error in [  # four results that a day may bring; no request is sent
        ("chat", None),
        ("chat", APITimeoutError("Network timeout")),
        ("embedding", None),
        ("moderation", RateLimitError(429, "Rate limited")),
    ]:
        logger.log_request(kind, success=error is None, error=error)
        print(f"  Logged: {kind} - {'Failed' if error else 'Success'}")

    print("\nMetrics:")
    print_metrics(logger)
    print("\n" + SUMMARY)
    if logger.lost:
        sys.exit(1)  # a program of yours would go on; a lesson on logs has failed without one


def print_metrics(logger: ErrorLogger) -> None:
    for name, value in logger.metrics().items():
        if isinstance(value, dict):
            print(f"  {name}:")
            for error_type, count in value.items():
                print(f"    {error_type}: {count}")
        else:
            print(f"  {name}: {value}")


if __name__ == "__main__":
    run_lesson(main)
