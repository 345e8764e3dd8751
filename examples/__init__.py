"""The lessons, one script each. README.md in this folder is the workshop."""

import importlib.util
import sys

if sys.version_info < (3, 10):  # noqa: UP036  (one sentence instead of a traceback)
    sys.exit(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
for package in ("requests", "dotenv"):
    if importlib.util.find_spec(package) is None:
        sys.exit(
            f"The package {package} is not installed. `make run-all` installs it into .venv; then "
            "run `. .venv/bin/activate`, or use .venv/bin/python."
        )
