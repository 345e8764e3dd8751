"""Exercise 2, solved: cost control.

`reserve` compares and books while it holds the lock. If it only compared, all threads that ask
before the first response has arrived would be allowed to call.
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
        self._lock = threading.Lock()
        self._spent = Decimal(0)
        self._open: set[Reservation] = set()

    def reserve(self, model: str, prompt_tokens: int, max_tokens: int) -> Reservation:
        """Set aside the worst case: the prompt and ``max_tokens`` completion tokens.

        Raises BudgetExceededError if that costs more than what remains, UnknownModelError for a
        model without a price, and ValueError for a negative number of tokens. After an error,
        nothing is set aside.
        """
        reservation = Reservation(model, self._cost(model, prompt_tokens, max_tokens))
        with self._lock:
            remaining = self._budget - self._spent - self._reserved()
            if reservation.amount > remaining:
                raise BudgetExceededError(f"{reservation.amount} USD needed, {remaining} remain")
            self._open.add(reservation)
        return reservation

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        """Book the real cost of the call as spent, and free the rest of its reservation.

        ``usage`` comes with the response. If it is None, the whole reservation is booked: it is
        safer to count too much than too little. Raises ValueError for a reservation that
        is not open (settled or released before, or made by another controller), and for a
        negative number of tokens. After an error, nothing has changed.
        """
        cost = reservation.amount
        if usage is not None:
            cost = self._cost(reservation.model, usage.prompt_tokens, usage.completion_tokens)
        with self._lock:
            self._close(reservation)
            self._spent += cost

    def release(self, reservation: Reservation) -> None:
        """Free the reservation of a failed call. Raises ValueError if it is not open."""
        with self._lock:
            self._close(reservation)

    @property
    def spent(self) -> Decimal:
        """Return the USD that responses have cost."""
        with self._lock:
            return self._spent

    @property
    def reserved(self) -> Decimal:
        """Return the USD set aside for calls in progress."""
        with self._lock:
            return self._reserved()

    @property
    def remaining(self) -> Decimal:
        """Return the USD that can be reserved; below 0 if responses cost more than reserved."""
        with self._lock:
            return self._budget - self._spent - self._reserved()

    def _cost(self, model: str, prompt_tokens: int, completion_tokens: int) -> Decimal:
        if model not in self._prices:
            raise UnknownModelError(f"{model!r} has no price")
        if prompt_tokens < 0 or completion_tokens < 0:
            raise ValueError("the number of tokens must be >= 0")
        price = self._prices[model]
        per_million = prompt_tokens * price.prompt + completion_tokens * price.completion
        return per_million / 1_000_000

    def _reserved(self) -> Decimal:
        return sum((reservation.amount for reservation in self._open), Decimal(0))

    def _close(self, reservation: Reservation) -> None:
        if reservation not in self._open:
            raise ValueError("this reservation is not open")
        self._open.remove(reservation)
