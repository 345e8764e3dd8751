"""A pool that is written in another folder, and imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "imported"))

from pool_of_slots import RetryPool as RetryPool  # type: ignore[import-not-found]
