"""Exercise 2: cost control. A runaway loop must not use up your account's money.

Build a controller that decides before each call whether there is enough money for it. The cost of
a call is known only when its response has arrived, so:

- Before the call, reserve the worst case: the whole prompt, and a completion as long as
  `max_tokens` allows. If that costs more than what remains, the call is not made.
- After the call, settle: the real cost is booked as spent, and the rest of the reservation is
  free again. If a response cost more than was reserved, book the full cost: you will be billed.
- A failed call costs nothing: its reservation is released.
- Check and book in one step. Otherwise another thread can check in between, and both threads
  spend the same money.
- All money is Decimal, because in floats 0.1 + 0.2 is 0.30000000000000004. Never round: a call
  that costs a ten-thousandth of a cent must count too.

When these rules hold, the check shows the stretch part:

- Threads settle, release and reserve at the same moment, and read the amounts meanwhile. No money
  is lost, and none is given back twice.
- A reservation belongs to one controller. Another controller does not take it, even if it has a
  reservation that looks the same. Two controllers share nothing.
- A negative number of tokens would give money back: it is an error, and changes nothing.
- Each amount is exact, to the last digit.

Write your code between the two marks below, add imports above them, and check it:

    make check N=2          (or: python examples/exercises/check.py 2)
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.client import Usage


@dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    prompt: Decimal
    completion: Decimal


# Mistral's list prices of 2026-08-21. Prices change; the current ones: https://mistral.ai/pricing
PRICES: Mapping[str, Price] = {
    "mistral-small-latest": Price(Decimal("0.15"), Decimal("0.60")),
    "mistral-medium-latest": Price(Decimal("1.50"), Decimal("7.50")),
    "mistral-large-latest": Price(Decimal("0.50"), Decimal("1.50")),
    "ministral-8b-latest": Price(Decimal("0.15"), Decimal("0.15")),
}


class BudgetExceededError(Exception):
    """The call was not made: its worst case costs more than what remains."""


class UnknownModelError(LookupError):
    """The model has no price, so the cost of a call is unknown."""


@dataclass(frozen=True, eq=False)  # two reservations of the same amount are not equal
class Reservation:
    """Money set aside for one call; ``amount`` is in USD."""

    model: str
    amount: Decimal


class CostController:
    """Keep the spending of all threads together within ``budget`` (USD). Thread-safe."""

    def __init__(self, budget: Decimal, prices: Mapping[str, Price] = PRICES) -> None:
        self._budget = budget
        self._prices = prices
        # TODO: yours from here

    def reserve(self, model: str, prompt_tokens: int, max_tokens: int) -> Reservation:
        """Set aside the worst case: the prompt and ``max_tokens`` completion tokens.

        Raises BudgetExceededError if that costs more than what remains, UnknownModelError for a
        model without a price, and ValueError for a negative number of tokens. After an error,
        nothing is set aside.
        """
        raise NotImplementedError

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Book the real cost of the call as spent, and free the rest of its reservation.

        ``usage`` comes with the response. If it is None, the whole reservation is booked: it is
        safer to count too much than too little. Raises ValueError for a reservation that
        is not open (settled or released before, or made by another controller), and for a
        negative number of tokens. After an error, nothing has changed.
        """
        raise NotImplementedError

    def release(self, reservation: Reservation) -> None:
        """Free the reservation of a failed call. Raises ValueError if it is not open."""
        raise NotImplementedError

    @property
    def spent(self) -> Decimal:
        """Return the USD that responses have cost."""
        raise NotImplementedError

    @property
    def reserved(self) -> Decimal:
        """Return the USD set aside for calls in progress."""
        raise NotImplementedError

    @property
    def remaining(self) -> Decimal:
        """Return the USD that can be reserved; below 0 if responses cost more than reserved."""
        raise NotImplementedError

    # to here


if __name__ == "__main__":
    print("Check it with: make check N=2 (or: python examples/exercises/check.py 2)")
