# SPDX-License-Identifier: MIT-0
"""The command: ``python -m lib.mock_server``."""

import sys

from . import main

sys.exit(main())
