# SPDX-License-Identifier: MIT-0
"""Robust error handling for an LLM HTTP API, one idea per file.

Start with ``errors.py`` (what can go wrong) and ``client.py`` (one chat call).
Then one helper per technique: ``retry.py``, ``rate_limiter.py``, ``token_limiter.py``,
``circuit_breaker.py``, ``fallback.py``, ``error_logger.py``; each works when copied
alone. ``resilient_client.py`` puts them together. README.md has recipes.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (a sentence, where there would be a traceback)
    sys.exit(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
