"""Lesson 6: Error logging and monitoring. You can't fix what you didn't log.

    python examples/06_error_logger.py                        # simulated: nothing is sent
    python examples/06_error_logger.py --faults ok,503,401    # six calls, two fail: an alert

The log is `mistral_errors.log` next to README.md, with one JSON object per line. Set
MISTRAL_LOG_FILE to write to another file. The alert is called once when too many of the last
requests failed, not once per failure.

This is the last of the six lessons. lib/resilient_client.py combines all the helpers.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.support.lesson import has_faults_argument, log_file, run_lesson
from lib.client import MistralClient
from lib.error_logger import ErrorLogger
from lib.errors import APITimeoutError, MistralError, RateLimitError

CALLS = 6
ALERT_WINDOW = 3  # requests

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
    if has_faults_argument():
        log_real_calls(client)
    else:
        log_simulated_results()


def log_simulated_results() -> None:
    logger = ErrorLogger(log_file())

    print("Testing error logging:")
    for kind, error in [  # four typical results
        ("chat", None),
        ("chat", APITimeoutError("Network timeout")),
        ("embedding", None),
        ("moderation", RateLimitError(429, "Rate limited")),
    ]:
        logger.log_request(kind, success=error is None, error=error)
        print(f"  Logged: {kind} - {'Failed' if error else 'Success'}")

    print_metrics(logger)
    print(SUMMARY)
    if logger.dropped_records:
        sys.exit(1)  # a real program would continue, but this lesson needs its log


def log_real_calls(client: MistralClient) -> None:
    """Log calls that may fail, alert on the failure rate, and read the log back."""
    logger = ErrorLogger(
        log_file(), alert=print_alert, alert_threshold=0.5, alert_window=ALERT_WINDOW
    )

    print("Testing error logging:")
    for number in range(1, CALLS + 1):
        error = None
        try:
            client.chat([{"role": "user", "content": f"Test {number}"}], max_tokens=5)
        except MistralError as caught:
            error = caught
        print(f"  Logged: chat - {'Failed' if error else 'Success'}")
        logger.log_request("chat", error is None, error, {"number": number})
    if logger.dropped_records:
        sys.exit(1)

    print("\nThe log, read back:")
    for line in Path(logger.path).read_text("ascii").splitlines()[-CALLS:]:
        record = json.loads(line)
        error = record["error"]
        outcome = f"{error['class']}: {error['message']}" if error else "Success"
        print(f"  Call {record['context']['number']}: {outcome}")
    print_metrics(logger)


def print_alert(failure_rate: float) -> None:
    print(f"  ALERT: {failure_rate:.0%} of the last {ALERT_WINDOW} requests failed")


def print_metrics(logger: ErrorLogger) -> None:
    print("\nMetrics:")
    for name, value in logger.metrics().items():
        if isinstance(value, dict):
            print(f"  {name}:")
            for error_type, count in value.items():
                print(f"    {error_type}: {count}")
        else:
            print(f"  {name}: {value}")
    print()


if __name__ == "__main__":
    run_lesson(main)
