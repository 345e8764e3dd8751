"""Runs children side by side while the tests go on: python background.py JOBS.json RESULTS.json

A process of its own, since threads in the tests' process would be counted by those tests
that look for threads left behind.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import Child, run

AT_A_TIME = 5  # they mostly sleep; more would starve the tests on two cores


def main(jobs_file: str, results_file: str) -> None:
    jobs = json.loads(Path(jobs_file).read_text("utf-8"))
    children = {name: Child(*job) for name, job in jobs.items()}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        futures = {
            name: pool.submit(run, *child.arguments, cwd=Path(child.cwd), **child.environment)
            for name, child in children.items()
        }
    results = {name: future.result() for name, future in futures.items()}
    Path(results_file).write_text(json.dumps(results), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
