# SPDX-License-Identifier: MIT-0
"""Robust error handling for an LLM HTTP API, one technique per file.

Start with ``errors.py`` (what can go wrong) and ``client.py`` (one chat call). Below the client
are ``completion.py`` (what a response holds), ``event_stream.py``, ``transport.py``,
``response.py`` and ``total_timeout.py``. Then read one helper per technique: ``retry.py``,
``rate_limiter.py``, ``circuit_breaker.py``, ``fallback.py``, ``error_logger.py``. You can copy
each of these five alone, and ``token_limiter.py`` with ``rate_limiter.py``. ``pipeline.py``
combines all but the fallback, and ``resilient_client.py`` puts the client into it.
``sdk_errors.py`` reads the errors of other libraries. README.md shows how.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (one sentence instead of a traceback)
    sys.exit(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")
