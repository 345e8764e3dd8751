"""Exercise 2: cost control. A runaway loop must not use up the account's money.

Build a controller that stands before every call and says whether there is money for it.
What a call costs is known only when its answer has come, so:

- Before the call, reserve the worst case: the whole prompt, and an answer as long as
  `max_tokens` allows. If that doesn't fit in what remains, the call isn't made.
- After the call, settle: what it did cost is spent, the rest of the reservation is free
  again. An answer that cost more than was reserved is spent in full: it will be billed.
- A call that failed cost nothing: its reservation is released.
- To check first and book later is not enough. Between the two, another thread checks too.
- Money is Decimal from end to end. 0.1 + 0.2 in floats is 0.30000000000000004, and a
  call that costs a ten-thousandth of a cent must not be rounded to nothing.

Write the code between the two marks below, add what you need above, and see how far you are:

    python examples/exercises/check.py 2          (or: make check N=2)
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
    """USD for a million tokens."""

    prompt: Decimal
    completion: Decimal


# Mistral's list prices of 2026-08-21. Prices move: for today's, see https://mistral.ai/pricing
PRICES: Mapping[str, Price] = {
    "mistral-small-latest": Price(Decimal("0.15"), Decimal("0.60")),
    "mistral-medium-latest": Price(Decimal("1.50"), Decimal("7.50")),
    "mistral-large-latest": Price(Decimal("0.50"), Decimal("1.50")),
    "ministral-8b-latest": Price(Decimal("0.15"), Decimal("0.15")),
}


class BudgetExceededError(Exception):
    """The call was not made: its worst case doesn't fit in what remains."""


class UnknownModelError(LookupError):
    """The model has no price, so nobody knows what it costs."""


@dataclass(frozen=True, eq=False)  # each one is itself alone, even beside one of equal amount
class Reservation:
    """Money set aside for one call, in USD."""

    model: str
    amount: Decimal


class CostController:
    """Keeps what all threads spend together within ``budget`` (USD)."""

    def __init__(self, budget: Decimal, prices: Mapping[str, Price] = PRICES) -> None:
        self._budget = budget
        self._prices = prices
        # TODO: yours from here

    def reserve(self, model: str, prompt_tokens: int, max_tokens: int) -> Reservation:
        """Set the worst case aside: the prompt, and ``max_tokens`` of answer.

        Raises BudgetExceededError when it is more than remains, UnknownModelError for a
        model without a price, ValueError for negative tokens. Then nothing is set aside.
        """
        raise NotImplementedError

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Book what the call did cost, and free what it didn't.

        ``usage`` is what came back with the answer. None, where the server didn't tell it,
        books the whole reservation: better to have counted too much than too little.
        Raises ValueError for a reservation that isn't open (settled or released before,
        or not made here), and for negative tokens. Then nothing changes.
        """
        raise NotImplementedError

    def release(self, reservation: Reservation) -> None:
        """Free the whole reservation: the call failed. Raises ValueError if it isn't open."""
        raise NotImplementedError

    @property
    def spent(self) -> Decimal:
        """USD that answers have cost."""
        raise NotImplementedError

    @property
    def reserved(self) -> Decimal:
        """USD set aside for calls under way."""
        raise NotImplementedError

    @property
    def remaining(self) -> Decimal:
        """USD that may still be reserved; below 0 if answers cost more than was reserved."""
        raise NotImplementedError

    # to here


HINTS = (
    "Three numbers describe it all: the budget, what is spent, what is reserved. What remains "
    "follows from them. Which of them does each method change, and by how much? And what must "
    "happen in one go, so that no other thread gets in between?",
    "Keep `self._spent = Decimal(0)`, a set of the open reservations, and a Lock. reserve: work "
    "out the amount first (a method for the cost of so many tokens serves settle too), then, "
    "under one lock, compare it with what remains and add it. settle and release: under the "
    "lock, ValueError unless the reservation is open, then close it.",
    "The cost is (prompt_tokens * price.prompt + tokens * price.completion) / 1_000_000: an int "
    "times a Decimal stays a Decimal, and a division by a power of ten loses nothing. reserved is "
    "sum((r.amount for r in self._open), Decimal(0)). reserve: with the lock, if the amount is "
    "more than budget - spent - reserved, raise, else add a Reservation to self._open. A property "
    "that takes the lock may not be read by a method that holds it: a Lock waits for itself.",
)
