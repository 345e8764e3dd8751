"""Run all simulations in virtual time: each prints a table and draws a picture.

python examples/simulations                     # or: make simulate
python examples/simulations --seed 3            # other random numbers
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.simulations import fleet, jitter, rate_limit, retry_storm
from examples.simulations.report import show
from examples.support.lesson import run_command

SIMULATIONS = {
    "jitter": jitter.report,
    "retry_storm": retry_storm.report,
    "fleet": fleet.report,
    "rate_limit": rate_limit.report,
}

if __name__ == "__main__":
    run_command(lambda: show(SIMULATIONS))
