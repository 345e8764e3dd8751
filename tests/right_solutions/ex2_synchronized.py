"""A controller with a decorator that holds an RLock, and with running totals."""

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from lib.client import Usage

MILLION = Decimal(1_000_000)


@dataclass(frozen=True)
class Price:
    prompt: Decimal
    completion: Decimal


PRICES = {"mistral-small-latest": Price(Decimal("0.15"), Decimal("0.60"))}


class BudgetExceededError(Exception):
    pass


class UnknownModelError(LookupError):
    pass


@dataclass(frozen=True, eq=False)
class Reservation:
    model: str
    amount: Decimal


def synchronized(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def locked(self: "CostController", *args: Any) -> Any:
        with self.lock:
            return method(self, *args)

    return locked


class CostController:
    def __init__(self, budget: Decimal, prices: Mapping[str, Price] = PRICES) -> None:
        self.budget = budget
        self.prices = prices
        self.lock = threading.RLock()
        self.open: list[Reservation] = []
        self._spent = self._reserved = Decimal(0)

    @synchronized
    def reserve(self, model: str, prompt_tokens: int, max_tokens: int) -> Reservation:
        amount = self.cost(model, prompt_tokens, max_tokens)
        if amount > self.remaining:
            raise BudgetExceededError
        reservation = Reservation(model, amount)
        self.open.append(reservation)
        self._reserved += amount
        return reservation

    @synchronized
    def settle(self, reservation: Reservation, usage: Usage | None) -> None:
        cost = reservation.amount
        if usage:
            cost = self.cost(reservation.model, usage.prompt_tokens, usage.completion_tokens)
        self.release(reservation)
        self._spent += cost

    @synchronized
    def release(self, reservation: Reservation) -> None:
        self.open.remove(reservation)  # a ValueError if it isn't there
        self._reserved -= reservation.amount

    @property
    @synchronized
    def spent(self) -> Decimal:
        return self._spent

    @property
    @synchronized
    def reserved(self) -> Decimal:
        return self._reserved

    @property
    @synchronized
    def remaining(self) -> Decimal:
        return self.budget - self._spent - self._reserved

    def cost(self, model: str, prompt_tokens: int, completion_tokens: int) -> Decimal:
        if min(prompt_tokens, completion_tokens) < 0:
            raise ValueError
        if model not in self.prices:
            raise UnknownModelError
        price = self.prices[model]
        return (prompt_tokens * price.prompt + completion_tokens * price.completion) / MILLION
