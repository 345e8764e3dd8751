"""A controller that reckons in floats and shows Decimals: what was lost before stays lost."""

import threading
from collections.abc import Mapping
from decimal import Decimal

from examples.solutions.ex2_cost_control import (
    PRICES,
    BudgetExceededError,
    Price,
    Reservation,
    UnknownModelError,
)
from lib.client import Usage

__all__ = ["BudgetExceededError", "CostController", "Price", "Reservation", "UnknownModelError"]


class CostController:
    def __init__(self, budget: Decimal, prices: Mapping[str, Price] = PRICES) -> None:
        self._budget = float(budget)
        self._prices = prices
        self._lock = threading.Lock()
        self._spent = 0.0
        self._open: dict[Reservation, float] = {}

    def reserve(self, model: str, prompt_tokens: int, max_tokens: int) -> Reservation:
        amount = self._cost(model, prompt_tokens, max_tokens)
        with self._lock:
            if amount > self._budget - self._spent - sum(self._open.values()):
                raise BudgetExceededError
            reservation = Reservation(model, Decimal(str(amount)))
            self._open[reservation] = amount
            return reservation

    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        cost = float(reservation.amount)
        if usage:
            cost = self._cost(reservation.model, usage.prompt_tokens, usage.completion_tokens)
        with self._lock:
            if reservation not in self._open:
                raise ValueError("not open")
            del self._open[reservation]
            self._spent += cost

    def release(self, reservation: Reservation) -> None:
        with self._lock:
            if reservation not in self._open:
                raise ValueError("not open")
            del self._open[reservation]

    @property
    def spent(self) -> Decimal:
        return Decimal(str(self._spent))

    @property
    def reserved(self) -> Decimal:
        return Decimal(str(sum(self._open.values())))

    @property
    def remaining(self) -> Decimal:
        return Decimal(str(self._budget - self._spent - sum(self._open.values())))

    def _cost(self, model: str, prompt_tokens: int, completion_tokens: int) -> float:
        if model not in self._prices:
            raise UnknownModelError
        if prompt_tokens < 0 or completion_tokens < 0:
            raise ValueError("negative")
        price = self._prices[model]
        per_million = prompt_tokens * float(price.prompt) + completion_tokens * float(
            price.completion
        )
        return per_million / 1e6
