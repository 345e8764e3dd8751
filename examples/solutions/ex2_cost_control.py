"""Exercise 2, solved: cost control.

`reserve` compares and books under one lock: that is the whole secret. A controller that
is only asked "may I?" lets every thread in that asks before the first answer has come.
"""

import sys
import threading
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
        self._lock = threading.Lock()
        self._spent = Decimal(0)
        self._open: set[Reservation] = set()

    def reserve(self, model: str, prompt_tokens: int, max_tokens: int) -> Reservation:
        """Set the worst case aside: the prompt, and ``max_tokens`` of answer.

        Raises BudgetExceededError when it is more than remains, UnknownModelError for a
        model without a price, ValueError for negative tokens. Then nothing is set aside.
        """
        reservation = Reservation(model, self._cost(model, prompt_tokens, max_tokens))
        with self._lock:
            remaining = self._budget - self._spent - self._reserved()
            if reservation.amount > remaining:
                raise BudgetExceededError(f"{reservation.amount} USD of {remaining} that remain")
            self._open.add(reservation)
        return reservation

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Book what the call did cost, and free what it didn't.

        ``usage`` is what came back with the answer. None, where the server didn't tell it,
        books the whole reservation: better to have counted too much than too little.
        Raises ValueError for a reservation that isn't open (settled or released before,
        or not made here), and for negative tokens. Then nothing changes.
        """
        cost = reservation.amount
        if usage is not None:
            cost = self._cost(reservation.model, usage.prompt_tokens, usage.completion_tokens)
        with self._lock:
            self._close(reservation)
            self._spent += cost

    def release(self, reservation: Reservation) -> None:
        """Free the whole reservation: the call failed. Raises ValueError if it isn't open."""
        with self._lock:
            self._close(reservation)

    @property
    def spent(self) -> Decimal:
        """USD that answers have cost."""
        with self._lock:
            return self._spent

    @property
    def reserved(self) -> Decimal:
        """USD set aside for calls under way."""
        with self._lock:
            return self._reserved()

    @property
    def remaining(self) -> Decimal:
        """USD that may still be reserved; below 0 if answers cost more than was reserved."""
        with self._lock:
            return self._budget - self._spent - self._reserved()

    def _cost(self, model: str, prompt_tokens: int, completion_tokens: int) -> Decimal:
        if model not in self._prices:
            raise UnknownModelError(f"{model} has no price")
        if prompt_tokens < 0 or completion_tokens < 0:
            raise ValueError("tokens can't be negative")
        price = self._prices[model]
        per_million = prompt_tokens * price.prompt + completion_tokens * price.completion
        return per_million / 1_000_000

    def _reserved(self) -> Decimal:
        return sum((reservation.amount for reservation in self._open), Decimal(0))

    def _close(self, reservation: Reservation) -> None:
        if reservation not in self._open:
            raise ValueError("this reservation is not open")
        self._open.remove(reservation)
