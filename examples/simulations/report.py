"""The command line of the simulations: print the tables, write the pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from examples.support.lesson import Parser, UsageError, print_err

FOLDER = Path(__file__).resolve().parent
DEFAULT_SEED = 2


class Report(NamedTuple):
    """The results of a simulation: a table for the console, and a picture as SVG."""

    table: str
    picture: str


def show(simulations: Mapping[str, Callable[[int], Report]]) -> int:
    """Run each simulation, print its table and write its picture to NAME.svg."""
    parser = Parser(description=(sys.modules["__main__"].__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of the random numbers")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER",
                        help="folder for the pictures; by default that of the scripts")  # fmt: skip
    options = parser.parse_args()
    if not options.output.is_dir():
        parser.error(f"there is no folder {options.output}")
    for name, simulation in simulations.items():
        report = simulation(options.seed)
        print(report.table)
        path = options.output / f"{name}.svg"
        try:
            path.write_text(report.picture, "utf-8", newline="\n")
        except OSError as error:
            raise UsageError(f"{path} can't be written ({error.strerror}).") from None
    print_err(f"The pictures are in {options.output}.")
    return 0
