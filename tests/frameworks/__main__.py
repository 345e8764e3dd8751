"""Check the clients of ``clients.py`` and write the verdicts into the pages.

    python tests/frameworks [NAME ...]

``make check-frameworks`` installs the clients before. With names, the others keep their results.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from frameworks import report  # noqa: E402
from frameworks.clients import CLIENTS, ENVIRONMENTS, Client  # noqa: E402

AT_A_TIME = 2


def check(client: Client) -> Any:
    """Check a client with the Python of its environment; return None if that is impossible."""
    python = ENVIRONMENTS / (client.environment or "") / "bin" / "python"
    command = [str(python) if python.exists() else sys.executable, str(HERE / "check.py")]
    done = subprocess.run([*command, client.name], capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr.strip(), file=sys.stderr)
        return None
    result = json.loads(done.stdout)
    print(f"{client.name}: {result['versions']}")
    for rule, (verdict, happened) in result["verdicts"].items():
        if verdict != "pass":
            print(f"    {verdict:<9}  {rule}: {happened}")
    return result


def main() -> int:
    """Check the clients that the command line names, or all of them."""
    names = sys.argv[1:] or [client.name for client in CLIENTS]
    if unknown := set(names) - {client.name for client in CLIENTS}:
        print(f"No client of this name: {', '.join(unknown)}.", file=sys.stderr)
        return 2
    results = report.load()
    found = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        chosen = [client for client in CLIENTS if client.name in names]
        for client, result in zip(chosen, pool.map(check, chosen), strict=True):
            if result:
                found.append(client)
                results[client.name] = result
                report.write(results)
    return 0 if found == chosen else 1


if __name__ == "__main__":
    sys.exit(main())
